"""Likely mistakes of a new user: each gives one clear error that names the file, key or row, and what to do."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, toy_config, write_models, write_slake
from triptych.commands import status
from triptych.config.study import load_study, read_study
from triptych.data import fetch
from triptych.errors import TriptychError, run_step
from triptych.model import prepare
from triptych.report import wandb_runs


def only_line(text: str) -> str:
    [line] = text.strip().splitlines()
    return line


def fault(config: dict) -> str:
    """The one line that a wrong configuration gives."""
    with pytest.raises(TriptychError) as caught:
        load_study(config, "study.yaml")
    return only_line(str(caught.value))


def put(config: dict, place: str, value) -> dict:
    """The configuration with another value at a place such as `stages.1.train`."""
    *way, last = place.split(".")
    for key in way:
        config = config[int(key) if key.isdigit() and int(key) in config else key]
    config[last] = value
    return config


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("schedules", ["1-2-3"], "schedules.0: must be a list of stage names, such as [2, 3], not '1-2-3'"),
        ("schedules", "1-2-3", "schedules: must be a list of lists, such as [[2, 3]], not '1-2-3'"),
        ("seeds", 0, "seeds: must be a list, such as [0], not 0"),
        ("datasets.general.sizes", 500, "datasets.general.sizes: must be a list, such as [500], not 500"),
        ("stages.1.train", "connector", "stages.1.train: must be a list, such as [connector], not 'connector'"),
        (
            "stages.1.learning_rate",
            0.001,
            "stages.1.learning_rate: must name a rate for each part that trains, such as {connector: 0.001}",
        ),
        ("stages.1.epochs", 1.5, "stages.1.epochs: must be a whole number, not 1.5"),
        (
            "stages.1.data",
            "general",
            "stages.1.data: 'general', which is not under datasets: (known: general-500, medical); "
            "did you mean 'general-500'?",
        ),
        (
            "models.vision_encoder",
            "google/siglip-base-patch16-384",
            "models.vision_encoder: must be a mapping of keys to values (source), not 'google/siglip-base-patch16-384'",
        ),
        (
            "datasets.medical",
            {"folder": "/data/slake"},
            "datasets.medical.source: required but missing",
        ),
        ("pathvars", {"result": "results/mine"}, "pathvars.result: must be 'results', not 'result'"),
        ("stages", None, "stages: must be a mapping of keys to values, not None"),
        (
            "wandb",
            {"api_key": "5ec2e7"},
            "wandb.api_key: no key or password belongs in a configuration; log in, or set WANDB_API_KEY or HF_TOKEN",
        ),
    ],
)
def test_a_wrong_value_is_one_line(demo_config, place, value, line):
    demo_config["stages"] = {str(name): stage for name, stage in demo_config["stages"].items()}
    put(demo_config, place, value)
    assert fault(demo_config) == f"study.yaml: {line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, r"study.yaml: cannot be read \(No such file or directory\); name a file in config/"),
        ("seeds: [0\nmodels: {}\n", "study.yaml: not valid YAML, line 2, column 7: expected ',' or ']', but got ':'"),
        (
            "seeds:\n\t- 0\n",
            r"study.yaml: not valid YAML, line 2, column 1: found character '\\t' that cannot start any token",
        ),
    ],
)
@pytest.mark.parametrize("command", [status, wandb_runs])
def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, text, line, command):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "study.yaml").write_text(text)
    monkeypatch.setattr("sys.argv", ["command", "--configfile", "study.yaml"])
    with pytest.raises(SystemExit, match=line) as caught:
        run_step(command.main)
    assert only_line(str(caught.value)).startswith("error: study.yaml: ")


def test_an_empty_configuration_names_what_it_needs(tmp_path):
    (tmp_path / "study.yaml").write_text("")
    with pytest.raises(TriptychError) as caught:
        read_study(tmp_path / "study.yaml")
    needed = ("seeds", "models", "datasets", "folds", "stages", "schedules")
    assert str(caught.value).splitlines() == [f"study.yaml: {key}: required but missing" for key in needed]


@pytest.mark.parametrize(
    ("text", "kind"), [("- seeds: [0]\n", "a list"), ("seeds = 0", "text"), ("[]", "a list"), ("7", "a number")]
)
def test_a_file_that_holds_no_settings_says_so(tmp_path, text, kind):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(TriptychError) as caught:
        read_study(tmp_path / "study.yaml")
    assert str(caught.value) == f"study.yaml: must hold settings, such as `seeds: [0]`, not {kind}"


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Runs the command of a step as its rule does; gives the one line that it ends with."""
    monkeypatch.chdir(tmp_path)

    def step(module, **arguments) -> str:
        options = [f"--{name}={value}" for name, value in arguments.items()]
        monkeypatch.setattr("sys.argv", ["step", *options, f"--out={tmp_path / 'out'}"])
        with pytest.raises(SystemExit) as caught:
            run_step(module.main)
        line = only_line(str(caught.value))
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return step


