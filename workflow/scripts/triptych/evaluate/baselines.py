"""Step: untrained baselines, as records of the same form as a model's predictions."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from triptych.data.duplicates import normalised, read_thumbnails
from triptych.data.questions import asked_questions, load_questions
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import run_step
from triptych.evaluate.predictions import answer_record
from triptych.io.parquet import write_table

NEIGHBOURS = 3


Predictor = Callable[[dict], str]


Vectors = dict[str, np.ndarray]  # by image id; products are likenesses


def commonest(rows: list[dict]) -> str:
    """The most frequent answer; of equals, the one with the lowest question id, whatever the order of the rows."""
    ordered = sorted(rows, key=lambda row: (len(row["question_id"]), row["question_id"]))
    return Counter(row["answer"] for row in ordered).most_common(1)[0][0]


def by_question(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by question string."""
    asked = defaultdict(list)
    for row in rows:
        asked[row["question"]].append(row)
    return asked


def majority(training: list[dict], vectors: Vectors) -> Predictor:
    """The commonest answer of the training part, whatever is asked."""
    answer = commonest(training)
    return lambda row: answer


def majority_per_question(training: list[dict], vectors: Vectors) -> Predictor:
    """The commonest answer to the same question string; for a new string, the commonest of all. It sees no image."""
    answers = {question: commonest(rows) for question, rows in by_question(training).items()}
    fallback = commonest(training)
    return lambda row: answers.get(row["question"], fallback)


def majority_per_place(training: list[dict], vectors: Vectors) -> Predictor:
    """The commonest answer to the same question about the same modality and body part, which it is told.

    For what is new, the commonest of all.
    """
    asked = defaultdict(list)
    for row in training:
        asked[_place(row)].append(row)
    answers = {place: commonest(rows) for place, rows in asked.items()}
    fallback = commonest(training)
    return lambda row: answers.get(_place(row), fallback)


def _place(row: dict) -> tuple[str, str, str]:
    return row["question"], row["modality"], row["location"]


def nearest(training: list[dict], vectors: Vectors) -> Predictor:
    """The commonest answer to the same question on the three images most alike; of equals, the nearest one's.

    For a new question string, questions of the same content and answer type stand in, or all where there are none.

    Args:
        training: rows of the training part.
        vectors: a vector per image; the products are their likeness.
    """
    same, alike = by_question(training), defaultdict(list)
    for row in training:
        alike[row["content_type"], row["answer_type"]].append(row)

    def predict(row: dict) -> str:
        known = same.get(row["question"]) or alike.get((row["content_type"], row["answer_type"])) or training
        likeness = np.stack([vectors[other["image_id"]] for other in known]) @ vectors[row["image_id"]]
        order = sorted(range(len(known)), key=lambda index: (-likeness[index], known[index]["question_id"]))
        answers = [known[index]["answer"] for index in order[:NEIGHBOURS]]
        return Counter(answers).most_common(1)[0][0]  # of equals, the first seen

    return predict


BASELINES: dict[str, Callable[[list[dict], Vectors], Predictor]] = {
    "majority": majority,
    "majority-per-question": majority_per_question,
    "majority-per-place": majority_per_place,
    "nearest-images": nearest,
    "nearest-features": nearest,
}


def image_vectors(data: Path) -> Vectors:
    """Normalised thumbnails of a data set's images, by image id: their products are correlations."""
    images, thumbnails = read_thumbnails(data / "images")
    return dict(zip((row["id"] for row in images), normalised(thumbnails), strict=True))


def feature_vectors(folder: Path, image_ids: Sequence[str]) -> Vectors:
    """Mean vision features of images, less their common mean and of length 1: their products are cosines.

    Args:
        folder: the vision features.
        image_ids: the images.
    """
    from triptych.features.store import Features

    features = Features(folder)
    batches = [image_ids[start : start + 64] for start in range(0, len(image_ids), 64)]
    pooled = np.concatenate([features(batch).mean(dim=1).numpy() for batch in batches])
    pooled -= pooled.mean(axis=0)
    pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    return dict(zip(image_ids, pooled, strict=True))


def main() -> None:
    """Write one baseline's answers to the held-out part of one fold, or to the source's own test part."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--baseline", required=True, choices=sorted(BASELINES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--features", type=Path, required=True, help="folder of the vision features")
    parser.add_argument("--split", required=True, help="the fold")
    parser.add_argument("--view", choices=("held-out", "test"), default="held-out", help="which questions to answer")
    parser.add_argument("--limit", type=int, help="most questions that are asked, of all folds together; default: all")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    training = load_questions(arguments.data, arguments.split, "train")
    asked = asked_questions(arguments.data, arguments.split, arguments.view, arguments.limit)
    if arguments.baseline == "nearest-features":
        vectors = feature_vectors(arguments.features, sorted({row["image_id"] for row in training + asked}))
    else:
        vectors = image_vectors(arguments.data)
    predict = BASELINES[arguments.baseline](training, vectors)
    records = [
        answer_record(row, arguments.baseline, arguments.split, None, predict(row), view=arguments.view)
        for row in asked
    ]  # fmt: skip
    write_table(arguments.out, records, RECORD_SCHEMA)
    print(f"{arguments.baseline}: {len(records)} answers")


if __name__ == "__main__":
    run_step(main)
