"""Studies that train the vision encoder: what the rules give to their steps, and who answers with it."""

import json
import math
import re

import pytest
from conftest import Study, toy_config
from triptych.commands import ask
from triptych.config import paths
from triptych.config.grid import Checkpoint
from triptych.config.study import read_study
from triptych.evaluate.asking import Answerer, read_image
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.serve.desk import LoadedCheckpoints

ENCODER = "--vision-encoder results/models/vision_encoder/manifest.json"


def test_steps_get_the_encoder_where_it_has_trained_and_nothing_else_changes(world, tmp_path):
    config = toy_config(world)
    plain = commands(Study(tmp_path, config))
    rates = {"connector": 1e-2, "vision_encoder": 1e-3}
    seeing = {**config["stages"]["2"], "train": list(rates), "learning_rate": rates}
    config["stages"]["2v"] = seeing
    config["schedules"] = [["2v", "3"], ["2", "3"]]
    found = commands(Study(tmp_path, config))
    trained = {name: line for name, line in found.items() if name.startswith(("Train ", "Probe "))}
    assert len(trained) == 8 + 6
    for name, line in trained.items():
        assert (ENCODER in line) == ("2v" in name), name
        assert "--vision-encoder  --language-model" in line or ENCODER in line
    for name in plain.keys() & found.keys():
        assert plain[name] == found[name], "what exists already is computed as before"
    assert any(name.startswith("Train 2-3") for name in plain.keys() & found.keys())


def commands(study):
    """Description of each training and probe of a dry run -> its command."""
    text = study.snakemake("--dry-run", "--printshellcmds")
    pairs = re.findall(r"((?:Train|Probe) .*)\n[\s\S]*?(OMP_NUM_THREADS=\d+ .*)", text)
    return {name: line for name, line in pairs if "triptych.train" in line or "evaluate.probe" in line}


@pytest.fixture(scope="module")
def seeing(world, tmp_path_factory):
    """A finished study of one schedule, whose first stage trains the whole encoder on cropped images."""
    folder = tmp_path_factory.mktemp("seeing")
    config = toy_config(world)
    rates = {"connector": 1e-2, "vision_encoder": 1e-2}
    config["stages"]["2"] |= {"train": list(rates), "learning_rate": rates, "vision": {"crop": 0.2}}
    config["schedules"] = [["2", "3"]]
    study = Study(folder, config)
    study.snakemake()
    return study


def test_by_hand_the_trained_encoder_answers_and_looks(seeing, monkeypatch, capsys):
    monkeypatch.chdir(seeing.folder)
    monkeypatch.setenv(ask.DEVICE, "cpu")
    here, cell = read_study(seeing.folder / "study.yaml"), Checkpoint("2-3", "fold0", 0)
    manifest = here.checkpoint(cell, paths.CHECKPOINT)
    assert "vision_encoder" in read_json(manifest)["parameters"]
    answerer, page = Answerer(here, cell), LoadedCheckpoints(here, ask.chosen(here, [manifest.parent], None))
    files = {row["id"]: row["image"]["bytes"] for row in read_table(here.results / "data/medical/images")}
    records = read_table(here.path(paths.PREDICTION, prefix="2-3", fold="fold0", seed=0, view=""))
    for record in records[:5]:
        data = files[record["image_id"]]
        found = answerer.answer(read_image(data, here), record["question"])
        assert found.text == record["prediction"]
        assert math.log(found.probability) == pytest.approx(record["logprob"], abs=1e-4)
        [shown] = page.answers(data, record["question"])["answers"]
        assert (shown["answer"], shown["gold"]) == (record["prediction"], record["gold"])
    [record, *_] = records
    capsys.readouterr()
    ask.main([record["question_id"], "--configfile", "study.yaml", "--where", "where.png", "--grid", "3", "--json"])
    [found] = json.loads(capsys.readouterr().out)["answers"]
    assert found["answer"] == record["prediction"] and max(map(abs, found["where"]["drops"])) > 0
    assert page.where(files[record["image_id"]], record["question"], 0)["words"].startswith(f"'{record['gold']}': ")
