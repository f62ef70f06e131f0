"""Questions and answers as tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """One question and its answer as tokens; the answer ends with one end-of-sequence token."""

    question_id: str
    image_id: str
    question: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def text(self) -> tuple[int, ...]:
        """Question and answer, as a packed row holds them."""
        return self.question + self.answer


@dataclass(frozen=True)
class PromptTokens:
    """The fixed text around image and question, as tokens, and functions that encode the rest."""

    before_image: tuple[int, ...]
    encode_question: Callable[[str], tuple[int, ...]]
    encode_answer: Callable[[str], tuple[int, ...]]
    end: int


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> PromptTokens:
    """Split a prompt at <image>; its two sides are tokenised separately, in training as in prediction."""
    before, after = prompt.split("<image>")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return PromptTokens(
        before_image=encode(before),
        encode_question=lambda question: encode(after.replace("{question}", question)),
        encode_answer=lambda answer: (*encode(answer), tokenizer.eos_token_id),
        end=tokenizer.eos_token_id,
    )


def tokenise(rows: Sequence[dict], prompt: PromptTokens) -> list[Sample]:
    """Tokenise rows of a question table (question_id, image_id, question, answer), in order."""
    return [
        Sample(
            row["question_id"],
            row["image_id"],
            prompt.encode_question(row["question"]),
            prompt.encode_answer(row["answer"]),
        )
        for row in rows
    ]


def by_image(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Group samples by image: the indices of each image's samples; images in order of first appearance."""
    places: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        places.setdefault(sample.image_id, []).append(index)
    return places
