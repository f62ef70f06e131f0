"""From questions to tensors, with shared-prefix packing.

All questions of one image share its tokens. One row is

    [text before the image] [image tokens] [question 1, answer 1] [question 2, answer 2] ...

where each question and answer sees the image prefix and itself only, and its positions go on from the prefix. Loss and
gradients are those of one row per question, at a fraction of the tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from transformers import PreTrainedTokenizerBase

PREFIX = 0  # segment of the shared image prefix; samples are 1, 2, ...
PADDING = -1


@dataclass(frozen=True)
class Sample:
    """One question as tokens; the answer ends with the end-of-sequence token, once."""

    question_id: str
    image_id: str
    question: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class PromptTokens:
    """The fixed text around image and question, as tokens."""

    before_image: tuple[int, ...]
    encode_question: Callable[[str], tuple[int, ...]]
    encode_answer: Callable[[str], tuple[int, ...]]
    end: int


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> PromptTokens:
    """Cut a prompt at <image>; the two sides are tokenised apart, in training and in prediction alike."""
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
    """Rows of a question table (question_id, image_id, question, answer) as samples, in the same order."""
    return [
        Sample(
            row["question_id"],
            row["image_id"],
            prompt.encode_question(row["question"]),
            prompt.encode_answer(row["answer"]),
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Batch:
    """Rows of packed samples. R rows, P tokens before the image, N image tokens, L text tokens, T answer tokens.

    Attributes:
        features: vision features (R, N, D).
        before: token ids before the image (P,), equal in all rows.
        text: token ids after the image (R, L).
        segments: (R, P + N + L): PREFIX, the sample's number within its row from 1, or PADDING.
        positions: position ids (R, P + N + L).
        target_rows, target_columns: (T,): where the hidden state stands that predicts an answer token.
        targets: (T,): the answer tokens.
        target_samples: (T,): which sample each belongs to, in the order given to `pack`.
    """

    features: torch.Tensor
    before: torch.Tensor
    text: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    target_rows: torch.Tensor
    target_columns: torch.Tensor
    targets: torch.Tensor
    target_samples: torch.Tensor

    def attention_mask(self) -> torch.Tensor:
        """(R, 1, L', L') bool, True where a query (row) may look at a key (column): causal, prefix or same sample."""
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        length = self.segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        return (causal & ((key == PREFIX) | (key == query)))[:, None]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def pack(
    samples: Sequence[Sample],
    features: Callable[[Sequence[str]], torch.Tensor],
    prompt: PromptTokens,
) -> Batch:
    """Pack samples into one row per image.

    Args:
        samples: any order; samples of one image share a row.
        features: image ids -> vision features (R, N, D).
        prompt: the fixed text.
    """
    rows: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        rows.setdefault(sample.image_id, []).append(index)
    image_features = features(list(rows))
    prefix = len(prompt.before_image) + image_features.shape[1]
    text, segments, positions, targets = [], [], [], []
    for row, indices in enumerate(rows.values()):
        row_text: list[int] = []
        row_segments = [PREFIX] * prefix
        row_positions = list(range(prefix))
        for segment, index in enumerate(indices, start=1):
            sample = samples[index]
            start = prefix + len(row_text)
            tokens = sample.question + sample.answer
            row_text += tokens
            row_segments += [segment] * len(tokens)
            row_positions += range(prefix, prefix + len(tokens))
            # The last question token predicts the first answer token, and so on up to the end token.
            first = start + len(sample.question) - 1
            targets += [(row, first + offset, token, index) for offset, token in enumerate(sample.answer)]
        text.append(row_text)
        segments.append(row_segments)
        positions.append(row_positions)
    longest = max(len(row_text) for row_text in text)
    target_rows, target_columns, target_tokens, target_samples = (list(column) for column in zip(*targets, strict=True))
    return Batch(
        features=image_features,
        before=torch.tensor(prompt.before_image, dtype=torch.long),
        text=_padded(text, longest, prompt.end),
        segments=_padded(segments, prefix + longest, PADDING),
        positions=_padded(positions, prefix + longest, 0),
        target_rows=torch.tensor(target_rows),
        target_columns=torch.tensor(target_columns),
        targets=torch.tensor(target_tokens),
        target_samples=torch.tensor(target_samples),
    )


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)