def fetching(step, config: dict, name: str) -> str:
    settings = load_study(config).datasets[name]
    return step(fetch, settings=settings.model_dump_json(), cache="cache")


@pytest.mark.parametrize(
    ("slip", "line"),
    [
        ("no folder", "datasets: no folder is given for SLAKE; set TRIPTYCH_SLAKE=/path/to/slake"),
        ("one level up", "slake/train.json: not there; .*; did you mean .*slake/Slake1.0?"),
        ("old name", "validation.json: not there; .*; older copies call it validate.json: rename it"),
        ("not unpacked", "imgs: not there; .*; unpack imgs.zip"),
        ("not a list", "train.json: must be a list of records, as in SLAKE"),
        ("cut off", r"train.json: not valid JSON \(.*\); restore the file"),
        ("no English", "slake: no question has q_lang 'zh'; change the key `language` of the data set"),
    ],
)
def test_a_slake_folder_that_is_not_one_is_one_line(step, world, tmp_path, slip, line):
    config = toy_config(world)
    target = tmp_path / "slake"
    config["datasets"]["medical"]["folder"] = str(target)
    write_slake(target / "Slake1.0" if slip == "one level up" else target)
    match slip:
        case "no folder":
            config["datasets"]["medical"]["folder"] = None
        case "old name":
            (target / "validation.json").rename(target / "validate.json")
        case "not unpacked":
            (target / "imgs").rename(target / "imgs.zip")
        case "not a list":
            (target / "train.json").write_text('{"qid": 1}')
        case "cut off":
            (target / "train.json").write_text('[{"qid": 1},')
        case "no English":
            config["datasets"]["medical"]["language"] = "zh"
    told = fetching(step, config, "medical")
    assert re.search(line, told), told


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"table": "caption.csv"}, "captions/caption.csv: no such table; correct its name in the settings"),
        ({"caption_column": "text"}, "captions/captions.jsonl: no row has the key 'text'; correct the key"),
        ({"folder": "elsewhere"}, "elsewhere/captions.jsonl: no such table"),
    ],
)
def test_a_caption_table_that_is_not_there_is_one_line(step, world, change, line):
    config = toy_config(world)
    config["datasets"]["general"] |= change
    assert line in fetching(step, config, "general-24")


def test_a_model_without_safetensors_is_one_line(step, tmp_path):
    write_models(tmp_path)
    (tmp_path / "llama" / "model.safetensors").rename(tmp_path / "llama" / "pytorch_model.bin")
    settings = {"source": "folder", "folder": str(tmp_path / "llama"), "prompt": "<image> {question}"}
    line = step(prepare, role="language_model", settings=json.dumps(settings), cache="cache")
    assert "llama: has no .safetensors file, only pytorch_model.bin" in line


def test_snakemake_shows_all_of_them_at_once_and_no_traceback(demo_config, tmp_path):
    demo_config |= {"seeds": 0, "schedules": ["1-2-3"], "wandb": {"api_key": "5ec2e7"}}
    demo_config["datasets"]["general"]["sizes"] = 500
    demo_config["stages"][1] |= {"train": "connector", "learning_rate": 0.001}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(demo_config))
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--directory", str(tmp_path)]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(tmp_path / "wrong.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    text = result.stdout + result.stderr
    assert result.returncode != 0 and "Traceback" not in text and "5ec2e7" not in text
    named = sorted(line.split(": ")[1] for line in text.splitlines() if line.startswith("wrong.yaml: "))
    stage = ["stages.1.learning_rate", "stages.1.train"]
    assert named == ["datasets.general.sizes", "schedules.0", "seeds", *stage, "wandb.api_key"]
