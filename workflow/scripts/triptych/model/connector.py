"""The projection from vision features to the language model's embeddings."""

import math

import torch
from torch import nn
from torch.nn import functional

from triptych.config.stages import Connector
from triptych.errors import TriptychError

CONNECTOR_FILE = "connector.safetensors"


def pool_tokens(tokens: torch.Tensor, pool: int) -> torch.Tensor:
    """Average `pool` x `pool` squares of a square grid of tokens, given row by row: (B, N, D) -> (B, N / pool^2, D).

    Raises:
        TriptychError: N is not a square number, or `pool` does not divide the grid's side.
    """
    if pool == 1:
        return tokens
    count = tokens.shape[1]
    side = math.isqrt(count)
    if side**2 != count:
        raise TriptychError(f"connector.pool: {count} vision tokens are no square grid (is one a class token?)")
    if side % pool:
        raise TriptychError(f"connector.pool: {pool} does not divide {side}, the side of the grid of vision tokens")
    grid = tokens.unflatten(1, (side // pool, pool, side // pool, pool))
    return grid.mean((2, 4)).flatten(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, linear: LLaVA-1.5's "mlp2x_gelu" (Liu et al., arXiv 2310.03744), with LLaVA's tensor names."""

    def __init__(self, inputs: int, outputs: int, pool: int = 1):
        super().__init__()
        self.pool = pool
        self.linear_1 = nn.Linear(inputs, outputs)
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project vision tokens (B, N, D) to image tokens (B, N / pool^2, H)."""
        return self.linear_2(functional.gelu(self.linear_1(pool_tokens(features, self.pool))))


class Linear(nn.Linear):
    """One linear layer from vision tokens (B, N, D) to image tokens (B, N, H): LLaVA (Liu et al., arXiv 2304.08485)."""

    pool = 1


def build_connector(settings: Connector, inputs: int, outputs: int, seed: int) -> nn.Module:
    """Build a fresh connector in fp32, its weights depending on `seed` alone; its attribute `pool` is the pooling."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Linear(inputs, outputs) if settings.kind == "linear" else Mlp(inputs, outputs, settings.pool or 1)
