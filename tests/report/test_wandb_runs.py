"""Runs of Weights & Biases hold what `metrics.jsonl` holds, keep their id when a training is resumed, and no secret."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import make_inputs
from triptych.config.grid import Checkpoint
from triptych.config.jobs import WandbJob
from triptych.config.settings import WeightsAndBiases
from triptych.config.stages import Connector
from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.report import wandb_runs
from triptych.report.wandb_runs import NAMES, group_name, write_runs
from triptych.train import __main__ as training
from triptych.train.autosave import Autosaver, Interrupted
from triptych.train.history import read_training

KEYS = {"WANDB_API_KEY": "5ec2e7" * 6 + "5ec2", "HF_TOKEN": "hf_" + "5ec2e7" * 6}
STAGE = {"data": "toy", "train": ["connector"], "learning_rate": {"connector": 1e-2}, "epochs": 2, "batch_size": 32}
SCHEDULES = {"1-2": ["1", "1-2"], "1-3": ["1", "1-3"]}
JOB = WandbJob(schedules=SCHEDULES, wandb=WeightsAndBiases(project="toy"))


@pytest.fixture(scope="module")
def inputs(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wandb")
    make_inputs(world, folder)
    return folder


@pytest.fixture
def train(inputs, monkeypatch):
    """Trains a small job in this process; told to stop after a call of its autosaver, it is saved and leaves."""
    monkeypatch.setattr(Autosaver, "handle_signals", lambda self: None)
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)

    def train(out: Path, stop: bool = False, **stage) -> None:
        job = {"prefix": "1", "split": "shared", "seed": 0, "stage_name": "1", "stage": {**STAGE, **stage}}
        job |= {"connector": Connector().model_dump(), "lora": None, "training": {"precision": "fp32"}}
        folders = [f"--{name}={inputs / name.replace('-', '_')}" for name in ("data", "features", "language-model")]
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["train", f"--job={json.dumps(job)}", *folders, f"--out={out}"])
            if stop:
                patch.setattr(Autosaver, "save_if_due", stop_in_epoch_2)
                with pytest.raises(SystemExit, match="75"):
                    training.main()
            else:
                training.main()

    return train


def stop_in_epoch_2(self, capture, place):
    if place.startswith("epoch 2"):
        self.save(capture())
        raise Interrupted("told to stop")


def read_run(folder: Path) -> dict:
    """What an offline run holds, read from its file: id, names, config, history."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("*.wandb")
    data = file.read_bytes()
    found: dict = {"rows": []}
    position, message = 7, b""  # behind the file's own header: LevelDB's log format, in blocks of 32 KiB
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind not in (1, 4):  # the message goes on
            continue
        record, message = Record.FromString(message), b""
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found |= {"id": run.run_id, "name": run.display_name, "group": run.run_group, "project": run.project}
                found |= {"job_type": run.job_type, "tags": list(run.tags), "resumed": run.resumed}
                found["config"] = {item.key: json.loads(item.value_json) for item in run.config.update}
            case "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found["rows"].append({key: value for key, value in items.items() if not key.startswith("_")})
    return found


def test_a_run_read_back_is_what_metrics_jsonl_says(train, tmp_path):
    train(tmp_path / "checkpoint")
    trained = read_training(tmp_path / "checkpoint")
    [entry] = write_runs([trained], JOB, tmp_path / "wandb")
    run = read_run(entry["folder"])
    lines = (tmp_path / "checkpoint/metrics.jsonl").read_text().splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if value is not None} for line in lines]
    assert len(run["rows"]) == 3 and "training_loss" in run["rows"][1] and "validate_acc" in run["rows"][2]
    own = {theirs: ours for ours, theirs in NAMES.items()}
    assert [{own.get(key, key): value for key, value in row.items()} for row in run["rows"]] == rows
    assert run["project"] == "toy" and run["job_type"] == "stage 1" and run["name"] == "1 shared seed0"
    assert run["group"] == "1-2, 1-3 shared" and set(run["tags"]) == {"1-2", "1-3", "shared", "stage 1"}
    assert run["config"]["settings"]["learning_rate"] == {"connector": 1e-2} and run["config"]["finished"] is True


