"""What is measured of a model in training, and by which measure an epoch is chosen."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch.nn import functional

from triptych.model.packing import Batch
from triptych.model.tokens import Sample
from triptych.model.vlm import VisionLanguageModel
from triptych.train.distributed import rank, together, total, world_size
from triptych.utils.device import mixed_precision
from triptych.utils.prefetch import map_ahead

VALIDATION_BATCH = 32  # samples; a memory bound, results do not depend on it beyond rounding


@dataclass
class Score:
    """Sums over samples: loss, answer tokens, samples, samples whose every token is predicted right."""

    loss: float = 0.0
    tokens: int = 0
    samples: int = 0
    exact: int = 0

    def add(self, logits: torch.Tensor, targets: torch.Tensor, owners: torch.Tensor, samples: int) -> torch.Tensor:
        """Add one batch: logits (T, V), targets (T,), owners (T,). Gives the sum of its T losses, with its graph."""
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
        """The sum over all processes that train together."""
        loss, *counts = total(astuple(self))
        return Score(loss, *map(int, counts))

    @property
    def mean_loss(self) -> float:
        """Cross-entropy per answer token, in nats."""
        return self.loss / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of samples whose answer, end token included, is the model's own greedy choice token by token.

        This is exact match of greedy decoding at the price of one forward pass: greedy decoding gives the gold answer
        exactly when, after each of its prefixes, the likeliest token is its next one.
        """
        return self.exact / self.samples


@torch.inference_mode()
def validate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    pack: Callable[[Sequence[Sample]], Batch],
    precision: str,
    between: Callable[[], None] = lambda: None,
) -> Score:
    """Loss and exact match over samples, teacher-forced; calls `between` after every batch.

    Processes that train together take turns at the batches, and all get the sum.
    """
    model.eval()
    device = next(model.parameters()).device
    score = Score()
    batches = [samples[start : start + VALIDATION_BATCH] for start in range(0, len(samples), VALIDATION_BATCH)]
    own = batches[rank() :: world_size()]
    with closing(map_ahead(pack, own, 1)) as packed:
        for turn in range(-(-len(batches) // world_size())):
            with together():
                if turn < len(own):
                    batch = next(packed).to(device)
                    with mixed_precision(precision, device):
                        logits = model.answer_logits(batch)
                    score.add(logits, batch.targets, batch.target_samples, len(own[turn]))
            between()
    return score.over_processes()


@torch.inference_mode()
def norm_ratio(model: VisionLanguageModel, sample_features: torch.Tensor, token_ids: torch.Tensor) -> float:
    """Mean length of projected image tokens over mean length of the text embeddings beside them."""
    device = next(model.parameters()).device
    image = model.project(sample_features.to(device)).float().norm(dim=-1).mean()
    return float(image / model.embed(token_ids.to(device)).float().norm(dim=-1).mean())


def chosen_epoch(rows: Sequence[dict], select: Literal["last", "best"]) -> int:
    """The epoch whose weights a checkpoint holds, from the metrics of epoch 0, 1, ...

    The best has the highest exact match on the validation part, then the lowest loss there, then comes first. Epoch 0,
    the start, is chosen only where there is no other.
    """
    if select == "last" or len(rows) == 1:
        return len(rows) - 1
    return max(
        range(1, len(rows)), key=lambda epoch: (rows[epoch]["validation_accuracy"], -rows[epoch]["validation_loss"])
    )
