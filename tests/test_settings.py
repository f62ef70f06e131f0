"""A wrong configuration gives one clear line for each fault, all at once."""

import json
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from triptych.settings import Settings, load_settings
from triptych.storage import TriptychError


def faults(config) -> list[str]:
    with pytest.raises(TriptychError) as caught:
        load_settings(config, "study.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("study.yaml: ") for line in lines)
    return [line.removeprefix("study.yaml: ") for line in lines]


@pytest.mark.parametrize("name", ["config", "demo", "slake-cpu"])
def test_shipped_configurations_are_valid(name):
    settings = load_settings(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text()))
    assert ["1", "2", "3"] in settings.schedules and ["2", "3"] in settings.schedules


def test_the_schema_for_editors_is_current():
    current = json.loads((ROOT / "config" / "schema.json").read_text())
    assert current == json.loads(json.dumps(Settings.model_json_schema())), "run `make schema`"


def test_every_setting_is_described():
    schema = Settings.model_json_schema()
    for name, model in [("Settings", schema), *schema["$defs"].items()]:
        for key, field in model.get("properties", {}).items():
            linked = [part["$ref"] for part in (field, *field.get("allOf", [])) if "$ref" in part]
            described = "description" in field or linked or "discriminator" in field or "const" in field
            assert described or key == "revision", f"{name}.{key} has no description"


def test_three_mistakes_give_three_lines_at_once(demo_config):
    demo_config["trainin"] = demo_config.pop("training")
    demo_config["schedules"].append([1, 4])
    demo_config["stages"][2]["epochs"] = -3
    assert sorted(faults(demo_config)) == [
        "schedules: '1-4' uses stage '4', which is not under stages: (known: 1, 2, 3)",
        "stages.2.epochs: must be greater than 0, not -3",
        "trainin: not a known setting; did you mean 'training'?",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c["datasets"]["general"].update(siz=3), "general.siz: not a known setting; did you mean 'size'?"),
        (lambda c: c["stages"][1].update(data="genral"), "did you mean 'general'?"),
        (lambda c: c["stages"][3].update(learning_rate={"connector": 1e-3}), "learning_rate must name exactly"),
        (lambda c: c["stages"][3].update(train=["connector", "conector"]), "'connector' or 'lora', not 'conector'"),
        (lambda c: c.update(seeds=[0, 0]), "seeds: an entry stands there twice"),
        (lambda c: c["schedules"].append([2, 3]), "schedules: an entry stands there twice"),
        (lambda c: c["schedules"].append([2, 1]), "'2-1' must end on a stage that uses medical"),
        (lambda c: c["schedules"].append([2, 3, 3]), "'2-3-3' uses a stage twice"),
        (lambda c: c["folds"].update(dataset="general"), "'general' has captions; folds need questions"),
        (lambda c: c["folds"].update(number=1), "folds.number: must be greater than or equal to 2, not 1"),
        (lambda c: c["models"]["language_model"].update(prompt="no marks"), "<image> and {question} exactly once"),
        (lambda c: c["datasets"].update(medical={"source": "slak"}), "datasets.medical.source: must be one of"),
        (
            lambda c: c["models"].update(vision_encoder={"source": "hub", "repo": "a/b", "revision": "main"}),
            "models.vision_encoder.revision: must be a full commit id",
        ),
        (lambda c: c["models"]["language_model"].update(promt="x"), "language_model.promt: not a known setting"),
        (lambda c: c.update(seeds=[-1]), "seeds.0: must be greater than or equal to 0, not -1"),
        (lambda c: c.pop("folds"), "folds: required, but not there"),
        (lambda c: c["stages"].update({"a b": c["stages"][2]}), "stages.a b: a name may hold"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(demo_config, change, line):
    change(demo_config)
    assert any(line in fault for fault in faults(demo_config)), faults(demo_config)


def test_numbers_that_yaml_reads_as_text_are_numbers(demo_config):
    demo_config["stages"][1]["learning_rate"]["connector"] = yaml.safe_load("2e-5")  # a string in YAML 1.1
    assert load_settings(demo_config).stages["1"].learning_rate["connector"] == 2e-5


def test_names_that_would_be_one_folder_are_refused(demo_config):
    demo_config["stages"]["1-2"] = demo_config["stages"][2]
    demo_config["schedules"].append(["1-2", 3])
    assert any("both written '1-2'" in fault for fault in faults(demo_config))


def test_snakemake_shows_the_lines_without_a_traceback(demo_config, tmp_path):
    demo_config["stages"][2]["epochs"] = -3
    demo_config["schedules"].append([1, 4])
    demo_config["trainin"] = {}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(demo_config))
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--directory", str(tmp_path)]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(file)]
    result = subprocess.run(command, capture_output=True, text=True)
    text = result.stdout + result.stderr
    assert result.returncode != 0 and "Traceback" not in text
    lines = [line for line in text.splitlines() if "wrong.yaml: " in line]
    assert len(lines) == 3, text
