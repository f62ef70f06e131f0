"""The state of every job of a study, read from its results folder: done, running, failed, interrupted or pending."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from triptych.config.grid import Checkpoint
from triptych.config.paths import STEPS
from triptych.config.study import Study
from triptych.config.wildcards import EACH
from triptych.errors import TriptychError
from triptych.evaluate.metrics import exact_match
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.train.history import read_training

STATES = ("done", "running", "failed", "interrupted", "pending")
QUIET_MINUTES = 30  # a log that is silent for longer than any validation takes is that of a process that has ended
TAIL = 4096  # bytes of a log that are read
STEP_LINE = re.compile(r"epoch \d+ step (\d+)/(\d+) loss [\d.]+ (\d+) s left")
RATE_LINE = re.compile(r"(\d+)(?:/| of )(\d+) (images|questions),.* (\d+(?:\.\d+)?)/s")
ANSWERS = ("predict", "predict_baseline")  # the rules that answer held-out questions
SCORED = (*ANSWERS, "predict_view", "predict_transfer", "predict_transfer_baseline")
WORK = ("train_stage", "predict", "predict_view", "predict_transfer")  # the rules that take the time of a study


@dataclass(frozen=True)
class Job:
    """One job of the study.

    Attributes:
        rule: name of its rule.
        name: what tells it from the other jobs of the rule.
        outputs: the files that it writes, one after the other.
        log: its log.
        times: the file in which Snakemake notes its time.
        arm: the schedule or baseline that it answers for, or the prefix that it trains.
        cell: the checkpoint that it trains.
        stage: the stage that a training ends on.
        split: the fold, or `shared`.
        seed: of what is trained.
        transfer: the data set that it asks, where that is not the one with folds.
    """

    rule: str
    name: str
    outputs: tuple[Path, ...]
    log: Path
    times: Path
    arm: str = ""
    cell: Checkpoint | None = None
    stage: str = ""
    split: str = ""
    seed: int | None = None
    transfer: str = ""

    @property
    def done(self) -> bool:
        """Whether everything that it writes is there."""
        return all(path.exists() for path in self.outputs)


@dataclass(frozen=True)
class JobState:
    """The state of one job.

    Attributes:
        job: the job.
        state: one of STATES.
        detail: where it is, its last metric, or why it failed.
        fraction: share of it that is done.
        seconds_left: as its own log says.
        score: exact match in per cent, of what is done: of a training on validation questions, or of answers.
    """

    job: Job
    state: str
    detail: str = ""
    fraction: float = 0.0
    seconds_left: float | None = None
    score: float | None = None


def jobs(study: Study) -> list[Job]:
    """List the jobs of a study in the order of the work; tables and figures, which take seconds, are left out."""
    return [_job(study, rule, wildcards) for rule, step in STEPS.items() for wildcards in EACH[step.each](study)]


def _job(study: Study, rule: str, wildcards: dict[str, object]) -> Job:
    step = STEPS[rule]
    name = step.job.format(**wildcards).lstrip("/")
    outputs = tuple(study.results / path for path in step.outputs(wildcards))
    log, times = (study.path(pattern, **wildcards) for pattern in (step.log, step.benchmark))
    cell = Checkpoint(*(wildcards[key] for key in ("prefix", "split", "seed"))) if rule == "train_stage" else None
    stage = study.grid.last_stage(cell.prefix) if cell else ""
    arm = str(wildcards.get("prefix") or wildcards.get("baseline") or "")
    split, seed = str(wildcards.get("split") or wildcards.get("fold") or ""), wildcards.get("seed")
    transfer = str(wildcards["dataset"]) if rule == "predict_transfer" else ""
    return Job(rule, name, outputs, log, times, arm, cell, stage, split, seed, transfer)


def job_state(job: Job, study: Study, alive: bool, now: float) -> JobState:
    """Tell the state of a job from its output, its log and, for a training, its saved state.

    Args:
        job: the job.
        study: its study.
        alive: whether a Snakemake is at work there.
        now: seconds since 1970.
    """
    try:
        if job.done:
            detail, score = _finished(job)
            return JobState(job, "done", detail, 1.0, score=score)
        place, fraction, seconds = _under_way(job, study, lines := _tail(job.log))
        quiet = now - job.log.stat().st_mtime
    except FileNotFoundError:  # no log, or no more
        return JobState(job, "pending")
    except TriptychError as error:
        return JobState(job, "failed", f"error: {error}")
    # Where several processes train together, `torchrun` adds a report of its own to what they print at their end.
    errors = [line for line in lines if line.startswith("error:")]
    paused = any("run it again to go on" in line for line in lines)
    if errors or (not paused and any(line.startswith("Traceback") for line in lines)):
        return JobState(job, "failed", f"{errors[0] if errors else lines[-1]} ({job.log})", fraction)
    if not alive or quiet > 60 * QUIET_MINUTES or paused:
        return JobState(job, "interrupted", place or f"resumes when run again ({job.log})", fraction)
    return JobState(job, "running", place, fraction, seconds)


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _finished(job: Job) -> tuple[str, float | None]:
    """What a finished job reached, in words, and its exact match in per cent."""
    if job.cell:
        metrics = read_json(job.outputs[0])["metrics"]
        return _metrics(metrics), 100 * metrics["validation_accuracy"]
    if job.rule in SCORED and (records := read_table(job.outputs[0], ["prediction", "gold"])):
        score = 100 * fmean(map(exact_match, records))
        return f"exact match {score:.1f} %", score
    return "", None


def _under_way(job: Job, study: Study, lines: Sequence[str]) -> tuple[str, float, float | None]:
    """Where a step is in words, the share of it that is done, and the seconds that it takes still."""
    if job.cell is None:
        found = next((match for line in reversed(lines) if (match := RATE_LINE.search(line))), None)
        if found is None:
            return "", 0.0, None
        done, total, rate = (float(found[group]) for group in (1, 2, 4))
        return f"{found[1]} of {found[2]} {found[3]}", done / total, (total - done) / rate if rate else None
    training = read_training(study.checkpoint(job.cell))
    row = training.rows[-1] if training else None
    epochs = study.grid.stage_of(job.cell.prefix).epochs or 0
    fraction, seconds = (row["epoch"] / epochs if row and epochs else 0.0), None
    words = [_metrics(row)] if row else []
    if found := next((match for line in reversed(lines) if (match := STEP_LINE.search(line))), None):
        done, total, seconds = map(int, found.groups())
        fraction = max(fraction, done / total)
        words.append(f"step {done} of {total}")
    return ", ".join(words), fraction, seconds


def _metrics(row: dict) -> str:
    loss, accuracy = row["validation_loss"], 100 * row["validation_accuracy"]
    return f"epoch {row['epoch']}: validation loss {loss:.3f}, exact match {accuracy:.1f} %"


def validation_losses(study: Study, job: Job) -> list[float]:
    """Read the losses on the validation part after each epoch of a training so far, and before the first."""
    try:
        training = read_training(study.checkpoint(job.cell)) if job.cell else None
    except TriptychError:  # damaged, which its state says
        return []
    return [row["validation_loss"] for row in training.rows] if training else []


def job_states(study: Study, now: float) -> list[JobState]:
    """Tell the state of every job; Snakemake's lock, in the current folder, shows whether it is at work."""
    locks = Path(".snakemake/locks")
    alive = locks.is_dir() and any(locks.iterdir())
    return [job_state(job, study, alive, now) for job in jobs(study)]


def benchmark(times: Path) -> dict[str, object]:
    """What Snakemake measured of a finished step, from the file of its rule's `benchmark`; empty where nothing was."""
    try:
        found = json.loads(times.read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def seconds_taken(times: Path) -> float | None:
    """Seconds that a finished step took; None where that was not measured."""
    try:
        return float(benchmark(times)["s"])
    except (ValueError, KeyError, TypeError):
        return None
