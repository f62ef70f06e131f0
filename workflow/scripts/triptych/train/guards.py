"""Guards that are always on: each stops a training that would otherwise go wrong unnoticed."""

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from triptych.errors import TriptychError
from triptych.train.distributed import all_gather, world_size

# Projected image tokens against text embeddings. Healthy connectors reach 10 to 40 with small text embeddings, so the
# bounds only catch a collapse or an explosion.
NORM_RATIO_BOUNDS = (1e-3, 1e4)

SPIKE_WINDOW = 64  # steps before a step, with whose losses its own is compared
SPIKE_MIN_STEPS = 16  # before so many, nothing is called a spike
SPIKE_DEVIATIONS = 6.0
SPIKE_MIN_DEVIATION = 0.02  # nats; losses that hardly vary, as after over-fitting, make no spikes


def frozen_hash(model: nn.Module) -> str:
    """Compute the SHA-256 over every parameter and buffer that does not train."""
    # Not by name: an output layer that is tied to the embeddings has two.
    return _hash({name: one for name, one in model.state_dict(keep_vars=True).items() if not one.requires_grad})


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous().flatten()
        digest.update(name.encode())
        digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_same_on_all_ranks(trained: Mapping[str, nn.Parameter]) -> None:
    """Compare the weights of the processes that train together.

    Raises:
        TriptychError: the weights differ.
    """
    if world_size() > 1 and len(set(all_gather(_hash(trained)))) > 1:
        raise TriptychError("the weights differ between the processes of this training; use runtime.processes: 1")


class GradientGuard:
    """Watches the first steps: every trainable tensor must get a finite, non-zero gradient and must change.

    LoRA's first factor has no gradient until its second, which starts at zero, has moved; hence two steps.
    """

    STEPS = 2

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self.parameters = parameters
        self.start = {name: one.detach().to("cpu", copy=True) for name, one in parameters.items()}
        self.reached: set[str] = set()
        self.seen = 0

    def resume(self, step: int, reached: Sequence[str]) -> None:
        """Resume after `step` steps, in which a non-zero gradient reached the parameters named `reached`."""
        self.seen = step
        self.reached = set(reached)
        if step >= self.STEPS:
            self.start.clear()

    def check_gradients(self) -> None:
        """Check the gradients between the backward pass and the optimiser's step.

        Raises:
            TriptychError: a gradient is not finite.
        """
        if self.seen >= self.STEPS:
            return
        gradients = {name: one.grad for name, one in self.parameters.items() if one.grad is not None}
        if not gradients:
            return
        largest = torch.stack([gradient.abs().max().float() for gradient in gradients.values()]).tolist()
        for name, size in zip(gradients, largest, strict=True):
            if not math.isfinite(size):
                raise TriptychError(
                    f"{name}: its gradient is not finite; lower the learning rate or use precision: fp32"
                )
            if size > 0:
                self.reached.add(name)

    def check_change(self, optimiser: torch.optim.Optimizer) -> None:
        """Check that parameters have changed, after the optimiser's step.

        A tensor may stay as it is while a learning rate that is rising is below what its numbers can show.

        Raises:
            TriptychError: after two steps, a trainable tensor has had no gradient, or has not moved.
        """
        self.seen += 1
        if self.seen != self.STEPS:
            return
        if missed := sorted(set(self.parameters) - self.reached):
            raise TriptychError(f"no gradient reaches {', '.join(missed)}; the stage would train nothing")
        rates = {id(one): group["lr"] for group in optimiser.param_groups for one in group["params"]}
        still = [
            name
            for name, one in self.parameters.items()
            if torch.equal(one.detach().cpu(), self.start[name])
            and rates[id(one)] > torch.finfo(one.dtype).eps * self.start[name].abs().max()
        ]
        if still:
            raise TriptychError(f"{', '.join(still)} did not change in {self.STEPS} steps; check the learning rate")
        self.start.clear()


def spike_ratio(loss: float, recent: Sequence[float]) -> float | None:
    """Divide a step's loss by the highest one that is usual; above 1 it is a spike. None while too few steps are known.

    Usual is up to mean + 6 standard deviations of the recent steps' losses, both estimated from medians (the standard
    deviation as 1.4826 times the median distance from the median), so that one spike does not hide the next.
    """
    if len(recent) < SPIKE_MIN_STEPS:
        return None
    middle = statistics.median(recent)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in recent)
    return loss / (middle + SPIKE_DEVIATIONS * max(deviation, SPIKE_MIN_DEVIATION))


def check_finite(name: str, value: float, step: int, question_ids: Sequence[str]) -> None:
    """Check that a number is finite.

    Raises:
        TriptychError: it is not; the message names the number, the step and the questions.
    """
    if not math.isfinite(value):
        where = f"; questions in the batch: {', '.join(question_ids)}" if question_ids else ""
        raise TriptychError(f"step {step}: {name} is {value}; lower the learning rate or use precision: fp32{where}")


def check_norm_ratio(ratio: float) -> None:
    """Check that projected image tokens have the scale of text embeddings.

    Raises:
        TriptychError: the ratio of mean norms is outside NORM_RATIO_BOUNDS.
    """
    low, high = NORM_RATIO_BOUNDS
    if not low <= ratio <= high:
        raise TriptychError(
            f"the norm of projected image tokens is {ratio:.3g} times that of text embeddings (allowed: {low} to "
            f"{high}); the connector has diverged: lower its learning rate"
        )
