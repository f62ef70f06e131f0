"""Look-ups: answers out of the training part, without anything being trained.

`triptych.config.arms` lists them. The audit scores them on the parts of the data, and they are arms of the study.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from triptych.data.answers import plain_signs, spellings
from triptych.data.duplicates import normalised, read_thumbnails

NEIGHBOURS = 3
Predictor = Callable[[dict], str]  # from a question's row to the answer
Vectors = dict[str, np.ndarray]  # by image id; their products are similarities


def commonest(rows: list[dict]) -> str:
    """Find the most frequent answer, all of its spellings together, in the most frequent one.

    Of a tie, the one with the lowest question id, whatever the order of the rows.
    """
    ordered = sorted(rows, key=lambda row: (len(row["question_id"]), row["question_id"]))
    return _first(row["answer"] for row in ordered)


def _first(answers: Iterable[str]) -> str:
    return next(iter(spellings(answers).values()))


def question_key(row: dict) -> str:
    """Give a row's question as look-ups compare it: without regard to case, blanks and the codes of signs."""
    return " ".join(plain_signs(row["question"]).casefold().split())


def by_question(rows: list[dict]) -> dict[str, list[dict]]:
    """Group rows by question."""
    same = defaultdict(list)
    for row in rows:
        same[question_key(row)].append(row)
    return same


def majority(training: list[dict], vectors: Vectors) -> Predictor:
    """Answer with the commonest answer of the training part, whatever is asked."""
    answer = commonest(training)
    return lambda row: answer


def majority_per_question(training: list[dict], vectors: Vectors) -> Predictor:
    """Answer with the commonest answer to the same question, for a new one the commonest of all.

    No image is looked at.
    """
    answers = {question: commonest(rows) for question, rows in by_question(training).items()}
    fallback = commonest(training)
    return lambda row: answers.get(question_key(row), fallback)


def majority_per_place(training: list[dict], vectors: Vectors) -> Predictor:
    """Answer with the commonest answer to the same question on the same modality and body part, which are given.

    For a new combination, the commonest of all.
    """
    same = defaultdict(list)
    for row in training:
        same[_place(row)].append(row)
    answers = {place: commonest(rows) for place, rows in same.items()}
    fallback = commonest(training)
    return lambda row: answers.get(_place(row), fallback)


def _place(row: dict) -> tuple[str, str, str]:
    return question_key(row), row["modality"], row["location"]


def nearest(training: list[dict], vectors: Vectors) -> Predictor:
    """Answer with the commonest answer to the same question on the three most similar images; of a tie, the nearest's.

    For a new question, questions of the same content and answer type stand in, or all where there are none.

    Args:
        training: rows of the training part.
        vectors: a vector (D,) for each image, by image id; their products are similarities.
    """
    same, alike = by_question(training), defaultdict(list)
    for row in training:
        alike[row["content_type"], row["answer_type"]].append(row)

    def predict(row: dict) -> str:
        known = same.get(question_key(row)) or alike.get((row["content_type"], row["answer_type"])) or training
        similarity = np.stack([vectors[other["image_id"]] for other in known]) @ vectors[row["image_id"]]
        order = sorted(range(len(known)), key=lambda index: (-similarity[index], known[index]["question_id"]))
        return _first(known[index]["answer"] for index in order[:NEIGHBOURS])

    return predict


def image_vectors(data: Path) -> Vectors:
    """Read the normalised thumbnails (1024,) of a data set's images by image id: their products are correlations."""
    images, thumbnails = read_thumbnails(data / "images")
    return dict(zip((row["id"] for row in images), normalised(thumbnails), strict=True))
