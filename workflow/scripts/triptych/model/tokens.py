"""Questions and answers as tokens. Data is read as text: only the prompt's own text may hold control tokens."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from triptych.errors import TriptychError


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


@dataclass(frozen=True)
class Reader:
    """Reads text of the prompt and text of the data with one tokenizer.

    Attributes:
        tokenizer: the language model's.
        marks: pattern of its control tokens, with the blanks that they take in.
        control: ids that no text of the data may give; an unknown word is text, unless that also ends an answer.
    """

    tokenizer: PreTrainedTokenizerBase
    marks: re.Pattern
    control: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Reader":
        """Find a tokenizer's control tokens."""
        special = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        tokens = sorted(special.values(), key=lambda token: -len(token.content))
        blanks = {True: r"\s*", False: ""}
        written = [f"{blanks[one.lstrip]}{re.escape(one.content)}{blanks[one.rstrip]}" for one in tokens]
        harmless = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
        return cls(tokenizer, re.compile("|".join(written) or "(?!)"), frozenset(special) - harmless)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Tokenise text of the prompt, in which control tokens are what they are."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def data(self, text: str) -> tuple[int, ...]:
        """Tokenise text of the data, in which a control token is the characters that it is written with.

        Raises:
            TriptychError: the tokenizer finds a control token all the same.
        """
        ids = tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        if not self.control.isdisjoint(ids):
            raise _unreadable(text)
        return ids

    def question(self, after: str, question: str) -> tuple[int, ...]:
        """Tokenise the prompt's text after the image, with the question in it.

        Raises:
            TriptychError: the question holds a control token, and the tokenizer cannot read it as text.
        """
        own, filled = after.replace("{question}", ""), after.replace("{question}", question)
        if len(self.marks.findall(filled)) == len(self.marks.findall(own)):
            return self.prompt(filled)
        if self._in_pieces(after, "x") != self.prompt(after.replace("{question}", "x")):
            raise _unreadable(question)
        return self._in_pieces(after, question)

    def _in_pieces(self, after: str, question: str) -> tuple[int, ...]:
        """Read the text around a question, up to the prompt's nearest control tokens, as data; the rest as prompt."""
        left, right = after.split("{question}")
        start = max((mark.end() for mark in self.marks.finditer(left)), default=0)
        stop = min((mark.start() for mark in self.marks.finditer(right)), default=len(right))
        between = self.data(left[start:] + question + right[:stop])
        return (*self.prompt(left[:start]), *between, *self.prompt(right[stop:]))


def _unreadable(text: str) -> TriptychError:
    return TriptychError(
        f"{text!r} holds a control token, which the language model's tokenizer cannot read as text; "
        "change the question or answer in the source"
    )


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> PromptTokens:
    """Split a prompt at <image>; its two sides are tokenised separately, in training as in prediction."""
    before, after = prompt.split("<image>")
    reader, end = Reader.of(tokenizer), tokenizer.eos_token_id
    return PromptTokens(
        before_image=reader.prompt(before),
        encode_question=lambda question: reader.question(after, question),
        encode_answer=lambda answer: (*reader.data(answer), end),
        end=end,
    )


def tokenise(rows: Sequence[dict], prompt: PromptTokens) -> list[Sample]:
    """Tokenise rows of a question table (question_id, image_id, question, answer), in order.

    Raises:
        TriptychError: a row holds a control token that cannot be read as text.
    """
    samples = []
    for row in rows:
        try:
            question, answer = prompt.encode_question(row["question"]), prompt.encode_answer(row["answer"])
        except TriptychError as error:
            raise TriptychError(f"question {row['question_id']}: {error}") from None
        samples.append(Sample(row["question_id"], row["image_id"], question, answer))
    return samples


def require_context(samples: Sequence[Sample], prefix_tokens: int, limit: int, new_tokens: int | None = None) -> None:
    """Check that every sample fits into the language model's context.

    Args:
        samples: to be trained on, or answered.
        prefix_tokens: of an image with the text before it.
        limit: tokens of the context.
        new_tokens: room for an answer that is yet to be given; None: for the sample's own.

    Raises:
        TriptychError: one is longer; the message names the longest.
    """
    lengths = [
        prefix_tokens + len(sample.question) + (len(sample.answer) if new_tokens is None else new_tokens)
        for sample in samples
    ]
    if (longest := max(lengths, default=0)) <= limit:
        return
    answer = "its answer" if new_tokens is None else f"evaluation.max_new_tokens ({new_tokens})"
    named, long = samples[lengths.index(longest)].question_id, sum(length > limit for length in lengths)
    raise TriptychError(
        f"question {named}: {longest} tokens with its image ({prefix_tokens}, with the text before it) and {answer}, "
        f"but the language model's context has {limit}; of {len(samples)} questions {long} are too long: shorten them, "
        "let the connector pool image tokens, or choose another model"
    )


def by_image(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Group samples by image: the indices of each image's samples; images in order of first appearance."""
    places: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        places.setdefault(sample.image_id, []).append(index)
    return places
