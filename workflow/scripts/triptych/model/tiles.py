"""Tiles of the attention mask of a packed row: which are computed, and which of these need no mask.

FlexAttention (Dong et al., arXiv 2412.05496) computes a mask in tiles of TILE x TILE. From the spans of a row's blocks
and samples follows which tiles hold a pair of tokens that see each other: no mask (L, L) is ever built.
"""

from typing import NamedTuple

import numpy as np
import torch

TILE = 128  # tokens


class Tiles(NamedTuple):
    """Lists of tiles, int32, for a row of S tiles: how many there are (1, 1, S), and which (1, 1, S, S).

    `of_queries` lists the key tiles of each query tile, `of_keys` the query tiles of each key tile. `partial` are tiles
    of which only some pairs see each other, `full` those of which all do, `any` both.
    """

    partial_of_queries_count: torch.Tensor
    partial_of_queries: torch.Tensor
    partial_of_keys_count: torch.Tensor
    partial_of_keys: torch.Tensor
    full_of_queries_count: torch.Tensor
    full_of_queries: torch.Tensor
    full_of_keys_count: torch.Tensor
    full_of_keys: torch.Tensor
    any_of_queries_count: torch.Tensor
    any_of_queries: torch.Tensor
    any_of_keys_count: torch.Tensor
    any_of_keys: torch.Tensor


def find_tiles(blocks: np.ndarray, segments: np.ndarray) -> Tiles:
    """Find the tiles of a row.

    Args:
        blocks: (L,) the number of each token's block; L is a multiple of TILE.
        segments: (L,) 0 for the shared prefix with which a block begins, then the numbers of its samples.
    """
    size = len(blocks) // TILE
    touched, full = np.zeros((size, size), bool), np.zeros((size, size), bool)
    changes = np.flatnonzero((np.diff(blocks) != 0) | (np.diff(segments) != 0)) + 1
    prefix = block = (0, 0)  # spans of the current block: of its prefix, and of all of it so far
    for start, stop in zip([0, *changes], [*changes, len(blocks)], strict=True):
        if start == 0 or blocks[start] != blocks[start - 1]:
            _add_full(full, prefix, block)
            block = (start, stop)
            prefix = (start, stop if segments[start] == 0 else start)
        block = (block[0], stop)
        for query in range(start // TILE, (stop - 1) // TILE + 1):
            touched[query, prefix[0] // TILE : min((prefix[1] - 1) // TILE, query) + 1] = True
            touched[query, start // TILE : query + 1] = True
    _add_full(full, prefix, block)
    lists = []
    for chosen in (touched & ~full, full, touched):
        lists += [*_listed(chosen), *_listed(chosen.T)]
    return Tiles(*lists)


def _add_full(full: np.ndarray, prefix: tuple[int, int], block: tuple[int, int]) -> None:
    """Mark tiles of queries of one block and keys of its prefix, all of which come before the queries."""
    first, last = -(-prefix[0] // TILE), prefix[1] // TILE
    for query in range(-(-block[0] // TILE), block[1] // TILE):
        full[query, first : min(last, query)] = True


def _listed(chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the tiles of each row of (S, S), and list their numbers in order, the others behind them."""
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(chosen.sum(1, dtype=np.int32))[None, None], torch.from_numpy(order)[None, None]
