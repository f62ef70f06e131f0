"""What of a study is done, running, failed and left, as plain text: `python -m triptych.commands.status`.

It looks at the files in the results folder and runs nothing. So it is quick, and works wherever the files are seen,
while Snakemake runs and after. It does not know which finished steps a changed setting will make again: that, a dry
run tells.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from triptych.commands import estimate
from triptych.commands.jobs import STATES, WORK, Report, Step, seconds_taken, survey
from triptych.config.settings import Settings
from triptych.config.study import read_study
from triptych.errors import run_step
from triptych.utils.terminal import bar, duration


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
    took: dict[tuple[str, str], list[float]] = {}
    for report in reports:
        if report.state == "done" and (seconds := seconds_taken(report.step.times)) is not None:
            took.setdefault(_kind(report.step), []).append(seconds)
    planned = estimate.hours(settings, results, reports)
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
