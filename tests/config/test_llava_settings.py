"""A LLaVA as the parent of a study: how it is configured, what contradicts it, what its checkpoints are called."""

import pytest
import yaml
from conftest import ROOT
from triptych.config.jobs import model_text
from triptych.config.local import absent
from triptych.config.study import load_study
from triptych.errors import TriptychError

LLAVA = {
    "source": "hub",
    "repo": "llava-hf/llava-1.5-7b-hf",
    "revision": "0" * 40,
    "prompt": "USER: <image>\n{question} ASSISTANT:",
}


@pytest.fixture
def config() -> dict:
    """The demonstration's medical data, on a LLaVA, in the three arms of arXiv 2402.16832."""
    found = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    found["models"] = {"llava": dict(LLAVA)}
    found["datasets"] = {"medical": found["datasets"]["medical"]}
    rates = {"connector": 2e-5, "lora": 2e-4}
    found["stages"] = {
        "original": {"data": "medical", "train": []},
        "projection": {"data": "medical", "train": ["connector"], "learning_rate": {"connector": 2e-5}, "epochs": 1},
        "all": {"data": "medical", "train": ["connector", "lora"], "learning_rate": rates, "epochs": 1},
    }
    found["schedules"] = [["original", "all"], ["original", "projection"], ["original"]]
    found["evaluation"] = {"probe": {"layers": ["last"]}}
    return found


def lines(config: dict) -> list[str]:
    with pytest.raises(TriptychError) as caught:
        load_study(config)
    return [line.removeprefix("config: ") for line in str(caught.value).splitlines()]


def test_each_part_is_told_what_concerns_it_alone(config):
    grid = load_study(config).grid
    assert grid.models.keys() == {"vision_encoder", "language_model"}
    part = {"part_of": "llava", "source": "hub", "repo": LLAVA["repo"], "revision": LLAVA["revision"]}
    assert grid.models["vision_encoder"].model_dump() == part
    assert grid.models["language_model"].model_dump() == {**part, "prompt": LLAVA["prompt"]}


def test_another_prompt_encodes_nothing_again_and_another_fit_fetches_no_language_model(config):
    texts = {}
    for name, change in {"base": {}, "asked": {"prompt": "<image>{question}"}, "padded": {"fit": "pad"}}.items():
        config["models"] = {"llava": {**LLAVA, **change}}
        study = load_study(config)
        texts[name] = [model_text(study, role) for role in ("vision_encoder", "language_model")]
    assert texts["asked"][0] == texts["base"][0] and texts["asked"][1] != texts["base"][1]
    assert texts["padded"][1] == texts["base"][1] and texts["padded"][0] != texts["base"][0]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda c: c["models"].update(vision_encoder={"source": "package"}),
            "models: llava has a vision encoder and a language model of its own; remove llava, or vision_encoder",
        ),
        (
            lambda c: c.update(connector={"kind": "linear"}),
            "connector.kind: the projector of models.llava is of kind mlp2x_gelu, not linear; remove it",
        ),
        (
            lambda c: c.update(connector={"kind": "pooled-mlp", "pool": 2}),
            "connector.kind: the projector of models.llava is of kind mlp2x_gelu, not pooled-mlp; remove it",
        ),
        (
            lambda c: c.update(ablations={"x": {"connector": {"kind": "linear"}}}),
            "ablations.x.connector.kind: the projector of models.llava is of kind mlp2x_gelu, not linear; remove it",
        ),
        (
            lambda c: c.update(ablations={"x": {"models": {"language_model": {"prompt": "<image>{question}"}}}}),
            "ablations.x.models: llava has a vision encoder and a language model of its own; remove llava, or "
            "language_model",
        ),
        (lambda c: c["models"]["llava"].pop("prompt"), "models.llava.prompt: required but missing"),
        (
            lambda c: c["models"]["llava"].update(prompt="{question}<image>"),
            "models: llava.prompt must have <image> before",
        ),
        (
            lambda c: c["models"]["llava"].update(prompt="<image>"),
            "models: llava.prompt must contain <image> and {quest",
        ),
        (
            lambda c: c["models"]["llava"].update(source="package"),
            "models.llava.source: must be one of 'hub', 'folder'",
        ),
        (lambda c: c["models"]["llava"].update(layer=-1), "models.llava.layer: not a known setting"),
        (lambda c: c["models"]["llava"].update(folder="x"), "models.llava.folder: not a known setting"),
        (
            lambda c: c["models"]["llava"].update(promt="x"),
            "models.llava.promt: not a known setting; did you mean 'prompt'?",
        ),
        (lambda c: c["models"]["llava"].update(revision="main"), "models.llava.revision: must be a full commit id"),
        (lambda c: c["models"].update(llava="llava-1.5"), "models.llava: must be a mapping of keys to values (source)"),
        (lambda c: c.update(models={"lava": LLAVA}), "models.lava: not a known setting"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(config, change, line):
    change(config)
    assert any(found.startswith(line) for found in lines(config)), lines(config)


def test_an_ablation_may_take_another_llava_with_its_own_prompt(config):
    other = {"repo": "llava-hf/other-7b-hf", "revision": "1" * 40, "prompt": "<image>{question}"}
    grid = load_study({**config, "ablations": {"other": {"models": {"llava": other}}}}).grid
    assert grid.schedules[-1] == "original+other-all"
    assert grid.models["vision_encoder+other"].repo == grid.models["language_model+other"].repo == other["repo"]
    assert lines({**config, "ablations": {"other": {"models": {"llava": {"repo": "a/b"}}}}}) == [
        "ablations.other.models.llava.revision: required but missing",
        "ablations.other.models.llava.prompt: required but missing",
    ]
    same = {"models": {"llava": {"repo": LLAVA["repo"]}}}
    assert lines({**config, "ablations": {"x": same}}) == [
        "ablations.x.models.llava: changes nothing: the base has these values"
    ]


def test_arms_start_from_the_model_as_it_is_and_are_compared_with_it(config):
    grid = load_study(config).grid
    assert grid.schedules == ["original-all", "original-projection", "original"]
    assert grid.originals == ["original"] and grid.shared_prefixes == []
    assert {name: grid.reference(name) for name in grid.representations} == {
        "pre-projection": None,
        "random-connector": None,
        "original": "random-connector",
        "original-all": "original",
        "original-projection": "original",
        "random-connector_last": None,
        "original_last": "random-connector_last",
        "original-all_last": "original_last",
        "original-all_last-no-lora": "original_last",
        "original-projection_last": "original_last",
    }
    ways = {name: grid.trained_parts(name) for name in grid.schedules}
    assert ways["original-projection"] == "projection only" and ways["original-all"] == "end to end"


def test_settings_survive_being_written_down(config):
    """As jobs, plan and report read them."""
    study = load_study(config)
    assert type(study.settings).model_validate_json(study.text()) == study.settings


def test_a_folder_that_is_not_there_is_named_once_and_one_of_the_hub_needs_none(config):
    assert absent(load_study(config), [], ["vision_encoder", "language_model"]) == []
    config["models"] = {"llava": {"source": "folder", "folder": "/not/here", "prompt": LLAVA["prompt"]}}
    assert absent(load_study(config), [], ["vision_encoder", "language_model"]) == [
        "models.llava.folder: /not/here is not there, or is no folder"
    ]
