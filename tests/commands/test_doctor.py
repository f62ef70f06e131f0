"""`triptych doctor`: each check with its fault put in, and what becomes of a check that fails itself."""

import errno
import fcntl
import os
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT
from triptych.commands import doctor
from triptych.commands.checks import device, offline, software, storage
from triptych.commands.checks.finding import Place, ok
from triptych.commands.checks.slurm import caps, minutes, partition_names, slurm, time_limits
from triptych.commands.requests import Grouping, Requests
from triptych.config.study import load_study
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, write_json
from triptych.model.prepare import prepare_model
from triptych.utils.device import GIVEN, WANTED

AIRE = ROOT / "profiles/aire"


@pytest.fixture
def place(config, tmp_path, monkeypatch):
    """The toy study in a folder where nothing is."""
    for name in (*GIVEN, WANTED, "TRIPTYCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    config["cache"] = str(tmp_path / "cache")
    return Place(load_study(config), tmp_path / "doctor")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs into PATH that print what they are told, and hides the machine's own SLURM."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{tmp_path}/none")

    def write(name: str, *lines: str) -> None:
        (folder / name).write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        (folder / name).chmod(0o755)

    return write


def with_settings(place, **settings):
    config = place.study.settings.model_dump(exclude_unset=True)
    for section, values in settings.items():
        config[section] = {**config.get(section, {}), **values}
    return Place(load_study(config), place.folder, place.profile, place.partition, place.gpus)


# What is installed


def test_python_and_packages_of_these_tests_are_as_locked(place):
    assert [software.python(place).state, software.packages(place).state] == ["ok", "ok"]


def test_an_old_python_is_a_fault(place, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    found = software.python(place)
    assert (found.state, found.found) == ("fault", "Python 3.9.18; needed: 3.11 or 3.12")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"numpy": "1.26.4"}, r"numpy 1\.26\.4 \(locked: .*2\."),
        ({"torch": "2.6.0+cu124"}, r"torch 2\.6\.0\+cu124 \(locked: 2\.\d+\.\d or 2\.\d+\.\d\)"),
        ({"peft": None}, "peft is missing"),
        (dict.fromkeys(["peft", "numpy", "scipy", "pillow", "pyarrow", "snakemake", "torch"], "0.1"), "and 2 more"),
    ],
)
def test_packages_that_differ_from_the_lock_files_are_a_fault(other, said, place, monkeypatch):
    real = software.version

    def version(name):
        if name in other and other[name] is None:
            raise software.PackageNotFoundError(name)
        return other.get(name) or real(name)

    monkeypatch.setattr(software, "version", version)
    found = software.packages(place)
    assert found.state == "fault" and re.search(said, found.found), found.found


def test_the_build_of_torch_for_cuda_12_is_as_locked_too(place, monkeypatch):
    real = software.version
    monkeypatch.setattr(software, "version", lambda name: "2.10.0+cu128" if name == "torch" else real(name))
    assert software.packages(place).state == "ok"


