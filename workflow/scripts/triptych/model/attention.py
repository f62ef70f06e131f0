"""Blockwise attention of packed rows, for CPUs: nothing is computed that the mask would hide.

It is registered with transformers under the name BLOCKWISE. A row of many images costs what its blocks cost, and needs
no padding. Without blocks, as when answers are generated, it is plain attention.
"""

import sys
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from triptych.model.packing import PADDING, ROW_TOKENS, Batch

BLOCKWISE = "triptych_blockwise"


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a packed batch: where each begins and ends, and its mask.

    Attributes:
        spans: for each row, its blocks from left to right: start, stop (exclusive), and the additive mask (G * S, S) of
            the block's S tokens, for the G heads that share a key; None for padding.
    """

    spans: list[list[tuple[int, int, torch.Tensor | None]]]


def row_tokens(model: PreTrainedModel) -> int:
    """Choose the length of packed rows: one row of all blocks for blockwise attention, otherwise ROW_TOKENS."""
    return sys.maxsize if is_blockwise(model) else ROW_TOKENS


def is_blockwise(model: PreTrainedModel) -> bool:
    """Tell whether a model computes blockwise attention."""
    return model.config._attn_implementation == BLOCKWISE


def find_blocks(batch: Batch, model: PreTrainedModel, dtype: torch.dtype) -> Blocks:
    """Find the blocks of a batch, with masks in `dtype` for a model's heads."""
    config = model.config.get_text_config()
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
            allowed = batch.may_see(row, start, stop)
            mask = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
            row_spans.append((start, stop, mask.repeat(shared, 1)))
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
    """
    rate = dropout if module.training else 0.0
    with torch.autocast(query.device.type, enabled=False):
        if blocks is None:
            shared = query.shape[1] // key.shape[1]
            masks = [None] * len(query)
            if attention_mask is not None:
                masks = [mask[0, :, : key.shape[2]].repeat(shared, 1) for mask in attention_mask]
            out = [_attend(query[row], key[row], value[row], mask, scaling, rate) for row, mask in enumerate(masks)]
            return torch.stack(out), None
        rows = []
        for row, spans in enumerate(blocks.spans):
            parts = []
            for start, stop, mask in spans:
                if mask is None:
                    parts.append(query.new_zeros(stop - start, query.shape[1], query.shape[3]))
                    continue
                q, k, v = (tensor[row, :, start:stop] for tensor in (query, key, value))
                parts.append(_attend(q, k, v, mask, scaling, rate))
            rows.append(torch.cat(parts))
    return torch.stack(rows), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, rate: float
) -> torch.Tensor:
    """Queries (H, S, D), keys and values (K, T, D), mask (H / K * S, T) -> (S, H, D)."""
    heads, length, size = query.shape
    grouped = query.reshape(len(key), -1, size)  # the queries of heads that share a key, stacked
    keys = key.transpose(1, 2)
    if mask is None:
        weights = torch.bmm(grouped, keys) * scaling
    else:
        weights = torch.baddbmm(mask.to(query.dtype), grouped, keys, alpha=scaling)
    weights = nn.functional.dropout(weights.softmax(-1), rate)
    return torch.bmm(weights, value).reshape(heads, length, size).transpose(0, 1)


AttentionInterface.register(BLOCKWISE, blockwise_attention)
AttentionMaskInterface.register(BLOCKWISE, eager_mask)
