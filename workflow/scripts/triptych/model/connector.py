"""The projection from vision features to the language model's embeddings."""

import math

import torch
from torch import nn
from torch.nn import functional

from triptych.config.stages import Connector
from triptych.errors import TriptychError

CONNECTOR_FILE = "connector.safetensors"


def pool_tokens(tokens: torch.Tensor, pool: int) -> torch.Tensor:
    """Average the `pool` x `pool` neighbours of a square grid: tokens (B, N, D), row by row, -> (B, N / pool^2, D).

    Raises:
        TriptychError: N is no square number, or `pool` does not divide the square's side.
    """
    if pool == 1:
        return tokens
    count = tokens.shape[1]
    side = math.isqrt(count)
    if side**2 != count:
        raise TriptychError(f"connector.pool: {count} vision tokens are no square grid (is a class token among them?)")
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
        """Vision tokens (B, N, D) -> language-model tokens (B, N / pool^2, H)."""
        return self.linear_2(functional.gelu(self.linear_1(pool_tokens(features, self.pool))))


class Linear(nn.Linear):
    """One linear layer, vision tokens (B, N, D) -> language-model tokens (B, N, H), as in the first LLaVA."""

    pool = 1


def build_connector(settings: Connector, inputs: int, outputs: int, seed: int) -> nn.Module:
    """A fresh connector in fp32; its weights depend on `seed` alone. It says in `pool` what it pools."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Linear(inputs, outputs) if settings.kind == "linear" else Mlp(inputs, outputs, settings.pool or 1)