@pytest.mark.parametrize(
    ("cuda", "driver", "gpus", "state", "said"),
    [
        ("13.0", "580.65.06", 1, "ok", "driver 580.65.06"),
        ("13.0", "565.57.01", 1, "fault", "needs driver 580 or newer"),
        ("12.8", "565.57.01", 1, "ok", "CUDA 12.8"),
        ("12.8", "470.82", 1, "fault", "needs driver 525 or newer"),
        ("13.0", None, 1, "fault", "no NVIDIA driver, though the job was given a GPU"),
        ("13.0", None, 0, "ok", "no GPU is asked for"),
        (None, "580.65.06", 1, "fault", "computes on the CPU alone"),
        (None, "580.65.06", None, "warning", "computes on the CPU alone"),
    ],
)
def test_the_build_of_torch_must_fit_the_driver(cuda, driver, gpus, state, said, place, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(software, "find_driver", lambda: driver)
    found = software.driver(Place(place.study, place.folder, gpus=gpus))
    assert found.state == state and said in found.found
    assert state == "ok" or found.remedy
    if "565" in str(driver) and state == "fault":
        assert "CUDA=12" in found.remedy


def test_a_locale_without_unicode_is_a_warning(place, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "latin-1")
    found = software.text(place)
    assert found.state == "warning" and "file names in latin-1" in found.found and "LC_ALL" in found.remedy


@pytest.mark.parametrize(
    ("off", "state"), [(0, "ok"), (20, "warning"), (-20, "warning"), (3600, "fault"), (-90, "fault")]
)
def test_a_clock_that_is_wrong_is_seen(off, state, place, monkeypatch):
    now = software.time.time
    monkeypatch.setattr(software.time, "time", lambda: now() - off)
    found = software.clock(place)
    assert found.state == state
    if state == "fault":
        assert f"{abs(off)} s {'ahead of' if off > 0 else 'behind'} this machine's" in found.found


# Disks


def full(gb=1000.0, files=10**6):
    """What `statvfs` says of a disk."""
    return SimpleNamespace(
        f_bavail=int(gb * 1e9 / 4096), f_frsize=4096, f_files=10**7 if files is not None else 0, f_favail=files or 0
    )


@pytest.mark.parametrize(
    ("room", "state", "said"),
    [
        (full(), "ok", "1000 GB and 1000000 files left (disk); needed: 5."),
        (full(gb=2.0), "fault", "2.0 GB free (disk); the study needs 5."),
        (full(files=20), "fault", "20 more files possible (disk); the study needs"),
        (full(files=0), "fault", "0 more files possible"),
        (full(files=None), "ok", "None files"),
    ],
)
def test_a_full_disk_is_a_fault(room, state, said, place, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = storage.space(place)
    assert found.state == state and said in found.found, found.found


@pytest.mark.parametrize(
    ("printed", "state", "said"),
    [
        ("{folder} 1000 0 1073741824 - 5 0 1500000 -", "ok", "1100 GB and 1499995 files left (quota)"),
        ("{folder}\n 1073741000 0 1073741824 - 5 0 1500000 -", "fault", "0.0 GB free (quota)"),
        ("{folder} 1000 0 1073741824 - 1499990* 0 1500000 7d", "fault", "10 more files possible (quota)"),
        ("{folder} 1000 0 0 - 5 0 0 -", "ok", "(disk)"),  # no limits
        ("permission denied", "ok", "(disk)"),
    ],
)
def test_a_quota_counts_like_a_full_disk(printed, state, said, place, programs, monkeypatch):
    programs("lfs", f"echo '{printed.format(folder=place.study.results.resolve().parent)}'")
    monkeypatch.setattr(os, "statvfs", lambda _: full())
    found = storage.space(place)
    assert found.state == state and said in found.found, found.found


def test_what_is_there_already_is_not_needed_again(place, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: full(files=20))
    monkeypatch.setattr(storage, "_used", lambda _: (0, 10**5))
    assert storage.space(place).state == "ok"


def test_a_file_system_whose_locks_do_nothing_is_a_fault(place, monkeypatch):
    assert storage.locks(place).found.endswith("locks hold between processes")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: None)
        assert "two processes can lock the same file" in storage.locks(place).found

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = storage.locks(place)
    assert found.state == "fault" and "cannot be locked (No locks available)" in found.found


def test_locks_are_tried_against_those_of_the_machine_that_waits(place):
    in_job = Place(place.study, place.folder, partition="gpu")
    with storage.held_lock(place.folder):
        assert storage.locks(in_job).found.endswith("between processes and machines")
    place.folder.joinpath(storage.HELD).touch()  # as it looks where the lock itself does not come through
    found = storage.locks(in_job)
    assert found.state == "warning" and "not between machines" in found.found


def test_renames_and_links(place, monkeypatch):
    assert storage.renames(place).state == "ok"

    def refuse(*_):
        raise OSError(errno.EPERM, "not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        assert storage.renames(place).state == "warning"
    monkeypatch.setattr(os, "fsync", refuse)
    assert storage.renames(place).state == "fault"
    assert not [path for path in place.study.results.resolve().parent.iterdir() if path.name.startswith(".renames")]


def test_a_folder_that_is_not_writable_is_a_fault(place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert {storage.renames(place).state, storage.locks(place).state} == {"fault"}


# Offline


def test_offline_mode_holds(place):
    assert offline.offline_mode(place).state == "ok"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import os, urllib.request as r\ntry: r.urlopen(os.environ['HF_ENDPOINT'])\nexcept OSError: pass",
            "1 connections",
        ),
        ("raise SystemExit('it was answered')", "it was answered"),
    ],
)
def test_a_client_that_asks_the_hub_in_offline_mode_is_a_fault(code, said, place, monkeypatch):
    monkeypatch.setattr(offline, "REQUEST", code)
    found = offline.offline_mode(place)
    assert found.state == "fault" and said in found.found


