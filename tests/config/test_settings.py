"""A wrong configuration gives one clear line for each fault, all at once."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from settings_reference import reference
from triptych.config.settings import Settings
from triptych.config.study import load_study
from triptych.errors import TriptychError


def faults(config) -> list[str]:
    with pytest.raises(TriptychError) as caught:
        load_study(config, "study.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("study.yaml: ") for line in lines)
    return [line.removeprefix("study.yaml: ") for line in lines]


@pytest.mark.parametrize("name", ["config", "demo", "original", "slake-cpu", "ablations"])
def test_shipped_configurations_are_valid(name):
    settings = load_study(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())).settings
    assert ["1", "2", "3"] in settings.schedules and ["2", "3"] in settings.schedules


def test_the_page_of_settings_names_each():
    page = reference()
    schema = Settings.model_json_schema(by_alias=False)
    for name, model in [("Settings", schema), *schema["$defs"].items()]:
        for key in model.get("properties", {}):
            # Of Models, each key is a section; `source` heads one for each of its values.
            assert f"| `{key}` |" in page or f"`models.{key}`" in page or key == "source", f"{name}.{key}"


def test_every_setting_is_described():
    schema = Settings.model_json_schema(by_alias=False)
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
        (lambda c: c["datasets"]["general"].update(siz=3), "general.siz: not a known setting; did you mean 'sizes'?"),
        (lambda c: c["stages"][1].update(data="genral-500"), "did you mean 'general-500'?"),
        (lambda c: c["stages"][3].update(learning_rate={"connector": 1e-3}), "learning_rate must name exactly"),
        (lambda c: c["stages"][3].update(train=["connector", "conector"]), "or 'vision_encoder', not 'conector'"),
        (lambda c: c.update(seeds=[0, 0]), "seeds: an entry occurs twice"),
        (lambda c: c["schedules"].append([2, 3]), "schedules: an entry occurs twice"),
        (lambda c: c["schedules"].append([2, 1]), "'2-1' must end on a stage that uses medical"),
        (lambda c: c["schedules"].append([2, 1, 3]), "'2-1-3' has a stage on other data after one on medical"),
        (lambda c: c["schedules"].append([2, 3, 3]), "'2-3-3' uses a stage twice"),
        (lambda c: c["folds"].update(dataset="general-500"), "'general-500' has captions; folds need questions"),
        (lambda c: c["stages"][1].update(data="general"), "medical); did you mean 'general-500'?"),
        (lambda c: c["datasets"]["general"].update(sizes=[5, 5]), "two have the same name once sizes are added"),
        (lambda c: c["datasets"]["general"].update(sizes=[0]), "datasets.general.sizes.0: must be greater"),
        (lambda c: c["datasets"]["general"].update(sizes=["many"]), "sizes.0: must be a whole number, or all"),
        (lambda c: c["datasets"]["general"].update(sizes=[True]), "sizes.0: must be a whole number, or all"),
        (lambda c: c["datasets"]["general"].update(sizes="all"), "must be numbers: images are composed without end"),
        (lambda c: c["folds"].update(number=1), "folds: number must be 1 with group official"),
        (lambda c: c["models"]["language_model"].update(prompt="no marks"), "<image> and {question} exactly once"),
        (lambda c: c["datasets"].update(medical={"source": "slak"}), "datasets.medical.source: must be one of"),
        (
            lambda c: c["models"].update(vision_encoder={"source": "hub", "repo": "a/b", "revision": "main"}),
            "models.vision_encoder.revision: must be a full commit id",
        ),
        (lambda c: c["models"]["language_model"].update(promt="x"), "language_model.promt: not a known setting"),
        (lambda c: c.update(seeds=[-1]), "seeds.0: must be greater than or equal to 0, not -1"),
        (lambda c: c.pop("folds"), "folds: required but missing"),
        (lambda c: c["stages"].update({"a b": c["stages"][2]}), "stages.a b: a name may hold"),
        (lambda c: c["stages"][3].pop("epochs"), "stages.3: epochs is required if anything trains"),
        (lambda c: c.update(connector={"kind": "pooled-mlp"}), "connector: pool is required for kind pooled-mlp, and"),
        (lambda c: c.update(connector={"pool": 2}), "connector: pool is required for kind pooled-mlp"),
        (lambda c: c.update(connector={"kind": "pooled-mlp", "pool": 1}), "connector.pool: must be greater than or"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(demo_config, change, line):
    change(demo_config)
    assert any(line in fault for fault in faults(demo_config)), faults(demo_config)


ONLY_LORA = {"train": ["lora"], "learning_rate": {"lora": 1e-3}}
WHOLE = {"train": ["language_model"], "learning_rate": {"language_model": 1e-5, "lora": 1e-4}}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train": [], "epochs": None}, ": learning_rate must name exactly the parts that train: none"),
        ({"train": [], "learning_rate": {}}, ": epochs must be omitted if nothing trains (train: [])"),
        ({"warmup_ratio": {"lora": 0.1}}, ": warmup_ratio must name exactly the parts that train: connector, lora"),
        ({"warmup_ratio": 1.5}, ".warmup_ratio: must be less than 1, not 1.5"),
        ({"weight_decay": {"connector": -1, "lora": 0}}, ".weight_decay.connector: must be greater than or equal to 0"),
        ({"lr_schedule": "cosin"}, ".lr_schedule: must be 'cosine', 'linear' or 'constant', not 'cosin'"),
        ({"lr_schedule": {"connector": "linear", "lra": "linear"}}, ".lr_schedule.lra: must be 'connector', 'lora',"),
        ({"select": "first"}, ".select: must be 'last' or 'best', not 'first'"),
        ({"init": "fresh"}, ".init: must be 'random' or 'parent', not 'fresh'"),
        ({"vision": {"blocks": 2}}, ": vision needs a stage that trains vision_encoder"),
        ({"vision": {"blocks": 0}}, ".vision.blocks: must be greater than 0, not 0"),
        ({"vision": {"crop": 0.5}}, ".vision.crop: must be less than or equal to 0.25, not 0.5"),
        ({"vision": {"flip": True}}, ".vision.flip: not a known setting"),
        ({"blind": True}, ": blind needs train: [lora] or [language_model], because a connector learns nothing"),
        (
            {**WHOLE, "train": ["language_model", "lora"]},
            ": train: lora and language_model cannot train together; name",
        ),
        ({**WHOLE, "optimizer": "adam"}, ".optimizer: must be 'adamw', 'adafactor' or 'adamw-8bit', not 'adam'"),
        ({"regularisation": {"weight": 1}}, ".regularisation: weight needs a kind: reconstruct or self-distillation"),
        ({"regularisation": {"wight": 1}}, ".regularisation.wight: not a known setting; did you mean 'weight'?"),
        ({**ONLY_LORA, "regularisation": {"kind": "reconstruct"}}, ": regularisation needs a stage that trains the"),
    ],
)
def test_each_mistake_in_a_stage_is_one_line(demo_config, change, line):
    demo_config["stages"][3].update(change)
    [fault] = faults(demo_config)
    assert fault.startswith(f"stages.3{line}")


def test_adapters_on_the_encoder_need_layers_images_and_frozen_weights(demo_config):
    demo_config["lora"] = {"vision_target_modules": ["q_proj"]}
    with pytest.raises(TriptychError, match=r"^config: lora\.vision_target_modules: EfficientNet-Lite0 is convolution"):
        load_study(demo_config)
    folder = {"source": "folder", "folder": "somewhere"}
    demo_config["models"]["vision_encoder"] = folder
    grid = load_study(demo_config).grid
    trained = {prefix for prefix in grid.prefixes if grid.has_trained(prefix, "vision_encoder")}
    assert trained == {"1-2-3", "2-3"} and grid.trained_parts("1-2") == "projection only"
    stages = demo_config["stages"]
    rates = {"connector": 1e-3, "vision_encoder": 1e-5}
    stages["seeing"] = {**stages[2], "train": list(rates), "learning_rate": rates}
    demo_config["schedules"] = [["seeing", 3]]
    load_study(demo_config)  # the encoder first
    demo_config["schedules"] = [[3, "seeing"]]
    with pytest.raises(
        TriptychError, match="'3-seeing' trains vision_encoder in stage seeing, which has adapters then"
    ):
        load_study(demo_config)
    stages["blind"] = {**stages[3], "train": ["lora"], "learning_rate": {"lora": 1e-4}, "blind": True}
    demo_config["schedules"] = [[2, "blind"]]
    with pytest.raises(TriptychError, match="'2-blind' trains lora in stage blind, which is blind, so that nothing"):
        load_study(demo_config)


def test_a_language_model_in_4_bits_does_not_train(demo_config):
    rates = {"language_model": 1e-5}
    demo_config["stages"]["tuned"] = {**demo_config["stages"][3], "train": list(rates), "learning_rate": rates}
    before = load_study(demo_config).grid.settings.models.language_model
    assert "quantise" not in before.model_dump(), "what is recorded of finished studies stays"
    demo_config["models"]["language_model"]["quantise"] = "nf4"
    assert load_study(demo_config).grid.settings.models.language_model.quantise == "nf4", "no schedule trains it"
    demo_config["schedules"].append([2, "tuned"])
    with pytest.raises(
        TriptychError, match=r"^config: schedules: '2-tuned' trains language_model in stage tuned, whose"
    ):
        load_study(demo_config)
    demo_config["models"]["language_model"]["quantise"] = "nf5"
    with pytest.raises(TriptychError, match=r"language_model\.quantise: must be 'nf4'"):
        load_study(demo_config)


@pytest.mark.parametrize("order", [("adapted", "tuned"), ("adapted", "frozen", "tuned")])
def test_a_language_model_does_not_train_after_lora(demo_config, order):
    own = {"data": "medical", "epochs": 1}
    demo_config["stages"] |= {
        "adapted": own | ONLY_LORA,
        "tuned": own | {"train": ["language_model"], "learning_rate": {"language_model": 1e-5}},
        "frozen": {"data": "medical", "train": []},
    }
    load_study(demo_config | {"schedules": [list(order)[::-1]]})
    [fault] = faults(demo_config | {"schedules": [list(order)]})
    label = "-".join(order)
    assert fault.startswith(f"schedules: '{label}' trains language_model in stage tuned after lora in an earlier one")
    demo_config["schedules"] = [["adapted", "frozen"]]
    change = {"train": ["language_model"], "learning_rate": {"language_model": 1e-5}, "epochs": 1}
    [fault] = faults(demo_config | {"ablations": {"x": {"stages": {"frozen": change}}}})
    assert fault.startswith("ablations.x: 'adapted-frozen' trains language_model in stage frozen after lora")


def test_settings_that_came_later_are_left_out_of_records_at_their_defaults(demo_config):
    for stage in load_study(demo_config).settings.stages.values():
        assert not {"optimizer"} & stage.model_dump().keys()
    demo_config["stages"][3]["optimizer"] = "adafactor"
    assert load_study(demo_config).settings.stages["3"].model_dump()["optimizer"] == "adafactor"


def test_numbers_that_yaml_reads_as_text_are_numbers(demo_config):
    demo_config["stages"][1]["learning_rate"]["connector"] = yaml.safe_load("2e-5")  # a string in YAML 1.1
    assert load_study(demo_config).settings.stages["1"].learning_rate["connector"] == 2e-5


def test_a_value_holds_for_all_parts_or_each_has_its_own(demo_config):
    demo_config["stages"][3]["weight_decay"] = {"connector": yaml.safe_load("1e-3"), "lora": 0}
    demo_config["stages"][3]["lr_schedule"] = "linear"
    stage = load_study(demo_config).settings.stages["3"]
    assert [stage.of("weight_decay", part) for part in ("connector", "lora")] == [1e-3, 0]
    assert [stage.of("lr_schedule", part) for part in ("connector", "lora")] == ["linear", "linear"]
    assert stage.of("warmup_ratio", "lora") == 0.03 and stage.of("learning_rate", "lora") == 2e-3


def test_a_stage_may_train_nothing(demo_config):
    demo_config["stages"][0] = {"data": "medical", "train": []}
    demo_config["schedules"].append([0, 3])
    assert load_study(demo_config).settings.stages["0"].epochs is None


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


def test_every_size_is_a_data_set_of_its_own(demo_config):
    demo_config["datasets"]["general"]["sizes"] = [10, 500]
    found = load_study(demo_config).datasets
    assert list(found) == ["general-10", "general-500", "medical"]
    assert found["general-10"].size == 10 and found["general-10"].wanted == 11
