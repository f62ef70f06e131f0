"""A study on one screen, for terminals: trainings and answers by fold, what runs and how long, and what failed."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triptych.commands.jobs import ANSWERS, Job, JobState, job_states, validation_losses
from triptych.commands.status import Outlook, counts_text, failure, outlook, seconds_left, total_line
from triptych.config.grid import cut_of, is_shared
from triptych.config.study import Study
from triptych.utils.terminal import duration

LEVELS = "▁▂▃▄▅▆▇█"
STYLES = {"done": "green", "running": "bold yellow", "failed": "bold red", "interrupted": "magenta", "pending": "dim"}
BAR = 24  # columns
MOST_RUNNING = 12  # bars: a cluster runs many jobs at once


def watch(study: Study, seconds: float, ended: Callable[[Sequence[JobState]], bool]) -> None:
    """Show a study, read anew every so many seconds, until it has `ended`; on a terminal, on one screen.

    Elsewhere, such as in a log, a line is printed when a job begins, ends or fails.
    """
    console = Console()
    if not console.is_terminal:
        return _watch_plainly(study, seconds, ended)
    losses, settled = {}, set()
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            states = job_states(study, time.time())
            begun = {state.job: state.state for state in states if state.job.cell and state.state != "pending"}
            losses |= {job: validation_losses(study, job) for job in begun.keys() - settled}
            settled |= {job for job, state in begun.items() if state == "done"}
            live.update(screen(states, outlook(study, states), losses), refresh=True)
            if ended(states):
                return
            time.sleep(seconds)


def _watch_plainly(study: Study, seconds: float, ended: Callable[[Sequence[JobState]], bool]) -> None:
    said = set()
    while True:
        states = job_states(study, time.time())
        for line in [*(failure(state) for state in states if state.state == "failed"), counts_text(states)]:
            if line not in said:
                print(line, flush=True)
                said.add(line)
        if ended(states):
            return
        time.sleep(seconds)


def sparkline(values: Sequence[float]) -> str:
    """Draw a row of numbers, one character each, from the lowest to the highest; nothing for fewer than two."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    step = (high - low) / (len(LEVELS) - 1) or 1.0
    return "".join(LEVELS[round((value - low) / step)] for value in values)


def screen(states: Sequence[JobState], ahead: Outlook, losses: Mapping[Job, Sequence[float]]) -> RenderableType:
    """Lay out the study: two grids, one line for all other steps, bars, failures.

    Args:
        states: of all jobs.
        ahead: what is left.
        losses: on validation questions, of trainings that have begun.
    """
    trainings = [state for state in states if state.job.rule == "train_stage"]
    answers = [state for state in states if state.job.rule in ANSWERS]
    parts = [
        *_grid("training: exact match on validation, %, and its loss by epoch", trainings, losses),
        *_grid("answers: exact match on held-out questions, %", answers, {}),
        _other_steps([state for state in states if state not in trainings and state not in answers]),
        *_running(states, ahead),
        *_failures(states),
        _bar(ahead.share, total_line(states, ahead)),
    ]
    return Group(*parts)


def _grid(title: str, states: Sequence[JobState], losses: Mapping[Job, Sequence[float]]) -> Iterator[RenderableType]:
    """Lay out states by arm and seed (rows), and by fold (columns)."""
    if not states:
        return
    columns = sorted({_place(state.job)[1] for state in states}, key=lambda name: (name.startswith("fold"), name))
    seeds = {state.job.seed for state in states if state.job.seed is not None}
    yield Text(title, "bold")
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", *columns):
        grid.add_column(Text(heading), no_wrap=True)
    cells = {}
    for state in states:
        name, column = _place(state.job)
        if len(seeds) > 1 and state.job.seed is not None:
            name = f"{name}, seed {state.job.seed}"
        cells.setdefault(name, {})[column] = _cell(state, losses.get(state.job, []))
    for name, row in cells.items():
        grid.add_row(Text(name), *(row.get(column, "") for column in columns))
    yield grid
    yield ""


def _place(job: Job) -> tuple[str, str]:
    """Name the row and the column of a training, or of answers: folds of the leak study have rows of their own."""
    kind = "" if is_shared(job.split) else cut_of(job.split).removeprefix("-")
    return (f"{job.arm}, folds by {kind}" if kind else job.arm), job.split.rpartition("-")[2]


def _cell(state: JobState, losses: Sequence[float]) -> Text:
    if state.state == "done":
        said = "done" if state.score is None else f"{state.score:.1f}"
    elif state.state == "running":
        said = f"{100 * state.fraction:.0f} % done"
    else:
        said = {"pending": "-", "interrupted": "stopped"}.get(state.state, state.state)
    return Text(f"{said} {sparkline(losses)}".rstrip(), STYLES[state.state])


def _other_steps(states: Sequence[JobState]) -> Text:
    """One entry for each rule: how many of its jobs are done, and what state others are in."""
    line = Text()
    for rule in dict.fromkeys(state.job.rule for state in states):
        counts = Counter(state.state for state in states if state.job.rule == rule)
        worst = next(state for state in ("failed", "interrupted", "running", "pending", "done") if counts[state])
        line.append(f"{rule} {counts['done']}/{counts.total()}  ", STYLES[worst])
    return line


def _running(states: Sequence[JobState], ahead: Outlook) -> Iterator[RenderableType]:
    running = [state for state in states if state.state == "running"]
    for state in running[:MOST_RUNNING]:
        seconds = seconds_left(state, ahead)
        ends = f", {duration(seconds)} left" if seconds is not None else ""
        yield _bar(state.fraction, f"{state.job.rule} {state.job.name}: {state.detail or 'runs'}{ends}")
    if len(running) > MOST_RUNNING:
        yield Text(f"and {len(running) - MOST_RUNNING} more")


def _failures(states: Sequence[JobState]) -> Iterator[RenderableType]:
    for state in states:
        if state.state == "failed":
            yield Text(failure(state), STYLES["failed"])


def _bar(share: float, said: str) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_column(width=BAR)
    line.add_column(ratio=1)
    line.add_row(ProgressBar(total=1.0, completed=min(max(share, 0.0), 1.0), width=BAR), Text(said))
    return line
