"""The profiles fit the workflow, and the check that says so finds what Snakemake ignores in silence."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import itertools

import check_profiles

AIRE = yaml.safe_load((ROOT / "profiles/aire/profile.yaml").read_text())


def copy() -> dict:
    return json.loads(json.dumps(AIRE))  # what rules have in common in YAML is each rule's own


@pytest.fixture(scope="module")
def known():
    return check_profiles.rules()


@pytest.fixture(scope="module")
def keys():
    return check_profiles.options()


@pytest.mark.parametrize("name", ["aire", "gpu", "local"])
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
            lambda p: p["set-resources"]["predict"].update(gres="gpu:1"),
            "groups.predict: gres must be that of train_stage",
        ),
        (
            lambda p: p["set-resources"]["predict_view"].pop("slurm_extra"),
            "groups.predict_view: slurm_extra must be that",
        ),
        (lambda p: p["set-resources"]["predict_captions"].update(lane=2), "groups.predict_captions: needs `lane: 1`"),
        (
            lambda p: rename(p["group-components"], "{split}-seed{seed}", "{split}"),
            "group-components.{split}: no rule is in a group of this name",
        ),
        (lambda p: p["group-components"].pop("shared{draw}-seed{seed}"), "{split}-seed{seed} need the same count"),
        (lambda p: rename(p["groups"], "predict", "predicts"), "groups.predicts: no such rule"),
        (
            lambda p: p["set-resources"]["train_stage"].update(mem_mb=80000),
            "set-resources.train_stage.mem_mb: the same for any number of processes",
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


def first_training(profile, processes, folder, cores, attempt=1):
    """What a training asks for: `threads` and resources, as a dry run prints them of steps without a message."""
    study = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"pathvars": {"results": "results"}}
    study["runtime"] |= {"processes": processes}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    steps = f'include: "{ROOT}/Snakefile"\nfor step in workflow.rules:\n    step.message = None\n'
    (folder / "Snakefile").write_text(steps)
    command = [sys.executable, "-m", "snakemake", "results/checkpoints/1/shared/seed0/manifest.json", "--dry-run"]
    command += [
        "--attempt",
        str(attempt),
        "--cores",
        str(cores),
        "--directory",
        str(folder),
        "--snakefile",
        str(folder / "Snakefile"),
    ]
    command += ["--profile", str(ROOT / f"profiles/{profile}"), "--configfile", str(folder / "study.yaml")]
    path = {"PYTHONPATH": str(ROOT / "workflow/scripts"), "TRIPTYCH_PROCESSES": "7"}  # one from outside means nothing
    run = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
    text = run.stdout + run.stderr
    assert run.returncode == 0, text
    block = text[text.index("rule train_stage:") :].split("\n\n")[0]
    asked = dict(part.split("=", 1) for part in re.search(r"resources: (.+)", block)[1].split(", "))
    return asked | {"threads": re.search(r"threads: (\d+)", block)[1]}


@pytest.mark.parametrize(
    ("processes", "attempt", "said"),
    [
        # What the plan asks for (tests/commands/test_requests.py), until it is all that a GPU node has.
        (1, 1, {"gres": "gpu:1", "cpus_per_task": "8", "mem_mb": "45543", "runtime": "122", "threads": "8"}),
        (1, 3, {"gres": "gpu:1", "cpus_per_task": "8", "mem_mb": "91085", "runtime": "366", "threads": "8"}),
        (3, 1, {"gres": "gpu:3", "cpus_per_task": "24", "mem_mb": "136627", "runtime": "122", "threads": "24"}),
        (3, 3, {"gres": "gpu:3", "cpus_per_task": "24", "mem_mb": "240000", "runtime": "366", "threads": "24"}),
    ],
)
def test_settings_and_attempts_decide_what_is_asked_for(processes, attempt, said, tmp_path):
    asked = first_training("aire", processes, tmp_path, cores=24, attempt=attempt)
    assert {name: asked[name] for name in said} == said
    assert "tasks" not in asked and asked["slurm_partition"] == "gpu"


def test_several_processes_ask_a_workstation_for_no_more_than_it_has(tmp_path):
    asked = first_training("local", 3, tmp_path, cores=4)
    memory = {"mem", "mem_mb", "mem_mib"}  # which matters with `--resources mem_mb=...` alone
    assert asked.pop("threads") == "4" and set(asked) == {"tmpdir", "runtime", *memory}


def test_a_job_of_the_cpu_partition_that_ran_out_of_memory_is_sent_again_with_more(tmp_path):
    (tmp_path / "Snakefile").write_text(
        "rule check_images:\n    output: 'out'\n    retries: 2\n"
        "    shell: 'echo {resources.mem_mb} >> log; test $(wc -l < log) = 3 && touch {output}'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--directory", str(tmp_path), "--default-resources"]
    command += [f"mem_mb={AIRE['default-resources']['mem_mb']}", "--snakefile", str(tmp_path / "Snakefile")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "log").read_text().split() == ["32000", "64000", "96000"]


def test_the_profile_of_one_gpu_is_that_of_one_machine_but_for_the_steps_on_it(known):
    gpu, local = (yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text()) for name in ("gpu", "local"))
    steps = {name for name, text in known.items() if any(module in text for module in check_profiles.GPU_MODULES)}
    assert gpu.pop("set-resources") == {key: {"lane": 1} for key in steps}
    assert gpu == local


WORKFLOW = """
from triptych import workflow_hooks

workflow_hooks.run_groups(workflow)

rule all:
    input: expand("{rule}-{number}", rule=["train_stage", "audit_data"], number=range(3))

rule train_stage:
    output: "train_stage-{number}"
    shell: "date +%s.%N > {output}; sleep 1; date +%s.%N >> {output}"

rule audit_data:
    output: "audit_data-{number}"
    shell: "date +%s.%N > {output}; sleep 1; date +%s.%N >> {output}"
"""


@pytest.mark.parametrize(("profile", "together"), [("gpu", False), ("local", True)])
def test_steps_on_the_one_gpu_run_one_after_the_other(tmp_path, profile, together):
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    command = [sys.executable, "-m", "snakemake", "--profile", str(ROOT / f"profiles/{profile}"), "--cores", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def overlap(rule):
        times = sorted(tuple(map(float, (tmp_path / f"{rule}-{n}").read_text().split())) for n in range(3))
        return any(end > start for (_, end), (start, _) in itertools.pairwise(times))

    assert overlap("train_stage") == together and overlap("audit_data")
