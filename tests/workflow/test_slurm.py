"""The cluster's profile on a real SLURM (`tools/slurm.sh`): what it asks for, and what goes wrong on a cluster.

Where a training must still be running, it is halted (SIGSTOP), so that nothing depends on how long anything takes.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import quick_python
import yaml
from conftest import ROOT, toy_config
from triptych.commands.cluster import submit
from triptych.commands.resume import left_steps, other_snakemakes
from triptych.errors import TriptychError

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("slurmctld") is None,
    reason="SLURM is not installed here; `tools/slurm.sh install`, as root, does that",
)

AIRE, LOCAL = ROOT / "profiles/aire", ROOT / "profiles/local"
OVERLAY = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
PATIENCE = 1200  # seconds for anything to happen, on a machine that is busy with other things
GPU_RULES = {"encode_images", "train_stage", "predict", "predict_captions"}
HALTED = "3/fold0/seed1", "3/fold0/seed2", "3/fold0/seed3"


def ask(*command) -> str:
    """What a command prints."""
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def seconds_run(job: str) -> float:
    """How long ago a job started."""
    start = ask("squeue", "--noheader", f"--jobs={job}", "--format=%S").strip()
    return (datetime.now() - datetime.fromisoformat(start)).total_seconds()


def wait_for(condition, what: str):
    """Look until something is so; gives it."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"it did not happen: {what}"
        time.sleep(0.05)
    return found


def study_config(world: Path) -> dict:
    """The toy study with what makes jobs on GPUs, trainings in a chain among them, and little else."""
    config = toy_config(world) | {"schedules": [["1", "3"], ["3"]], "shards": 1}
    config["runtime"]["device"] = "cpu"  # its jobs are given GPUs that are not there
    config["evaluation"] |= {"controls": [], "probe": None, "leak": None}
    return config


class Study:
    """A folder with a study, and the Snakemakes that run in it."""

    started: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, folder: Path, config: dict, profile: Path = AIRE):
        self.folder, self.config, self.profile = folder, config, profile
        self.results, self.screen = folder / "results", folder / "screen.txt"

    def start(self, *targets: str, profile: Path | None = None, module: str = "snakemake") -> subprocess.Popen:
        """A Snakemake, or what starts one, that prints on the study's screen."""
        profile = profile or self.profile
        file = self.folder / "study.yaml"
        file.write_text(yaml.safe_dump(self.config))
        python = quick_python.start() if profile == LOCAL else sys.executable
        command = [python, "-m", module, *targets, "--snakefile", ROOT / "Snakefile", "--profile", profile]
        command += ["--directory", self.folder, *([] if profile == LOCAL else OVERLAY), "--configfile", file]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")}
        with self.screen.open("a") as screen:
            words = [*map(str, command)]
            head = subprocess.Popen(words, stdout=screen, stderr=subprocess.STDOUT, env=environment)
        self.started.append(head)
        return head

    def run(self, *targets: str, **options) -> int:
        """The same, to its end; gives its exit status."""
        return self.start(*targets, **options).wait(PATIENCE)

    def said(self) -> str:
        return self.screen.read_text()

    def trained(self, *targets: str) -> set[str]:
        """Checkpoints that a dry run would train."""
        before = len(self.said())
        assert self.run(*targets, "--dry-run", profile=LOCAL) == 0, self.said()
        found = re.findall(r"Train (\S+) on (\S+), seed (\d+)", self.said()[before:])
        return {f"{prefix}/{split}/seed{seed}" for prefix, split, seed in found}

    def log(self, cell: str) -> str:
        log = self.results / f"logs/train_stage/{cell}.log"
        return log.read_text() if log.exists() else ""

    def halt(self, cell: str) -> psutil.Process:
        """Halt the training of a checkpoint as soon as it has started."""
        process = wait_for(lambda: self.process(cell), f"{cell} is trained\n{self.said()}")
        process.suspend()
        return process

    def process(self, cell: str) -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            try:
                # Its output: Snakemakes that are asked for it, and trainings that start from it, name it as well.
                out = ("--out", f"results/checkpoints/{cell}/manifest.json")
                if out in pairwise(words) and process.cwd() == str(self.folder):
                    return process
            except psutil.Error:
                continue
        return None

    def queue(self, state: str = "all") -> dict[str, str]:
        """Number of each of the study's jobs that wait or run, by rule and wildcards: train_stage_..., ..."""
        lines = ask("squeue", "--noheader", f"--states={state}", "--format=%A|%Z|%k|%T").splitlines()
        jobs = [line.split("|") for line in lines]
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        return {name: number for number, folder, name, now in jobs if folder == str(self.folder) and now not in ended}

    def job(self, cell: str) -> str:
        """Number of the job that trains a checkpoint."""
        prefix, split, seed = cell.split("/")
        return self.queue()[f"rule_train_stage_wildcards_{prefix}_{split}_{seed.removeprefix('seed')}"]

    def jobs(self) -> list[dict]:
        """All jobs of the study that there were, by accounting, when all are over."""
        fields = ["JobID", "State", "Partition", "AllocTRES", "Comment", "Start", "End", "WorkDir"]

        def ended() -> list[dict]:
            since = "--starttime=now-2days"  # not midnight
            lines = ask("sacct", "-X", "-n", "-P", since, f"--format={','.join(fields)}").splitlines()
            rows = [dict(zip(fields, line.split("|"), strict=True)) for line in lines]
            rows = [row for row in rows if row["WorkDir"] == str(self.folder)]
            return rows if all(row["End"] != "Unknown" for row in rows) else []

        return wait_for(ended, "accounting knows that all jobs are over")


