"""The training loop of one stage: teacher forcing, mean cross-entropy over the answer tokens of a step."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from triptych.hardware import mixed_precision
from triptych.model.batch import PromptTokens, Sample, pack, split_by_image
from triptych.model.vlm import VisionLanguageModel
from triptych.settings import Stage, Training
from triptych.storage import TriptychError, derive_seed
from triptych.train.guards import GradientGuard, check_finite, check_norm_ratio, frozen_hash
from triptych.train.order import epoch_batches, learning_rate_factor

CLIP_NORM = 1.0
STEP_TOKENS = 8192  # of one forward and backward pass; a larger step is added up from several
VALIDATION_BATCH = 32  # samples; a memory bound, results do not depend on it beyond rounding
SECONDS_BETWEEN_LINES = 10.0


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


def part_of(parameter_name: str) -> str:
    """Which part of the model a parameter belongs to: connector, lora or base."""
    if parameter_name.startswith("connector."):
        return "connector"
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


def describe(model: VisionLanguageModel) -> dict[str, dict[str, int]]:
    """Number of trained and frozen parameters per part."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        state = "trained" if parameter.requires_grad else "frozen"
        part = counts.setdefault(part_of(name), {"trained": 0, "frozen": 0})
        part[state] += parameter.numel()
    return counts


@torch.inference_mode()
def validate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    features: Callable[[Sequence[str]], torch.Tensor],
    prompt: PromptTokens,
    precision: str,
) -> Score:
    """Loss and exact match over samples, teacher-forced."""
    model.eval()
    device = next(model.parameters()).device
    score = Score()
    for start in range(0, len(samples), VALIDATION_BATCH):
        chosen = samples[start : start + VALIDATION_BATCH]
        batch = pack(chosen, features, prompt).to(device)
        with mixed_precision(precision, device):
            score.add(model.answer_logits(batch), batch.targets, batch.target_samples, len(chosen))
    return score


@torch.inference_mode()
def norm_ratio(model: VisionLanguageModel, sample_features: torch.Tensor, token_ids: torch.Tensor) -> float:
    """Mean length of projected image tokens over mean length of the text embeddings beside them."""
    device = next(model.parameters()).device
    image = model.project(sample_features.to(device)).float().norm(dim=-1).mean()
    return float(image / model.embed(token_ids.to(device)).float().norm(dim=-1).mean())


def train(
    model: VisionLanguageModel,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    features: Callable[[Sequence[str]], torch.Tensor],
    prompt: PromptTokens,
    stage: Stage,
    settings: Training,
    seed: int,
    key: Sequence[str],
) -> Iterator[dict]:
    """Train one stage in place; yields the metrics of each epoch, epoch 0 being the state at the start.

    Args:
        model: on its device; what trains in fp32, the rest frozen.
        training: samples to learn from.
        validation: samples to measure on.
        features: image ids -> vision features (R, N, D).
        prompt: the fixed text.
        stage: what trains, rates, epochs, batch size.
        settings: precision.
        seed: the run's seed.
        key: names that, with the seed, fix the order of samples and the dropout.

    Raises:
        TriptychError: a guard stopped the training.
    """
    device = next(model.parameters()).device
    trained = set_trainable(model, stage.train)
    for part, counts in describe(model).items():
        print(f"{part}: {counts['trained']:,} parameters train, {counts['frozen']:,} are frozen", flush=True)
    groups = [
        {
            "params": [parameter for name, parameter in trained.items() if part_of(name) == part],
            "lr": stage.learning_rate[part],
            "weight_decay": stage.weight_decay,
        }
        for part in stage.train
    ]
    optimiser = torch.optim.AdamW(groups)
    steps = stage.epochs * -(-len(training) // stage.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, steps, stage.warmup)
    )
    frozen = frozen_hash(model)
    guard = GradientGuard(trained)
    some = training[:8]
    some_features = features(list({sample.image_id: None for sample in some}))
    prefix = len(prompt.before_image) + some_features.shape[1]
    some_tokens = torch.tensor([token for sample in some for token in sample.text])
    torch.manual_seed(derive_seed(seed, "dropout", *key))

    def measure(epoch: int, step: int, learnt: Score | None, gradient_norms: list[float]) -> dict:
        held_out = validate(model, validation, features, prompt, settings.precision)
        check_finite("the validation loss", held_out.mean_loss, step, [])
        ratio = norm_ratio(model, some_features, some_tokens)
        check_norm_ratio(ratio)
        metrics = {
            "epoch": epoch,
            "step": step,
            "train_loss": learnt and learnt.mean_loss,
            "train_accuracy": learnt and learnt.accuracy,
            "validation_loss": held_out.mean_loss,
            "validation_accuracy": held_out.accuracy,
            "validation_samples": held_out.samples,
            "gradient_norm_mean": sum(gradient_norms) / len(gradient_norms) if gradient_norms else None,
            "gradient_norm_max": max(gradient_norms, default=None),
            "token_norm_ratio": ratio,
        }
        print(json.dumps(metrics), flush=True)
        return metrics

    yield measure(0, 0, None, [])
    step, start, last_line = 0, time.monotonic(), time.monotonic()
    for epoch in range(1, stage.epochs + 1):
        model.train()
        learnt, gradient_norms = Score(), []
        for chosen in epoch_batches(training, stage.batch_size, seed, [*key, str(epoch)]):
            # The mean is over the answer tokens of the whole step, in however many pieces it is computed.
            answer_tokens = sum(len(sample.answer) for sample in chosen)
            for piece in split_by_image(chosen, prefix, STEP_TOKENS):
                batch = pack(piece, features, prompt).to(device)
                with mixed_precision(settings.precision, device):
                    logits = model.answer_logits(batch)
                loss = learnt.add(logits, batch.targets, batch.target_samples, len(piece)) / answer_tokens
                check_finite("the loss", loss.item(), step, [sample.question_id for sample in piece])
                loss.backward()
            guard.check_gradients()
            norm = float(nn.utils.clip_grad_norm_(trained.values(), CLIP_NORM))
            check_finite("the gradient's norm", norm, step, [sample.question_id for sample in chosen])
            gradient_norms.append(norm)
            optimiser.step()
            optimiser.zero_grad()
            guard.check_change()
            schedule.step()
            step += 1
            now = time.monotonic()
            if now - last_line > SECONDS_BETWEEN_LINES or step == steps:
                last_line = now
                left = (now - start) / step * (steps - step)
                print(f"epoch {epoch} step {step}/{steps} loss {learnt.mean_loss:.4f} {left:.0f} s left", flush=True)
        yield measure(epoch, step, learnt, gradient_norms)
    if frozen_hash(model) != frozen:
        raise TriptychError("a frozen tensor changed during training; the checkpoint is not written")
