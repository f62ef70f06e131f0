"""The numbers of steps, kept on the device until some steps are read together: reading one waits for the device."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from triptych.train.distributed import all_reduce_sum
from triptych.train.guards import check_finite
from triptych.train.validation import Score


@dataclass(frozen=True)
class PassReading:
    """The numbers of one forward and backward pass; tensors () on the device.

    Attributes:
        loss_sum: sum of the losses of its answer tokens, in nats.
        exact: number of samples whose every answer token is predicted.
        loss: what it adds to the loss of the step.
        cosine_term: what it adds to the regularisation's term; None without one.
        question_ids: of its samples, for messages.
        answer_tokens: number of them in all samples.
    """

    loss_sum: torch.Tensor
    exact: torch.Tensor
    loss: torch.Tensor
    cosine_term: torch.Tensor | None
    question_ids: Sequence[str]
    answer_tokens: int


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, summed over its passes and processes."""

    score: Score
    loss: float
    cosine_term: float
    gradient_norm: float


@dataclass
class StepReading:
    """The numbers of one step on the device: of its passes, and the gradients' norm before clipping."""

    question_ids: Sequence[str]  # of the step, in all processes
    passes: list[PassReading] = field(default_factory=list)
    gradient_norm: torch.Tensor | None = None

    def is_bad(self) -> torch.Tensor:
        """Tell on the device, as 1.0 or 0.0, whether the loss or the gradients' norm is not finite."""
        return (~torch.isfinite(sum((one.loss for one in self.passes), self.gradient_norm))).float()


def read(steps: Sequence[StepReading], done: int) -> list[StepNumbers]:
    """Read steps from the device at once, and sum them over the processes that train together.

    Args:
        steps: one after another; all processes read the same.
        done: number of steps before them.

    Raises:
        TriptychError: a loss or a norm is not finite.
    """
    tensors = []
    for step in steps:
        for one in step.passes:
            tensors += [one.loss_sum, one.exact, one.loss]
            tensors += [] if one.cosine_term is None else [one.cosine_term]
        tensors.append(step.gradient_norm)
    values = iter(torch.stack([tensor.double() for tensor in tensors]).tolist())
    sums = []
    for number, step in enumerate(steps, done):
        score, loss, term = Score(), 0.0, 0.0
        for one in step.passes:
            loss_sum, exact, of_pass = next(values), next(values), next(values)
            score += Score(loss_sum, one.answer_tokens, len(one.question_ids), int(exact))
            term += 0.0 if one.cosine_term is None else next(values)
            loss += of_pass
            check_finite("the loss", loss, number, one.question_ids)
        norm = next(values)
        check_finite("the gradient's norm", norm, number, step.question_ids)
        sums.append((score, loss, term, norm))
    return [
        StepNumbers(score.over_processes(), *all_reduce_sum([loss, term]), norm) for score, loss, term, norm in sums
    ]