def every_step_a_job(folder: Path, **changes: dict) -> Path:
    """The cluster's profile without groups, with changes of what rules ask for."""
    settings = json.loads(json.dumps(yaml.safe_load((AIRE / "profile.yaml").read_text())))
    for rule, asked in changes.items():
        settings["set-resources"][rule] |= asked
    folder.mkdir()
    kept = {key: value for key, value in settings.items() if key not in ("groups", "group-components")}
    (folder / "profile.yaml").write_text(yaml.safe_dump(kept))
    return folder


def rule_of(job: dict) -> str:
    return re.fullmatch(r"rule_(\w+?)_wildcards_.*", job["Comment"])[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The cluster; gives what starts and stops its parts."""
    environment = {**os.environ, "TRIPTYCH_SLURM": str(tmp_path_factory.mktemp("slurm"))}

    def control(*words: str) -> None:
        done = subprocess.run([ROOT / "tools/slurm.sh", *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    try:
        control("start")
        yield control
    finally:
        for head in Study.started:
            head.kill()
        control("stop")


@pytest.fixture(scope="module")
def study(slurm, world, tmp_path_factory):
    """A study on the cluster whose Snakemake was killed in its first training, and which then went on."""
    profile = every_step_a_job(tmp_path_factory.mktemp("single") / "profile")
    study = Study(tmp_path_factory.mktemp("study"), study_config(world), profile)
    head = study.start()
    training = study.halt("1/shared/seed0")
    study.environment, study.first = training.environ(), study.job("1/shared/seed0")
    study.asked = ask("scontrol", "show", "job", study.first)
    head.kill()
    head.wait()
    own = other_snakemakes, left_steps
    wait_for(lambda: not any(left(study.folder) for left in own), "steps that it ran itself are over")
    before = len(study.said())
    study.refused = study.run(module="triptych.commands.resume"), study.said()[before:]
    training.resume()
    wait_for(lambda: not study.queue(), "its jobs are over")
    assert study.run(module="triptych.commands.resume") == 0, study.said()
    return study


def test_a_killed_snakemake_is_not_resumed_beside_its_jobs(study):
    status, said = study.refused
    assert status == 1 and "of an earlier Snakemake are still pending or running" in said
    assert f"{study.first} running rule_train_stage_wildcards_1_shared_0" in said


def test_no_step_was_a_job_twice(study):
    names = [job["Comment"] for job in study.jobs()]
    assert len(set(names)) == len(names)
    assert {job["State"] for job in study.jobs()} == {"COMPLETED"}


def test_what_a_job_left_while_nobody_watched_is_known(study):
    study.config["stages"]["1"]["learning_rate"] = {"connector": 2e-2}
    assert study.trained() == {"1/shared/seed0", "1-3/fold0/seed0", "1-3/fold1/seed0"}
    study.config["stages"]["1"]["learning_rate"] = {"connector": 1e-2}
    assert study.trained() == set()


def test_jobs_got_what_the_profile_asks_for(study):
    assert "Partition=gpu" in study.asked and re.search(r"TresPerNode=gres[:/]gpu:1\b", study.asked)
    rules = defaultdict(list)
    for job in study.jobs():
        got = dict(part.split("=") for part in job["AllocTRES"].split(","))
        rules[rule_of(job)].append((job["Partition"], got.get("gres/gpu"), got["cpu"], got["mem"]))
    assert set(rules) == {"check_images", "prepare_dataset", *GPU_RULES}
    for rule, jobs in rules.items():
        # Memory by formula (tests/commands/test_requests.py), of models that are prepared and before that.
        memory = {"16000M"} if rule == "encode_images" else {"9352M", "8001M"} if rule in GPU_RULES else {"32000M"}
        wanted = ("gpu", "1", "8") if rule in GPU_RULES else ("nodes", None, "8")
        assert {job[:3] for job in jobs} == {wanted} and {job[3] for job in jobs} <= memory, rule
    assert len(rules["train_stage"]) == 5


def test_jobs_are_told_that_there_is_no_internet_and_which_gpu_is_theirs(study):
    assert study.environment["HF_HUB_OFFLINE"] == "1" and study.environment["WANDB_MODE"] == "offline"
    assert study.environment["CUDA_VISIBLE_DEVICES"] in ("0", "1", "2")


def test_tables_are_those_of_a_laptop(study, world, tmp_path):
    local = Study(tmp_path, study_config(world))
    assert local.run(profile=LOCAL) == 0, local.said()
    tables = contents(local.results / "tables")
    assert contents(study.results / "tables") == tables and len(tables) > 8


@pytest.fixture(scope="module")
def disturbed(slurm, study, tmp_path_factory):
    """The study with four more trainings and a description of images, and all that goes wrong on a cluster."""
    config = yaml.safe_load(yaml.safe_dump(study.config))
    config["seeds"] = [0, 1, 2, 3]
    config["stages"]["3"]["epochs"] = 60
    damaged, quiet = (
        Study(Path(shutil.copytree(study.folder, tmp_path_factory.mktemp(name) / "study")), config)
        for name in ("disturbed", "quiet")
    )
    weights = damaged.results / "checkpoints/1/shared/seed0/connector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    (damaged.results / "predictions/1/shared/seed0.parquet").unlink()
    profile = every_step_a_job(damaged.folder / "profile", predict_captions={"gres": "gpu:4"})  # a node has three

    cells = [f"results/checkpoints/{cell}/manifest.json" for cell in (*HALTED, "1-3/fold0/seed0")]
    head = damaged.start(*cells, "results/predictions/1/shared/seed0.parquet", profile=profile)
    halted = {}
    while len(halted) < len(HALTED):  # in whatever order SLURM starts them
        begun = wait_for(
            lambda: [cell for cell in HALTED if cell not in halted and '"epoch": 1' in damaged.log(cell)],
            f"trainings begin\n{damaged.said()}",
        )
        halted.update({cell: damaged.halt(cell) for cell in begun})
    # The user holds as many GPUs as allowed: the training that fails, or is tried again, has to wait.
    capped = "rule_train_stage_wildcards_1-3_fold0_0 QOSMaxGRESPerUser"
    wait_for(lambda: capped in ask("squeue", "--noheader", "--format=%k %r").splitlines(), "a job waits for a GPU")
    # What does not fit is refused at once, as often as it is tried; then nothing is to be sent.
    wait_for(lambda: damaged.said().count("Error in rule predict_captions") == 3, damaged.said())

    before = len(damaged.said())
    slurm("stop", "slurmctld")
    slurm("stop", "slurmdbd")
    wait_for(lambda: "Falling back to 'sacct'" in damaged.said()[before:], "the outage is noticed")
    slurm("start")

    cancelled, late, warned = (damaged.job(cell) for cell in HALTED)
    ask("scancel", cancelled)
    # Warned and given time, it would save: so it must be over its time already.
    wait_for(lambda: seconds_run(late) > 61, "a training has run for a minute")
    ask("scontrol", "update", f"JobId={late}", "TimeLimit=1")
    # The profile has trainings warned five minutes before their end.
    ask("scontrol", "update", f"JobId={warned}", f"TimeLimit={math.ceil(seconds_run(warned) / 60) + 5}")
    # SLURM wakes what it tells to stop.
    wait_for(lambda: not any(process.is_running() for process in halted.values()), "they are over")
    assert head.wait(PATIENCE) == 1
    quiet.run(*cells[:3], profile=LOCAL)
    damaged.quiet = quiet
    return damaged


def test_every_end_of_a_job_is_seen_and_none_is_lost(disturbed):
    ends = defaultdict(list)
    for job in disturbed.jobs():
        if rule_of(job) == "train_stage":
            ends[job["Comment"].removeprefix("rule_train_stage_wildcards_")].append(job["State"].split()[0])
    assert ends == {
        "3_fold0_1": ["CANCELLED", "COMPLETED"],
        "3_fold0_2": ["TIMEOUT", "COMPLETED"],
        "3_fold0_3": ["FAILED", "COMPLETED"],
        "1-3_fold0_0": ["FAILED"] * 3,
    }


def test_trainings_go_on_where_they_were_stopped_to_the_same_bytes(disturbed):
    for cell in HALTED:
        assert "resuming at epoch" in disturbed.log(cell), disturbed.log(cell)
        checkpoint = contents(disturbed.results / f"checkpoints/{cell}")
        assert checkpoint == contents(disturbed.quiet.results / f"checkpoints/{cell}")
        assert {"manifest.json", "metrics.jsonl", "connector.safetensors", "adapter.safetensors"} <= set(checkpoint)


def test_what_failed_is_shown_with_the_end_of_its_log(disturbed):
    said = disturbed.said()
    assert "SLURM status is: 'CANCELLED'" in said and "SLURM status is: 'TIMEOUT'" in said
    for cell in HALTED:
        shown = said.split(f"Logfile results/logs/train_stage/{cell}.log:")[1].split("Logfile")[0]
        assert '"epoch": 1' in shown, cell
    assert re.search(r"stopped \(SIGTERM\) and saved at epoch \d+, step", shown), "the one that was warned"
    assert len(re.findall("^error: .*connector.safetensors: differs from the hash", said, re.MULTILINE)) == 3
    assert said.count("Batch job submission failed: Requested node configuration is not available") == 3


def test_no_two_jobs_wrote_the_same_files_at_once(study, disturbed):
    for jobs in (study.jobs(), disturbed.jobs()):
        times = defaultdict(list)
        for job in jobs:
            times[job["Comment"]].append((job["Start"], job["End"]))
        for name, spans in times.items():
            assert all(first[1] <= second[0] for first, second in pairwise(sorted(spans))), name


def test_one_command_is_a_job_with_the_resources_of_a_rule(slurm, tmp_path):
    asks = 'echo "$SLURM_JOB_PARTITION gpus=${SLURM_JOB_GPUS:-$SLURM_STEP_GPUS} cpus=$SLURM_CPUS_PER_TASK"'
    asks += "; scontrol show job $SLURM_JOB_ID"
    said = submit(AIRE, "train_stage", ["bash", "-c", asks], tmp_path / "job", 3, PATIENCE)
    assert re.match(r"gpu gpus=\d cpus=8\n", said) and "TimeLimit=00:03:00" in said
    said = submit(AIRE, "", ["bash", "-c", asks], tmp_path / "job", 3, PATIENCE)
    assert said.startswith("nodes gpus= cpus=8\n")


def test_a_job_that_is_refused_says_why(slurm, tmp_path):
    profile = yaml.safe_load((AIRE / "profile.yaml").read_text())
    profile["set-resources"]["train_stage"]["slurm_partition"] = "gpuu"
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(TriptychError, match="invalid partition"):
        submit(tmp_path, "train_stage", ["true"], tmp_path / "job", 3, PATIENCE)
