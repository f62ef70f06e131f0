"""Step: cut a data set's train and validation parts into cross-validation folds, whole groups at a time."""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.model_selection import StratifiedGroupKFold

from triptych.settings import Folds
from triptych.storage import TriptychError, read_table, run_step, sha256_file, stable_order, write_json, write_table

SCHEMA = pa.schema([("fold", pa.string()), ("question_id", pa.string()), ("part", pa.string())])


def assign(questions: list[dict], settings: Folds) -> list[dict]:
    """Rows (fold, question_id, part) for every fold.

    Groups (patients or images) are never cut between training and held-out part. Folds are stratified by modality and
    answer type as far as the groups allow. Of a fold's training part, some units are kept aside for validation.

    Args:
        questions: rows with question_id, group, modality, answer_type and split; those of split `test` are left out.
        settings: number of folds, share of validation, seed.

    Raises:
        TriptychError: there are fewer groups than folds, or too few to keep one aside.
    """
    pool = sorted((row for row in questions if row["split"] != "test"), key=lambda row: row["question_id"])
    groups = sorted({row["group"] for row in pool})
    if len(groups) < settings.number + 1:
        raise TriptychError(
            f"folds.number: {settings.number} folds need at least {settings.number + 1} groups (patients or images), "
            f"but data set '{settings.dataset}' has {len(groups)}"
        )
    splitter = StratifiedGroupKFold(settings.number, shuffle=True, random_state=settings.seed)
    strata = [f"{row['modality']}|{row['answer_type']}" for row in pool]
    unit = {"group": "group", "image": "image_id"}[settings.validation_unit]
    rows = []
    for index, (_, test) in enumerate(splitter.split(np.zeros(len(pool)), strata, [row["group"] for row in pool])):
        fold = f"fold{index}"
        held_out = {pool[position]["group"] for position in test}
        aside = _aside([row[unit] for row in pool if row["group"] not in held_out], settings, fold)
        for row in pool:
            part = "test" if row["group"] in held_out else "validation" if row[unit] in aside else "train"
            rows.append({"fold": fold, "question_id": row["question_id"], "part": part})
    return rows


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
            members = [by_id[row["question_id"]] for row in rows if (row["fold"], row["part"]) == (fold, part)]
            summary.setdefault(fold, {})[part] = {
                "questions": len(members),
                "images": len({row["image_id"] for row in members}),
                "groups": len({row["group"] for row in members}),
                "modalities": dict(sorted(Counter(row["modality"] for row in members).items())),
            }
    return summary


def main() -> None:
    """Write `folds.parquet` and its summary `folds.json`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--settings", required=True, help="`folds` settings as JSON")
    arguments = parser.parse_args()
    settings = Folds.model_validate_json(arguments.settings)
    questions = read_table(arguments.data / "questions.parquet")
    rows = assign(questions, settings)
    table = arguments.data / "folds.parquet"
    write_table(table, rows, SCHEMA)
    summary = summarise(questions, rows)
    record = {"settings": settings.model_dump(), "sha256": sha256_file(table), "folds": summary}
    write_json(arguments.data / "folds.json", record)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    run_step(main)
