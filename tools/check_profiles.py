"""Check profiles against the workflow: Snakemake silently ignores a misspelt rule name or resource.

python tools/check_profiles.py profiles/*/
"""

import re
import sys
from pathlib import Path

import yaml
from snakemake.cli import get_argument_parser

ROOT = Path(__file__).parent.parent
# What the SLURM plugin and Snakemake read, and `lane`, by which steps of one job take turns.
RESOURCES = {
    "slurm_partition", "slurm_account", "slurm_extra", "runtime", "mem_mb", "mem_mb_per_cpu", "disk_mb", "tmpdir",
    "cpus_per_task", "cpus_per_gpu", "gres", "gpu", "gpu_model", "tasks", "nodes", "constraint", "qos", "clusters",
    "lane",
}  # fmt: skip
PER_RULE = ("set-resources", "set-threads", "set-scatter", "groups")
GPU_MODULES = (
    "triptych.train",
    "triptych.evaluate.predict",
    "triptych.features.encode",
    "triptych.features.occluded",
    "triptych.evaluate.occlude",
)
SHARED = "$TRIPTYCH_PROCESSES"  # `runtime.processes`, set by the workflow
ALIKE = ("slurm_partition", "gres", "gpu", "lane", "slurm_extra")  # of steps that may share a job
PER_PROCESS = ("gres", "gpu", "cpus_per_task", "mem_mb")
SHORTEST = 10  # minutes that a step asks for at least (START in commands/requests.py)
EARLY = 60  # seconds that SLURM may send a signal before its time


def rules(folder: Path = ROOT / "workflow/rules") -> dict[str, str]:
    """Text of every rule by name; a rule that inherits has its parent's text, too."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.smk")):
        heads = r"^(?:rule (\w+):|use rule (\w+) as (\w+) with:)\n"
        parts = re.split(heads, file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        for name, parent, heir, text in zip(*(parts[start::4] for start in range(4)), strict=True):
            found[name or heir] = text + found.get(parent, "")
    return found


def options() -> set[str]:
    """Long options of Snakemake and its plugins, which are the keys that a profile may have."""
    actions = get_argument_parser(profiles=[])._actions
    return {text.removeprefix("--") for action in actions for text in action.option_strings if text.startswith("--")}


def faults(profile: dict, known: dict[str, str], keys: set[str]) -> list[str]:
    """What is wrong with a profile, a line each.

    Args:
        profile: its content.
        known: text of every rule by name.
        keys: that Snakemake knows.
    """
    found = [f"{key}: Snakemake has no such option" for key in profile if key not in keys]
    found += [
        f"{section}.{name}: no such rule (known: {', '.join(sorted(known))})"
        for section in PER_RULE
        for name in profile.get(section, {})
        if section != "set-scatter" and name not in known
    ]
    default = profile.get("default-resources", {})
    asked = {"default-resources": default} | {
        f"set-resources.{name}": {
            **{key: default[key] for key in default.keys() - own(known.get(name, ""))},
            **resources,
        }
        for name, resources in profile.get("set-resources", {}).items()
    }
    for place, resources in asked.items():
        found += [f"{place}.{name}: no known resource" for name in resources if name not in RESOURCES]
        early = re.search(r"--signal=TERM@(\d+)", str(resources.get("slurm_extra", "")))
        if early and (int(early[1]) + EARLY) / 60 >= resources.get("runtime", SHORTEST):
            found.append(f"{place}: runtime must be more than the {early[1]} s of --signal, and {EARLY} s more")
        if "--signal=" in str(resources.get("slurm_extra", "")) and not early:
            found.append(f"{place}.slurm_extra: only --signal=TERM@<seconds> lets a training save; others kill it")
    if profile.get("executor") == "slurm":
        for name, text in known.items():
            resources = asked.get(f"set-resources.{name}", default)
            local, gpu = "localrule: True" in text, any(module in text for module in GPU_MODULES)
            if local and f"set-resources.{name}" in asked:
                found.append(f"set-resources.{name}: the rule runs on the login node, so this is never used")
            if not local and gpu != ("gres" in resources or "gpu" in resources):
                found.append(f"set-resources.{name}: the rule {'needs a' if gpu else 'makes no use of its'} GPU")
            found += [
                f"set-resources.{name}.{key}: the same for any number of processes; multiply it by {SHARED}"
                for key in PER_PROCESS
                if "$LAUNCH" in text and key in resources and SHARED not in str(resources[key])
            ]
            if not local and "runtime" not in resources and "runtime" not in own(text):
                found.append(f"set-resources.{name}.runtime: missing; Aire refuses jobs without a time")
    return found + group_faults(profile, asked)


def own(text: str) -> set[str]:
    """Resources that a rule sets itself, which no default replaces."""
    return set(re.findall(r"^        (mem_mb|runtime)=", text, re.MULTILINE))


def group_faults(profile: dict, asked: dict[str, dict]) -> list[str]:
    """What is wrong with the groups of a profile: Snakemake would stop at them, or run steps side by side."""
    groups, found = profile.get("groups", {}), []
    for pattern in profile.get("group-components", {}):
        if pattern not in groups.values():
            found.append(f"group-components.{pattern}: no rule is in a group of this name")
    # Patterns may give the same name, and Snakemake takes the count of any of them.
    counts = {pattern: profile.get("group-components", {}).get(pattern, 1) for pattern in groups.values()}
    if len(set(counts.values())) > 1:
        names = ", ".join(sorted(counts))
        found.append(f"group-components: {names} need the same count: a group may have the name of two")
    members = {name: asked.get(f"set-resources.{name}", {}) for name in groups}
    for name, resources in members.items():
        first = next(iter(members))
        found += [
            f"groups.{name}: {key} must be that of {first}, because they may share a job"
            for key in ALIKE
            if resources.get(key) != members[first].get(key)
        ]
        if resources.get("lane") != 1:
            found.append(f"groups.{name}: needs `lane: 1` in set-resources, or steps of one job run at once on its GPU")
    return found


def main() -> None:
    """Print what is wrong with the profiles that are named; exit status 1 where anything is."""
    keys, known = options(), rules()
    wrong = [
        f"{Path(folder)}/profile.yaml: {line}"
        for folder in sys.argv[1:]
        for line in faults(yaml.safe_load(Path(folder, "profile.yaml").read_text(encoding="utf-8")), known, keys)
    ]
    print("\n".join(wrong) or f"{len(sys.argv) - 1} profiles fit {len(known)} rules")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
