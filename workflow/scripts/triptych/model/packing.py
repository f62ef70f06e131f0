"""Shared-prefix packing: from questions to tensors.

All questions of one image share its tokens. One block is

    [text before the image] [image tokens] [question 1, answer 1] [question 2, answer 2] ...

where each question with its answer attends to the image prefix and to itself only, and its positions continue those of
the prefix. Blocks follow each other in rows of about ROW_TOKENS, and do not attend to each other. Loss and gradients
are those of one row per question, at a fraction of the tokens.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.nn.functional import pad

from triptych.errors import TriptychError
from triptych.model.tiles import Tiles, find_tiles
from triptych.model.tokens import PromptTokens, Sample, by_image

PREFIX = 0  # segment of a shared image prefix; the block's samples are 1, 2, ...
PADDING = -1  # block of padding
TEXT = -1  # index of an image token, where there is none
NO_TARGET = -100  # an empty slot's answer token, which the loss ignores

# Longer rows waste less on padding, but more on attention that is masked: on a CPU a step of 16 captions takes 0.67 of
# its time at 512, one of 8 questions 0.90 (means of two runs, 49 image tokens). A longer block stands alone in its row.
ROW_TOKENS = 160

ALIGNMENT = 64  # bytes at which each tensor of a buffer begins


@dataclass(frozen=True)
class Shape:
    """A fixed shape of batches: one row of `tokens` tokens, with slots for `images` images and `answers` answer tokens.

    What a batch does not fill is padding, which changes neither the loss nor any gradient.
    """

    tokens: int
    images: int
    answers: int


@dataclass(frozen=True)
class Batch:
    """Packed samples: R rows of L tokens, holding B image blocks of I image tokens each, and T answer tokens.

    Attributes:
        features: vision features (B, N, D), or pixels (B, 3, S, S) for a model that has a vision encoder of its own;
            (B, 0, 0) for a blind model.
        shown: (B,): False for an empty slot, whose features mean nothing.
        image_index: (R, L): which of the B * I image tokens stands there, or TEXT.
        tokens: token ids (R, L), meaningless at image tokens and padding.
        blocks: (R, L): the block's number, or PADDING.
        segments: (R, L): PREFIX, or the sample's number within its block, from 1.
        positions: position ids (R, L).
        target_rows, target_columns: (T,): place of the hidden state that predicts each answer token.
        targets: (T,): the answer tokens; NO_TARGET in an empty slot.
        target_samples: (T,): index of the sample that each belongs to, in the order given to `pack`.
        image_tokens: I.
        tiles: of a batch of fixed shape, which tiles of its mask are computed.
        buffer: bytes in which all of these tensors lie, where they were joined.
    """

    features: torch.Tensor
    shown: torch.Tensor
    image_index: torch.Tensor
    tokens: torch.Tensor
    blocks: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    target_rows: torch.Tensor
    target_columns: torch.Tensor
    targets: torch.Tensor
    target_samples: torch.Tensor
    image_tokens: int
    tiles: Tiles | None = None
    buffer: torch.Tensor | None = None

    def attention_mask(self) -> torch.Tensor:
        """Build the mask (R, 1, L, L) of whole rows: `visible`, within each block."""
        same_block = self.blocks[:, :, None] == self.blocks[:, None, :]
        return (same_block & visible(self.segments))[:, None]

    def distance(self) -> torch.Tensor:
        """Count how many positions (R, 1, L, L) a key (column) is before a query (row) of the same sample."""
        return (self.positions[:, :, None] - self.positions[:, None, :])[:, None]

    def image_features(self) -> torch.Tensor:
        """Give the features (B, N, D), or pixels (B, 3, S, S), zero in empty slots."""
        if self.tiles is None:
            return self.features
        return torch.where(self.shown.view(-1, *[1] * (self.features.dim() - 1)), self.features, 0)

    def joined(self, pinned: bool) -> "Batch":
        """Move all tensors into one buffer, so that one copy takes them to a device; pinned memory does not wait."""
        flat = self._flat()
        ends = [0]
        for tensor in flat:
            ends.append(ends[-1] + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT)
        buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pinned)
        views = [_view(buffer, start, tensor) for start, tensor in zip(ends, flat, strict=False)]
        for view, tensor in zip(views, flat, strict=True):
            view.copy_(tensor)
        return self._of(views, buffer)

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device, in one copy, which the caller does not wait for if its memory is pinned."""
        if device == self.tokens.device:
            return self
        here = self if self.buffer is not None else self.joined(pinned=False)
        there = here.buffer.to(device, non_blocking=True)
        first = here.buffer.data_ptr()
        return self._of([_view(there, tensor.data_ptr() - first, tensor) for tensor in here._flat()], there)

    def _flat(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in _tensors()] + list(self.tiles or ())

    def _of(self, flat: Sequence[torch.Tensor], buffer: torch.Tensor) -> "Batch":
        own = dict(zip(_tensors(), flat, strict=False))
        return replace(self, **own, tiles=Tiles(*flat[len(own) :]) if self.tiles else None, buffer=buffer)


