"""Find what would stop a study, before it runs: `triptych doctor`, on a cluster with `--profile profiles/aire`.

Checks are functions that take a `Place` and return a `Finding`; CHECKS lists them all. With a profile for a cluster,
one short job on each partition that the profile names makes the checks that concern jobs, where and as jobs of the
study would run; the others are made here, on the login node.
"""

import argparse
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from triptych.commands.checkout import profile_path
from triptych.commands.checks.finding import FAULT, OK, WARNING, Finding, Place, fault
from triptych.commands.checks.storage import held_lock
from triptych.commands.cluster import partitions, resources_of, submit
from triptych.config import paths
from triptych.config.study import read_study
from triptych.config.texts import cache_folder
from triptych.errors import TriptychError, message_of, run_step
from triptych.io.manifest import read_json, write_record
from triptych.utils.arguments import add_configfile
from triptych.utils.device import WANTED
from triptych.utils.terminal import RED, YELLOW, coloured

EVERYWHERE, IN_JOBS, ON_LOGIN_NODE = "everywhere", "in jobs", "on the login node of a cluster"
JOB_MINUTES = 10  # limit of a job that takes about two


class Check(NamedTuple):
    """A check: its name in the table, its function below `triptych.commands.checks`, and where it is made.

    The function is imported when it is called: on a login node nothing waits for torch.
    """

    name: str
    function: str
    where: str


CHECKS = (
    Check("python", "software.python", EVERYWHERE),
    Check("packages", "software.packages", EVERYWHERE),
    Check("locale", "software.text", EVERYWHERE),
    Check("clock", "software.clock", EVERYWHERE),
    Check("slurm", "slurm.slurm", ON_LOGIN_NODE),
    Check("partitions", "slurm.partition_names", ON_LOGIN_NODE),
    Check("time limits", "slurm.time_limits", ON_LOGIN_NODE),
    Check("caps", "slurm.caps", ON_LOGIN_NODE),
    Check("space", "storage.space", EVERYWHERE),
    Check("renames", "storage.renames", EVERYWHERE),
    Check("locks", "storage.locks", EVERYWHERE),
    Check("fetched", "offline.fetched", EVERYWHERE),
    Check("offline", "offline.offline_mode", EVERYWHERE),
    Check("models", "offline.models_load", IN_JOBS),
    Check("driver", "software.driver", IN_JOBS),
    Check("device", "device.device", IN_JOBS),
    Check("bf16", "device.precision", IN_JOBS),
    Check("products", "device.products", IN_JOBS),
    Check("tuning", "device.tuning", IN_JOBS),
    Check("training", "device.training", IN_JOBS),
)


class Row(NamedTuple):
    """A line of the table: where a check was made, its name and what it found."""

    where: str
    check: str
    finding: Finding


def make_checks(place: Place, where: str) -> Iterator[Row]:
    """Make the checks that belong to a place; an error inside a check is a fault, and the others are made.

    Args:
        place: where this process runs.
        where: what the table calls it.
    """
    # Without a cluster, this machine is also where jobs run.
    skipped = IN_JOBS if place.on_cluster and not place.partition else ON_LOGIN_NODE
    for check in CHECKS:
        if check.where == skipped:
            continue
        module, function = check.function.split(".")
        try:
            found = getattr(import_module(f"triptych.commands.checks.{module}"), function)(place)
        except TriptychError as error:
            found = fault(str(error), "")
        except Exception as error:
            found = fault(f"the check itself failed: {type(error).__name__}: {message_of(error)}", "")
        yield Row(where, check.name, found)


