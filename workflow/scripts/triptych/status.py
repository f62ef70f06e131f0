"""What of a study is done, running, failed and left, as plain text: `python -m triptych.status`.

It looks at the files in the results folder and runs nothing. So it is quick, and works wherever the files are seen,
while Snakemake runs and after. It does not know which finished steps a changed setting will make again: that, a dry
run tells.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from triptych import grid
from triptych.baseline import BASELINES
from triptych.display import bar, duration
from triptych.score import exact_match
from triptych.settings import Settings
from triptych.storage import TriptychError, read_json, read_table, run_step
from triptych.study import read_study
from triptych.trainings import checkpoint_folder, read_training

STATES = ("done", "running", "failed", "stopped", "left")
QUIET_MINUTES = 30  # a log that says nothing for longer than any validation takes is that of a step that is no more
TAIL = 4096  # bytes of a log that are read
STEP_LINE = re.compile(r"epoch \d+ step (\d+)/(\d+) loss [\d.]+ (\d+) s left")
RATE_LINE = re.compile(r"(\d+)(?:/| of )(\d+) (pictures|questions),.* (\d+(?:\.\d+)?)/s")
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
            step("check_pictures", f"{name}/{shard}", f"data/{name}/shards/{shard}.json")
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
    last = lines[-1] if lines else ""
    if last.startswith("error:") or any(line.startswith("Traceback") for line in lines):
        return Report(step, "failed", f"{last} ({step.log})", fraction)
    if not alive or quiet > 60 * QUIET_MINUTES or "run it again to go on" in last:
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


@dataclass(frozen=True)
class Outlook:
    """How far trainings and predictions are, all together.

    Attributes:
        share: of their time that is over, from 0 to 1.
        seconds: that they take still.
        source: where that is known from, in words.
        of_step: seconds that each job takes from its beginning.
    """

    share: float
    seconds: float
    source: str
    of_step: dict[Step, float]


def outlook(settings: Settings, results: Path, reports: Sequence[Report]) -> Outlook:
    """What is left, as long as finished jobs of the same kind took; before there is one, as long as the plan says.

    As many at once as run now; where none runs, as many as the plan reckons with.
    """
    from triptych import plan  # here, because the plan surveys with this module

    took: dict[tuple[str, str], list[float]] = {}
    for report in reports:
        if report.state == "done" and (seconds := seconds_taken(report.step.times)) is not None:
            took.setdefault(_kind(report.step), []).append(seconds)
    planned = plan.hours(settings, results, reports)
    work = [report for report in reports if report.step.rule in WORK]
    of_step, left, unknown = {}, 0.0, False
    for report in work:
        if seconds := took.get(_kind(report.step)):
            of_step[report.step] = fmean(seconds)
        else:
            of_step[report.step] = 3600 * planned.of(report.step)
            unknown = unknown or report.state != "done"
        expected = of_step[report.step] * (1 - report.fraction)
        left += expected if report.seconds_left is None else report.seconds_left
    source = "as finished jobs took"
    if unknown and planned.measured:
        source += ", or as planned at their rate"
    elif unknown:
        source = "as planned, at the rate that the configuration assumes"
    total = sum(of_step.values())
    done = sum(of_step[report.step] * report.fraction for report in work)
    at_once = sum(report.state == "running" for report in reports) or settings.plan.at_once
    return Outlook(done / total if total else 1.0, left / at_once, source, of_step)


def _kind(step: Step) -> tuple[str, str]:
    """Steps of one kind take about as long: trainings that end on one stage, predictions."""
    return step.rule, step.stage


def seconds_taken(times: Path) -> float | None:
    """Seconds that a finished step took, from the file of its rule's `benchmark`; None where that does not say."""
    try:
        return float(json.loads(times.read_text().splitlines()[-1])["s"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def summary(reports: Sequence[Report], ahead: Outlook) -> Iterator[str]:
    """The study in a few lines: a bar for each job that runs, what failed, and a bar for all of it."""
    for report in reports:
        if report.state == "running":
            seconds = report.seconds_left
            if seconds is None and report.step in ahead.of_step:
                seconds = ahead.of_step[report.step] * (1 - report.fraction)
            ends = f", {duration(seconds)} left" if seconds is not None else ""
            yield f"{bar(report.fraction)} {report.step.rule} {report.step.name}: {report.detail or 'runs'}{ends}"
    for report in reports:
        if report.state == "failed":
            yield f"failed: {report.step.rule} {report.step.name}: {report.detail}"
    counts = Counter(report.state for report in reports)
    ends = f"; about {duration(ahead.seconds)} left, {ahead.source}" if ahead.seconds else ""
    yield f"{bar(ahead.share)} {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])}{ends}"


def table(reports: Sequence[Report]) -> Iterator[str]:
    """A line for each kind of preparation, and one for every training and prediction."""
    rules = list(dict.fromkeys(report.step.rule for report in reports if report.step.rule not in _ONE_LINE_EACH))
    rows = [["step", *STATES]]
    for rule in rules:
        counts = Counter(report.state for report in reports if report.step.rule == rule)
        rows.append([rule, *(str(counts[state] or "-") for state in STATES)])
    yield from _aligned(rows)
    yield ""
    rows = [["training or prediction", "state", "last metric"]]
    rows += [
        [
            f"{report.step.rule} {report.step.name}",
            report.state,
            "see below" if report.state == "failed" else report.detail,
        ]
        for report in reports
        if report.step.rule in _ONE_LINE_EACH
    ]
    yield from _aligned(rows)
    yield ""


_ONE_LINE_EACH = ("train_stage", "predict", "predict_baseline")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def main() -> None:
    """Say what of a study is done, running, failed (with the reason), stopped (goes on when run again) and left."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), help="the study's configuration")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="show bars, again and again, until all is done")
    arguments = parser.parse_args()
    settings, results = read_study(arguments.configfile)
    if not arguments.watch:
        reports = survey(settings, results, time.time())
        print("\n".join([*table(reports), *summary(reports, outlook(settings, results, reports))]))
        return
    while True:
        reports = survey(settings, results, time.time())
        clear = "\x1b[H\x1b[J" if sys.stdout.isatty() else ""
        print(clear + "\n".join(summary(reports, outlook(settings, results, reports))), flush=True)
        if all(report.state == "done" for report in reports):
            return
        try:
            time.sleep(arguments.watch)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    run_step(main)
