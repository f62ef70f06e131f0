"""`triptych doctor` on a real SLURM: a job on each partition of the profile makes the checks there."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, toy_config
from triptych.io.manifest import read_json

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("slurmctld") is None,
    reason="SLURM is not installed here; `tools/slurm.sh install`, as root, does that",
)
PATH = {"PYTHONPATH": str(ROOT / "workflow/scripts")}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    environment = {**os.environ, "TRIPTYCH_SLURM": str(tmp_path_factory.mktemp("slurm"))}
    try:
        subprocess.run([ROOT / "tools/slurm.sh", "start"], check=True, capture_output=True, env=environment)
        yield
    finally:
        subprocess.run([ROOT / "tools/slurm.sh", "stop"], check=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A study whose models and data are fetched; its jobs are given GPUs that are not there."""
    folder = tmp_path_factory.mktemp("study")
    config = toy_config(world)
    (folder / "gpu.yaml").write_text(yaml.safe_dump(config))
    config["runtime"]["device"] = "cpu"
    (folder / "cpu.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--profile",
        ROOT / "profiles/local",
    ]
    command += ["--directory", folder, "--configfile", folder / "cpu.yaml", "--until", "fetch_dataset", "prepare_model"]
    subprocess.run([*map(str, command)], check=True, capture_output=True, env=os.environ | PATH)
    return folder


def doctor(folder, configfile="cpu.yaml", profile=ROOT / "profiles/aire"):
    """Run the command; gives its exit status, what it printed, and its findings as (where, check) -> (state, found)."""
    command = [sys.executable, "-m", "triptych.cli", "doctor", "--configfile", folder / configfile]
    command += ["--directory", folder, "--profile", profile, "--patience", "10"]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ | PATH)
    rows = read_json(folder / "results/doctor.json")["rows"]
    found = {(row["where"], row["check"]): (row["finding"]["state"], row["finding"]["found"]) for row in rows}
    return ended.returncode, ended.stdout + ended.stderr, found


def test_every_partition_is_checked_by_a_job_on_it(slurm, folder):
    status, said, found = doctor(folder)
    assert status == 0, said
    assert {where for where, _ in found} == {"login node", "gpu", "nodes"}
    for partition, node in (("gpu", "cpu, 8 cores"), ("nodes", "cpu, 8 cores")):
        assert found[partition, "job"][1].startswith("ran on ")
        assert found[partition, "models"] == ("ok", "vision_encoder, language_model load offline")
        assert found[partition, "locks"][1].endswith("locks hold between processes and machines")
        assert found[partition, "training"][0] == "ok", node
    assert re.search(r"nodes 120 of at most 2880 min; gpu \d\d+ of at most 2880", found["login node", "time limits"][1])
    assert found["login node", "caps"] == ("warning", "gpu: 3 GPUs a user (QoS gpulimits); the profile's jobs: 15")
    assert said.splitlines()[-1].startswith("0 fault, ")
    rates = read_json(folder / "results/doctor.json")["rates"]
    assert rates["gpu"]["cpu_tflops"] > 0 and rates["login node"] == {}


def test_a_gpu_that_torch_lacks_is_a_fault(slurm, folder):
    status, said, found = doctor(folder, "gpu.yaml")
    assert status == 1, said
    assert (
        found["gpu", "driver"][0] == "fault"
        and "no NVIDIA driver, though the job was given" in found["gpu", "driver"][1]
    )
    state, reason = found["gpu", "device"]
    assert state == "fault" and "can use no GPU here, though SLURM_" in reason
    assert found["nodes", "device"][0] == "ok"


def test_a_partition_that_is_not_there_is_a_fault(slurm, folder, tmp_path):
    profile = yaml.safe_load((ROOT / "profiles/aire/profile.yaml").read_text())
    for resources in profile["set-resources"].values():
        resources["slurm_partition"] = "gpus"
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    status, said, found = doctor(folder, profile=tmp_path)
    assert status == 1, said
    assert found["login node", "partitions"] == ("fault", "no partition gpus (there are: gpu, nodes)")
    assert found["gpus", "job"][0] == "fault" and "partition" in found["gpus", "job"][1].lower()
    assert found["nodes", "job"][0] == "ok"
