"""What is said of an image and a question where a checkpoint's stages have trained nothing on the data."""

from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from triptych.config.study import load_study
from triptych.evaluate.asking import Answerer


def known(stages, asked_parts=("train",), general_rank=4):
    """What is known of an image in the training part of the medical data, whose question was asked about it."""
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    config["stages"] = {**config["stages"], "original": {"data": "medical", "train": []}}
    config["schedules"] = [stages]
    study = load_study(config)
    row = {"image_id": "i1", "question": "Is it red?", "answer": "yes"}
    places = {"medical": (0, "i1 of medical, in the training part of fold0", "i1")}
    answerer = SimpleNamespace(
        study=study,
        cell=SimpleNamespace(prefix="-".join(map(str, stages)), split="fold0"),
        _parts={"train": [row]},
        _of_image=lambda sent, name: places.get(name, (general_rank, "elsewhere", None)),
    )
    return Answerer.known(answerer, None, "Is it red?")


@pytest.mark.parametrize("stages", [["original"], [1, "original"]])
def test_nothing_was_trained_on_the_medical_data(stages):
    found = known(stages)
    assert not found.trained_on
    assert found.question == (
        "asked in the training part, on which nothing was trained, about 1 images, and about this one"
    )
    assert found.image == "i1 of medical, in the training part of fold0" and found.row["answer"] == "yes"


def test_data_of_an_earlier_stage_that_trained_counts():
    assert known([1, "original"], general_rank=0).trained_on


@pytest.mark.parametrize("stages", [[2], ["original", 2], [1, 2, 3]])
def test_a_stage_that_trains_is_named_as_before(stages):
    found = known(stages)
    assert found.trained_on and found.question == "asked in training about 1 images, and about this one"
