"""Attention of packed rows on a GPU: FlexAttention, which skips the tiles that the mask hides.

It is registered with transformers under the name FLEX, takes batches of fixed shape, and belongs into compiled layers:
outside of them it would build whole rows of weights.
"""

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask

from triptych.model.architectures import sliding_window
from triptych.model.attention import by_layer
from triptych.model.packing import PREFIX, Batch
from triptych.model.tiles import TILE

FLEX = "triptych_flex"


def is_flex(model: PreTrainedModel) -> bool:
    """Tell whether a model computes attention in tiles, and takes batches of fixed shape."""
    return model.config._attn_implementation == FLEX


def use_flex(model: PreTrainedModel) -> None:
    """Let a decoder that drops no attention weights compute attention in tiles from now on."""
    model.config._attn_implementation = FLEX


def block_masks(config: PreTrainedConfig, batch: Batch) -> BlockMask | dict[str, BlockMask]:
    """Build the masks of a batch of fixed shape as a decoder's architecture takes them."""
    tiles, window = batch.tiles, sliding_window(config)
    blocks, segments, positions = batch.blocks[0], batch.segments[0], batch.positions[0]

    def visible(_row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        shared = (segments[key] == PREFIX) | (segments[key] == segments[query])
        return (blocks[query] == blocks[key]) & (key <= query) & shared

    def near(_row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return visible(_row, _head, query, key) & (positions[query] - positions[key] < window)

    length = batch.tokens.shape[1]
    partial = tiles.partial_of_queries_count, tiles.partial_of_queries
    full = tiles.full_of_queries_count, tiles.full_of_queries
    partial_keys = tiles.partial_of_keys_count, tiles.partial_of_keys
    full_keys = tiles.full_of_keys_count, tiles.full_of_keys
    rest = {"BLOCK_SIZE": (TILE, TILE)}
    whole = BlockMask((length, length), *partial, *full, *partial_keys, *full_keys, mask_mod=visible, **rest)
    if window is None:
        return by_layer(config, whole, whole)
    # A window may hide a part of any tile, so that none of them is full.
    some, keys = (tiles.any_of_queries_count, tiles.any_of_queries), (tiles.any_of_keys_count, tiles.any_of_keys)
    return by_layer(
        config, whole, BlockMask((length, length), *some, None, None, *keys, None, None, mask_mod=near, **rest)
    )


def tiled_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask,
    scaling: float,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention as transformers calls it: queries (1, H, L, D), keys and values (1, K, L, D) -> (1, L, H, D).

    Args:
        module: the layer.
        query, key, value: of all tokens; query heads h * H / K to (h + 1) * H / K - 1 share the h-th key.
        attention_mask: of this type of layer, from `block_masks`.
        scaling: factor of the products of queries and keys.
        softcap: bound of the attention logits; None where they have none.
    """

    def bounded(score: torch.Tensor, *_place: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    score = None if softcap is None else bounded
    shared = query.shape[1] != key.shape[1]
    # Autocast would leave queries that rotated positions have made fp32 beside values in bf16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = flex_attention(query, key, value, score, attention_mask, scaling, enable_gqa=shared)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, tiled_attention)
AttentionMaskInterface.register(FLEX, eager_mask)