def check_partition(place: Place, configfile: Path, name: str, rule: str, patience: float) -> Iterator[Row]:
    """Make the checks in a job on a partition; a job that fails is a fault.

    Args:
        place: of this process, on the login node.
        configfile: of the study.
        name: of the partition.
        rule: of the study, whose jobs go there.
        patience: seconds until the job, with its time in the queue, is given up.
    """
    folder = (place.folder / name).resolve()
    answer = folder / "findings.json"
    answer.unlink(missing_ok=True)
    gres = str(resources_of(place.profile, rule).get("gres", ""))
    command = ["python", "-m", "triptych.cli", "doctor", "--configfile", str(configfile.resolve())]
    command += ["--directory", str(Path().resolve()), "--profile", str(place.profile.resolve()), "--partition", name]
    command += ["--gpus", "1" if gres.startswith("gpu") else "0", "--out", str(answer)]
    try:
        with held_lock(folder):
            submit(place.profile, rule, command, folder, JOB_MINUTES, patience)
        record = read_json(answer)
    except TriptychError as error:
        yield Row(name, "job", fault(str(error), "correct the profile, or wait; the line above says what SLURM said"))
        return
    yield Row(name, "job", Finding(OK, f"ran on {record['host']}"))
    for row in record["rows"]:
        yield Row(name, row["check"], Finding(**row["finding"]))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write findings as JSON, with the rates that were measured, by where they were made."""
    rates = {row.where: {} for row in rows}
    for row in rows:
        rates[row.where] |= row.finding.rates
    found = [{"where": row.where, "check": row.check, "finding": asdict(row.finding)} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, {"host": socket.gethostname(), "rows": found, "rates": rates})


def show(row: Row, wide: int) -> None:
    """Print a line of the table, and its remedy below it."""
    colour = {WARNING: YELLOW, FAULT: RED}.get(row.finding.state, "")
    print(f"{coloured(f'{row.finding.state:<8}', colour)} {row.where:<{wide}} {row.check:<11} {row.finding.found}")
    if row.finding.remedy:
        print(f"{'':<{9 + wide + 1 + 11}} -> {row.finding.remedy}")
    sys.stdout.flush()


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych doctor`."""
    parser = argparse.ArgumentParser(
        prog="triptych doctor",
        description=main.__doc__,
        epilog="example: triptych doctor --profile profiles/aire --directory $SCRATCH/triptych",
    )
    add_configfile(parser)
    parser.add_argument(
        "--profile", type=profile_path, help="folder of Snakemake's options, with which the study will run"
    )
    parser.add_argument("--directory", "-d", type=Path, default=Path(), help="working folder of the study")
    parser.add_argument("--patience", type=float, default=60, help="minutes to wait for each job (default: 60)")
    for name in ("--partition", "--gpus", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # of a job that this command has submitted
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Check this machine, or a cluster with its compute nodes, for everything that would stop a study.

    Prints a line for each check (ok, warning or fault, with its remedy); the exit status is 1 if there is a fault.
    """
    arguments = build_parser().parse_args(arguments)
    study = read_study(arguments.configfile)
    configfile, profile = arguments.configfile.resolve(), arguments.profile and arguments.profile.resolve()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.directory)
    os.environ[WANTED] = study.settings.runtime.device
    place = Place(study, study.path(paths.DOCTOR_JOBS), profile)
    if arguments.partition:
        out = Path(arguments.out)
        place = replace(place, folder=out.parent, partition=arguments.partition, gpus=int(arguments.gpus))
        write_rows(out, list(make_checks(place, arguments.partition)))
        return
    jobs = partitions(profile) if place.on_cluster else {}
    here = "login node" if place.on_cluster else "here"
    wide = max(map(len, [here, *jobs]))
    rows = []
    for row in make_checks(place, here):
        show(row, wide)
        rows.append(row)
    if jobs:
        cache_folder(study.settings.cache).mkdir(parents=True, exist_ok=True)
    for name, rule in jobs.items():
        print(f"{'':<8} {name:<{wide}} {'':<11} a job is submitted; waiting for it", flush=True)
        for row in check_partition(place, configfile, name, rule, 60 * arguments.patience):
            show(row, wide)
            rows.append(row)
    write_rows(study.path(paths.DOCTOR), rows)
    states = [row.finding.state for row in rows]
    print(", ".join(f"{states.count(state)} {state}" for state in (FAULT, WARNING, OK)))
    sys.exit(FAULT in states)


if __name__ == "__main__":
    run_step(main)
