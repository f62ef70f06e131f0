"""A configuration says what its author wrote: keys that stand twice, values of another type, variables that differ."""

import json
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from snakemake.cli import parse_config
from snakemake.utils import update_config
from triptych.commands import status
from triptych.config import arms, paths
from triptych.config.study import load_study, read_study
from triptych.config.yaml_file import read_yaml, with_types
from triptych.errors import TriptychError, run_step


def faults(config) -> list[str]:
    with pytest.raises(TriptychError) as caught:
        load_study(config, "study.yaml")
    return [line.removeprefix("study.yaml: ") for line in str(caught.value).splitlines()]


def put(config: dict, place: str, value) -> dict:
    """The configuration with another value at a place such as `stages.1.train`."""
    *way, last = place.split(".")
    node = config
    for key in way:
        node = node[int(key) if key.isdigit() else key]
    node[last] = value
    return config


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "study.yaml"

    return write


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("seeds: [0]\nlora: {}\nseeds: [1]\n", ["seeds: stands there twice, in lines 1 and 3; drop one"]),
        ("a:\n  b:\n    c: 1\n    c: 2\n", ["a.b.c: stands there twice, in lines 3 and 4; drop one"]),
        ("a: {b: 1, 'b': 2}\n", ["a.b: stands there twice, in lines 1 and 1; drop one"]),
        ("1: {}\n'1': {}\n", ["1: stands there twice, in lines 1 and 2; drop one"]),
        ("a:\n- b: 1\n  b: 2\n", ["a.0.b: stands there twice, in lines 2 and 3; drop one"]),
        ("a: 1\na: 2\na: 3\n", [f"a: stands there twice, in lines 1 and {line}; drop one" for line in (2, 3)]),
        ('{\n\t"a": 1e-4,\n\t"a": {"b": 1, "b": 2}}', ["a: stands", "a.b: stands"]),
        ("010: {}\n", ["8: line 1: YAML reads 010 as 8; write 8, or '010' for a text"]),
        ("a: [1:30, 08, 0o7, 0, 1_000, '010', 0.5]\n", ["a.0: line 1: YAML reads 1:30 as 90; write 90, or '1:30' for"]),
        # A key that is merged in may be written beside it; one that is written twice there is a fault once.
        ("x: &x {b: 1, c: 2}\ny:\n  <<: *x\n  b: 3\nz: *x\n", []),
        ("x: &x {b: 1, b: 2}\ny: {<<: *x}\nz: *x\n", ["x.b: stands there twice, in lines 1 and 1; drop one"]),
        ("", []),
    ],
)
def test_keys_that_stand_twice_are_named_with_their_lines(written, text, lines):
    found = read_yaml(written(text))[1]
    assert len(found) == len(lines) and all(map(str.startswith, found, lines)), found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &a {b: *a}\n", "not valid YAML: line 1: the value of a.b holds itself"),
        ("[" * 5000, "not a configuration: its values are nested too deep"),
        ("a: 2026-13-45\n", "not valid YAML: month must be in 1..12"),
    ],
)
def test_what_is_no_configuration_is_one_line(written, text, line):
    with pytest.raises(TriptychError) as caught:
        read_study(written(text))
    assert str(caught.value).endswith(f"study.yaml: {line}")


def test_json_is_read_as_snakemake_reads_it(written):
    text = json.dumps({"a": 1e-4, "b": "é\t"}, indent="\t")
    assert read_yaml(written(text)) == ({"a": 1e-4, "b": "é\t"}, [])


