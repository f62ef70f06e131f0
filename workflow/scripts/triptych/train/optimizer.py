"""AdamW, and the schedule of its learning rate."""

from collections.abc import Mapping
from functools import partial
from typing import assert_never

import numpy as np
import torch
from torch import nn

from triptych.config.base import LrSchedule
from triptych.config.stages import Stage
from triptych.train.parameters import part_of


def make_optimiser(
    trained: Mapping[str, nn.Parameter], stage: Stage, steps: int, fused: bool = False
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Build AdamW with a group for each part, and the schedule of the groups' learning rates over `steps` steps.

    A regularisation's head trains with the settings of the connector. With `fused`, one kernel updates all weights, and
    leaves them alone where the optimiser's attribute `found_inf` (), a tensor on their device, is 1.
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
    optimiser = torch.optim.AdamW(groups, fused=fused or None)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factors)


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
