"""How a training computes on a device: what differs between a CPU and a GPU, said once."""

from dataclasses import dataclass, replace
from typing import Self

import torch

from triptych.config.stages import Optimizer


@dataclass(frozen=True)
class Route:
    """What a training does on one kind of device.

    Attributes:
        fixed_shapes: compiled layers take batches of a few shapes, with attention in tiles (`model/flex.py`), and are
            compiled for each of them; otherwise for shapes that vary.
        read_every: number of steps whose losses and norms are read from the device together: reading waits until the
            device has computed them, and meanwhile nothing new is sent to it.
        fused_optimiser: one kernel updates all weights, and leaves them alone after a step that is not finite; AdamW
            alone has one.
        copied_adapters: layers compute with copies of the adapters' weights in the dtype of matrix products
            (`train/copies.py`); otherwise autocast turns each weight into it, and inputs into fp32 before.
    """

    fixed_shapes: bool
    read_every: int
    fused_optimiser: bool
    copied_adapters: bool

    def for_optimiser(self, name: Optimizer) -> Self:
        """Give the route with another optimiser than AdamW: every step is checked before it reaches the weights."""
        return self if name == "adamw" else replace(self, read_every=1, fused_optimiser=False)


CPU = Route(fixed_shapes=False, read_every=1, fused_optimiser=False, copied_adapters=False)
GPU = Route(fixed_shapes=True, read_every=16, fused_optimiser=True, copied_adapters=True)


def route_for(device: torch.device) -> Route:
    """Choose the route of a device."""
    return GPU if device.type == "cuda" else CPU
