"""Run a study with all of it on one screen: `triptych run`.

    triptych run --configfile config/demo.yaml

Starts Snakemake with the arguments given, with its output in a file, and shows what `triptych status --watch` shows
until it ends; then the table of results, or why it failed.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from triptych.commands.checkout import PROFILE, profile_path, snakemake_command
from triptych.commands.jobs import job_states
from triptych.commands.status import failure
from triptych.commands.view import watch
from triptych.config import paths
from triptych.config.study import Study, read_study
from triptych.errors import TriptychError, run_step
from triptych.io.manifest import read_json
from triptych.utils.arguments import add_configfile

LOG, EARLIER = "logs/snakemake.log", "snakemake-earlier.log"
LAST_LINES = 15  # of Snakemake's output, where it failed before any step did
EVERY = 2  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych run`; all options that it does not name are Snakemake's."""
    parser = argparse.ArgumentParser(
        prog="triptych run",
        description=main.__doc__,
        usage="%(prog)s [-h] [--profile PROFILE] [--configfile CONFIGFILE] [Snakemake's arguments ...]",
        epilog="example: triptych run --configfile config/slake-cpu.yaml --cores 2",
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default=PROFILE, help=f"Snakemake's profile (default: {PROFILE})")
    parser.add_argument("--directory", "-d", type=Path, default=Path(), help="working folder, as Snakemake's option")
    add_configfile(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study with Snakemake, and show trainings, answers and what is left on one screen; the log goes to a file.

    Ctrl-C stops the study; run again, it continues.
    """
    known, others = build_parser().parse_known_args(arguments)
    study, called_in = read_study(known.configfile), Path.cwd()
    options = ["--profile", str(profile_path(known.profile)), "--directory", str(known.directory), *others]
    command = snakemake_command([*options, "--configfile", str(known.configfile)])  # which takes all that follows
    known.directory.mkdir(parents=True, exist_ok=True)
    os.chdir(known.directory)  # where the study's paths are looked up
    log = study.results / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(EARLIER))  # where another run may still write
    print(f"Snakemake's output goes to {log}", flush=True)
    with log.open("w", encoding="utf-8") as file:
        began = os.fstat(file.fileno()).st_mtime  # by the clock of the disk, as the times of logs
        # A session of its own, or a terminal's Ctrl-C would reach it twice.
        snakemake = subprocess.Popen(
            command,
            cwd=called_in,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with passed_on(snakemake):
            watch(study, EVERY, lambda states: snakemake.poll() is not None)
    if status := snakemake.wait():
        print("\n".join(reasons(study, log, began)), file=sys.stderr)
        raise TriptychError(f"Snakemake ended with status {status}; all of its output is in {log}")
    print("\n".join(results(study)))


@contextlib.contextmanager
def passed_on(process: subprocess.Popen) -> Iterator[None]:
    """Pass signals that would end this process on to another one, so that this one goes on until that ends."""
    signals = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in signals}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def reasons(study: Study, log: Path, began: float) -> list[str]:
    """Say why a run failed that began at a time: the steps that failed since, or Snakemake's last lines."""
    states = job_states(study, log.stat().st_mtime)
    failed = [state for state in states if state.state == "failed" and state.job.log.stat().st_mtime >= began]
    last = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-LAST_LINES:]
    return [failure(state) for state in failed] or last


def results(study: Study) -> list[str]:
    """Give what a finished study ends with: its table, what was seen in plain words, and where its report is."""
    table, numbers = study.results / "tables/schedules.md", study.path(paths.RESULTS)
    lines = [table.read_text(encoding="utf-8").rstrip()] if table.exists() else []
    if numbers.exists():
        found = read_json(numbers)
        said = " ".join(filter(None, (found["answer"], found.get("caveat"))))
        seen = [said, *(card["text"] for card in found.get("cards", [])[:2])]
        lines += ["", *seen]
    if (report := study.path(paths.REPORT)).exists():
        lines += ["", f"report: {report}"]
    return lines


if __name__ == "__main__":
    run_step(main)
