"""Go on after Snakemake itself was killed (a lost connection, a rebooted login node): `triptych resume`.

    triptych resume --profile profiles/aire --configfile config/mine.yaml

SLURM jobs, and steps on this machine, outlive the Snakemake that started them, and its lock stays. Unlocking by hand
would start a second job for a file that the first is still writing. So `triptych resume` refuses while any of them is
pending or running; otherwise it unlocks the folder and runs Snakemake with the arguments given.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from triptych.commands.checkout import PROFILE, profile_path, snakemake_command, with_profiles_found
from triptych.commands.cluster import read_profile
from triptych.errors import TriptychError, run_step

CORES = re.compile(r"--cores|--jobs|-[cj]\d*$")  # Snakemake starts with one of these, or a profile that has it

# Beginnings of the modules that people run and rules do not; `plan` is also a rule, which writes only a log.
BY_HAND = ("triptych.cli", "triptych.commands.", "triptych.data.sources.", "triptych.report.results", "triptych.serve.")


def job_prefix(profile: str | None) -> str | None:
    """Return what the names of a profile's SLURM jobs start with; None if the profile does not use SLURM.

    Raises:
        TriptychError: the profile is not there, or it submits jobs without a prefix, so that they cannot be told from
            other jobs.
    """
    settings = read_profile(profile_path(profile)) if profile else {}
    if settings.get("executor") != "slurm":
        return None
    if not (prefix := settings.get("slurm-jobname-prefix")):
        raise TriptychError(
            f"{profile}: slurm-jobname-prefix is missing; without it, jobs cannot be told from other jobs"
        )
    return prefix


def unfinished_jobs(prefix: str) -> list[str]:
    """Return this user's pending and running SLURM jobs with a prefix, a line each: number, state, rule.

    Raises:
        TriptychError: SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        raise TriptychError("squeue: command not found; run `triptych resume` on a login node of the cluster")
    command = ["squeue", "--me", "--noheader", "--format=%A|%j|%T|%k"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if answer.returncode:
        raise TriptychError(f"squeue does not answer ({answer.stderr.strip()}); try again later")
    jobs = [line.split("|", 3) for line in answer.stdout.splitlines()]
    return [f"{number} {state.lower()} {comment}" for number, name, state, comment in jobs if name.startswith(prefix)]


def other_snakemakes(folder: Path) -> list[int]:
    """Return the processes of this machine that run Snakemake in a folder, without those in SLURM jobs (see squeue)."""

    def is_head(process: psutil.Process, words: Sequence[str]) -> bool:
        return any(Path(word).name == "snakemake" for word in words[:4]) and "--mode remote" not in " ".join(words)

    return _processes(folder, is_head)


def left_steps(folder: Path) -> list[int]:
    """Return the processes of this machine that run steps in a folder, without those in SLURM jobs (see squeue).

    Steps outlive a Snakemake that was killed.
    """
    return _processes(folder, lambda process, words: is_step(words) and "SLURM_JOB_ID" not in process.environ())


def is_step(words: Sequence[str]) -> bool:
    """Tell whether a command line is that of a step, a module of Triptych run with `python -m` as rules do.

    What people run is none: `triptych ...`, a module of `BY_HAND`, and a module that is given a `--configfile`.
    """
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    by_hand = module.startswith(BY_HAND) or any(word.split("=")[0] == "--configfile" for word in words)
    return module.startswith("triptych.") and not by_hand


def _processes(folder: Path, wanted: Callable[[psutil.Process, Sequence[str]], bool]) -> list[int]:
    """Return the processes of this machine that work in a folder and are `wanted`, by command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        with contextlib.suppress(psutil.Error, OSError):
            if wanted(process, process.info["cmdline"] or []) and Path(process.cwd()) == folder:
                found.append(process.info["pid"])
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych resume`; all options that it does not name are Snakemake's."""
    parser = argparse.ArgumentParser(
        prog="triptych resume",
        description=main.__doc__,
        usage="%(prog)s [-h] [Snakemake's arguments ...]",
        epilog="example: triptych resume --profile profiles/aire --directory $SCRATCH/triptych",
        allow_abbrev=False,
    )
    parser.add_argument("--profile", help="profile of the killed run")
    parser.add_argument("--directory", "-d", type=Path, default=Path(), help="working folder of the killed run")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Continue a study after Snakemake itself was killed; give the arguments of the killed run.

    Refuses while jobs of that run are still pending or running; otherwise unlocks the folder and runs Snakemake.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return
    known, others = parser.parse_known_args(arguments)
    profile = known.profile or os.environ.get("SNAKEMAKE_PROFILE")
    if not profile and not any(CORES.match(word) for word in others):
        profile = PROFILE  # as `triptych run` without a profile
    folder = known.directory.resolve()
    if running := other_snakemakes(folder):
        raise TriptychError(f"Snakemake still runs in {folder} (process {running[0]}); there is nothing to resume")
    if left := left_steps(folder):
        raise TriptychError(
            f"{len(left)} steps of an earlier Snakemake still run in {folder} (processes {', '.join(map(str, left))}); "
            "let them end, or stop them with `kill`, and resume again"
        )
    if prefix := job_prefix(profile):
        jobs = unfinished_jobs(prefix)
        if jobs:
            raise TriptychError(
                f"{len(jobs)} jobs of an earlier Snakemake are still pending or running; let them end, or cancel them "
                "with `scancel`, and resume again:\n  " + "\n  ".join(jobs)
            )
    default = ["--profile", profile] if profile and not known.profile else []
    snakemake = snakemake_command(with_profiles_found([*default, *arguments]))
    unlocked = subprocess.run([*snakemake, "--unlock"], capture_output=True, text=True)
    if unlocked.returncode:
        raise TriptychError(f"the folder cannot be unlocked:\n{unlocked.stdout}{unlocked.stderr}")
    sys.stdout.flush()
    os.execv(sys.executable, snakemake)


if __name__ == "__main__":
    run_step(main)
