"""Samples of random words, in the numbers and lengths of SLAKE's English training part."""

import random
from collections import Counter
from collections.abc import Sequence

from triptych.model.tokens import Sample

SEED = 0
RANDOM_WORDS = "random words in SLAKE's numbers and lengths (TRIPTYCH_SLAKE is not set)"

# 4,919 questions of 450 images: value -> how often; lengths in tokens of SmolLM2.
QUESTIONS_OF_IMAGE = {4: 3, 5: 8, 6: 12, 7: 30, 8: 60, 9: 99, 10: 43, 11: 22, 12: 25, 13: 19, 14: 21, 15: 74, 16: 13}
QUESTIONS_OF_IMAGE |= {17: 4, 18: 9, 19: 7, 20: 1}
QUESTION_LENGTHS = {5: 263, 6: 881, 7: 371, 8: 613, 9: 919, 10: 188, 11: 659, 12: 204, 13: 215, 14: 343, 15: 98, 16: 28}
QUESTION_LENGTHS |= {17: 50, 18: 38, 19: 35, 20: 1, 21: 8, 22: 5}
ANSWER_LENGTHS = {1: 2753, 2: 1161, 3: 508, 4: 190, 5: 117, 6: 50, 7: 28, 8: 25, 9: 11, 10: 11, 11: 15, 12: 13, 13: 14}
ANSWER_LENGTHS |= {14: 19, 15: 3, 16: 1}


def slake_like(after_question: Sequence[int], end: int, vocabulary: tuple[int, int] = (1000, 30_000)) -> list[Sample]:
    """Make the samples.

    Args:
        after_question: tokens between a question and its answer.
        end: token that ends an answer.
        vocabulary: first and last token of the words.
    """
    draw = random.Random(SEED)

    def shuffled(counts: dict[int, int]) -> list[int]:
        values = list(Counter(counts).elements())
        return draw.sample(values, len(values))

    def words(number: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(*vocabulary), k=number))

    images = [str(image) for image, number in enumerate(shuffled(QUESTIONS_OF_IMAGE)) for _ in range(number)]
    lengths = zip(images, shuffled(QUESTION_LENGTHS), shuffled(ANSWER_LENGTHS), strict=True)
    return [
        Sample(str(row), image, (*words(question), *after_question), (*words(answer), end))
        for row, (image, question, answer) in enumerate(lengths)
    ]
