"""What of a study is done, running, failed and left, as plain text: `triptych status`.

It looks at the files in the results folder and runs nothing. So it is quick, and works wherever the files are seen,
while Snakemake runs and after. It does not know which finished steps a changed setting will make again: that, a dry
run tells.
"""

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from triptych.commands import estimate
from triptych.commands.jobs import STATES, WORK, Job, JobState, job_states, seconds_taken
from triptych.config.study import Study, read_study
from triptych.errors import run_step
from triptych.utils.arguments import add_configfile
from triptych.utils.terminal import bar, duration


@dataclass(frozen=True)
class Outlook:
    """How far trainings and predictions are, all together.

    Attributes:
        share: of their time that is over, from 0 to 1.
        seconds: that they take still.
        source: where that is known from, in words.
        of_job: seconds that each job takes from its beginning.
    """

    share: float
    seconds: float
    source: str
    of_job: dict[Job, float]


def outlook(study: Study, states: Sequence[JobState]) -> Outlook:
    """What is left, as long as finished jobs of the same kind took; before there is one, as long as the plan says.

    As many at once as run now; where none runs, as many as the plan reckons with.
    """
    took: dict[tuple[str, str], list[float]] = {}
    for state in states:
        if state.state == "done" and (seconds := seconds_taken(state.job.times)) is not None:
            took.setdefault(_kind(state.job), []).append(seconds)
    planned = estimate.hours(study, states)
    work = [state for state in states if state.job.rule in WORK]
    of_job, left, unknown = {}, 0.0, False
    for state in work:
        if seconds := took.get(_kind(state.job)):
            of_job[state.job] = fmean(seconds)
        else:
            of_job[state.job] = 3600 * planned.of(state.job)
            unknown = unknown or state.state != "done"
        expected = of_job[state.job] * (1 - state.fraction)
        left += expected if state.seconds_left is None else state.seconds_left
    source = "estimated from finished jobs"
    if unknown and planned.measured:
        source += " and, at their rate, from the plan"
    elif unknown:
        rate = f"that `triptych bench` measured on {planned.benched}" if planned.benched else "that is assumed"
        source = f"estimated from the plan, at the rate {rate}"
    total = sum(of_job.values())
    done = sum(of_job[state.job] * state.fraction for state in work)
    at_once = sum(state.state == "running" for state in states) or study.settings.plan.at_once
    return Outlook(done / total if total else 1.0, left / at_once, source, of_job)


def _kind(job: Job) -> tuple[str, str]:
    """Steps of one kind take about as long: trainings that end on one stage, predictions."""
    return job.rule, job.stage


def summary(states: Sequence[JobState], ahead: Outlook) -> Iterator[str]:
    """The study in a few lines: a bar for each job that runs, what failed, and a bar for all of it."""
    for state in states:
        if state.state == "running":
            seconds = seconds_left(state, ahead)
            ends = f", {duration(seconds)} left" if seconds is not None else ""
            yield f"{bar(state.fraction)} {state.job.rule} {state.job.name}: {state.detail or 'runs'}{ends}"
    for state in states:
        if state.state == "failed":
            yield failure(state)
    yield f"{bar(ahead.share)} {total_line(states, ahead)}"


def seconds_left(state: JobState, ahead: Outlook) -> float | None:
    """Give the seconds that a running job takes still, as its log says or as others of its kind took."""
    if state.seconds_left is None and state.job in ahead.of_job:
        return ahead.of_job[state.job] * (1 - state.fraction)
    return state.seconds_left


def total_line(states: Sequence[JobState], ahead: Outlook) -> str:
    """Say how many jobs are in which state, and how long all of them take still."""
    ends = f"; about {duration(ahead.seconds)} left, {ahead.source}" if ahead.seconds else ""
    return counts_text(states) + ends


def counts_text(states: Sequence[JobState]) -> str:
    """Say how many jobs are in which state: `12 done, 2 running`."""
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def failure(state: JobState) -> str:
    """Name a job that failed, and say why."""
    return f"failed: {state.job.rule} {state.job.name}: {state.detail}"


def table(states: Sequence[JobState]) -> Iterator[str]:
    """A line for each kind of preparation and look-up, and one for every training and every model's answers."""
    rules = list(dict.fromkeys(state.job.rule for state in states if state.job.rule not in _ONE_LINE_EACH))
    rows = [["step", *STATES]]
    for rule in rules:
        counts = Counter(state.state for state in states if state.job.rule == rule)
        rows.append([rule, *(str(counts[state] or "-") for state in STATES)])
    yield from _aligned(rows)
    yield ""
    rows = [["training or prediction", "state", "last metric"]]
    rows += [
        [
            f"{state.job.rule} {state.job.name}",
            state.state,
            "see below" if state.state == "failed" else state.detail,
        ]
        for state in states
        if state.job.rule in _ONE_LINE_EACH
    ]
    yield from _aligned(rows)
    yield ""


# Look-ups take seconds, and their scores without the table around them mislead: some are of the audit's leaking folds.
_ONE_LINE_EACH = (*WORK, "predict_captions", "probe")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych status`."""
    parser = argparse.ArgumentParser(
        prog="triptych status",
        description=main.__doc__,
        epilog="example: triptych status --configfile config/slake-cpu.yaml --watch 5",
    )
    add_configfile(parser)
    parser.add_argument(
        "--watch",
        type=float,
        metavar="SECONDS",
        help="show all of it on one screen, read anew every SECONDS, until all jobs are done",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Show which jobs of a study are done, running, failed (with the reason), pending or interrupted.

    Interrupted jobs resume when Snakemake is run again.
    """
    arguments = build_parser().parse_args(arguments)
    study = read_study(arguments.configfile)
    if not arguments.watch:
        states = job_states(study, time.time())
        print("\n".join([*table(states), *summary(states, outlook(study, states))]))
        return
    from triptych.commands.view import watch  # here, because only this needs rich

    with contextlib.suppress(KeyboardInterrupt):
        watch(study, arguments.watch, lambda states: all(state.state == "done" for state in states))


if __name__ == "__main__":
    run_step(main)
