"""Teacher-forced loss and accuracy of a model in training, and the choice of an epoch by them."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch.nn import functional

from triptych.model.packing import Batch
from triptych.model.tokens import Sample
from triptych.model.vlm import VisionLanguageModel
from triptych.train.distributed import all_reduce_sum, fail_together, rank, world_size
from triptych.utils.device import mixed_precision
from triptych.utils.prefetch import map_ahead

VALIDATION_BATCH = 32  # samples; bounds the memory, and changes results by rounding only


@dataclass
class Score:
    """Sums over samples: loss in nats, answer tokens, samples, and samples whose every answer token is predicted."""

    loss: float = 0.0
    tokens: int = 0
    samples: int = 0
    exact: int = 0

    def add(self, logits: torch.Tensor, targets: torch.Tensor, owners: torch.Tensor, samples: int) -> torch.Tensor:
        """Add one batch.

        Args:
            logits: of its answer tokens (T, V).
            targets: the answer tokens (T,).
            owners: number of the sample (T,) that each token belongs to.
            samples: number of samples.

        Returns:
            The sum of the T losses, with its graph.
        """
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        wrong = torch.zeros(samples, dtype=torch.bool, device=logits.device)
        wrong[owners[logits.argmax(-1) != targets]] = True
        self.loss += loss.item()
        self.tokens += len(targets)
        self.samples += samples
        self.exact += samples - int(wrong.sum())
        return loss

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


@torch.inference_mode()
def score_samples(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    pack: Callable[[Sequence[Sample]], Batch],
    precision: str,
    after_batch: Callable[[], None] = lambda: None,
) -> Score:
    """Compute loss and exact match over samples, teacher-forced.

    Processes that train together take the batches in turn, and all get the sum.

    Args:
        model: on its device.
        samples: any.
        pack: packs samples into a batch.
        precision: of the forward pass.
        after_batch: called after every batch, in all processes.
    """
    model.eval()
    device = next(model.parameters()).device
    score = Score()
    batches = [samples[start : start + VALIDATION_BATCH] for start in range(0, len(samples), VALIDATION_BATCH)]
    own = batches[rank() :: world_size()]
    with closing(map_ahead(pack, own, 1)) as packed:
        for turn in range(-(-len(batches) // world_size())):
            with fail_together():
                if turn < len(own):
                    batch = next(packed).to(device)
                    with mixed_precision(precision, device):
                        logits = model.answer_logits(batch)
                    score.add(logits, batch.targets, batch.target_samples, len(own[turn]))
            after_batch()
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
