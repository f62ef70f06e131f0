"""The steps of occlusion on the finished toy study, whose squares are given boxes: encoded once, asked, tabulated."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from conftest import ROOT, toy_config
from triptych.commands import verify
from triptych.config import jobs, paths
from triptych.config.evaluation import Occlusion
from triptych.config.grid import Checkpoint
from triptych.config.study import load_study
from triptych.config.wildcards import EACH
from triptych.data.schemas import IMAGE_SCHEMA
from triptych.evaluate import occlude
from triptych.evaluate.gold import gold_logprobs
from triptych.features import occluded
from triptych.features.store import Features, Pixels
from triptych.io.parquet import parts_of_table, read_table, write_table
from triptych.model import checkpoint
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.tables import occlusion
from triptych.train import __main__ as train

SETTINGS = {"images": 10, "questions": 2, "grid": 3}


def run(monkeypatch, step, **options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.setattr("sys.argv", ["step", *words])
    step.main()


@pytest.fixture
def boxed(study, world, tmp_path, monkeypatch):
    """The finished toy study with a box for each square, and the setting `evaluation.occlusion`."""
    results = tmp_path / "results"
    shutil.copytree(study.results, results)
    config = toy_config(world)
    config["evaluation"] = {**config["evaluation"], "occlusion": SETTINGS}
    for part in parts_of_table(results / "data/medical/images"):
        rows = read_table(part)
        for row in rows:
            row["boxes"] = json.dumps([["Square", [2, 8, 12, 16]]])
        write_table(part, rows, IMAGE_SCHEMA)
    monkeypatch.setenv("TRIPTYCH_DEVICE", "cpu")
    return replace(load_study(config), results=results)


def encode(boxed, monkeypatch):
    data, out = boxed.results / "data/medical/folds.json", boxed.path(paths.OCCLUDED, dataset="medical", tag="")
    folders = {"features": boxed.results / "features/medical", "encoder": boxed.results / "models/vision_encoder"}
    run(monkeypatch, occluded, settings=Occlusion(**SETTINGS).model_dump_json(), data=data, out=out, **folders)
    return out


def test_occlusion_from_images_to_the_table(boxed, monkeypatch, capsys):
    manifest = encode(boxed, monkeypatch)
    features = Features(manifest.parent)
    images = {name.split("/")[0] for shard in features.manifest["shards"] for name in shard["images"]}
    assert len(images) == 10
    for image in images:
        assert torch.equal(features([f"{image}/0"]), Features(boxed.results / "features/medical")([image]))
        assert not torch.equal(features([f"{image}/0"]), features([f"{image}/5"]))
    written = {path: path.stat().st_mtime_ns for path in (boxed.results / "occlusion/features/shards").iterdir()}
    encode(boxed, monkeypatch)
    assert written == {path: path.stat().st_mtime_ns for path in written}, "nothing is encoded twice"

    values = list(EACH["occlusion"](boxed))
    assert len(values) == 4 and [name["dataset"] for name in EACH["occluded features"](boxed)] == ["medical"]
    records = []
    for one in values:
        checkpoint = boxed.path(paths.CHECKPOINT, prefix=one["prefix"], split=one["fold"], seed=one["seed"])
        job = jobs.OcclusionJob.of(boxed).text()
        inputs = {"checkpoint": checkpoint, "occluded": manifest, "data": boxed.results / "data/medical/folds.json"}
        model = boxed.results / "models/language_model"
        run(monkeypatch, occlude, job=job, language_model=model, out=boxed.path(paths.OCCLUSION, **one), **inputs)
        found = read_table(boxed.path(paths.OCCLUSION, **one))
        records += found
        answers = boxed.path(paths.PREDICTION, prefix=one["prefix"], fold=one["fold"], seed=0, view="")
        gold = {row["question_id"]: row["gold_logprob"] for row in read_table(answers)}
        for row in found:
            assert row["logprob"] == pytest.approx(gold[row["question_id"]], abs=1e-3), "held out, and as predicted"
            assert row["question"] == "what colour is the square ?" and len(row["drops"]) == 9
            assert np.abs(row["drops"]).max() > 0 and sum(row["hits"]) == 1 and row["hits"][3]
    assert {row["image_id"] for row in records} == images and len(records) == 20

    damaged = [said for said, _ in verify.damages(boxed.results, boxed.results / "cache") if "/occlusion/" in said]
    assert damaged == []
    files = sorted(boxed.results.glob("occlusion/*/fold*/*.parquet"))
    words = ["--occlusions", *map(str, files), "--schedules", "1-2-3", "2-3", "--out", str(boxed.results / "tables")]
    monkeypatch.setattr("sys.argv", ["step", *words])
    occlusion.main()
    made = pandas.read_csv(boxed.results / "tables/occlusion.csv").set_index("arm")
    assert made.loc["2-3", ["questions", "runs"]].tolist() == [10, 2]
    assert made.loc["2-3", "pointing_random"] == pytest.approx(100 / 9, abs=1e-3)


def test_a_trained_encoder_sees_the_occluded_images_itself(boxed, monkeypatch, tmp_path):
    manifest, data = encode(boxed, monkeypatch), boxed.results / "data/medical"
    rates = {"connector": 1e-2, "vision_encoder": 1e-2}
    stage = boxed.grid.stage_of("2").model_copy(update={"train": list(rates), "learning_rate": rates})
    cell = Checkpoint("2", "fold0", 0)
    job = jobs.TrainingJob.of(boxed, cell).model_copy(update={"stage": stage}).text()
    models = {name: boxed.results / "models" / name for name in ("vision_encoder", "language_model")}
    with monkeypatch.context() as patch:
        patch.setattr("triptych.train.__main__.Autosaver.handle_signals", lambda self: None)
        inputs = {"data": data, "features": boxed.results / "features/medical", **models}
        run(patch, train, job=job, out=tmp_path / "seeing", **inputs)
    found = {}
    for name, folder in (("base", boxed.checkpoint(cell, paths.CHECKPOINT).parent), ("seeing", tmp_path / "seeing")):
        inputs = {"checkpoint": folder / "manifest.json", "occluded": manifest, "data": data / "folds.json", **models}
        run(monkeypatch, occlude, job=jobs.OcclusionJob.of(boxed).text(), out=tmp_path / f"{name}.parquet", **inputs)
        found[name] = read_table(tmp_path / f"{name}.parquet")
    # What the trained encoder sees of one image, by the model itself.
    features = Features(boxed.results / "features/medical")
    base = checkpoint.Base(models["language_model"], *features.identity, models["vision_encoder"])
    model = checkpoint.load(base, tmp_path / "seeing/manifest.json", torch.float32, torch.device("cpu"))
    prompt = prompt_tokens(load_tokenizer(base.language_model), load_prompt(base.language_model))
    row = found["seeing"][0]
    asked = [{**row, "answer": row["gold"]}]
    pixels = Pixels(features, data, models["vision_encoder"])
    [expected] = gold_logprobs(model, tokenise(asked, prompt), pixels, prompt, "fp32")
    assert row["logprob"] == pytest.approx(expected, abs=1e-4)
    assert [one["question_id"] for one in found["seeing"]] == [one["question_id"] for one in found["base"]]
    assert found["seeing"][0]["drops"] != pytest.approx(found["base"][0]["drops"], abs=1e-4)


def test_without_the_setting_there_is_nothing_to_do(world):
    study = load_study(toy_config(world))
    assert not list(EACH["occlusion"](study)) and not list(EACH["occluded features"](study))
    assert "occlusion" not in study.settings.evaluation.model_dump()
    assert (ROOT / "workflow/report/occlusion.rst").exists()


def test_blind_schedules_are_left_out(world):
    config = toy_config(world)
    config["stages"]["3blind"] = {**config["stages"]["3"], "train": ["lora"], "blind": True}
    config["stages"]["3blind"]["learning_rate"] = {"lora": 1e-2}
    config["schedules"].append(["2", "3blind"])
    config["evaluation"]["occlusion"] = {}
    assert {one["prefix"] for one in EACH["occlusion"](load_study(config))} == {"1-2-3", "2-3"}
