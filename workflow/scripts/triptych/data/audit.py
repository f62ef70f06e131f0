"""Step: look for leaks between all parts of all data sets, and say how the folds are balanced.

A part is the train, validation or test part of a data set's source, or of one fold.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from triptych.config.arms import BASELINES
from triptych.data.answers import same_answer
from triptych.data.audit_page import markdown
from triptych.data.duplicates import read_thumbnails, similar_pairs
from triptych.data.lookups import Predictor, image_vectors, question_key
from triptych.data.rejects import causes_of, counted, say_counts, summary
from triptych.data.schemas import SPLITS
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import write_text
from triptych.io.manifest import read_json, write_record
from triptych.io.parquet import read_table
from triptych.utils.terminal import announce

SHOWN = 5  # leaked images named in an error


@dataclass(frozen=True)
class Part:
    """Images and questions of one part: sha256, thumbnail and subject ("" for none) of each image, question strings."""

    name: str
    ids: list[str]
    hashes: list[str]
    thumbnails: np.ndarray
    questions: set[str]
    subjects: list[str] = field(default_factory=list)


def overlap(first: Part, second: Part, threshold: float) -> dict:
    """Count the images and questions of `second` that are, or look like, some of `first`.

    Returns:
        Counts: identical images, images that look alike without being identical, question strings, and images of a
        subject that has images in `first` (None where no subject of `second` is known); of how many.
    """
    known, subjects = set(first.hashes), set(first.subjects) - {""}
    same = {position for position, sha256 in enumerate(second.hashes) if sha256 in known}
    like = {position for _, position, _ in similar_pairs(first.thumbnails, second.thumbnails, threshold)}
    seen = sum(subject in subjects for subject in second.subjects)
    return {
        "seen": first.name,
        "part": second.name,
        "images": len(second.ids),
        "identical_images": len(same),
        "similar_images": len(like - same),
        "question_strings": len(second.questions),
        "shared_question_strings": len(second.questions & first.questions),
        "seen_subject_images": seen if any(second.subjects) else None,
    }


def leaks(shared: Part, held_out: Part, threshold: float) -> list[str]:
    """Describe images of a stage that all folds share which are, or look like, held-out images, a line for each."""
    return same_images(shared, held_out) + look_alikes(shared, held_out, threshold)


def same_images(shared: Part, held_out: Part) -> list[str]:
    """Describe images of `shared` whose bytes are those of a held-out image, a line for each."""
    owners = dict(zip(held_out.hashes, held_out.ids, strict=True))
    return [
        f"{shared.name} {name} is the image {owners[sha256]} of {held_out.name}"
        for name, sha256 in zip(shared.ids, shared.hashes, strict=True)
        if sha256 in owners
    ]


def look_alikes(shared: Part, held_out: Part, threshold: float) -> list[str]:
    """Describe images of `shared` that look like a held-out image without being it, a line for each pair."""
    return [
        f"{shared.name} {shared.ids[first]} looks like {held_out.ids[second]} of {held_out.name} ({similarity:.3f})"
        for first, second, similarity in similar_pairs(shared.thumbnails, held_out.thumbnails, threshold)
        if shared.hashes[first] != held_out.hashes[second]
    ]


def transfer_audit(
    trained: Sequence[Part], asked: Mapping[str, Part], threshold: float
) -> dict[str, dict[str, list[str]]]:
    """Compare what is trained on with what other data sets are asked about.

    Args:
        trained: the training and validation parts of all data sets that are trained on.
        asked: the part that is asked, by name of the data set.
        threshold: correlation of thumbnails above which images look alike.

    Returns:
        By name of the data set: `same`, a line for each image that is trained on, and `alike`, one for each that only
        looks like one.
    """
    return {
        name: {
            "same": [line for part in trained for line in same_images(part, other)],
            "alike": [line for part in trained for line in look_alikes(part, other, threshold)],
        }
        for name, other in asked.items()
    }


def subjects_of(questions: Iterable[Mapping]) -> dict[str, str]:
    """Give the subject of each image; nothing for a data set that names none, where each image is its own group.

    Args:
        questions: its rows, with `image_id` and `group`.
    """
    found = {row["image_id"]: row["group"] for row in questions if row["group"]}
    return found if any(group != image for image, group in found.items()) else {}


def parts_of(folder: Path, name: str) -> dict[str, Part]:
    """Read the parts of a data set's source by name, and `all` of it."""
    images, thumbnails = read_thumbnails(folder / "images")
    questions = read_table(folder / "questions.parquet", columns=["split", "question", "image_id", "group"])
    # Subjects of two data sets are never the same, whatever they are called.
    subjects = {image: f"{name}: {subject}" for image, subject in subjects_of(questions).items()}
    parts = {}
    for part in (*SPLITS, "all"):
        chosen = [index for index, row in enumerate(images) if part in ("all", row["split"])]
        known = {question_key(row) for row in questions if part in ("all", row["split"])}
        parts[part] = _part(name if part == "all" else f"{name} {part}", images, thumbnails, chosen, known, subjects)
    return {part: found for part, found in parts.items() if found.ids}


