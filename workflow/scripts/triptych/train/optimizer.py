"""The optimisers, and the schedule of their learning rate."""

from collections.abc import Mapping
from functools import partial
from typing import assert_never

import numpy as np
import torch
from torch import nn

from triptych.config.base import LrSchedule
from triptych.config.stages import OPTIMIZER_BYTES, Stage
from triptych.errors import TriptychError
from triptych.train.parameters import part_of
from triptych.utils.optional import why_no_8_bits


def make_optimiser(
    trained: Mapping[str, nn.Parameter], stage: Stage, steps: int, fused: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Build a stage's optimiser with a group for each part, and the schedule of the groups' rates over `steps` steps.

    A regularisation's head trains with the settings of the connector. With `fused`, one kernel of AdamW updates all
    weights, and leaves them alone where its attribute `found_inf` (), a tensor on their device, is 1.

    Raises:
        TriptychError: the optimiser cannot be used here.
    """
    groups, factors = [], []
    for part in dict.fromkeys(map(part_of, trained)):
        like = "connector" if part == "regularisation" else part
        groups.append(
            {
                "params": [parameter for name, parameter in trained.items() if part_of(name) == part],
                "lr": stage.of("learning_rate", like),
                "weight_decay": stage.of("weight_decay", like),
            }
        )
        kind, warmup = stage.of("lr_schedule", like), stage.of("warmup_ratio", like)
        factors.append(partial(learning_rate_factor, steps=steps, warmup=warmup, kind=kind))
    if not trained:  # a stage that only passes its parent on
        groups, factors = [{"params": []}], [lambda step: 1.0]
    match stage.optimizer:
        case "adamw":
            optimiser = torch.optim.AdamW(groups, fused=fused or None)
        case "adafactor":
            optimiser = torch.optim.Adafactor(groups)
        case "adamw-8bit":
            optimiser = _adamw_8bit(groups, next(iter(trained.values())).device)
        case _:
            assert_never(stage.optimizer)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factors)


def _adamw_8bit(groups: list[dict], device: torch.device) -> torch.optim.Optimizer:
    if obstacle := why_no_8_bits(device.type):
        raise TriptychError(f"optimizer: {obstacle}")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups)


def optimiser_bytes(trained: Mapping[str, nn.Parameter], stage: Stage) -> float:
    """Estimate the memory that gradients and optimiser take, in bytes."""
    numbers = sum(parameter.numel() for parameter in trained.values())
    return numbers * (4 + OPTIMIZER_BYTES[stage.optimizer])


def learning_rate_factor(step: int, steps: int, warmup: float, kind: LrSchedule = "cosine") -> float:
    """Give the learning rate at `step` of `steps` as a fraction of its peak.

    It rises linearly over the first `warmup` share of the steps; then cosine and linear fall to zero, constant stays.
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    falling = max(1, steps - rising)
    match kind:
        case "cosine":
            return 0.5 * (1 + np.cos(np.pi * (step - rising) / falling))
        case "linear":
            return 1 - (step - rising) / falling
        case "constant":
            return 1.0
        case _:
            assert_never(kind)
