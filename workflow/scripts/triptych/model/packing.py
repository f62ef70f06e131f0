"""Shared-prefix packing: from questions to tensors.

All questions of one image share its tokens. One block is

    [text before the image] [image tokens] [question 1, answer 1] [question 2, answer 2] ...

where each question with its answer attends to the image prefix and to itself only, and its positions continue those of
the prefix. Blocks follow each other in rows of about ROW_TOKENS, and do not attend to each other. Loss and gradients
are those of one row per question, at a fraction of the tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

from triptych.model.tokens import PromptTokens, Sample, by_image

PREFIX = 0  # segment of a shared image prefix; the block's samples are 1, 2, ...
PADDING = -1  # block of padding

# Longer rows waste less on padding, but more on attention that is masked: on a CPU a step of 16 captions takes 0.67 of
# its time at 512, one of 8 questions 0.90 (means of two runs, 49 image tokens). A longer block stands alone in its row.
ROW_TOKENS = 160


@dataclass(frozen=True)
class Batch:
    """Packed samples: R rows of L tokens, holding B image blocks of I image tokens each, and T answer tokens.

    Attributes:
        features: vision features (B, N, D); (B, 0, 0) for a blind model.
        image_rows: (B,): the row of each block.
        image_columns: (B, I): the columns of its image tokens.
        tokens: token ids (R, L), meaningless at image tokens and padding.
        blocks: (R, L): the block's number, or PADDING.
        segments: (R, L): PREFIX, or the sample's number within its block, from 1.
        positions: position ids (R, L).
        target_rows, target_columns: (T,): place of the hidden state that predicts each answer token.
        targets: (T,): the answer tokens.
        target_samples: (T,): index of the sample that each belongs to, in the order given to `pack`.
    """

    features: torch.Tensor
    image_rows: torch.Tensor
    image_columns: torch.Tensor
    tokens: torch.Tensor
    blocks: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    target_rows: torch.Tensor
    target_columns: torch.Tensor
    targets: torch.Tensor
    target_samples: torch.Tensor

    def attention_mask(self) -> torch.Tensor:
        """Build the mask (R, 1, L, L) of whole rows: `visible`, within each block."""
        same_block = self.blocks[:, :, None] == self.blocks[:, None, :]
        return (same_block & visible(self.segments))[:, None]

    def distance(self) -> torch.Tensor:
        """Count how many positions (R, 1, L, L) a key (column) is before a query (row) of the same sample."""
        return (self.positions[:, :, None] - self.positions[:, None, :])[:, None]

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def visible(segments: torch.Tensor) -> torch.Tensor:
    """Build the mask (..., L, L) of the tokens of a block, True where a query (row) may attend to a key (column).

    That is: causally, to the image prefix and to its own sample. Windows of some layers are added in `layer_masks`.

    Args:
        segments: (..., L) what each token belongs to: PREFIX, or the number of a sample.
    """
    length = segments.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    query, key = segments[..., :, None], segments[..., None, :]
    return causal & ((key == PREFIX) | (key == query))


def place(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Place blocks in rows by first-fit decreasing; a row has at most `row_tokens`, or one longer block.

    Args:
        lengths: of the blocks, in tokens.
        row_tokens: length of a row.

    Returns:
        The block numbers of each row.
    """
    capacity = max(row_tokens, *lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for block in sorted(range(len(lengths)), key=lambda block: -lengths[block]):
        row = next((row for row, left in enumerate(room) if left >= lengths[block]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(block)
        room[row] -= lengths[block]
    return rows


def split_by_image(samples: Sequence[Sample], prefix_tokens: int, tokens: int) -> list[list[Sample]]:
    """Split samples into pieces of whole images that pack into about `tokens` tokens each, to bound memory.

    Args:
        samples: those of one optimiser step.
        prefix_tokens: length of an image's shared prefix.
        tokens: size of a piece; an image with more is a piece by itself.
    """
    pieces: list[list[Sample]] = []
    room = 0
    for indices in by_image(samples).values():
        length = prefix_tokens + sum(len(samples[index].text) for index in indices)
        if not pieces or length > room:
            pieces.append([])
            room = tokens
        pieces[-1] += [samples[index] for index in indices]
        room -= length
    return pieces


def pack(
    samples: Sequence[Sample],
    features: Callable[[Sequence[str]], torch.Tensor],
    prompt: PromptTokens,
    image_tokens: int,
    row_tokens: int = ROW_TOKENS,
) -> Batch:
    """Pack samples into rows of image blocks.

    Args:
        samples: in any order; those of one image share a block.
        features: function from image ids to vision features (B, N, D).
        prompt: the fixed text.
        image_tokens: number of tokens of an image; with 0, no features are read.
        row_tokens: length to which rows are filled.
    """
    images = by_image(samples)
    members = list(images.values())
    before = list(prompt.before_image)
    prefix_tokens = len(before) + image_tokens
    lengths = [prefix_tokens + sum(len(samples[index].text) for index in indices) for indices in members]
    rows = place(lengths, row_tokens)
    tokens, blocks, segments, positions = ([[] for _ in rows] for _ in range(4))
    starts: dict[int, tuple[int, int]] = {}
    targets: list[tuple[int, int, int, int]] = []
    for row, row_blocks in enumerate(rows):
        for block in row_blocks:
            starts[block] = (row, len(tokens[row]) + len(before))
            tokens[row] += before + [prompt.end] * image_tokens
            segments[row] += [PREFIX] * prefix_tokens
            positions[row] += range(prefix_tokens)
            for segment, index in enumerate(members[block], start=1):
                sample = samples[index]
                # The last question token predicts the first answer token, and so on up to the end token.
                first = len(tokens[row]) + len(sample.question) - 1
                targets += [(row, first + offset, token, index) for offset, token in enumerate(sample.answer)]
                tokens[row] += sample.text
                segments[row] += [segment] * len(sample.text)
                positions[row] += range(prefix_tokens, prefix_tokens + len(sample.text))
            blocks[row] += [block] * lengths[block]
    image_rows, image_columns = zip(*(starts[block] for block in range(len(members))), strict=True)
    target_rows, target_columns, target_tokens, target_samples = zip(*targets, strict=True)
    return Batch(
        features=features(list(images)) if image_tokens else torch.empty(len(images), 0, 0),
        image_rows=torch.tensor(image_rows),
        image_columns=torch.tensor(image_columns)[:, None] + torch.arange(image_tokens),
        tokens=_padded(tokens, prompt.end),
        blocks=_padded(blocks, PADDING),
        segments=_padded(segments, PREFIX),
        positions=_padded(positions, 0),
        target_rows=torch.tensor(target_rows),
        target_columns=torch.tensor(target_columns),
        targets=torch.tensor(target_tokens),
        target_samples=torch.tensor(target_samples),
    )


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)