def fetch(place):
    """Put what `make aire-fetch` leaves where the study looks for it."""
    for name in place.study.datasets:
        write_json(place.study.path("sources/{dataset}/manifest.json", dataset=name), {})
    for role in ("vision_encoder", "language_model"):
        settings = getattr(place.study.settings.models, role)
        prepare_model(role, settings, place.folder, place.study.path(f"models/{role}"))
    (place.study.results.resolve().parent / "cache").mkdir(exist_ok=True)


def test_what_is_not_fetched_stops_jobs_but_not_a_laptop(place):
    on_aire = Place(place.study, place.folder, AIRE, "gpu")
    assert [offline.fetched(place).state, offline.models_load(place).state] == ["warning", "warning"]
    missing = offline.fetched(on_aire)
    assert missing.state == "fault" and "aire-fetch" in missing.remedy and "general-24" in missing.found
    fetch(place)
    assert offline.fetched(on_aire).state == "ok"
    shutil.rmtree("cache")
    assert "cache cannot be used from here" in offline.fetched(on_aire).found


def test_a_model_that_is_damaged_is_a_fault(place, monkeypatch):
    def here(code, *words):
        """Run the program in this process, which has imported everything."""
        monkeypatch.setattr(sys, "argv", ["-c", *words])
        try:
            exec(code, {})
        except SystemExit as left:
            return str(left.code), 0
        except Exception as error:
            return f"{type(error).__name__}: {error}", 0
        return None, 0

    monkeypatch.setattr(offline, "_offline", here)
    fetch(place)
    assert offline.models_load(place).state == "ok"
    weights = place.study.path("models/language_model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    found = offline.models_load(place)
    assert found.state == "fault" and "a model does not load" in found.found


# Devices


def test_a_device_computes(place):
    assert device.device(place).found.startswith(("cpu, ", "cuda ("))
    found = device.training(place)
    assert found.state == "ok" and "two trainings" in found.found


def test_the_rate_of_products_is_measured(place, monkeypatch):
    monkeypatch.setitem(device.SECONDS, "cpu", 0.05)
    found = device.products(place)
    assert all(f"{rate:.3g} TFLOP/s" in found.found for rate in found.rates.values()) and len(found.rates) == 1


def test_a_gpu_that_was_given_and_cannot_be_used_is_a_fault(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = Place(place.study, place.folder, gpus=1)
    assert "the profile asks for 1 GPU here" in device.device(asked).found
    monkeypatch.setenv("SLURM_JOB_GPUS", "2")
    with pytest.raises(TriptychError, match="can use no GPU here, though SLURM_JOB_GPUS=2"):
        device.device(asked)
    monkeypatch.setenv(WANTED, "cpu")
    assert device.device(with_settings(asked, runtime={"device": "cpu"})).found.endswith("runtime.device: cpu")


@pytest.mark.parametrize(
    ("free", "count", "gpus", "state"),
    [(45, 1, 1, "ok"), (3, 1, 1, "warning"), (45, 1, 3, "fault"), (45, 3, None, "ok")],
)
def test_a_gpu_that_is_full_or_not_enough_is_said(free, count, gpus, state, place, monkeypatch):
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(device, "device_name", lambda _: "cuda (NVIDIA L40S)")
    monkeypatch.setattr(device, "free_memory", lambda _: free * 1e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    found = device.device(Place(place.study, place.folder, gpus=gpus))
    assert found.state == state and found.found.startswith("cuda (NVIDIA L40S)")


@pytest.mark.parametrize(("optimizer", "free", "state"), [("adamw", 1, "ok"), ("adamw", 0, "fault")])
def test_a_device_too_small_for_a_language_model_that_trains_is_a_fault(optimizer, free, state, place, monkeypatch):
    assert "no stage trains" in device.tuning(place).found
    monkeypatch.setattr(device, "free_memory", lambda _: 1e12 if free else 1e6)
    rates = {"connector": 1e-2, "language_model": 1e-3}
    stages = place.study.settings.model_dump(exclude_unset=True)["stages"]
    stages["3"] |= {"train": list(rates), "learning_rate": rates, "optimizer": optimizer}
    found = device.tuning(with_settings(place, stages=stages))
    assert found.state == state and "GB for the language model's weights, gradients and optimiser" in found.found


@pytest.mark.parametrize("installed", [False, True])
def test_an_optimiser_that_cannot_be_used_is_a_fault(installed, place, monkeypatch):
    monkeypatch.setattr("triptych.utils.optional.find_spec", lambda name: installed or None)
    stages = place.study.settings.model_dump(exclude_unset=True)["stages"]
    stages["2"]["optimizer"] = "adamw-8bit"
    found = device.tuning(with_settings(place, stages=stages))
    assert found.state == "fault"
    assert ("needs a GPU" if installed else "bitsandbytes, which is not installed") in found.found


@pytest.mark.parametrize("installed", [False, True])
def test_a_language_model_in_4_bits_that_cannot_be_used_is_a_fault(installed, place, monkeypatch):
    monkeypatch.setattr("triptych.utils.optional.find_spec", lambda name: installed or None)
    models = place.study.settings.model_dump(exclude_unset=True)["models"]
    models["language_model"]["quantise"] = "nf4"
    found = device.tuning(with_settings(place, models=models))
    assert found.state == "fault" and ("nf4 needs a GPU" if installed else "nf4 needs bitsandbytes") in found.found


@pytest.mark.parametrize(("free", "state"), [(1e12, "ok"), (1e6, "fault")])
def test_a_device_too_small_for_an_encoder_that_trains_is_a_fault(free, state, place, monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda _: free)
    rates = {"connector": 1e-2, "vision_encoder": 1e-3}
    stages = place.study.settings.model_dump(exclude_unset=True)["stages"]
    stages["2"] |= {"train": list(rates), "learning_rate": rates}
    found = device.tuning(with_settings(place, stages=stages))
    assert found.state == state and "GB for the vision encoder's weights, gradients and optimiser" in found.found
    assert state == "ok" or "fewer vision.blocks, a smaller batch_size" in found.remedy


def test_bf16_that_is_asked_for_and_emulated_is_a_warning(place, monkeypatch):
    real = device.compute_dtype
    monkeypatch.setattr(
        device, "compute_dtype", lambda wanted, at: torch.float32 if wanted == "auto" else real(wanted, at)
    )
    assert device.precision(with_settings(place, training={"precision": "bf16"})).state == "warning"
    assert device.precision(place).state == "ok"  # the toy study asks for fp32


def test_a_training_that_fails_is_a_fault(place, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(device, "train", fail)
    found = device.training(place)
    assert found.state == "fault" and "no kernel image" in found.found
    monkeypatch.setattr(device, "_train", lambda *_: (2.0, 2.5))
    assert "learns nothing" in device.training(place).found


# SLURM

NODES = r"nodes|up|50|(null)\nnodes|up|2|(null)\ngpu|up|28|gpu:nvidia_l40:3(S:0)"
SINFO = f'case "$*" in *version*) echo slurm 24.11.5 ;; *) printf "{NODES}\\n" ;; esac'
LIMITS = "echo PartitionName=$3 AllocNodes=ALL QoS=gpulimits MaxTime=2-00:00:00 State=UP"


@pytest.fixture
def on_aire(place, programs):
    programs("sinfo", SINFO)
    programs("squeue", "true")
    programs("scontrol", LIMITS)
    programs("sacctmgr", "echo 'normal||'; echo 'gpulimits|2-00:00:00|cpu=120,gres/gpu=15'")
    return Place(place.study, place.folder, AIRE)


def profile_with(place, tmp_path, **options):
    profile = yaml.safe_load((AIRE / "profile.yaml").read_text())
    profile.update(options)
    (tmp_path / "profile").mkdir(exist_ok=True)
    (tmp_path / "profile/profile.yaml").write_text(yaml.safe_dump(profile))
    return Place(place.study, place.folder, tmp_path / "profile")


def test_a_cluster_as_its_documentation_says_is_well(on_aire):
    found = [check(on_aire) for check in (slurm, partition_names, time_limits, caps)]
    assert [one.state for one in found] == ["ok"] * 4, found
    assert found[0].found.startswith("slurm 24.11.5; snakemake ")
    assert "gpu (28 nodes, gpu:nvidia_l40:3(S:0))" in found[1].found and "nodes (52 nodes, " in found[1].found
    assert found[3].found == "gpu: 15 GPUs a user (QoS gpulimits); nodes: 15 GPUs a user (QoS gpulimits)"


def test_where_slurm_is_missing_or_old_that_is_said(place, programs):
    assert "not found, or does not answer" in slurm(place).found
    programs("sinfo", "echo slurm 21.08.5")
    assert "squeue does not answer" in slurm(place).found
    programs("squeue", "true")
    assert slurm(place).state == "warning" and "22.05" in slurm(place).remedy


@pytest.mark.parametrize(
    ("gres", "partition", "said"),
    [
        ("gpu:1", "gpus", "no partition gpus (there are: gpu, nodes)"),
        ("gpu:1", "nodes", "train_stage: gres gpu:1, and partition nodes has (null)"),
        ("gpu:l40s:1", "gpu", "train_stage: gres gpu:l40s:1, and partition gpu has gpu:nvidia_l40:3"),
        ("gpu:nvidia_l40:1", "gpu", None),
    ],
)
def test_a_wrong_partition_or_kind_of_gpu_is_a_fault(gres, partition, said, on_aire, tmp_path):
    training = {"train_stage": {"gres": gres, "slurm_partition": partition}}
    found = partition_names(profile_with(on_aire, tmp_path, **{"set-resources": training}))
    assert said in found.found if said else found.state == "ok", found


def test_a_partition_that_is_down_is_a_fault(on_aire, programs):
    programs("sinfo", "echo 'nodes|up|52|(null)'; echo 'gpu|drain|28|gpu:nvidia_l40:3'")
    assert partition_names(on_aire).found == "partition gpu is drain"


@pytest.mark.parametrize(
    ("runtime", "limit", "state"),
    [
        (720, "2-00:00:00", "ok"),
        ("50h", "2-00:00:00", "fault"),
        (3000, "2-00:00:00", "fault"),
        ("1d", "12:00:00", "fault"),
        (99999, "UNLIMITED", "ok"),
        ("60 * attempt", "2-00:00:00", "ok"),
        (720, "", "warning"),
    ],
)
def test_times_are_compared_with_the_limits(runtime, limit, state, on_aire, programs, tmp_path):
    programs("scontrol", f"echo PartitionName=$3 {f'MaxTime={limit}' if limit else ''}")
    training = {"train_stage": {"slurm_partition": "gpu", "runtime": runtime}}
    found = time_limits(profile_with(on_aire, tmp_path, **{"set-resources": training}))
    assert found.state == state, found


@pytest.mark.parametrize(("limit", "state"), [("2-00:00:00", "ok"), ("00:15:00", "fault")])
def test_times_that_the_plan_gives_are_compared_too(limit, state, on_aire, programs, tmp_path):
    programs("scontrol", f"case $3 in gpu) echo MaxTime={limit};; *) echo MaxTime=2-00:00:00;; esac")
    grouped = {"groups": {"train_stage": "{split}-seed{seed}"}, "group-components": {"{split}-seed{seed}": 100}}
    training = {"set-resources": {"train_stage": {"slurm_partition": "gpu"}}} | grouped
    found = time_limits(profile_with(on_aire, tmp_path, **training))
    longest = Requests(on_aire.study, Grouping.of(grouped)).longest_jobs()["train_stage"]
    assert longest > 20, "ten minutes for each of several stages"
    said = f"gpu {longest} of at most" if state == "ok" else f"runtime {longest} min, and partition gpu allows 15"
    assert found.state == state and said in found.found


def test_a_profile_without_a_time_is_a_fault(on_aire, tmp_path):
    without = profile_with(
        on_aire, tmp_path, **{"default-resources": {"slurm_partition": "nodes"}, "set-resources": {}}
    )
    assert "the profile gives no time" in time_limits(without).found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2-00:00:00", 2880),
        ("00:30:00", 30),
        ("90", 90),
        ("2h", 120),
        ("1d", 1440),
        ("attempt * 60", None),
        ("infinite", float("inf")),
    ],
)
def test_times_are_read(text, found):
    assert minutes(text) == found


def test_caps_are_compared_with_what_is_asked(on_aire, programs):
    three = with_settings(on_aire, runtime={"processes": 3})
    assert caps(three).state == "warning"  # 15 jobs of three GPUs
    programs("sacctmgr", "echo 'gpulimits||gres/gpu=2'")
    assert caps(on_aire).state == "warning" and "2 GPUs a user" in caps(on_aire).found
    assert caps(three).state == "fault" and "wait for ever" in caps(three).remedy
    programs("sacctmgr", "echo 'gpulimits|01:00:00|'")
    assert caps(on_aire).state == "fault" and "allows 01:00:00" in caps(on_aire).found
    programs("sacctmgr", "exit 1")
    assert "does not answer" in caps(on_aire).found


# The command


def fake_checks(monkeypatch, **functions):
    """Put these checks in the place of all others."""
    for name, function in functions.items():
        monkeypatch.setattr(software, name, function, raising=False)
    listed = [doctor.Check(name, f"software.{name}", doctor.EVERYWHERE) for name in functions]
    monkeypatch.setattr(doctor, "CHECKS", tuple(listed))


def run(capsys, *words):
    with pytest.raises(SystemExit) as left:
        doctor.main(words)
    return bool(left.value.code), capsys.readouterr().out


@pytest.fixture
def configfile(place, config, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    return str(tmp_path / "study.yaml")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv(WANTED, "auto")  # set by the command, and put back afterwards


def test_a_check_that_fails_itself_is_a_fault_and_the_others_are_made(monkeypatch, capsys, configfile, tmp_path):
    def broken(_):
        raise KeyError("surprise")

    def says(_):
        raise TriptychError("the file is missing; fetch it")

    fake_checks(monkeypatch, broken=broken, says=says, well=lambda _: ok("all is well", tflops=3.0))
    failed, said = run(capsys, "--configfile", configfile, "--directory", str(tmp_path / "there"))
    assert failed
    assert said.splitlines() == [
        "fault    here broken      the check itself failed: KeyError: 'surprise'",
        "fault    here says        the file is missing; fetch it",
        "ok       here well        all is well",
        "2 fault, 0 warning, 1 ok",
    ]
    record = read_json(tmp_path / "there/results/doctor.json")
    assert record["rates"] == {"here": {"tflops": 3.0}} and len(record["rows"]) == 3


def test_without_a_fault_the_exit_status_is_0(monkeypatch, capsys, configfile):
    fake_checks(monkeypatch, well=lambda _: ok("all is well"))
    assert run(capsys, "--configfile", configfile)[0] is False


def test_jobs_are_asked_for_on_every_partition_and_their_findings_are_shown(monkeypatch, capsys, configfile, tmp_path):
    fake_checks(monkeypatch, well=lambda place: ok(f"{place.partition or 'login node'}, {place.gpus}"))
    asked = []

    def submit(profile, rule, command, folder, minutes, patience):
        asked.append((rule, minutes, patience))
        if "nodes" in command:
            raise TriptychError("the job failed: sbatch: error: invalid partition")
        doctor.main(command[4:])

    monkeypatch.setattr(doctor, "submit", submit)
    failed, said = run(capsys, "--configfile", configfile, "--profile", str(AIRE), "--patience", "5")
    lines = [line for line in said.splitlines() if "submitted" not in line]
    assert failed and sorted(asked) == [("", 10, 300), ("encode_images", 10, 300)]
    assert "ok       login node well        login node, None" in lines
    assert "ok       gpu        well        gpu, 1" in lines
    assert any(
        "fault    nodes      job         the job failed: sbatch: error: invalid partition" in line for line in lines
    )


@pytest.mark.parametrize(
    ("on_cluster", "partition", "absent"),
    [(True, "", "in jobs"), (True, "gpu", "on the login"), (False, "", "on the login")],
)
def test_checks_are_made_where_they_belong(on_cluster, partition, absent, place, monkeypatch):
    listed = [
        doctor.Check(where, "software.python", where)
        for where in (doctor.EVERYWHERE, doctor.IN_JOBS, doctor.ON_LOGIN_NODE)
    ]
    monkeypatch.setattr(doctor, "CHECKS", tuple(listed))
    made = [
        row.check
        for row in doctor.make_checks(Place(place.study, place.folder, AIRE if on_cluster else None, partition), "x")
    ]
    assert len(made) == 2 and not any(name.startswith(absent) for name in made)


def test_every_check_is_a_function_that_is_there():
    from importlib import import_module

    for check in doctor.CHECKS:
        module, name = check.function.split(".")
        assert callable(getattr(import_module(f"triptych.commands.checks.{module}"), name))
