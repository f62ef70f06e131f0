"""Attention masks for each type of layer, and blockwise attention of packed rows.

Blockwise attention is for CPUs: nothing is computed that the mask would hide. It is registered with transformers under
the name BLOCKWISE. A row of many images costs what its blocks cost, and needs no padding. Without blocks, as when
answers are generated, it is plain attention.
"""

import sys
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask

from triptych.model.architectures import architecture, sliding_window
from triptych.model.packing import PADDING, ROW_TOKENS, Batch, visible

BLOCKWISE = "triptych_blockwise"

Mask = TypeVar("Mask")


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a packed batch: where each begins and ends, and its mask.

    Attributes:
        spans: for each row, its blocks from left to right: start, stop (exclusive), and the additive masks (G * S, S)
            of the block's S tokens, for the G heads that share a key, of layers without and with a window; None for
            padding.
    """

    spans: list[list[tuple[int, int, tuple[torch.Tensor, torch.Tensor] | None]]]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a mask, True where a query may attend to a key, into one that is added to the logits."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def layer_masks(
    config: PreTrainedConfig, allowed: torch.Tensor, distance: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Build the additive masks of a decoder as its architecture takes them: one for all layers, or one for each type.

    Args:
        config: of the decoder.
        allowed: (R, 1, Q, K), True where a query may attend to a key in a layer without a window.
        distance: (R, 1, Q, K), how many positions of its own sequence the key is before the query.
        dtype: of the masks.
    """
    window = sliding_window(config)
    full = additive(allowed, dtype)
    near = full if window is None else additive(allowed & (distance < window), dtype)
    return by_layer(config, full, near)


def by_layer(config: PreTrainedConfig, full: Mask, near: Mask) -> Mask | dict[str, Mask]:
    """Arrange masks of layers without and with a window as a decoder's architecture takes them.

    Args:
        config: of the decoder.
        full: mask of a layer without a window.
        near: mask of a layer with the model's window; where there is none, the same.
    """
    if architecture(config).windows == "by layer":
        return {"full_attention": full, "sliding_attention": near}
    return near


def row_tokens(model: PreTrainedModel) -> int:
    """Choose the length of packed rows: one row of all blocks for blockwise attention, otherwise ROW_TOKENS."""
    return sys.maxsize if is_blockwise(model) else ROW_TOKENS


def is_blockwise(model: PreTrainedModel) -> bool:
    """Tell whether a model computes blockwise attention."""
    return model.config._attn_implementation == BLOCKWISE


def find_blocks(batch: Batch, model: PreTrainedModel, dtype: torch.dtype) -> Blocks:
    """Find the blocks of a batch, with masks in `dtype` for a model's heads."""
    config = model.config.get_text_config()
    window = sliding_window(config)
    shared = config.num_attention_heads // config.num_key_value_heads
    rows = []
    for row, numbers in enumerate(batch.blocks):
        ids, lengths = torch.unique_consecutive(numbers, return_counts=True)
        stops = lengths.cumsum(0).tolist()
        row_spans = []
        for number, start, stop in zip(ids.tolist(), [0, *stops], stops, strict=False):
            if number == PADDING:
                row_spans.append((start, stop, None))
                continue
            allowed = visible(batch.segments[row, start:stop])
            mask = near = additive(allowed, dtype).repeat(shared, 1)
            positions = batch.positions[row, start:stop]
            if window is not None and positions.max() >= window:
                close = positions[:, None] - positions[None] < window
                near = additive(allowed & close, dtype).repeat(shared, 1)
            row_spans.append((start, stop, (mask, near)))
        rows.append(row_spans)
    return Blocks(rows)


@torch.compiler.disable  # lengths differ from step to step: it would be recompiled again and again
def blockwise_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    blocks: Blocks | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention as transformers calls it: queries (R, H, L, D), keys and values (R, K, L, D) -> (R, L, H, D).

    Args:
        module: the layer.
        query, key, value: of all tokens; query heads h * H / K to (h + 1) * H / K - 1 share the h-th key.
        attention_mask: additive (R, 1, L, L), used where there are no blocks; None masks nothing.
        scaling: factor of the products of queries and keys.
        dropout: of the attention weights, in training mode.
        blocks: of the rows.
        sliding_window: of this layer; None where it has none.
        softcap: bound of the attention logits; None where they have none.
    """
    rate = dropout if module.training else 0.0
    with torch.autocast(query.device.type, enabled=False):
        if blocks is None:
            shared = query.shape[1] // key.shape[1]
            mask = None
            if attention_mask is not None:
                mask = attention_mask[:, 0, :, : key.shape[2]].repeat(1, shared, 1)
            return _attend(query, key, value, mask, scaling, rate, softcap), None
        rows = []
        for row, spans in enumerate(blocks.spans):
            # Split at once: each slice by itself would have a gradient as long as the row.
            lengths = [stop - start for start, stop, _ in spans]
            parts = [tensor[row : row + 1].split(lengths, dim=2) for tensor in (query, key, value)]
            attended = []
            for q, k, v, (_, _, masks) in zip(*parts, spans, strict=True):
                if masks is None:
                    attended.append(torch.zeros_like(q).transpose(1, 2))
                    continue
                mask = masks[0 if sliding_window is None else 1]
                attended.append(_attend(q, k, v, mask[None], scaling, rate, softcap))
            rows.append(torch.cat(attended, dim=1))
    return torch.cat(rows), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    rate: float,
    softcap: float | None,
) -> torch.Tensor:
    """Queries (R, H, S, D), keys and values (R, K, T, D), mask (R, H / K * S, T) -> (R, S, H, D)."""
    rows, heads, length, size = query.shape
    groups = key.shape[1]
    grouped = query.reshape(rows * groups, -1, size)  # the queries of heads that share a key, stacked
    keys, values = key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)
    if mask is not None:
        mask = mask.to(query.dtype)[:, None].expand(-1, groups, -1, -1).flatten(0, 1)
    if softcap is not None:
        weights = softcap * torch.tanh(torch.bmm(grouped, keys) * (scaling / softcap))
        weights = weights if mask is None else weights + mask
    elif mask is None:
        weights = torch.bmm(grouped, keys) * scaling
    else:
        weights = torch.baddbmm(mask, grouped, keys, alpha=scaling)
    weights = nn.functional.dropout(weights.softmax(-1), rate)
    return torch.bmm(weights, values).view(rows, heads, length, size).transpose(1, 2)


AttentionInterface.register(BLOCKWISE, blockwise_attention)
AttentionMaskInterface.register(BLOCKWISE, eager_mask)
