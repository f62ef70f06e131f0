"""A classifier of answers on the frozen vision features: what the features give without a language model.

Kernel ridge regression on the answers of the training part, one output for each. Two questions are as alike as the
n-grams of their letters, two images as their mean tokens; rows are alike where both are. It has a closed form, so
nothing is drawn, and the same rows give the same answers.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.feature_extraction.text import TfidfVectorizer

from triptych.data.answers import answer_key, same_answer, spellings
from triptych.data.lookups import Predictor, Vectors
from triptych.utils.seeds import stable_order

RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # the validation part chooses; of equals, the strongest
IMAGE = 4.0  # weight of what question and image say together, beside the question alone
ANY = 0.01  # likeness of any two questions, so that a new one gets common answers
ROWS = 8000  # of the training part, at most: the time grows with the cube


@dataclass(frozen=True)
class Kernel:
    """How alike rows are to those of the training part.

    Attributes:
        words: from question strings to unit vectors, fitted on the training part.
        questions: (N, W) those of the training part, sparse.
        centre: (D,) mean of the training part's images; None where no image is looked at.
        images: (N, D) their directions from the centre, of length 1.
    """

    words: TfidfVectorizer
    questions: object
    centre: np.ndarray | None
    images: np.ndarray | None

    @classmethod
    def of(cls, training: list[dict], vectors: Vectors) -> "Kernel":
        """Prepare the kernel of a training part; without vectors, of its questions alone."""
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True)
        questions = words.fit_transform([row["question"] for row in training])
        if not vectors:
            return cls(words, questions, None, None)
        centre = np.mean([vectors[name] for name in sorted({row["image_id"] for row in training})], axis=0, dtype=float)
        return cls(words, questions, centre, _directions(training, vectors, centre))

    def __call__(self, rows: list[dict], vectors: Vectors) -> np.ndarray:
        """Give the likeness (M, N) of M rows to the training part's."""
        asked = self.words.transform([row["question"] for row in rows])
        alike = (asked @ self.questions.T).toarray() ** 2 + ANY
        if self.images is not None:
            alike *= 1 + IMAGE * _directions(rows, vectors, self.centre) @ self.images.T
        return alike


def _directions(rows: list[dict], vectors: Vectors, centre: np.ndarray) -> np.ndarray:
    away = np.stack([vectors[row["image_id"]] for row in rows]) - centre
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)


def classifier(training: list[dict], vectors: Vectors, validation: list[dict]) -> Predictor:
    """Fit a classifier on the training part; the validation part chooses the ridge by exact match.

    Of a training part of more than ROWS, a fixed choice of rows is used.

    Args:
        training: rows of the training part.
        vectors: mean token (D,) of each image, by image id; none for a classifier of the question alone.
        validation: rows of the validation part.
    """
    if len(training) > ROWS:
        training = sorted(training, key=lambda row: stable_order(0, "classifier", row["question_id"]))[:ROWS]
    training = sorted(training, key=lambda row: row["question_id"])
    spelled = spellings(sorted(row["answer"] for row in training))
    answers, number = list(spelled.values()), {key: index for index, key in enumerate(spelled)}
    wanted = np.zeros((len(training), len(answers)))
    wanted[np.arange(len(training)), [number[answer_key(row["answer"])] for row in training]] = 1
    kernel = Kernel.of(training, vectors)
    alike, seen = kernel(training, vectors), kernel(validation, vectors)
    best, weights = -1, None
    for ridge in RIDGES:
        shifted = alike.copy()
        shifted.flat[:: len(training) + 1] += ridge
        tried = cho_solve(cho_factor(shifted, overwrite_a=True), wanted)
        said = (seen @ tried).argmax(axis=1)
        right = sum(same_answer(answers[say], row["answer"]) for say, row in zip(said, validation, strict=True))
        if right > best:
            best, weights = right, tried
    return lambda row: answers[int((kernel([row], vectors) @ weights).argmax())]
