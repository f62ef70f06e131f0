"""Step: baselines, as records of the same form as a model's predictions."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triptych.config.arms import BASELINES
from triptych.data.lookups import Vectors, image_vectors
from triptych.data.questions import asked_questions, load_questions
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import run_step
from triptych.evaluate.predictions import answer_record
from triptych.io.parquet import write_table
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


def main() -> None:
    """Write one baseline's answers to the held-out part of one fold, or to the source's own test part."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--baseline", required=True, choices=sorted(BASELINES))
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set")
    parser.add_argument("--features", type=folder, required=True, help="folder of the vision features")
    parser.add_argument("--split", required=True, help="the fold")
    parser.add_argument("--view", choices=("held-out", "test"), default="held-out", help="which questions to answer")
    parser.add_argument("--limit", type=int, help="most questions that are asked, of all folds together; default: all")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    training = load_questions(arguments.data, arguments.split, "train")
    asked = asked_questions(arguments.data, arguments.split, arguments.view, arguments.limit)
    baseline, vectors = BASELINES[arguments.baseline], {}
    validation = load_questions(arguments.data, arguments.split, "validation") if baseline.fitted else []
    if baseline.vectors == "thumbnails":
        vectors = image_vectors(arguments.data)
    elif baseline.vectors:
        vectors = mean_features(arguments.features, sorted({row["image_id"] for row in training + validation + asked}))
    if baseline.vectors == "features":
        vectors = cosine_vectors(vectors)
    predict = baseline.load()(training, vectors, *([validation] if baseline.fitted else []))
    records = [
        answer_record(row, arguments.baseline, arguments.split, None, predict(row), view=arguments.view)
        for row in asked
    ]  # fmt: skip
    write_table(arguments.out, records, RECORD_SCHEMA)
    print(f"{arguments.baseline}: {len(records)} answers")


if __name__ == "__main__":
    run_step(main)