def _part(
    name: str,
    images: list[dict],
    thumbnails: np.ndarray,
    chosen: Sequence[int],
    questions: set[str],
    subjects: Mapping[str, str],
) -> Part:
    rows = [images[index] for index in chosen]
    ids, hashes = [row["id"] for row in rows], [row["sha256"] for row in rows]
    return Part(name, ids, hashes, thumbnails[chosen], questions, [subjects.get(image, "") for image in ids])


def fold_overlaps(folder: Path, threshold: float) -> list[dict]:
    """Count the overlap of every fold's held-out and validation part with what the fold trains on.

    Returns:
        Counts as those of `overlap`.
    """
    images, thumbnails = read_thumbnails(folder / "images")
    position = {row["id"]: index for index, row in enumerate(images)}
    questions = {row["question_id"]: row for row in read_table(folder / "questions.parquet")}
    rows = read_table(folder / "folds.parquet")
    known = subjects_of(questions.values())
    found = []
    for fold in sorted({row["fold"] for row in rows}):
        parts = {}
        for part in SPLITS:
            own = [questions[row["question_id"]] for row in rows if (row["fold"], row["part"]) == (fold, part)]
            subjects = {row["image_id"]: known.get(row["image_id"], "") for row in own}
            chosen = sorted(position[image] for image in subjects)
            name = f"{fold} {'held out' if part == 'test' else part}"
            parts[part] = _part(name, images, thumbnails, chosen, set(map(question_key, own)), subjects)
        found += [overlap(parts["train"], parts[part], threshold) for part in ("validation", "test")]
    return found


def balance(folder: Path) -> list[dict]:
    """Compute the share of every modality and answer type, in per cent, in each fold's held-out part and the whole."""
    questions = {row["question_id"]: row for row in read_table(folder / "questions.parquet")}
    members: dict[str, list[dict]] = {}
    for row in read_table(folder / "folds.parquet"):
        members.setdefault(row["fold"], [])
        if row["part"] == "test":
            members[row["fold"]].append(questions[row["question_id"]])
    members = {"all folds": [row for rows in members.values() for row in rows], **members}
    return [
        {
            "part": part,
            "questions": len(rows),
            "labels": {
                f"{label} {value or '-'}": 100 * number / len(rows)
                for label in ("answer_type", "modality")
                for value, number in sorted(Counter(row[label] for row in rows).items())
            },
        }
        for part, rows in members.items()
    ]


def baseline_scores(folder: Path) -> list[dict]:
    """Score the look-ups by exact match: on the source's own parts, and on every fold's held-out part."""
    questions = read_table(folder / "questions.parquet")
    by_id = {row["question_id"]: row for row in questions}
    vectors = image_vectors(folder)
    trials = [
        (f"{part} (official)", _split(questions, "train"), _split(questions, part)) for part in ("validation", "test")
    ]
    rows = read_table(folder / "folds.parquet")
    for fold in sorted({row["fold"] for row in rows}):
        parts = {
            part: [by_id[row["question_id"]] for row in rows if (row["fold"], row["part"]) == (fold, part)]
            for part in SPLITS
        }
        trials.append((f"{fold} held out", parts["train"], parts["test"]))
    return [
        {"part": part, "baseline": name, **_exact_match(asked, baseline.load()(training, vectors))}
        for part, training, asked in trials
        if training and asked
        for name, baseline in BASELINES.items()
        if baseline.vectors != "features" and not baseline.fitted  # features are made later; to fit takes time
    ]


def _exact_match(asked: list[dict], predict: Predictor) -> dict[str, float | None]:
    """Per cent of right answers to all, open and closed questions; None where there are none of a kind."""
    right = [same_answer(predict(row), row["answer"]) for row in asked]
    found = {}
    for kind, answer_type in (("all", None), ("open", "OPEN"), ("closed", "CLOSED")):
        values = [hit for row, hit in zip(asked, right, strict=True) if answer_type in (None, row["answer_type"])]
        found[kind] = 100 * sum(values) / len(values) if values else None
    return found


def cropped_share(folder: Path) -> dict[str, float]:
    """Compute how much of the images' area a crop to the middle square leaves out, in per cent: the mean, the most."""
    sides = [(row["width"], row["height"]) for row in read_table(folder / "images", ["width", "height"])]
    lost = [100 * (1 - min(pair) / max(pair)) for pair in sides]
    return {"mean": sum(lost) / max(1, len(lost)), "most": max(lost, default=0.0)}


def _split(questions: Iterable[dict], split: str) -> list[dict]:
    return [row for row in questions if row["split"] == split]


