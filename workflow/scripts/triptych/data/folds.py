"""Step: cut a data set's train and validation parts into cross-validation folds, whole groups at a time."""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from triptych.config.folds import Folds
from triptych.config.grid import folds_name
from triptych.data.duplicates import read_thumbnails, similar_pairs
from triptych.data.schemas import FOLD_SCHEMA
from triptych.errors import TriptychError, run_step
from triptych.io.manifest import sha256_file, write_record
from triptych.io.parquet import read_table, write_table
from triptych.utils.seeds import stable_order


def group_images(images: list[dict], thumbnails: np.ndarray, settings: Folds) -> dict[str, str]:
    """The group of every image: the least id among the images that must stay together.

    Exact copies always stay together; subjects and look-alikes do as `settings.group` says.

    Args:
        images: rows with id, sha256 and group, one for each thumbnail.
        thumbnails: (N, 32, 32) grey values.
        settings: kind of group and threshold of likeness.
    """
    links = _equal_pairs([row["sha256"] for row in images])
    if settings.group in ("subject", "near-duplicate-cluster"):
        links += _equal_pairs([row["group"] for row in images])
    if settings.group == "near-duplicate-cluster":
        alike = similar_pairs(thumbnails, thumbnails, settings.near_duplicate)
        links += [(first, second) for first, second, _ in alike]
    first, second = np.array(links).T if links else np.zeros((2, 0), int)
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(images), len(images)))
    _, labels = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    for label, row in zip(labels, images, strict=True):
        names[label] = min(names.get(label, row["id"]), row["id"])
    return {row["id"]: names[label] for label, row in zip(labels, images, strict=True)}


def _equal_pairs(values: list[str]) -> list[tuple[int, int]]:
    """Each position with the first position of the same value."""
    first: dict[str, int] = {}
    return [(first.setdefault(value, position), position) for position, value in enumerate(values)]


def assign(questions: list[dict], groups: dict[str, str], settings: Folds, cut: str = "") -> list[dict]:
    """Rows (fold, question_id, part, group) for every fold.

    Groups are never cut between training and held-out part. Folds are stratified by modality and answer type as far as
    the groups allow. Of a fold's training part, some units are kept aside for validation. With `group: official` there
    is one fold, which holds out the source's own validation part.

    Args:
        questions: rows with question_id, image_id, modality, answer_type and split; those of split `test` are left out.
        groups: group of every image; not used with `group: row`, where every question is a group of its own.
        settings: number of folds, share of validation, seed.
        cut: prefix of the folds' names, such as "row-".

    Raises:
        TriptychError: there are fewer groups than folds, or too few to keep one aside.
    """
    pool = sorted((row for row in questions if row["split"] != "test"), key=lambda row: row["question_id"])
    owners = [row["question_id"] if settings.group == "row" else groups[row["image_id"]] for row in pool]
    if len(set(owners)) < settings.number + 1:
        raise TriptychError(
            f"folds.number: {settings.number} folds need at least {settings.number + 1} groups (folds.group: "
            f"{settings.group}), but data set '{settings.dataset}' has {len(set(owners))}"
        )
    units = owners if settings.validation_unit == "group" else [row["image_id"] for row in pool]
    rows = []
    for index, held_out in enumerate(_held_out(pool, owners, settings)):
        fold = f"{cut}fold{index}"
        aside = _aside(
            [unit for unit, owner in zip(units, owners, strict=True) if owner not in held_out], settings, fold
        )
        for row, owner, unit in zip(pool, owners, units, strict=True):
            part = "test" if owner in held_out else "validation" if unit in aside else "train"
            rows.append({"fold": fold, "question_id": row["question_id"], "part": part, "group": owner})
        empty = {"train", "validation", "test"} - {row["part"] for row in rows if row["fold"] == fold}
        if empty:
            raise TriptychError(
                f"folds: {fold} has nothing for {' and '.join(sorted(empty))}; there are only "
                f"{len(set(owners))} groups (folds.group: {settings.group}): lower folds.number"
            )
    return rows


def _held_out(pool: list[dict], owners: list[str], settings: Folds) -> list[set[str]]:
    """The groups that each fold holds out.

    Raises:
        TriptychError: an image is in two of the source's parts, which are to be used as they are.
    """
    if settings.group == "official":
        held_out = {owner for row, owner in zip(pool, owners, strict=True) if row["split"] == "validation"}
        training = {owner for row, owner in zip(pool, owners, strict=True) if row["split"] == "train"}
        if both := sorted(held_out & training):
            raise TriptychError(
                f"folds.group: official: {len(both)} images of data set '{settings.dataset}' are in both its train "
                f"and its validation part, such as {both[0]}; use another group"
            )
        return [held_out]
    splitter = StratifiedGroupKFold(settings.number, shuffle=True, random_state=settings.seed)
    strata = [f"{row['modality']}|{row['answer_type']}" for row in pool]
    if max(Counter(strata).values()) < settings.number:
        strata = ["all"] * len(pool)  # too few of a kind to be spread
    folds = splitter.split(np.zeros(len(pool)), strata, owners)
    return [{owners[position] for position in test} for _, test in folds]


def _aside(owners: list[str], settings: Folds, fold: str) -> set[str]:
    """Training units kept aside: in a seeded order, each that still fits into the wanted share; at least one.

    Args:
        owners: the unit (group or image) of every training question.
        settings: share and seed.
        fold: name of the fold; each has an order of its own.
    """
    sizes = Counter(owners)
    order = sorted(sizes, key=lambda unit: stable_order(settings.seed, fold, unit))
    room = settings.validation_fraction * len(owners)
    chosen: set[str] = set()
    for unit in order:
        if sizes[unit] <= room:
            chosen.add(unit)
            room -= sizes[unit]
    return chosen or {min(order, key=lambda unit: sizes[unit])}


def summarise(questions: list[dict], rows: list[dict]) -> dict:
    """Counts of questions, images and groups per fold and part."""
    by_id = {row["question_id"]: row for row in questions}
    summary: dict = {}
    for fold in sorted({row["fold"] for row in rows}):
        for part in ("train", "validation", "test"):
            members = [row for row in rows if (row["fold"], row["part"]) == (fold, part)]
            asked = [by_id[row["question_id"]] for row in members]
            summary.setdefault(fold, {})[part] = {
                "questions": len(members),
                "images": len({row["image_id"] for row in asked}),
                "groups": len({row["group"] for row in members}),
                "modalities": dict(sorted(Counter(row["modality"] for row in asked).items())),
                "answer_types": dict(sorted(Counter(row["answer_type"] for row in asked).items())),
            }
    return summary


def main() -> None:
    """Write `folds.parquet` and its summary `folds.json`; with --cut row-, `folds-row.parquet` and so on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--settings", required=True, help="`folds` settings as JSON")
    parser.add_argument("--cut", default="", help="prefix of the folds' names")
    arguments = parser.parse_args()
    settings = Folds.model_validate_json(arguments.settings)
    questions = read_table(arguments.data / "questions.parquet")
    images, thumbnails = read_thumbnails(arguments.data / "images")
    rows = assign(questions, group_images(images, thumbnails, settings), settings, arguments.cut)
    table = arguments.data / f"{folds_name(rows[0]['fold'])}.parquet"
    write_table(table, rows, FOLD_SCHEMA)
    summary = summarise(questions, rows)
    record = {"settings": settings.model_dump(), "sha256": sha256_file(table), "folds": summary}
    write_record(table.with_suffix(".json"), record)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    run_step(main)
