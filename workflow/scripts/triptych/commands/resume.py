"""Go on after Snakemake itself was killed (a lost connection, a rebooted login node): `triptych resume`.

    python -m triptych.commands.resume --profile profiles/aire --configfile config/mine.yaml

SLURM jobs, and steps on this machine, outlive the Snakemake that started them, and its lock stays. Unlocking by hand
would start a second job for what one is still writing. This refuses while any of them waits or runs; then it unlocks,
and runs Snakemake as given.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import yaml

from triptych.errors import TriptychError, run_step

BY_HAND = ("export", "plan", "resume", "status", "verify")  # commands that are no steps


PROFILES = ("profile.yaml", "config.yaml")


def option(arguments: Sequence[str], name: str) -> str | None:
    """Value of an option on a command line, written as `--name value` or `--name=value`; None where it is not there."""
    for place, argument in enumerate(arguments):
        if argument == name and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
    return None


def job_prefix(profile: str | None) -> str | None:
    """What the names of a profile's SLURM jobs start with; None where it sends none.

    Raises:
        TriptychError: the profile sends jobs without a prefix, so that they cannot be told from others.
    """
    files = [path for name in PROFILES if profile and (path := Path(profile, name)).is_file()]
    settings = yaml.safe_load(files[0].read_text(encoding="utf-8")) if files else {}
    if settings.get("executor") != "slurm":
        return None
    if not (prefix := settings.get("slurm-jobname-prefix")):
        raise TriptychError(f"{files[0]}: slurm-jobname-prefix is missing; without it nobody can tell whose jobs run")
    return prefix


def waiting_jobs(prefix: str) -> list[str]:
    """Our SLURM jobs that wait or run, a line each: number, state, rule.

    Raises:
        TriptychError: SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        raise TriptychError("squeue is not there; resume on a machine of the cluster")
    command = ["squeue", "--me", "--noheader", "--format=%A|%j|%T|%k"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if answer.returncode:
        raise TriptychError(f"squeue does not answer ({answer.stderr.strip()}); try again later")
    jobs = [line.split("|", 3) for line in answer.stdout.splitlines()]
    return [f"{number} {state.lower()} {comment}" for number, name, state, comment in jobs if name.startswith(prefix)]


def other_snakemakes(folder: Path) -> list[int]:
    """Processes of this machine that run Snakemake in a folder, but for those in SLURM jobs, which squeue tells of."""

    def is_head(process: psutil.Process, words: Sequence[str]) -> bool:
        return any(Path(word).name == "snakemake" for word in words[:4]) and "--mode remote" not in " ".join(words)

    return _processes(folder, is_head)


def left_steps(folder: Path) -> list[int]:
    """Processes of this machine that run steps in a folder, but for those in SLURM jobs, which squeue tells of.

    They outlive a Snakemake that was killed.
    """

    def is_step(process: psutil.Process, words: Sequence[str]) -> bool:
        module = option(words, "-m") or ""
        by_hand = module.removeprefix("triptych.") in BY_HAND or option(words, "--configfile") is not None
        return module.startswith("triptych.") and not by_hand and "SLURM_JOB_ID" not in process.environ()

    return _processes(folder, is_step)


def _processes(folder: Path, wanted: Callable[[psutil.Process, Sequence[str]], bool]) -> list[int]:
    """Processes of this machine that work in a folder and are `wanted`, which is told their command lines."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        with contextlib.suppress(psutil.Error, OSError):
            if wanted(process, process.info["cmdline"] or []) and Path(process.cwd()) == folder:
                found.append(process.info["pid"])
    return found


def main() -> None:
    """Refuse while earlier jobs run; else unlock the folder and run Snakemake with the arguments given."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    folder = Path(option(arguments, "--directory") or ".").resolve()
    if running := other_snakemakes(folder):
        raise TriptychError(f"Snakemake still runs in {folder} (process {running[0]}); there is nothing to resume")
    if left := left_steps(folder):
        raise TriptychError(
            f"{len(left)} steps of an earlier Snakemake still run in {folder} (processes {', '.join(map(str, left))}); "
            "let them end, or stop them with `kill`, and resume again"
        )
    if prefix := job_prefix(option(arguments, "--profile")):
        jobs = waiting_jobs(prefix)
        if jobs:
            raise TriptychError(
                f"{len(jobs)} jobs of an earlier Snakemake still wait or run; let them end, or `scancel` them, and "
                "resume again:\n  " + "\n  ".join(jobs)
            )
    snakemake = [sys.executable, "-m", "snakemake", *arguments]
    unlocked = subprocess.run([*snakemake, "--unlock"], capture_output=True, text=True)
    if unlocked.returncode:
        raise TriptychError(f"the folder cannot be unlocked:\n{unlocked.stdout}{unlocked.stderr}")
    sys.stdout.flush()
    os.execv(sys.executable, snakemake)


if __name__ == "__main__":
    run_step(main)
