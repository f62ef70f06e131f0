"""Step: untrained baselines, as records of the same form as a model's predictions."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from triptych.pictures import normalised, read_thumbnails
from triptych.samples import RECORD_SCHEMA, answer_record, load_questions
from triptych.storage import run_step, write_table

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


def nearest_pictures(training: list[dict], vectors: Vectors) -> Predictor:
    """The commonest answer to the same question on the three pictures most alike; of equals, the nearest one's.

    For a new question string, questions of the same content and answer type stand in, or all where there are none.

    Args:
        training: rows of the training part.
        vectors: a vector per picture; the products are their likeness.
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
    "nearest-pictures": nearest_pictures,
}


def picture_vectors(data: Path) -> Vectors:
    """Normalised thumbnails of a data set's pictures, by image id: their products are correlations."""
    images, thumbnails = read_thumbnails(data / "images")
    return dict(zip((row["id"] for row in images), normalised(thumbnails), strict=True))


def main() -> None:
    """Write one baseline's answers to the held-out part of one fold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--baseline", required=True, choices=sorted(BASELINES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", required=True, help="the fold")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    training = load_questions(arguments.data, arguments.split, "train")
    predict = BASELINES[arguments.baseline](training, picture_vectors(arguments.data))
    records = [
        answer_record(row, arguments.baseline, arguments.split, None, predict(row))
        for row in load_questions(arguments.data, arguments.split, "test")
    ]
    write_table(arguments.out, records, RECORD_SCHEMA)
    print(f"{arguments.baseline}: {len(records)} answers")


if __name__ == "__main__":
    run_step(main)