def audit(
    folders: dict[str, Path],
    folded: str,
    shared: Iterable[str],
    threshold: float,
    asked: Mapping[str, str] | None = None,
) -> tuple[dict, list[str]]:
    """Make the whole audit, and a line for every leak.

    Args:
        folders: folder of every data set by name.
        folded: the data set that is cut into folds.
        shared: data sets of stages that all folds share.
        threshold: correlation of thumbnails above which images look alike.
        asked: data sets that nothing trains on, each with the part that is asked.

    Raises:
        TriptychError: a data set lacks the part that is asked.
    """
    asked = asked or {}
    parts = {name: parts_of(folder, name) for name, folder in folders.items()}
    for name, part in asked.items():
        if part not in parts[name]:
            raise TriptychError(f"evaluation.datasets.{name}: the data set has no image in its part '{part}'")
    found = [line for name in shared for line in leaks(parts[name]["all"], parts[folded]["all"], threshold)]
    pairs = [
        (parts[name][first], parts[name][second])
        for name in folders
        for first, second in (("train", "validation"), ("train", "test"), ("validation", "test"))
        if first in parts[name] and second in parts[name]
    ]
    pairs += [
        (parts[name]["all"], part)
        for name in folders
        if name != folded and name not in asked
        for kind, part in parts[folded].items()
        if kind != "all"
    ]
    trained = [parts[name][part] for name in folders if name not in asked for part in SPLITS[:2] if part in parts[name]]
    pairs += [(part, parts[name][kind]) for name, kind in asked.items() for part in trained]
    result = {
        "threshold": threshold,
        "overlaps": [overlap(first, second, threshold) for first, second in pairs],
        "fold_overlaps": fold_overlaps(folders[folded], threshold),
        "leaks": found,
        "balance": balance(folders[folded]),
        "baselines": baseline_scores(folders[folded]),
        "cropped_share": {name: cropped_share(folder) for name, folder in folders.items()},
        "data": {name: read_json(folder / "manifest.json")["counts"] for name, folder in folders.items()},
    }
    if asked:
        result["transfer"] = transfer_audit(
            trained, {name: parts[name][part] for name, part in asked.items()}, threshold
        )
    return result, found


def main() -> None:
    """Write audit.json and audit.md; fail where a shared stage would see held-out images."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of all data sets")
    parser.add_argument("--folded", required=True, help="name of the data set that is cut into folds")
    parser.add_argument("--shared", nargs="*", default=[], help="data sets of stages that all folds share")
    parser.add_argument(
        "--threshold", type=float, required=True, help="correlation of thumbnails above which images look alike"
    )
    parser.add_argument(
        "--asked", nargs="*", default=[], help="names and parts of data sets that nothing trains on: name part ..."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    folders = {folder.name: folder for folder in arguments.data}
    asked = dict(zip(arguments.asked[::2], arguments.asked[1::2], strict=True))
    result, found = audit(folders, arguments.folded, arguments.shared, arguments.threshold, asked)
    write_record(arguments.out / "audit.json", result)
    text = markdown(result)
    write_text(arguments.out / "audit.md", text)
    print(text)
    for name, folder in folders.items():  # once more here: this step runs where somebody looks, also on a cluster
        counts = counted(result["data"][name], causes_of(folder))
        if summary(name, counts)[1]:
            say_counts(name, counts)
    if found:
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise TriptychError(
            f"{len(found)} images leak from held-out parts into stages that all folds share:\n  "
            + "\n  ".join(found[:SHOWN])
            + more
            + f"\nTake them out of that data set, or train its stages per fold (on {arguments.folded}). If they only "
            "look alike, raise folds.near_duplicate"
        )
    _warn_of_subjects(result["overlaps"], folders[arguments.folded])
    _judge_transfer(result.get("transfer", {}))


def _warn_of_subjects(overlaps: Sequence[Mapping], folder: Path) -> None:
    """Warn where the source's own test part has images of subjects that a fold trains on: its scores are too high."""
    part_of = {
        row["question_id"]: row["split"]
        for row in read_table(folder / "questions.parquet", columns=["question_id", "split"])
    }
    folds = read_table(folder / "folds.parquet", columns=["question_id", "part"])
    trained = {f"{folder.name} {part_of[row['question_id']]}" for row in folds if row["part"] == "train"}
    for row in overlaps:
        if row["part"] == f"{folder.name} test" and row["seen"] in trained and row["seen_subject_images"]:
            announce(
                f"warning: {row['seen_subject_images']} of {row['images']} images of {row['part']} are of subjects "
                f"that {row['seen']} has images of, too: scores on the test part are not those of new subjects",
                warning=True,
            )


def _judge_transfer(found: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Warn of images that look like trained ones, and stop where some are the same.

    Look-alikes alone do not stop: chest images of different patients may correlate as much, and a higher threshold
    would cut other folds.

    Raises:
        TriptychError: images that are asked about are trained on.
    """
    for name, lines in found.items():
        if lines["alike"]:
            announce(
                f"warning: evaluation.datasets: images that are trained on look like images of {name}, in "
                f"{len(lines['alike'])} pairs, such as: {lines['alike'][0]}; audit.md lists them",
                warning=True,
            )
    for name, lines in found.items():
        if lines["same"]:
            raise TriptychError(
                f"evaluation.datasets: {len(lines['same'])} images of {name} are trained on:\n  "
                + "\n  ".join(lines["same"][:SHOWN])
                + f"\nTake them out of the training data, or take {name} out of evaluation.datasets"
            )


if __name__ == "__main__":
    run_step(main)
