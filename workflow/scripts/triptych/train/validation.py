"""Teacher-forced loss and accuracy of a model in training, and the choice of an epoch by them."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch.nn import functional

from triptych.model.packing import NO_TARGET, Batch
from triptych.model.tokens import Sample
from triptych.model.vlm import VisionLanguageModel
from triptych.train.distributed import all_reduce_sum, fail_together, rank, world_size
from triptych.utils.device import mixed_precision
from triptych.utils.prefetch import map_ahead


@dataclass
class Score:
    """Sums over samples: loss in nats, answer tokens, samples, and samples whose every answer token is predicted."""

    loss: float = 0.0
    tokens: int = 0
    samples: int = 0
    exact: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def over_processes(self) -> "Score":
        """Sum the scores of all processes that train together."""
        loss, *counts = all_reduce_sum(astuple(self))
        return Score(loss, *map(int, counts))

    @property
    def mean_loss(self) -> float:
        """Cross-entropy per answer token, in nats."""
        return self.loss / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of samples whose answer, end token included, is the model's own greedy choice, token by token.

        This is exact match of greedy decoding at the price of one forward pass: greedy decoding gives the gold answer
        exactly when, after each of its prefixes, the likeliest token is its next one.
        """
        return self.exact / self.samples


def score_answers(logits: torch.Tensor, batch: Batch, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Score the answer tokens of a batch; nothing is read from the device.

    Args:
        logits: of its answer tokens (T, V).
        batch: the batch.
        samples: number of its samples.

    Returns:
        The sum of the losses (), with its graph, and the number of samples () whose every answer token is predicted.
    """
    loss = functional.cross_entropy(logits, batch.targets, reduction="sum", ignore_index=NO_TARGET)
    wrong = (logits.argmax(-1) != batch.targets) & (batch.targets != NO_TARGET)
    mistakes = torch.zeros(samples, dtype=torch.long, device=logits.device)
    mistakes.index_add_(0, batch.target_samples, wrong.long())
    return loss, (mistakes == 0).sum()


def smoothed(loss_sum: torch.Tensor, logits: torch.Tensor, batch: Batch, share: float) -> torch.Tensor:
    """Give the loss () of a batch's answer tokens with smoothed labels (Szegedy et al., arXiv 1512.00567).

    Args:
        loss_sum: without smoothing.
        logits: of the answer tokens (T, V).
        batch: the batch.
        share: of the weight that is spread over all V tokens.
    """
    if not share:
        return loss_sum
    spread = torch.where(batch.targets != NO_TARGET, logits.logsumexp(-1) - logits.mean(-1), 0).sum()
    return (1 - share) * loss_sum + share * spread


@torch.inference_mode()
def score_samples(
    model: VisionLanguageModel,
    batches: Sequence[Sequence[Sample]],
    pack: Callable[[Sequence[Sample]], Batch],
    precision: str,
    after_batch: Callable[[], None] = lambda: None,
) -> Score:
    """Compute loss and exact match over samples, teacher-forced.

    Processes that train together take the batches in turn, and all get the sum.

    Args:
        model: on its device.
        batches: any samples, as they are computed together.
        pack: packs samples into a batch.
        precision: of the forward pass.
        after_batch: called after every batch, in all processes.
    """
    model.eval()
    device = next(model.parameters()).device
    sums: list[torch.Tensor] = []  # on the device until the end
    own = batches[rank() :: world_size()]
    with closing(map_ahead(pack, own, 1)) as packed:
        for turn in range(-(-len(batches) // world_size())):
            with fail_together():
                if turn < len(own):
                    batch = next(packed).to(device)
                    with mixed_precision(precision, device):
                        logits = model.answer_logits(batch)
                    sums.append(torch.stack([one.double() for one in score_answers(logits, batch, len(own[turn]))]))
            after_batch()
    score = Score()
    for (loss, exact), samples in zip(torch.stack(sums).tolist() if sums else [], own, strict=True):
        score += Score(loss, sum(len(sample.answer) for sample in samples), len(samples), int(exact))
    return score.over_processes()


@torch.inference_mode()
def norm_ratio(model: VisionLanguageModel, sample_features: torch.Tensor, token_ids: torch.Tensor) -> float:
    """Divide the mean norm of projected image tokens, from features (R, N, D), by that of text embeddings."""
    device = next(model.parameters()).device
    image = model.project(sample_features.to(device)).float().norm(dim=-1).mean()
    return float(image / model.embed(token_ids.to(device)).float().norm(dim=-1).mean())


def chosen_epoch(rows: Sequence[dict], select: Literal["last", "best"]) -> int:
    """Choose the epoch whose weights a checkpoint holds, from the metrics of epoch 0, 1, ...

    The best epoch has the highest exact match on the validation samples, then the lowest loss, then comes first. Epoch
    0, the state at the start, is chosen only where there is no other.
    """
    if select == "last" or len(rows) == 1:
        return len(rows) - 1
    return max(
        range(1, len(rows)), key=lambda epoch: (rows[epoch]["validation_accuracy"], -rows[epoch]["validation_loss"])
    )
