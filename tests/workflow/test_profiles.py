"""The profiles fit the workflow, and the check that says so finds what Snakemake ignores in silence."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import check_profiles

AIRE = yaml.safe_load((ROOT / "profiles/aire/profile.yaml").read_text())


def copy() -> dict:
    return yaml.safe_load(yaml.safe_dump(AIRE))


@pytest.fixture(scope="module")
def known():
    return check_profiles.rules()


@pytest.fixture(scope="module")
def keys():
    return check_profiles.options()


@pytest.mark.parametrize("name", ["aire", "local"])
def test_the_profiles_fit(name, known, keys):
    profile = yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text())
    assert check_profiles.faults(profile, known, keys) == []


def rename(mapping, old, new):
    mapping[new] = mapping.pop(old)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: rename(p, "slurm-logdir", "slurm-log-dir"), "slurm-log-dir: Snakemake has no such option"),
        (
            lambda p: rename(p["set-resources"], "train_stage", "train_stages"),
            "set-resources.train_stages: no such rule",
        ),
        (
            lambda p: rename(p["set-resources"], "train_stage", "train_stages"),
            "set-resources.train_stage: the rule needs a GPU",
        ),
        (
            lambda p: rename(p["set-resources"]["predict"], "gres", "gpus"),
            "set-resources.predict.gpus: no known resource",
        ),
        (
            lambda p: p["set-resources"].update(check_images={"gres": "gpu:1"}),
            "set-resources.check_images: the rule makes no use of its GPU",
        ),
        (
            lambda p: p["set-resources"].update(tabulate={"runtime": 5}),
            "set-resources.tabulate: the rule runs on the login node",
        ),
        (
            lambda p: p["set-resources"]["train_stage"].update(runtime=6),
            "set-resources.train_stage: runtime must be more than the 300 s",
        ),
        (
            lambda p: p["set-resources"]["train_stage"].update(slurm_extra="--signal=USR1@300"),
            "only --signal=TERM@<seconds> lets a training save",
        ),
        (
            lambda p: p["set-resources"]["train_stage"].pop("cpus_per_task"),  # that of all rules is left
            "set-resources.train_stage.cpus_per_task: the same for any number of processes",
        ),
        (
            lambda p: p["set-resources"]["train_stage"].update(gres="gpu:nvidia_l40:1"),
            "set-resources.train_stage.gres: the same for any number of processes",
        ),
        (lambda p: p["default-resources"].pop("runtime"), "set-resources.check_images.runtime: missing"),
    ],
)
def test_what_snakemake_would_ignore_is_found(change, said, known, keys):
    profile = copy()
    change(profile)
    assert any(said in line for line in check_profiles.faults(profile, known, keys)), said


def first_training(profile, processes, folder, cores):
    """What a training asks for: `threads` and resources, as a dry run prints them of steps without a message."""
    study = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"pathvars": {"results": "results"}}
    study["runtime"] |= {"processes": processes}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    steps = f'include: "{ROOT}/Snakefile"\nfor step in workflow.rules:\n    step.message = None\n'
    (folder / "Snakefile").write_text(steps)
    command = [sys.executable, "-m", "snakemake", "results/checkpoints/1/shared/seed0/manifest.json", "--dry-run"]
    command += ["--cores", str(cores), "--directory", str(folder), "--snakefile", str(folder / "Snakefile")]
    command += ["--profile", str(ROOT / f"profiles/{profile}"), "--configfile", str(folder / "study.yaml")]
    path = {"PYTHONPATH": str(ROOT / "workflow/scripts"), "TRIPTYCH_PROCESSES": "7"}  # one from outside means nothing
    run = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
    text = run.stdout + run.stderr
    assert run.returncode == 0, text
    block = text[text.index("\nrule train_stage:") :].split("\n\n")[0]
    asked = dict(part.split("=", 1) for part in re.search(r"resources: (.+)", block)[1].split(", "))
    return asked | {"threads": re.search(r"threads: (\d+)", block)[1]}


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        (1, {"gres": "gpu:1", "cpus_per_task": "8", "mem_mb": "80000", "threads": "8"}),
        (3, {"gres": "gpu:3", "cpus_per_task": "24", "mem_mb": "240000", "threads": "24"}),
    ],
)
def test_one_setting_asks_for_several_gpus(processes, said, tmp_path):
    asked = first_training("aire", processes, tmp_path, cores=24)
    assert {name: asked[name] for name in said} == said
    assert "tasks" not in asked and asked["slurm_partition"] == "gpu"


def test_several_processes_ask_a_workstation_for_no_more_than_it_has(tmp_path):
    asked = first_training("local", 3, tmp_path, cores=4)
    assert asked.pop("threads") == "4" and set(asked) == {"tmpdir"}


def test_a_job_that_ran_out_of_memory_is_sent_again_with_more(tmp_path):
    names = ["train_stage", "predict", "check_images"]  # the last has the memory of all rules
    rules = [
        f"rule {name}:\n    output: '{name}'\n    retries: 2\n"
        f"    shell: 'echo {{resources.mem_mb}} >> {name}.log; test $(wc -l < {name}.log) = 3 && touch {{output}}'\n"
        for name in names
    ]
    (tmp_path / "Snakefile").write_text(f"rule all:\n    input: {names}\n" + "".join(rules))
    wanted = {name: AIRE["set-resources"].get(name, AIRE["default-resources"])["mem_mb"] for name in names}
    command = [sys.executable, "-m", "snakemake", "--cores", "3", "--directory", str(tmp_path), "--set-resources"]
    command += [f"{name}:mem_mb={memory}" for name, memory in wanted.items()]
    command += ["--snakefile", str(tmp_path / "Snakefile"), "--resources", "mem_mb=1000000"]
    run = subprocess.run(command, env=os.environ | {"TRIPTYCH_PROCESSES": "2"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    asked = {name: [int(line) for line in (tmp_path / f"{name}.log").read_text().split()] for name in names}
    assert asked == {
        "train_stage": [160000, 240000, 240000],  # all that a GPU node has
        "predict": [80000, 120000, 160000],
        "check_images": [32000, 64000, 96000],
    }
