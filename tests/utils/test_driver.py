"""Which build of torch a driver can run, as `make aire-setup` finds it before anything is installed."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from triptych.utils import driver

PROGRAM = ROOT / "workflow/scripts/triptych/utils/driver.py"
MADE = r"""echo "$@" >> made
mkdir -p .venv/bin
printf '#!/bin/sh\necho 12\n' > .venv/bin/python
chmod +x .venv/bin/python"""


@pytest.mark.parametrize(
    ("release", "cuda"),
    [("580.65.06", 13), ("595.10", 13), ("579.99", 12), ("550.54.15", 12), ("525.60.13", 12), ("470.199.02", None)],
)
def test_the_newest_build_that_a_driver_runs_is_chosen(release, cuda):
    assert driver.cuda_for(release) == cuda


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024\nGCC version: 11.4.0",
            "550.54.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("nothing of the kind", None),
    ],
)
def test_the_driver_is_read_from_the_kernel(text, release, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "KERNEL", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "version").write_text(text)
    assert driver.find_driver() == release
    (tmp_path / "version").unlink()
    assert driver.find_driver() is None


@pytest.fixture
def programs(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name, text):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    write.path = f"{folder}:/usr/bin:/bin"
    return write


def run(programs, *words):
    """Run the program as it runs before anything is installed: with no package."""
    command = [sys.executable, "-I", "-S", PROGRAM, *words]
    return subprocess.run(command, env={"PATH": programs.path}, capture_output=True, text=True)


def test_the_driver_of_the_gpu_nodes_counts_and_not_that_of_the_login_node(programs):
    programs("nvidia-smi", "echo 580.65.06")
    programs("srun", 'echo "$@" >&2; [ "$1" = --partition=gpu ] && echo 565.57.01')
    ended = run(programs, "--partition", "gpu")
    assert (ended.returncode, ended.stdout) == (0, "12\n")
    assert "partition gpu: driver 565.57.01" in ended.stderr


@pytest.mark.skipif(driver.KERNEL.is_file(), reason="this machine has a driver")
def test_where_no_driver_is_found_the_release_must_be_named(programs):
    programs("srun", "echo 'srun: error: invalid partition' >&2; exit 1")
    ended = run(programs, "--partition", "gpu")
    assert ended.returncode == 1 and "TORCH_CUDA=13" in ended.stderr and not ended.stdout
    programs("nvidia-smi", "echo 470.199.02")
    assert "older than 525" in run(programs).stderr


@pytest.fixture
def checkout(tmp_path, programs):
    """A clone with the parts that `make aire-setup` reads, where `make` only notes what it is asked."""
    folder = tmp_path / "clone"
    for name in ("tools/aire-setup.sh", "profiles/aire/profile.yaml", str(PROGRAM.relative_to(ROOT))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    programs("python3.11", f'exec {sys.executable} "$@"')
    programs("make", MADE)
    return folder


def setup(checkout, programs, *words):
    command = ["bash", checkout / "tools/aire-setup.sh", *words]
    ended = subprocess.run(
        command, env={"PATH": programs.path, "HOME": os.environ["HOME"]}, capture_output=True, text=True
    )
    made = checkout / "made"
    return ended, made.read_text() if made.exists() else ""


def test_setup_takes_the_build_for_the_driver_of_the_profiles_gpu_partition(checkout, programs):
    programs("srun", '[ "$1" = --partition=gpu ] && echo 550.54.15')
    ended, made = setup(checkout, programs)
    assert ended.returncode == 0 and made.endswith("TORCH_CUDA=12\n"), ended.stderr
    (checkout / ".venv/kept").touch()
    setup(checkout, programs)
    assert (checkout / ".venv/kept").exists()  # it has the right build
    setup(checkout, programs, "13")
    assert not (checkout / ".venv/kept").exists()


def test_setup_refuses_what_is_no_release(checkout, programs):
    ended, made = setup(checkout, programs, "11")
    assert ended.returncode == 1 and "12 or 13 is needed" in ended.stderr and not made


@pytest.mark.parametrize(("release", "lock", "other"), [("12", "cuda12", "torch.lock"), ("13", "torch.lock", "cuda12")])
def test_make_installs_the_lock_of_the_release(release, lock, other, tmp_path):
    words = ["make", "--dry-run", "install", f"TORCH_CUDA={release}", f"VENV={tmp_path / 'venv'}"]
    steps = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installed = [line for line in steps.splitlines() if "--require-hashes" in line]
    assert any(lock in line for line in installed) and not any(other in line for line in installed)


def test_the_lock_for_cuda_12_has_hashes_and_libraries_for_cuda_12_alone():
    blocks = (ROOT / "requirements-cuda12.lock").read_text().split("\n")
    names = [line for line in blocks if line and line[0] not in " #"]
    assert any(line.startswith("torch==") for line in names) and any("-cu12==12." in line for line in names)
    assert not any("cu13" in line or "==13." in line for line in names)
    assert sum("--hash=sha256:" in line for line in blocks) >= len(names)
