"""Step: baselines, as records of the same form as a model's predictions."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triptych.config.arms import BASELINES, HELD_OUT, PARTS, Baseline, in_domain_arms
from triptych.config.grid import SHARED
from triptych.data.lookups import Vectors, image_vectors
from triptych.data.questions import asked_questions, load_questions
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import run_step
from triptych.evaluate.predictions import answer_record
from triptych.io.parquet import read_table, write_table
from triptych.utils.arguments import folder


def mean_features(folder: Path, image_ids: Sequence[str]) -> Vectors:
    """Read the mean vision features (D,) of images.

    Args:
        folder: the vision features.
        image_ids: the images.
    """
    from triptych.features.store import Features

    features = Features(folder)
    batches = [image_ids[start : start + 64] for start in range(0, len(image_ids), 64)]
    pooled = np.concatenate([features(batch).float().mean(dim=1).numpy() for batch in batches])
    return dict(zip(image_ids, pooled, strict=True))


def cosine_vectors(vectors: Vectors) -> Vectors:
    """Take the common mean from vectors and bring them to length 1: their products are cosines."""
    centred = np.stack(list(vectors.values()))
    centred -= centred.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return dict(zip(vectors, centred, strict=True))


def vectors_of(baseline: Baseline, data: Path, features: Path, rows: Sequence[dict]) -> Vectors:
    """Read the vectors that a baseline compares of the images that rows are about; none where it compares none.

    Args:
        baseline: the baseline.
        data: folder of the images' data set.
        features: folder of its vision features.
        rows: rows of its question table.
    """
    if baseline.vectors == "thumbnails":
        return image_vectors(data)
    return mean_features(features, sorted({row["image_id"] for row in rows})) if baseline.vectors else {}


def apart(rows: Sequence[dict]) -> list[dict]:
    """Give rows of another data set with image ids that no image of the first one has: ids are those of one set."""
    return [{**row, "image_id": _apart(row["image_id"])} for row in rows]


def _apart(image_id: str) -> str:
    return f"\0{image_id}"  # a character that no source gives an id


def has_training_part(data: Path, view: str) -> bool:
    """Tell whether a data set has a training part of its own beside the part that is asked."""
    return view != "train" and any(row["split"] == "train" for row in read_table(data / "questions.parquet", ["split"]))


def main() -> None:
    """Write one baseline's answers to the held-out part of one fold, or to a part of a source."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--baseline", required=True, choices=sorted(BASELINES))
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set")
    parser.add_argument("--features", type=folder, required=True, help="folder of the vision features")
    parser.add_argument("--split", required=True, help="the fold; `shared`: the source's own parts")
    parser.add_argument("--asked-data", type=folder, help="folder of another data set, whose part --view is answered")
    parser.add_argument("--asked-features", type=folder, help="folder of its vision features")
    parser.add_argument("--view", choices=(HELD_OUT, *PARTS), default=HELD_OUT, help="which questions to answer")
    parser.add_argument("--limit", type=int, help="most questions that are asked, of all folds together; default: all")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    baseline, name = BASELINES[arguments.baseline], arguments.baseline
    if arguments.split == SHARED:
        name = in_domain_arms()[name]
        if not has_training_part(arguments.data, arguments.view):
            write_table(arguments.out, [], RECORD_SCHEMA)
            print(f"{name}: no answers, because {arguments.data} has no training part beside what is asked")
            return
    training = load_questions(arguments.data, arguments.split, "train")
    validation = load_questions(arguments.data, arguments.split, "validation") if baseline.fitted else []
    asked = asked_questions(arguments.asked_data or arguments.data, arguments.split, arguments.view, arguments.limit)
    posed = apart(asked) if arguments.asked_data else asked
    own = training + validation + ([] if arguments.asked_data else asked)
    vectors = vectors_of(baseline, arguments.data, arguments.features, own)
    if arguments.asked_data:
        others = vectors_of(baseline, arguments.asked_data, arguments.asked_features, asked)
        vectors |= {_apart(image): vector for image, vector in others.items()}
    if baseline.vectors == "features":
        vectors = cosine_vectors(vectors)
    predict = baseline.load()(training, vectors, *([validation] if baseline.fitted else []))
    records = [
        answer_record(row, name, arguments.split, None, {"prediction": predict(other)}, arguments.view)
        for row, other in zip(asked, posed, strict=True)
    ]
    write_table(arguments.out, records, RECORD_SCHEMA)
    print(f"{name}: {len(records)} answers")


if __name__ == "__main__":
    run_step(main)