def _tensors() -> list[str]:
    """Name the tensors that every batch has."""
    return [field.name for field in fields(Batch) if field.type is torch.Tensor]


def _view(buffer: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """View a place of a buffer as a tensor of the dtype and shape of another."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


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
    shapes: Sequence[Shape] = (),
    pinned: bool = False,
) -> Batch:
    """Pack samples into rows of image blocks.

    Args:
        samples: in any order; those of one image share a block.
        features: function from image ids to vision features (B, N, D), or to pixels (B, 3, S, S).
        prompt: the fixed text.
        image_tokens: number of tokens of an image; with 0, no features are read.
        row_tokens: length to which rows are filled.
        shapes: of which the batch gets the first that it fits in, in one row; none: rows are as long as need be.
        pinned: whether the batch is joined in memory from which a GPU copies by itself.

    Raises:
        TriptychError: the batch fits in no shape.
    """
    images = by_image(samples)
    members = list(images.values())
    before = list(prompt.before_image)
    prefix_tokens = len(before) + image_tokens
    lengths = [prefix_tokens + sum(len(samples[index].text) for index in indices) for indices in members]
    rows = place(lengths, sys.maxsize if shapes else row_tokens)
    tokens, image_index, blocks, segments, positions = ([[] for _ in rows] for _ in range(5))
    targets: list[tuple[int, int, int, int]] = []
    for row, row_blocks in enumerate(rows):
        for block in row_blocks:
            tokens[row] += before + [prompt.end] * image_tokens
            image_index[row] += [TEXT] * len(before) + list(range(block * image_tokens, (block + 1) * image_tokens))
            segments[row] += [PREFIX] * prefix_tokens
            positions[row] += range(prefix_tokens)
            for segment, index in enumerate(members[block], start=1):
                sample = samples[index]
                # The last question token predicts the first answer token, and so on up to the end token.
                first = len(tokens[row]) + len(sample.question) - 1
                targets += [(row, first + offset, token, index) for offset, token in enumerate(sample.answer)]
                tokens[row] += sample.text
                image_index[row] += [TEXT] * len(sample.text)
                segments[row] += [segment] * len(sample.text)
                positions[row] += range(prefix_tokens, prefix_tokens + len(sample.text))
            blocks[row] += [block] * lengths[block]
    target_rows, target_columns, target_tokens, target_samples = zip(*targets, strict=True)
    length = max(map(len, tokens))
    shape = fitting(shapes, Shape(length, len(images), len(targets))) if shapes else None
    length = shape.tokens if shape else length
    batch = Batch(
        features=features(list(images)) if image_tokens else torch.empty(len(images), 0, 0),
        shown=torch.ones(len(images), dtype=torch.bool),
        image_index=_padded(image_index, TEXT, length),
        tokens=_padded(tokens, prompt.end, length),
        blocks=_padded(blocks, PADDING, length),
        segments=_padded(segments, PREFIX, length),
        positions=_padded(positions, 0, length),
        target_rows=torch.tensor(target_rows),
        target_columns=torch.tensor(target_columns),
        targets=torch.tensor(target_tokens),
        target_samples=torch.tensor(target_samples),
        image_tokens=image_tokens,
    )
    batch = _with_slots(batch, shape) if shape else batch
    return batch.joined(pinned) if pinned else batch


def fitting(shapes: Sequence[Shape], size: Shape) -> Shape:
    """Choose the first of the shapes that a batch of a size fits in.

    Raises:
        TriptychError: it fits in none.
    """
    for shape in shapes:
        if size.tokens <= shape.tokens and size.images <= shape.images and size.answers <= shape.answers:
            return shape
    raise TriptychError(f"a batch of {size} fits in none of the shapes {', '.join(map(str, shapes))}")


def _with_slots(batch: Batch, shape: Shape) -> Batch:
    """Add the empty slots of a shape, and the tiles of its mask."""
    images, answers = shape.images - len(batch.shown), shape.answers - len(batch.targets)
    return replace(
        batch,
        features=pad(batch.features, (*[0, 0] * (batch.features.dim() - 1), 0, images)),
        shown=pad(batch.shown, (0, images)),
        target_rows=pad(batch.target_rows, (0, answers)),
        target_columns=pad(batch.target_columns, (0, answers)),
        targets=pad(batch.targets, (0, answers), value=NO_TARGET),
        target_samples=pad(batch.target_samples, (0, answers)),
        tiles=find_tiles(batch.blocks[0].numpy(), batch.segments[0].numpy()),
    )


def _padded(rows: Sequence[Sequence[int]], value: int, length: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)
