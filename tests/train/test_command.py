"""Trainings and predictions as their commands run them."""

import json
import signal

import pytest
import torch
from conftest import make_inputs
from safetensors.torch import load_file
from trainings import (
    no_features,
    same,
)
from triptych.config.stages import Connector, Lora, Stage
from triptych.errors import TriptychError
from triptych.evaluate import predict
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.model import checkpoint
from triptych.model.connector import Mlp
from triptych.train import __main__ as command
from triptych.train.autosave import SIGNALS
from triptych.utils.device import best_device


@pytest.fixture(scope="module")
def inputs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "inputs"
    make_inputs(world, folder)
    return folder


@pytest.fixture
def steps(inputs, tmp_path, monkeypatch):
    """Runs trainings and predictions in this process: name and stage in, the checkpoint's manifest out."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    places = [f"--{name}={inputs / name.replace('-', '_')}" for name in ("data", "features", "language-model")]
    lora = Lora(rank=2, alpha=4).model_dump()

    def run_stage(name, settings, parent=None):
        settings = Stage(data="toy", **settings).model_dump()
        job = {"prefix": name, "split": "shared", "seed": 4, "stage_name": name, "stage": settings}
        job |= {"connector": Connector().model_dump(), "training": {"precision": "fp32"}}
        job |= {"lora": lora if "lora" in settings["train"] else None}
        arguments = ["--job", json.dumps(job), *places, f"--out={tmp_path / name}"]
        arguments += ["--parent", str(parent)] if parent else []
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        command.main()
        return tmp_path / name / "manifest.json"

    def run_predict(manifest, view="held-out"):
        out = tmp_path / "answers.parquet"
        job = json.dumps({"precision": "fp32", "max_new_tokens": 4, "batch_size": 5, "view": view})
        told = [f"--job={job}", f"--vision-encoder={inputs / 'vision_encoder'}", f"--out={out}"]
        monkeypatch.setattr("sys.argv", ["x", f"--checkpoint={manifest}", *places, *told])
        predict.main()
        return read_table(out)

    yield run_stage, run_predict
    for number, handler in handlers.items():
        signal.signal(number, handler)


LORA = {"train": ["lora"], "learning_rate": {"lora": 1e-2}, "epochs": 1}
BOTH = {"train": ["connector", "lora"], "learning_rate": {"connector": 1e-2, "lora": 1e-2}, "epochs": 1}


def tensors(manifest):
    return {path.name: load_file(path) for path in manifest.parent.glob("*.safetensors")}


def test_a_stage_that_trains_nothing_passes_its_parent_on(steps):
    run_stage, _ = steps
    both = run_stage("both", BOTH)
    passed = run_stage("passed", {"train": []}, both)
    found, expected = tensors(passed), tensors(both)
    assert found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    manifest = read_json(passed)
    assert [list(stage) for stage in manifest["stages"]] == [["both"], ["passed"]]
    assert manifest["epoch"] == 0 and manifest["metrics"]["epoch"] == 0
    assert not list(passed.parent.glob("last/state-*"))


def test_a_fresh_connector_beside_the_parents_adapters(steps):
    run_stage, _ = steps
    both, fresh = run_stage("both", BOTH), run_stage("fresh", {"train": []})
    control = run_stage("control", {"train": [], "init": "random"}, both)
    found = tensors(control)
    assert same(found["connector.safetensors"], tensors(fresh)["connector.safetensors"])
    assert same(found["adapter.safetensors"], tensors(both)["adapter.safetensors"])
    assert not same(found["connector.safetensors"], tensors(both)["connector.safetensors"])
    frozen = run_stage("frozen", {**LORA, "init": "random"}, both)  # LoRA on a random frozen connector
    assert same(tensors(frozen)["connector.safetensors"], found["connector.safetensors"])
    assert not same(tensors(frozen)["adapter.safetensors"], found["adapter.safetensors"])


def test_a_blind_checkpoint_answers_blindly_by_itself(steps, monkeypatch, inputs):
    run_stage, run_predict = steps
    seeing = run_stage("seeing", {**BOTH, "select": "best", "epochs": 2})
    assert read_json(seeing)["epoch"] in (1, 2) and not read_json(seeing)["blind"]
    assert len(run_predict(seeing)) > 0
    monkeypatch.setattr("triptych.features.store.Features.__call__", no_features)
    blind = run_stage("blind", {**LORA, "blind": True}, seeing)
    assert read_json(blind)["blind"] and read_json(blind)["metrics"]["token_norm_ratio"] is None
    answers = run_predict(blind)
    asked = {}
    for answer in answers:
        asked.setdefault(answer["question"], set()).add(answer["prediction"])
    assert all(len(given) == 1 for given in asked.values()), "one answer to a question, whatever the image"
    features = read_json(inputs / "features" / "manifest.json")
    base = checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])
    assert checkpoint.load(base, blind, torch.float32, best_device()).blind


def test_with_another_image_or_none_the_same_questions_are_asked(steps):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", {**BOTH, "epochs": 2})
    answers = {view: run_predict(manifest, view) for view in ("held-out", "swapped", "blank")}
    asked = {view: [row["question_id"] for row in rows] for view, rows in answers.items()}
    assert asked["held-out"] == asked["swapped"] == asked["blank"]
    assert all(row["view"] == view for view, rows in answers.items() for row in rows)
    chances = {view: [row["logprob"] for row in rows] for view, rows in answers.items()}
    assert len({tuple(values) for values in chances.values()}) == 3, "each view shows something else"
    one_by_one = {}
    for row in answers["blank"]:
        one_by_one.setdefault(row["question"], set()).add(row["prediction"])
    assert all(len(given) == 1 for given in one_by_one.values()), "the same grey image for every question"


def test_a_killed_prediction_ends_with_the_same_records(steps, monkeypatch, capsys):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", {**BOTH, "epochs": 1})
    whole = run_predict(manifest)
    generate, calls = predict.generate, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "generate", killed)
        run_predict(manifest)
    capsys.readouterr()
    assert run_predict(manifest) == whole
    assert f"{min(10, len(whole))}/{len(whole)} questions" in capsys.readouterr().out.splitlines()[0]


def test_a_parent_with_another_connector_is_refused(steps, inputs):
    run_stage, _ = steps
    parent = run_stage("parent", {"train": []})
    features = read_json(inputs / "features" / "manifest.json")
    base = checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])
    pooled = Connector(kind="pooled-mlp", pool=2)
    with pytest.raises(TriptychError, match="was trained with another connector"):
        checkpoint.build(base, parent, pooled, None, 4, "shared", torch.float32, torch.device("cpu"))
    fresh = checkpoint.build(base, parent, pooled, None, 4, "shared", torch.float32, torch.device("cpu"), "random")
    assert isinstance(fresh.connector, Mlp) and fresh.connector.pool == 2
