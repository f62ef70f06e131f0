"""The progress of a training: steps done, statistics of its epochs, and the lines or bar that show it."""

import sys
import time
from dataclasses import dataclass, field
from statistics import fmean

from triptych.train.guards import SPIKE_WINDOW, spike_ratio
from triptych.train.validation import Score
from triptych.utils.terminal import bar, duration

SECONDS_BETWEEN_LINES = 10.0  # in a log
SECONDS_BETWEEN_BARS = 0.2  # on a terminal


@dataclass
class Progress:
    """Progress of a training: all of a saved state that is not in tensors. Names of fields are keys on disk."""

    step: int = 0  # steps done, in all epochs
    rows: list[dict] = field(default_factory=list)  # metrics of finished epochs, epoch 0 first
    recent: list[float] = field(default_factory=list)  # losses of the last steps, with which the next is compared
    # Of the current epoch; lists hold a number for each step.
    learnt: Score = field(default_factory=Score)
    gradient_norms: list[float] = field(default_factory=list)
    spike_ratios: list[float] = field(default_factory=list)
    cosine_terms: list[float] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The current epoch; 0 is the validation before the first."""
        return len(self.rows)

    def end_step(self, loss: float, gradient_norm: float, cosine_term: float | None) -> None:
        """Record a step; prints a warning where its loss is far above those before it."""
        ratio = spike_ratio(loss, self.recent)
        if ratio is not None:
            self.spike_ratios.append(ratio)
            if ratio > 1:
                usual = f"{ratio:.2f} times the highest that is usual after the {len(self.recent)} steps before it"
                print(f"warning: step {self.step}: the loss is {loss:.4f}, {usual}", flush=True)
        self.recent = [*self.recent, loss][-SPIKE_WINDOW:]
        self.gradient_norms.append(gradient_norm)
        if cosine_term is not None:
            self.cosine_terms.append(cosine_term)
        self.step += 1

    def end_epoch(self, held_out: Score, token_norm_ratio: float | None) -> dict:
        """End the current epoch, whose validation gave `held_out`; gives the epoch's metrics."""
        learnt = self.learnt
        metrics = {
            "epoch": self.epoch,
            "step": self.step,
            "train_loss": learnt.mean_loss if learnt.samples else None,
            "train_accuracy": learnt.accuracy if learnt.samples else None,
            "validation_loss": held_out.mean_loss,
            "validation_accuracy": held_out.accuracy,
            "validation_samples": held_out.samples,
            "gradient_norm_mean": fmean(self.gradient_norms) if self.gradient_norms else None,
            "gradient_norm_max": max(self.gradient_norms, default=None),
            "loss_spikes": sum(ratio > 1 for ratio in self.spike_ratios),
            "loss_spike_ratio_max": max(self.spike_ratios, default=None),
            "cosine_term": fmean(self.cosine_terms) if self.cosine_terms else None,
            "token_norm_ratio": token_norm_ratio,
        }
        self.rows.append(metrics)
        self.learnt, self.gradient_norms, self.spike_ratios, self.cosine_terms = Score(), [], [], []
        return metrics


class Meter:
    """Shows the progress of a training: a line in a log every ten seconds or, on a terminal, a bar."""

    def __init__(self, steps: int, epoch_steps: int, done: int):
        """Start the clock.

        Args:
            steps: number of steps of the whole training.
            epoch_steps: number of steps of an epoch.
            done: number of steps that an earlier attempt has done.
        """
        self._steps, self._epoch_steps, self._first = steps, epoch_steps, done
        self._start = self._shown = time.monotonic()

    def show(self, epoch: int, step: int, loss: float) -> None:
        """Show progress after `step` steps, if it is time to; always after the last one."""
        terminal = sys.stdout.isatty()
        now = time.monotonic()
        # On a terminal, each epoch's bar is ended, because its metrics are printed below it.
        last = step % self._epoch_steps == 0 if terminal else step == self._steps
        if now - self._shown <= (SECONDS_BETWEEN_BARS if terminal else SECONDS_BETWEEN_LINES) and not last:
            return
        self._shown = now
        left = (now - self._start) / (step - self._first) * (self._steps - step)
        text = f"epoch {epoch} step {step}/{self._steps} loss {loss:.4f}"
        if terminal:
            line = f"\r{bar(step / self._steps)} {text}, {duration(left)} left\x1b[K"
            print(line, end="\n" if last else "", flush=True)
        else:
            print(f"{text} {left:.0f} s left", flush=True)
