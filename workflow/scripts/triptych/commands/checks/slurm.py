"""Checks of a cluster, asked on a login node: SLURM's version, partitions, time limits, caps."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from triptych.commands.checks.finding import Finding, Place, fault, ok, warning
from triptych.commands.cluster import partitions, resources_of
from triptych.commands.requests import Grouping, Requests

TESTED = (22, 5)  # the SLURM of the tests
PLUGINS = ("snakemake", "snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep")
UNITS = {"": 1, "m": 1, "h": 60, "d": 1440}  # minutes, as Snakemake reads `runtime`


def ask(*command: str) -> str | None:
    """Give what a command of SLURM prints; None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def slurm(_: Place) -> Finding:
    """SLURM's version, whether it answers, and Snakemake's plugins for it."""
    if not (said := ask("sinfo", "--version")):
        return fault("sinfo: not found, or does not answer", "run this on a login node of the cluster")
    plugins = []
    for name in PLUGINS:
        try:
            plugins.append(f"{name.removeprefix('snakemake-executor-plugin-')} {version(name)}")
        except PackageNotFoundError:
            return fault(f"{name} is missing", "make clean; make install")
    said = f"{said}; {', '.join(plugins)}"
    number = re.search(r"(\d+)\.(\d+)", said)
    if ask("squeue", "--me", "--noheader") is None:
        return fault(f"{said}; squeue does not answer", "wait until the controller answers: scontrol ping")
    if number and (int(number[1]), int(number[2])) < TESTED:
        return warning(said, f"older than SLURM {TESTED[0]}.{TESTED[1]:02d}, with which this is tested")
    return ok(said)


def partition_names(place: Place) -> Finding:
    """Whether the partitions that the profile names are there, are up, and have the GPUs that it asks for."""
    known = _partitions()
    wanted = partitions(place.profile)
    if not wanted:
        return warning("the profile names no partition: the default one is used", "name it: slurm_partition")
    for name in wanted:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            return fault(f"no partition {name} (there are: {there})", "correct slurm_partition in the profile")
        if known[name].state != "up":
            return fault(f"partition {name} is {known[name].state}", "wait until it is up: sinfo -s; or name another")
    for rule, resources in _rules(place):
        name, gres = str(resources.get("slurm_partition", "")), str(resources.get("gres", ""))
        kind = re.match(r"gpu(?::([A-Za-z][\w.]*))?", gres)
        if kind and name and not re.search(rf"\bgpu:{kind[1] or ''}", known[name].gres):
            return fault(
                f"{rule}: gres {gres}, and partition {name} has {known[name].gres}",
                "correct gres or slurm_partition in the profile",
            )
    return ok(", ".join(f"{name} ({known[name].nodes} nodes, {known[name].gres})" for name in wanted))


class Partition(NamedTuple):
    """A partition: whether it is up, its nodes, and what these have beside cores and memory."""

    state: str
    nodes: int
    gres: str


def _partitions() -> dict[str, Partition]:
    found: dict[str, Partition] = {}
    for line in filter(None, (ask("sinfo", "-h", "-o", "%R|%a|%D|%G") or "").split("\n")):  # one for each kind of node
        name, state, nodes, gres = line.split("|")
        before = found.get(name, Partition(state, 0, ""))
        found[name] = Partition(state, before.nodes + int(nodes), ", ".join(filter(None, (before.gres, gres))))
    return found


def _rules(place: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rules that the profile gives resources of their own, and ("all others") the defaults."""
    yield "all others", resources_of(place.profile)
    for rule in place.options.get("set-resources", {}):
        yield rule, resources_of(place.profile, rule)


def minutes(text: object) -> float | None:
    """Read a time of SLURM's (2-00:00:00, UNLIMITED) or of a profile's (720, 12h); None of a formula."""
    text = str(text).strip()
    if found := re.fullmatch(r"(\d+)\s*([mhd]?)", text):
        return int(found[1]) * UNITS[found[2]]
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text):
        days, hours, mins, seconds = (int(part or 0) for part in found.groups())
        return days * 1440 + hours * 60 + mins + seconds / 60
    return None


def time_limits(place: Place) -> Finding:
    """The times of jobs, from the profile and else from the plan, against the partitions' limits."""
    known, longest = {}, {}
    planned = Requests(place.study, Grouping.of(place.options)).longest_jobs()
    own = place.options.get("set-resources", {})
    for rule, resources in _rules(place):
        name = str(resources.get("slurm_partition", ""))
        if not name:
            continue
        if name not in known:
            said = ask("scontrol", "show", "partition", name) or ""
            found = re.search(r"\bMaxTime=(\S+)", said)
            known[name] = minutes(found[1]) if found else None
        asked, most = minutes(resources.get("runtime", "")), known[name]
        if rule in planned and "runtime" not in own[rule]:
            asked = planned[rule]
        elif "runtime" not in resources:
            return fault(f"{rule}: the profile gives no time", "add runtime (minutes) to the profile")
        if asked is not None and most is not None and asked > most:
            return fault(
                f"{rule}: runtime {asked:.0f} min, and partition {name} allows {most:.0f}",
                "set a lower runtime in the profile; training continues in the next job (retries)",
            )
        longest[name] = max(longest.get(name, 0), asked or 0)
    silent = [name for name, most in known.items() if most is None]
    if silent:
        return warning(f"no time limit is said of {', '.join(silent)}", "scontrol show partition")
    each = (f"{name} {longest[name]:.0f} of at most {known[name]:.0f} min" for name in known)
    return ok("; ".join(each))


def caps(place: Place) -> Finding:
    """The caps per user (QoS of partitions and of the user) against what the profile asks for."""
    said = ask("sacctmgr", "-nP", "show", "qos", "format=name,maxwall,maxtrespu")
    if said is None:
        return warning("sacctmgr does not answer: caps are unknown", "ask: sacctmgr show qos")
    of_qos = {name: (wall, tres) for name, wall, tres, *_ in (line.split("|") for line in said.split("\n") if line)}
    found = []
    jobs = str(place.options.get("jobs", 1))
    at_once = int(jobs) if jobs.isdecimal() else 1  # of "unlimited", nothing is said
    processes = place.study.settings.runtime.processes
    for name, rule in partitions(place.profile).items():
        shown = ask("scontrol", "show", "partition", name) or ""
        qos = re.search(r"\bQoS=(\S+)", shown)
        wall, tres = of_qos.get(qos[1] if qos else "", ("", ""))
        asked = minutes(resources_of(place.profile, rule).get("runtime", ""))
        if wall and asked and asked > (minutes(wall) or asked):
            return fault(f"{name}: QoS {qos[1]} allows {wall}", f"lower the runtime of {rule} in the profile")
        if not (most := re.search(r"gres/gpu=(\d+)", tres)):
            continue
        if processes > int(most[1]):
            return fault(
                f"{name}: {most[1]} GPUs a user (QoS {qos[1]}); runtime.processes asks for {processes} at once",
                "lower runtime.processes: such a job would wait for ever",
            )
        found.append(f"{name}: {most[1]} GPUs a user (QoS {qos[1]})")
        if at_once * processes > int(most[1]):
            return warning(
                f"{found[-1]}; the profile's jobs: {at_once}",
                "none needed: other jobs wait; for right plans, set jobs and plan.at_once to it",
            )
    return ok("; ".join(found) or "no cap on GPUs is said")
