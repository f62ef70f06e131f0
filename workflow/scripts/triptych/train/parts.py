"""The parts of a model: which of them train, at what rate, and how many parameters they have."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from triptych.model.vlm import VisionLanguageModel
from triptych.settings import Stage
from triptych.storage import TriptychError
from triptych.train.order import learning_rate_factor


def part_of(parameter_name: str) -> str:
    """Which part a parameter belongs to: connector, lora, regularisation or base."""
    for part in ("connector", "regularisation"):
        if parameter_name.startswith(f"{part}."):
            return part
    return "lora" if ".lora_" in parameter_name else "base"


def set_trainable(model: VisionLanguageModel, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Let exactly `parts` train; gives their parameters by name.

    Raises:
        TriptychError: a part has no parameters in this model.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for part in parts:
        if not any(part_of(name) == part for name in trained):
            raise TriptychError(f"the stage trains '{part}', but the model has no such part")
    return trained


def make_optimiser(
    trained: Mapping[str, nn.Parameter], stage: Stage, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a group for each part, and the schedule of their rates over `steps` steps.

    What a regularisation adds trains as the connector does.
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
        kind, warmup = stage.of("schedule", like), stage.of("warmup", like)
        factors.append(partial(learning_rate_factor, steps=steps, warmup=warmup, kind=kind))
    if not trained:  # a stage that only passes its parent on
        groups, factors = [{"params": []}], [lambda step: 1.0]
    optimiser = torch.optim.AdamW(groups)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factors)


def describe(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, dict[str, int]]:
    """Number of trained and frozen parameters per part, from parameters and their names."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in parameters:
        state = "trained" if parameter.requires_grad else "frozen"
        part = counts.setdefault(part_of(name), {"trained": 0, "frozen": 0})
        part[state] += parameter.numel()
    return counts


def as_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The numbers of `describe` for people to read; the base is the language model."""
    rows = [("part", "trained", "frozen")]
    for part, states in counts.items():
        name = "language model" if part == "base" else part
        rows.append((name, f"{states['trained']:,}", f"{states['frozen']:,}"))
    return "\n".join(f"{name:<14} {trained:>15} {frozen:>15}" for name, trained, frozen in rows)