def test_snakemake_and_commands_name_a_key_that_stands_twice(written, config, tmp_path, monkeypatch):
    file = written(yaml.safe_dump(config) + "seeds: [0, 1, 2]\ntrainin: {}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run_step(lambda: status.main(["--configfile", str(file)]))
    lines = str(caught.value).removeprefix("error: ").splitlines()
    first = yaml.safe_dump(config).splitlines().index("seeds:") + 1
    last = len(file.read_text().splitlines()) - 1
    assert lines == [
        f"study.yaml: seeds: stands there twice, in lines {first} and {last}; drop one",
        "study.yaml: trainin: not a known setting; did you mean 'training'?",
    ]
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--snakefile", str(ROOT / "Snakefile")]
    done = subprocess.run([*command, "--configfile", str(file)], cwd=tmp_path, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in text and all(line in text for line in lines), text


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("seeds", [True], "seeds.0: must be a whole number, not true, as which YAML reads yes and on, too"),
        ("seeds", [1.0], "seeds.0: must be a whole number, not 1.0; write 1"),
        ("seeds", ["3"], "seeds.0: must be a whole number, not the text '3'; write a number without quotes, such as 3"),
        ("seeds", ["1e3"], "seeds.0: must be a whole number, not the text '1e3'; write a number without quotes, such"),
        ("seeds", [2**63], "seeds.0: must be less than 9223372036854775808, not 9223372036854775808"),
        ("stages.1.epochs", float("nan"), "stages.1.epochs: must be a whole number, not nan"),
        ("stages.1.weight_decay", True, "stages.1.weight_decay: must be a number, not true, as which YAML reads yes"),
        ("stages.1.weight_decay", "0.1", "stages.1.weight_decay: must be a number, not the text '0.1'; write a number"),
        ("stages.1.weight_decay", float("inf"), "stages.1.weight_decay: must be a finite number, not inf"),
        ("stages.1.weight_decay", "1e999", "stages.1.weight_decay: must be a finite number, not inf"),
        ("stages.1.learning_rate", {"connector": float("nan")}, "stages.1.learning_rate.connector: must be a finite"),
        ("stages.1.blind", "yes", "stages.1.blind: must be true or false, not 'yes'"),
        ("stages.1.blind", 0, "stages.1.blind: must be true or false, not 0"),
        ("stages.1.data", True, "stages.1.data: must be text, not true, as which YAML reads yes and on, too; put"),
        ("wandb", {"entity": False}, "wandb.entity: must be text, not false, as which YAML reads no and off, too; put"),
        ("wandb", {"project": 7}, "wandb.project: must be text; put it in quotes: '7'"),
        ("wandb", {"project": "slake/llava"}, "wandb.project: must not hold '/': Weights & Biases refuses"),
        ("wandb", {"entity": "a#b"}, "wandb.entity: must not hold '#': Weights & Biases refuses the characters"),
        ("wandb", {"project": "x" * 129}, "wandb.project: has 129 characters; Weights & Biases allows 128"),
        ("plan", {"tflops": float("inf")}, "plan.tflops: must be a finite number, not inf"),
        ("datasets.general.caption_length", [3, "9"], "datasets.general.caption_length.1: must be a whole number, not"),
        ("ablations", {"x": {"lora": {"dropout": float("nan")}}}, "ablations.x.lora.dropout: must be a finite number"),
        ("ablations", {"x": {"lora": {"rank": "4"}}}, "ablations.x.lora.rank: must be a whole number, not the text"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_one_line(demo_config, place, value, line):
    found = faults(put(demo_config, place, value))
    assert len(found) == 1 and found[0].startswith(line), found


def test_numbers_with_an_exponent_are_numbers_wherever_a_number_stands(demo_config):
    demo_config["stages"][1]["weight_decay"] = yaml.safe_load("1e-3")
    demo_config["stages"][3]["warmup_ratio"] = {"connector": yaml.safe_load("+1E-1"), "lora": 0}
    demo_config["ablations"] = {"x": {"lora": {"dropout": yaml.safe_load("2.e-1")}}}
    settings = load_study(demo_config).settings
    assert settings.stages["1"].weight_decay == 1e-3 and settings.stages["3"].of("warmup_ratio", "connector") == 0.1
    assert isinstance(demo_config["stages"][1]["weight_decay"], str), "in YAML 1.1 it is a text"


def test_a_variable_that_differs_from_a_setting_is_told_with_what_is_used(demo_config, monkeypatch, capsys, tmp_path):
    for name in ("TRIPTYCH_CACHE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    load_study(demo_config | {"cache": "here", "wandb": {"project": "a"}}, "study.yaml")
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("WANDB_PROJECT", "b")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    load_study(demo_config | {"cache": "here"}, "study.yaml")
    assert capsys.readouterr().err == "", "the same folder, and what is not set is in no variable's way"
    load_study(demo_config | {"cache": "there", "wandb": {"project": "a"}}, "study.yaml")
    assert capsys.readouterr().err.splitlines() == [
        f"study.yaml: cache: TRIPTYCH_CACHE takes precedence: {tmp_path / 'here'} is used, not there",
        "study.yaml: wandb.project: takes precedence over WANDB_PROJECT: a is used, not b",
    ]


def with_stages(config: dict, *names: str) -> dict:
    """The demonstration with one schedule more, whose stages are like the second one."""
    config["stages"] |= dict.fromkeys(names, config["stages"][2])
    config["schedules"].append(list(names))
    return config


@pytest.mark.parametrize("name", list(arms.reserved_names()))
def test_no_schedule_has_the_name_of_what_is_not_trained(demo_config, name):
    what = arms.reserved_names()[name]
    line = f"schedules: '{name}' is the name of {what}, too; rename a stage"
    parts = name.split("-")
    for names in {(name,), tuple(parts), (parts[0], "-".join(parts[1:]))} - {(parts[0], "")}:
        config = with_stages({**demo_config, "stages": dict(demo_config["stages"]), "schedules": [[2, 3]]}, *names)
        assert line in faults(config)


def test_the_primary_comparison_is_with_another_schedule_of_the_study(demo_config):
    first, second, *_ = load_study(demo_config).grid.schedules
    for wrong in (first, "2-4", "majority"):
        [line] = faults({**demo_config, "evaluation": {**demo_config.get("evaluation", {}), "primary": wrong}})
        assert line.startswith(f"evaluation.primary: '{wrong}' is not compared with the first schedule; name one of")
        assert second in line
    more = {**demo_config, "ablations": {"slow": {"stages": {2: {"epochs": 3}}}}}
    slow = load_study(more).grid.schedules[-1]
    chosen = load_study({**more, "evaluation": {**demo_config.get("evaluation", {}), "primary": slow}}).grid
    assert load_study(more).grid.compared == chosen.schedules, "null: the second"
    assert chosen.compared == [first, slow, *chosen.schedules[1:-1]]
    assert chosen.drawn_once[first] == "1" and second not in chosen.drawn_once


def test_a_new_baseline_or_result_is_reserved_at_once(demo_config, monkeypatch):
    load_study(with_stages(demo_config, "guess"))
    monkeypatch.setitem(arms.BASELINES, "guess", arms.Baseline("module:name"))
    assert faults(demo_config) == ["schedules: 'guess' is the name of a baseline, too; rename a stage"]
    monkeypatch.delitem(arms.BASELINES, "guess")
    demo_config["datasets"]["card.md"] = {"source": "embedded-medical"}
    load_study(demo_config)
    monkeypatch.setattr(paths, "CARD", "data/card.md", raising=False)
    assert faults(demo_config) == [
        "datasets.card.md: a file or folder of the results has this name; rename the data set"
    ]


@pytest.mark.parametrize("name", ["audit.json", "audit.md", "shards"])
def test_no_data_set_has_the_name_of_another_result(demo_config, name):
    demo_config["datasets"][name] = {"source": "embedded-medical"}
    assert faults(demo_config) == [
        f"datasets.{name}: a file or folder of the results has this name; rename the data set"
    ]


def test_names_too_long_for_a_file_are_told_with_the_settings(demo_config):
    long = "x" * 160
    load_study({**demo_config, "datasets": demo_config["datasets"] | {long: {"source": "embedded-medical"}}})
    config = {**demo_config, "datasets": demo_config["datasets"] | {long + "x": {"source": "embedded-medical"}}}
    rest = f"datasets: '{'x' * 40}...' is a name of 161 letters, and 160 are the most of a file's; shorten the names"
    assert faults(config) == [f"{rest} that it is made of"]
    [line] = faults(with_stages(demo_config, *("y" * 40 + str(number) for number in range(4))))
    assert line.startswith(f"schedules: '{'y' * 40}...' is a name of 167 letters")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("[0, 1, 2]", [0, 1, 2]),
        ("{threads: 2, compile: always}", {"threads": 2, "compile": "always", "processes": 1}),
        ("{limit: null, save_minutes: 0.5}", {"limit": None, "save_minutes": 0.5, "processes": 1}),
        ("1-2-3", "1-2-3"),
        ("[a, 'b c']", ["a", "b c"]),
    ],
)
def test_values_of_the_command_line_have_the_types_that_they_have_in_a_file(given, wanted):
    said = parse_config([f"key={given}", "yes_retrain=true"])
    before = {"key": {"processes": 1} if isinstance(wanted, dict) else None, "other": "3"}
    merged = {**before, "key": {**before["key"], **said["key"]} if isinstance(wanted, dict) else said["key"]}
    assert with_types(merged, said) == {"key": wanted, "other": "3"}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("stages={1: {epochs: 3}}", {1: {"data": "a", "epochs": 3}, "2long": {"epochs": 12}}),
        ("stages={2long: {epochs: 4}, 1: {data: b}}", {1: {"data": "b", "epochs": 1}, "2long": {"epochs": 4}}),
        ("stages={2: {epochs: 4}}", {1: {"data": "a", "epochs": 1}, "2long": {"epochs": 12}, "2": {"epochs": 4}}),
        (
            "stages={1: {learning_rate: {lora: 0.1}}}",
            {1: {"data": "a", "epochs": 1, "learning_rate": {"lora": 0.1}}, "2long": {"epochs": 12}},
        ),
    ],
)
def test_numbered_stages_of_the_command_line_are_those_of_the_file(said, wanted):
    """Snakemake reads the key 1 of `--config` as a text, and would put a second stage beside the file's."""
    config, given = {"stages": {1: {"data": "a", "epochs": 1}, "2long": {"epochs": 12}}}, parse_config([said])
    update_config(config, given)
    typed = with_types(config, given)
    assert typed == {"stages": wanted} and list(typed["stages"]) == list(wanted)


def test_mappings_in_lists_of_the_command_line_have_types():
    given = parse_config(["key=[{a: 1}, {b: [2, c]}]"])
    assert with_types(dict(given), given) == {"key": [{"a": 1}, {"b": [2, "c"]}]}


def test_a_value_of_the_command_line_that_is_nested_too_deeply_stays_a_text():
    deep = "[" * 5000
    assert with_types({"key": deep}, {"key": deep}) == {"key": deep}
