"""One command as a job, where and as a profile sends the jobs of a study: for `triptych doctor` and `triptych bench`.

Snakemake submits it, with the options of the profile, as a workflow of one rule: what happens to this job happens to
those of a study. It has the resources that the profile gives one of the study's rules, for a time of its own. With a
profile that names no cluster, it runs on this machine.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from triptych.commands.checkout import PROFILE_FILE
from triptych.config.yaml_file import read_yaml
from triptych.errors import TriptychError

SCRIPTS = Path(__file__).parents[2]
RULE = "job"
SNAKEFILE = f"""
rule {RULE}:
    output: touch("done")
    log: "log.txt"
    shell: "bash command.sh > {{log}} 2>&1"
"""
# What is the study's, and not that of one job that somebody waits for.
OF_A_STUDY = ("set-resources", "set-threads", "set-scatter", "groups", "retries", "quiet", "printshellcmds")
OWN = {"retries": 0, "jobs": 1, "nolock": True, "forceall": True}
QUICK = {"slurm-init-seconds-before-status-checks": 5, "latency-wait": 30}  # of a profile with these, the least


def read_profile(profile: Path) -> dict[str, Any]:
    """Read the options of a profile, a file or its folder; none where there is no profile.

    Raises:
        TriptychError: it is not YAML, or no mapping.
    """
    file = profile if profile.is_file() else _file_of(profile)
    options = (read_yaml(file)[0] or {}) if file else {}
    if not isinstance(options, Mapping):
        raise TriptychError(f"{file}: not a profile: a mapping of Snakemake's options is needed")
    return dict(options)


def _file_of(folder: Path) -> Path | None:
    """The file that Snakemake reads of a profile's folder: the newest that is for its version; None without any."""
    major = int(version("snakemake").split(".")[0])
    matches = [PROFILE_FILE.fullmatch(file.name) for file in folder.iterdir()] if folder.is_dir() else []
    fitting = [found for found in matches if found and int(found[2] or 0) <= major]
    newest = max(fitting, key=lambda found: (int(found[2] or 0), found[1] == "profile"), default=None)
    return newest and folder / newest.string


def resources_of(profile: Path, rule: str = "") -> dict[str, Any]:
    """List the resources that a profile gives a rule's jobs: those of all rules, and its own."""
    options = read_profile(profile)
    own = options.get("set-resources", {}).get(rule, {})
    return {**options.get("default-resources", {}), **own}


def partitions(profile: Path) -> dict[str, str]:
    """List the partitions that a profile names, each with a rule whose jobs it sends there ("": of all the others)."""
    rules = ["", *read_profile(profile).get("set-resources", {})]
    found = {rule: resources_of(profile, rule).get("slurm_partition") for rule in rules}
    return {str(name): rule for rule, name in reversed(found.items()) if name}


def submit(
    profile: Path, rule: str, command: Sequence[str], folder: Path, minutes: int, patience: float | None = None
) -> str:
    """Run a command as one job and wait for its end.

    Args:
        profile: folder of the profile.
        rule: of the study, whose resources the job has; "" for those of all rules.
        command: words of the command line; paths in it are absolute. It runs in `folder`, without the internet, with
            this process's Python first in PATH.
        folder: of the job, which the machines share; made anew where nothing is there. Its output is `log.txt`.
        minutes: time limit of the job.
        patience: seconds until the job, with its time in the queue, is given up and cancelled; None: never.

    Returns:
        What the command printed.

    Raises:
        TriptychError: there is no such profile, the job was refused, given up, or it failed.
    """
    options = read_profile(profile)
    if not options:
        raise TriptychError(f"{profile}: no profile here (profile.yaml); those of Triptych are in profiles/")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("done", "log.txt"):
        (folder / name).unlink(missing_ok=True)
    own = {key: value for key, value in options.items() if key not in OF_A_STUDY} | OWN
    own |= {key: min(value, options[key]) for key, value in QUICK.items() if key in options}
    if resources := _for(minutes, resources_of(profile, rule)):
        own["set-resources"] = {RULE: resources}
    (folder / "profile").mkdir(exist_ok=True)
    (folder / "profile/profile.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}$PATH"
    variables = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONPATH": shlex.quote(str(SCRIPTS))}
    settings = "".join(f"export {name}={value}\n" for name, value in {**variables, "PATH": f'"{path}"'}.items())
    (folder / "command.sh").write_text(f"{settings}exec {shlex.join(map(str, command))}\n", encoding="utf-8")
    (folder / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    words = [sys.executable, "-m", "snakemake", "--directory", str(folder), "--snakefile", str(folder / "Snakefile")]
    said, status = _wait([*words, "--profile", str(folder / "profile")], patience)
    log = folder / "log.txt"
    printed = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if status is None:
        raise TriptychError(
            f"the job was not finished after {patience:.0f} s and is cancelled; `squeue --me` and `sinfo` say how busy "
            f"the cluster is; SLURM's log is in {folder}"
        )
    if status:
        raise TriptychError(f"the job failed: {_reason(said, printed)} (log: {log if printed else folder})")
    return printed


def _for(minutes: int, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The resources of a job with a time limit of its own, and without the signal that tells a training to save."""
    own = {**resources, "runtime": minutes} if "runtime" in resources else dict(resources)
    if extra := re.sub(r"--signal=\S+\s*", "", str(own.pop("slurm_extra", ""))).strip():
        own["slurm_extra"] = extra
    return own


def _wait(words: Sequence[str], patience: float | None) -> tuple[str, int | None]:
    """Run Snakemake to its end; gives what it printed, and its exit status, None where it was given up."""
    environment = {**os.environ, "TRIPTYCH_PROCESSES": "1", "PYTHONPATH": str(SCRIPTS)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # In a group of its own, which is stopped as Ctrl-C would stop it: then Snakemake cancels the job.
    with subprocess.Popen(words, env=environment, text=True, process_group=0, **pipes) as head:
        try:
            return head.communicate(timeout=patience)[0], head.returncode
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGINT)
            return head.communicate()[0], None
        except KeyboardInterrupt:
            os.killpg(head.pid, signal.SIGINT)
            head.communicate()
            raise


def _reason(said: str, printed: str) -> str:
    """Find why a job failed: its own last line, or where it never ran, what SLURM says."""
    if lines := [line.strip() for line in printed.splitlines() if line.strip()]:
        return lines[-1]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    refused = [line for line in lines if re.search("error(?! in rule)", line, re.IGNORECASE)]
    return (refused or lines[-1:] or ["Snakemake said nothing"])[0]
