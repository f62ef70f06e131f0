"""How every step of a study is, by the files in its results folder: done, running, failed, stopped or left."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from triptych.config import grid
from triptych.config.paths import checkpoint_folder
from triptych.config.settings import Settings
from triptych.errors import TriptychError
from triptych.evaluate.baselines import BASELINES
from triptych.evaluate.metrics import exact_match
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.train.history import read_training

STATES = ("done", "running", "failed", "stopped", "left")


QUIET_MINUTES = 30  # a log that says nothing for longer than any validation takes is that of a step that is no more


TAIL = 4096  # bytes of a log that are read


STEP_LINE = re.compile(r"epoch \d+ step (\d+)/(\d+) loss [\d.]+ (\d+) s left")


RATE_LINE = re.compile(r"(\d+)(?:/| of )(\d+) (images|questions),.* (\d+(?:\.\d+)?)/s")


WORK = ("train_stage", "predict")  # what takes the time of a study


@dataclass(frozen=True)
class Step:
    """One job of the study."""

    rule: str
    name: str
    output: Path  # the last file that it writes
    log: Path
    times: Path  # what Snakemake's `benchmark` writes
    cell: grid.Checkpoint | None = None
    stage: str = ""  # that a training ends on


@dataclass(frozen=True)
class Report:
    """How one step is."""

    step: Step
    state: str
    detail: str = ""
    fraction: float = 0.0  # of it that is done
    seconds_left: float | None = None  # as its own log says


def steps(settings: Settings, results: Path) -> list[Step]:
    """All jobs up to the predictions, in the order of the work; tables and figures are made of these in seconds."""

    def step(rule: str, name: str, output: str, cell: grid.Checkpoint | None = None) -> Step:
        place = f"{rule}/{name}" if name and rule != "make_folds" else f"{rule}{name}"
        log, times = results / f"logs/{place}.log", results / f"benchmarks/{place}.jsonl"
        stage = grid.last_stage(settings, cell.prefix) if cell else ""
        return Step(rule, name, results / output, log, times, cell, stage)

    datasets = grid.used_datasets(settings)
    shards = [f"{number}-of-{settings.shards}" for number in range(1, settings.shards + 1)]
    folds = grid.folds(settings)
    others = [split for names in grid.leak_splits(settings).values() for split in names if split not in folds]
    cuts = dict.fromkeys(["folds", *map(grid.folds_name, others)])  # files that say what folds hold out, each once
    runs = [
        f"{name}/{fold}/seed{seed}" for name in grid.schedules(settings) for fold in folds for seed in settings.seeds
    ]
    views = ["", *(f"-{control}" for control in settings.evaluation.controls)]
    checkpoints = {f"{cell.prefix}/{cell.split}/seed{cell.seed}": cell for cell in grid.trainings(settings)}
    leak = settings.evaluation.leak.schedules if settings.evaluation.leak else []
    return [
        *(step("fetch_dataset", name, f"sources/{name}/manifest.json") for name in datasets),
        *(
            step("check_images", f"{name}/{shard}", f"data/{name}/shards/{shard}.json")
            for name in datasets
            for shard in shards
        ),
        *(step("prepare_dataset", name, f"data/{name}/manifest.json") for name in datasets),
        *(
            step("make_folds", name.removeprefix("folds"), f"data/{settings.folds.dataset}/{name}.json")
            for name in cuts
        ),
        step("audit_data", "", "data/audit.json"),
        *(step("prepare_model", name, f"models/{name}/manifest.json") for name in grid.models(settings)),
        *(step("encode_images", name, f"features/{name}/manifest.json") for name in grid.used_features(settings)),
        *(step("train_stage", name, f"checkpoints/{name}/manifest.json", cell) for name, cell in checkpoints.items()),
        *(step("predict", f"{name}{view}", f"predictions/{name}{view}.parquet") for name in runs for view in views),
        *(
            step("predict", name, f"predictions/{name}.parquet")
            for name, cell in checkpoints.items()
            if cell.prefix in leak and cell.split not in folds
        ),
        *(
            step("predict_baseline", f"{name}/{fold}", f"predictions/{name}/{fold}/untrained.parquet")
            for name in BASELINES
            for fold in [*folds, *(others if name in grid.LOOKUPS else [])]
        ),
    ]


def look_at(step: Step, settings: Settings, results: Path, alive: bool, now: float) -> Report:
    """How a step is, from its output, its log and, for a training, its saved state.

    Args:
        step: the step.
        settings: the study's.
        results: its folder.
        alive: whether a Snakemake is at work there.
        now: seconds since 1970.
    """
    try:
        if step.output.exists():
            return Report(step, "done", _finished(step), 1.0)
        place, fraction, seconds = _under_way(step, settings, results, lines := _tail(step.log))
        quiet = now - step.log.stat().st_mtime
    except FileNotFoundError:  # no log, or no more
        return Report(step, "left")
    except TriptychError as error:
        return Report(step, "failed", f"error: {error}")
    # Where several processes train together, `torchrun` adds a report of its own to what they say at their end.
    errors = [line for line in lines if line.startswith("error:")]
    paused = any("run it again to go on" in line for line in lines)
    if errors or (not paused and any(line.startswith("Traceback") for line in lines)):
        return Report(step, "failed", f"{errors[0] if errors else lines[-1]} ({step.log})", fraction)
    if not alive or quiet > 60 * QUIET_MINUTES or paused:
        return Report(step, "stopped", place or f"goes on when run again ({step.log})", fraction)
    return Report(step, "running", place, fraction, seconds)


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _finished(step: Step) -> str:
    if step.rule == "train_stage":
        manifest = read_json(step.output)
        return _metrics(manifest["metrics"])
    if step.rule in ("predict", "predict_baseline"):
        records = read_table(step.output, ["prediction", "gold"])
        return f"exact match {100 * fmean(map(exact_match, records)):.1f} %" if records else ""
    return ""


def _under_way(step: Step, settings: Settings, results: Path, lines: Sequence[str]) -> tuple[str, float, float | None]:
    """Where a step is in words, the share of it that is done, and the seconds that it takes still."""
    if step.cell is None:
        found = next((match for line in reversed(lines) if (match := RATE_LINE.search(line))), None)
        if found is None:
            return "", 0.0, None
        done, total, rate = (float(found[group]) for group in (1, 2, 4))
        return f"{found[1]} of {found[2]} {found[3]}", done / total, (total - done) / rate if rate else None
    training = read_training(checkpoint_folder(results, step.cell))
    row = training.rows[-1] if training else None
    epochs = grid.stage_of(settings, step.cell.prefix).epochs or 0
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


def survey(settings: Settings, results: Path, now: float) -> list[Report]:
    """How all steps are; Snakemake's lock, in the current folder, tells whether it is at work."""
    locks = Path(".snakemake/locks")
    alive = locks.is_dir() and any(locks.iterdir())
    return [look_at(step, settings, results, alive, now) for step in steps(settings, results)]


def seconds_taken(times: Path) -> float | None:
    """Seconds that a finished step took, from the file of its rule's `benchmark`; None where that does not say."""
    try:
        return float(json.loads(times.read_text().splitlines()[-1])["s"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