def test_a_resumed_training_goes_on_in_its_run_and_another_training_has_another(train, tmp_path):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "wandb"
    train(checkpoint, stop=True)
    [under_way] = write_runs([read_training(checkpoint)], JOB, out)
    half = read_run(under_way["folder"])
    assert [row["epoch"] for row in half["rows"]] == [0, 1] and half["config"]["finished"] is False
    train(checkpoint)
    [finished] = write_runs([read_training(checkpoint)], JOB, out)
    whole = read_run(finished["folder"])
    assert finished["id"] == under_way["id"] == whole["id"] and whole["rows"][:2] == half["rows"]
    assert [row["epoch"] for row in whole["rows"]] == [0, 1, 2]
    assert len(list(out.glob("offline-run-*"))) == 1, "no run in pieces"

    train(tmp_path / "other", learning_rate={"connector": 2e-2})
    [beside] = write_runs([read_training(tmp_path / "other")], JOB, out, alone=False)
    assert {*out.glob("*run-*")} == {finished["folder"], beside["folder"]}, "it may be another study's"
    [other] = write_runs([read_training(tmp_path / "other")], JOB, out)
    assert other["id"] != finished["id"]
    assert list(out.glob("*run-*")) == [other["folder"]], "the run of a training that is no more is removed"


def test_no_file_of_a_run_holds_a_secret(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    train(tmp_path / "stopped", stop=True)
    train(tmp_path / "checkpoint")
    trainings = [read_training(tmp_path / name) for name in ("stopped", "checkpoint")]
    assert [trained.finished for trained in trainings] == [False, True]
    write_runs(trainings[1:], JOB, tmp_path / "wandb")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".wandb", ".safetensors", ".json", ".jsonl"} <= {path.suffix for path in files}
    for path in files:
        for key in KEYS.values():
            assert key.encode() not in path.read_bytes(), path


def test_a_run_that_is_up_to_date_is_left_alone(train, tmp_path):
    train(tmp_path / "checkpoint")
    [first] = write_runs([read_training(tmp_path / "checkpoint")], JOB, tmp_path / "wandb")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "wandb").rglob("*")}
    [second] = write_runs([read_training(tmp_path / "checkpoint")], JOB, tmp_path / "wandb")
    assert first == second and before == {path: path.stat().st_mtime_ns for path in (tmp_path / "wandb").rglob("*")}
    [moved] = write_runs(
        [read_training(tmp_path / "checkpoint")],
        JOB.model_copy(update={"wandb": WeightsAndBiases(project="elsewhere")}),
        tmp_path / "wandb",
    )
    assert read_run(moved["folder"])["project"] == "elsewhere"
    assert list((tmp_path / "wandb").glob("*run-*")) == [moved["folder"]]


def test_only_what_was_not_uploaded_is_uploaded_and_a_failure_says_what_to_do(tmp_path, monkeypatch):
    folders = [tmp_path / f"offline-run-1-{name}" for name in "ab"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "run-a.wandb.synced").touch()
    asked = []

    def sync(command, **_):
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(wandb_runs.subprocess, "run", sync)
    with pytest.raises(TriptychError, match=r"1 of 2 runs in .* could not be uploaded; log in"):
        wandb_runs.upload(folders)
    assert asked == [str(folders[1])]


def test_damaged_metrics_are_named(train, tmp_path):
    train(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint/metrics.jsonl"
    file.write_text(file.read_text() + "{broken\n")
    with pytest.raises(TriptychError, match=r"metrics\.jsonl: line 4 is not the metrics of an epoch; delete"):
        read_training(tmp_path / "checkpoint")
    assert read_json(tmp_path / "checkpoint/manifest.json")["prefix"] == "1"


def test_names_are_no_longer_than_what_is_taken():
    cell = Checkpoint("1", "fold0", 0)
    assert group_name(["1-2", "1-3"], cell) == "1-2, 1-3 fold0" and group_name([], cell) == "1 fold0"
    many = [f"1-2+variant{number}-3" for number in range(20)]
    assert group_name(many, cell) == "1 fold0"
    assert len(group_name([], Checkpoint("a" * 300, "near-duplicate-cluster-fold0", 0))) <= 128
