"""Resuming after Snakemake itself was killed: refused while anything runs, then goes on where it stopped."""

import os
import re
import signal
import subprocess
import sys
import time

import check_profiles
import pytest
import yaml
from conftest import ROOT
from triptych.cli import COMMANDS
from triptych.commands.resume import BY_HAND, build_parser, is_step, job_prefix, main
from triptych.errors import TriptychError

SNAKEFILE = """
rule all:
    input: "second"
rule first:
    output: "first"
    shell: "echo ran >> first.log; touch {output}"
rule second:
    input: "first"
    output: "second"
    shell: "echo ran >> second.log; sleep $(cat seconds); touch {output}"
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "seconds").write_text("60")
    (tmp_path / "profile").mkdir()
    profile = {"executor": "slurm", "slurm-jobname-prefix": "triptych", "jobs": 1}
    (tmp_path / "profile/profile.yaml").write_text(yaml.safe_dump(profile))
    return tmp_path


def resume(study, *arguments, squeue=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")}
    if squeue is not None:
        tools = study / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
        (tools / "squeue").chmod(0o755)
        environment["PATH"] = f"{tools}:{environment['PATH']}"
    command = [sys.executable, "-m", "triptych.cli", "resume", *arguments]
    return subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, timeout=120)


def test_a_killed_run_goes_on_and_a_running_one_is_left_alone(study):
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    first = subprocess.Popen(command, cwd=study, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    deadline = time.monotonic() + 60
    while not (study / "second.log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    refused = resume(study, "--cores", "1")
    assert refused.returncode == 1 and "Snakemake still runs in" in refused.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (study / "seconds").write_text("0")
    locked = subprocess.run(command, cwd=study, capture_output=True, text=True)
    assert locked.returncode and "lock" in locked.stdout + locked.stderr
    done = resume(study, "--cores", "1", "--rerun-incomplete")
    assert done.returncode == 0, done.stderr
    assert (study / "second").exists()
    assert (study / "first.log").read_text() == "ran\n", "what was finished is not run again"


def test_steps_that_outlive_their_snakemake_are_left_alone(study):
    command = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)", "-m"]
    step = subprocess.Popen([*command, "triptych.train"], cwd=study, stdout=subprocess.PIPE)
    by_hand = (
        ["triptych.commands.status"],
        ["triptych.report.wandb_runs", "--configfile", "x"],
        ["triptych.commands.export"],
    )
    installed = [*command[:-1], "/venv/bin/triptych", "status", "--watch", "5"]
    others = [
        subprocess.Popen(words, cwd=study, stdout=subprocess.PIPE)
        for words in (*([*command, *words] for words in by_hand), installed)
    ]
    try:
        for process in (step, *others):
            process.stdout.readline()
        (study / "seconds").write_text("0")
        refused = resume(study, "--cores", "1")
        assert refused.returncode == 1 and not (study / "first").exists()
        assert f"1 steps of an earlier Snakemake still run in {study} (processes {step.pid}); let" in refused.stderr
    finally:
        step.kill()
        step.wait()
    try:
        assert resume(study, "--cores", "1").returncode == 0 and (study / "second").exists()
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_jobs_of_the_cluster_that_still_run_are_named(study):
    squeue = "echo '17|triptych-1b2c|RUNNING|rule_train_stage_wildcards_2'; echo '18|other|PENDING|'"
    refused = resume(study, "--profile", "profile", squeue=squeue)
    assert refused.returncode == 1
    assert "1 jobs of an earlier Snakemake are still pending or running" in refused.stderr
    assert "17 running rule_train_stage_wildcards_2" in refused.stderr and "18" not in refused.stderr
    assert not (study / "first").exists()


def test_a_cluster_that_does_not_answer_is_no_permission(study):
    refused = resume(study, "--profile", "profile", squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert refused.returncode == 1 and "squeue does not answer (Unable to contact" in refused.stderr


@pytest.mark.parametrize(
    ("words", "profile", "folder"),
    [
        ("--cores 2 --profile p", "p", "."),
        ("--profile=p -d f --configfile a.yaml b.yaml --until train_stage", "p", "f"),
        ("all --cores 2 --directory=f -n", None, "f"),
    ],
)
def test_options_are_found_however_they_are_written(words, profile, folder):
    known, others = build_parser().parse_known_args(words.split())
    assert (known.profile, str(known.directory)) == (profile, folder)
    assert "p" not in others and "f" not in others


def test_steps_are_what_rules_run_and_nothing_else():
    run_by_rules = {
        module for text in check_profiles.rules().values() for module in re.findall(r"-m (triptych\.[\w.]+)", text)
    }
    steps = {module for module in run_by_rules if is_step(["python", "-m", module, "--out", "x"])}
    assert run_by_rules - steps == {COMMANDS["plan"].module}, "which writes nothing"
    for name, (module, _) in COMMANDS.items():
        assert not is_step(["/venv/bin/python", "/venv/bin/triptych", name, "--configfile", "a.yaml"])
        assert module in run_by_rules or module == "triptych.config.settings" or module.startswith(BY_HAND)
    assert is_step(["torchrun", "--nproc-per-node", "2", "-m", "triptych.train", "--job", "{}"])
    assert not is_step(["python", "-m", "triptych.report.wandb_runs", "--configfile=a.yaml"])


def test_the_profile_says_what_its_jobs_are_called(study):
    assert job_prefix(str(ROOT / "profiles/aire")) == "triptych"
    assert job_prefix(str(ROOT / "profiles/local")) is None and job_prefix(None) is None
    assert job_prefix(str(study / "profile/profile.yaml")) == "triptych", "Snakemake takes the file, too"
    with pytest.raises(TriptychError, match="no profile is there"):
        job_prefix(str(study / "profiles/air"))
    (study / "profile/profile.yaml").write_text("executor: slurm\n")
    with pytest.raises(TriptychError, match="slurm-jobname-prefix is missing"):
        job_prefix(str(study / "profile"))


@pytest.mark.parametrize(
    ("words", "environment", "profile"),
    [
        ("--configfile study.yaml", None, f"--profile {ROOT}/profiles/local "),
        ("--configfile study.yaml --cores 2", None, ""),
        ("--configfile study.yaml -j1", None, ""),
        ("--configfile study.yaml", "profile", "--profile profile "),
        ("--configfile study.yaml --profile profile plan", None, ""),
    ],
)
def test_what_run_started_in_a_folder_of_a_study_goes_on(study, monkeypatch, words, environment, profile):
    monkeypatch.chdir(study)
    (study / "Snakefile").unlink()
    (study / "profile/profile.yaml").write_text("cores: 1\n")
    if environment:
        monkeypatch.setenv("SNAKEMAKE_PROFILE", environment)
    else:
        monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    calls = []

    def called(command, **_):
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", called)
    monkeypatch.setattr(os, "execv", lambda _, command: calls.append(command[3:]))
    main(words.split())
    expected = f"--snakefile {ROOT}/Snakefile {profile}{words}"
    assert [" ".join(call) for call in calls] == [f"{expected} --unlock", expected]
