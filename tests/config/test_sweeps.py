"""Sweeps: what each value trains and shares, what a wrong one is told, and the jobs of a toy study with one."""

import pytest
import yaml
from conftest import ROOT, Study, toy_config
from triptych.commands.jobs import jobs
from triptych.config.grid import Checkpoint
from triptych.config.jobs import TrainingJob, training_text
from triptych.config.study import load_study, read_study
from triptych.config.yaml_file import read_yaml
from triptych.data.questions import limited
from triptych.errors import TriptychError


@pytest.fixture
def config() -> dict:
    """The study of ablations without them: 30,000 general images, LoRA of rank 16."""
    found = yaml.safe_load((ROOT / "config/ablations.yaml").read_text())
    del found["ablations"]
    return found


def with_sweeps(config: dict, text: str):
    return load_study({**config, "sweeps": yaml.safe_load(text)}, "study.yaml")


WAYS = {
    "n: {setting: stages.1.max_samples, values: [3000, 0, 30000]}": {
        0: ["2", "2-3"], 3000: ["1+n-3000", "1+n-3000-2", "1+n-3000-2-3"], 30000: ["1", "1-2", "1-2-3"],
    },
    "n: {setting: stages.2.fraction, also: [stages.3.fraction], values: [0.3, 1]}": {
        0.3: ["1", "1-2+n-0.3", "1-2+n-0.3-3"], 1: ["1", "1-2", "1-2-3"],
    },
    "n: {setting: lora.rank, values: [4, 16], schedule: [1, 3]}": {4: ["1", "1-3+n-4"], 16: ["1", "1-3"]},
    "n: {setting: connector.pool, values: [1, 2]}": {
        1: ["1", "1-2", "1-2-3"], 2: ["1+n-2", "1+n-2-2", "1+n-2-2-3"],
    },
    "n: {setting: stages.2.learning_rate.connector, values: [1.0e-5, 5.0e-4]}": {
        1e-5: ["1", "1-2+n-1e-05", "1-2+n-1e-05-3"], 5e-4: ["1", "1-2", "1-2-3"],
    },
}  # fmt: skip


@pytest.mark.parametrize(("text", "ways"), WAYS.items())
def test_every_value_trains_its_own_and_shares_the_rest(config, text, ways):
    grid = with_sweeps(config, text).grid
    assert grid.schedules == ["1-2-3", "2-3"]
    assert {value: [*grid.prefixes[arm].before, arm] for value, arm in grid.sweeps["n"].items()} == ways
    assert list(grid.sweeps["n"]) == sorted(ways)
    plain = set(load_study(config).grid.prefixes)
    assert set(grid.prefixes) == plain.union(*ways.values())
    assert grid.main_prefixes == [prefix for prefix in grid.prefixes if prefix in plain]
    assert grid.swept == [way[-1] for _, way in sorted(ways.items()) if way[-1] not in ("1-2-3", "2-3")]


def test_nothing_of_the_study_itself_changes(config):
    plain, swept = load_study(config), with_sweeps(config, next(iter(WAYS)))
    assert set(plain.grid.checkpoints) < set(swept.grid.checkpoints)
    assert all(training_text(plain, cell) == training_text(swept, cell) for cell in plain.grid.checkpoints)
    assert plain.grid.representations.keys() == swept.grid.representations.keys()
    assert plain.grid.compared == swept.grid.compared and plain.grid.lineage == swept.grid.lineage
    assert "fraction" not in training_text(plain, plain.grid.checkpoints[0]) and "sweeps" not in plain.text()


def test_rank_takes_alpha_along_unless_rslora_does(config):
    def lora(arm):
        return TrainingJob.of(study, Checkpoint(arm, "fold0", 0)).lora

    study = with_sweeps(config, "n: {setting: lora.rank, values: [4, 16]}")
    assert (lora("1-2-3+n-4").rank, lora("1-2-3+n-4").alpha) == (4, 8)
    config["lora"]["use_rslora"] = True
    study = with_sweeps(config, "n: {setting: lora.rank, values: [4, 16]}")
    assert (lora("1-2-3+n-4").rank, lora("1-2-3+n-4").alpha) == (4, 32)


def test_sweeps_share_values_with_each_other_and_with_ablations(config):
    config["ablations"] = {"small": {"lora": {"rank": 4, "alpha": 8}}}
    grid = with_sweeps(
        config, "{a: {setting: lora.rank, values: [4, 8]}, b: {setting: lora.rank, values: [8, 16]}}"
    ).grid
    assert grid.sweeps == {"a": {4: "1-2-3+small", 8: "1-2-3+a-8"}, "b": {8: "1-2-3+a-8", 16: "1-2-3"}}
    assert grid.swept == ["1-2-3+a-8"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{setting: lora.rnk, values: [1, 2]}", "'lora.rnk' is not a known setting: there is no rnk; did you mean"),
        ("{setting: stages.9.epochs, values: [1, 2]}", "'stages.9.epochs' is not a known setting: there is no 9"),
        ("{setting: lora.rank.r, values: [1, 2]}", "'lora.rank.r' is not a known setting: there is no r"),
        ("{setting: training.precision, values: [1, 2]}", "is not below models, connector, lora, stages; name"),
        ("{setting: lora, values: [1, 2]}", "'lora' is a section; name one of its settings"),
        ("{setting: lora.rank, also: [lora.alhpa], values: [1, 2]}", "there is no alhpa; did you mean 'alpha'?"),
        ("{setting: lora.rank, values: [2.5, 4]}", ".values: 2.5 is not possible: lora.rank: must be a whole number"),
        ("{setting: stages.2.fraction, values: [0.1, 1.5]}", ".values: 1.5 is not possible: stages.2.fraction:"),
        ("{setting: lora.use_dora, values: [1, 2]}", ".values: 1 is not possible: lora.use_dora: must be true"),
        ("{setting: lora.rank, values: [4, many]}", ".values.1: must be a number, not the text 'many'"),
        ("{setting: lora.rank, values: [4, true]}", ".values.1: must be a number, not true"),
        ("{setting: lora.rank, values: [4, -1]}", ".values.1: "),
        ("{setting: lora.rank, values: [4]}", ".values: must have at least 2 entries"),
        ("{setting: lora.rank, values: [4, 4]}", ".values: an entry occurs twice"),
        ("{setting: lora.rank, values: [4, 8], schedule: [7]}", ".schedule: '7', which is not under stages"),
        ("{setting: lora.rank, values: [4, 8], schedule: [1]}", "must end on a stage that uses medical"),
        ("{setting: lora.rank, values: [4, 8], schedule: [2]}", "values 4 and 8 train the same, '2'; remove one"),
        ("{setting: stages.1.max_samples, values: [30000, 90000]}", "values 30000 and 90000 train the same, '1-2-3'"),
        ("{setting: stages.3.fraction, values: [0, 1], schedule: [3]}", ".values: 0 leaves no stage of the schedule"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_told_where_and_what(config, text, line):
    with pytest.raises(TriptychError) as caught:
        with_sweeps(config, f"x: {text}")
    faults = str(caught.value).splitlines()
    assert all(fault.startswith("study.yaml: sweeps.x") for fault in faults) and line in faults[0]


@pytest.mark.parametrize("name", ["x", "x-4"])
def test_a_sweep_has_no_name_of_an_ablation(config, name):
    config["ablations"] = {name: {"lora": {"rank": 5}}}
    with pytest.raises(TriptychError, match=f"sweeps.x: '{name}' is the name of an ablation, too; rename one"):
        with_sweeps(config, "x: {setting: lora.rank, values: [4, 8]}")


def test_two_sweeps_of_one_name_are_an_error(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("sweeps:\n  x: {setting: lora.rank, values: [4, 8]}\n  x: {setting: lora.alpha, values: [4, 8]}\n")
    _, [fault] = read_yaml(file)
    assert "sweeps.x: stands there twice, in lines 2 and 3" in fault


def test_a_smaller_fraction_is_part_of_a_larger_one(config):
    stage = load_study(config).settings.stages["2"]
    rows = [{"image_id": f"i{number // 3}", "question_id": f"q{number}"} for number in range(90)]
    found = []
    for fraction in (0.001, 0.1, 0.3, 1.0):
        limit = stage.model_copy(update={"fraction": fraction}).most_samples(len(rows))
        found.append({row["question_id"] for row in limited(rows, limit, seed=1)})
    assert [len(part) for part in found] == [1, 9, 27, 90]
    assert found[0] < found[1] < found[2] < found[3]
    assert stage.model_copy(update={"fraction": 0.5, "max_samples": 20}).most_samples(90) == 20


def test_the_sweeps_of_the_study_of_ablations_can_be_switched_on():
    text = (ROOT / "config/ablations.yaml").read_text()
    start = text.index("# sweeps:")
    shown = text[start : text.index("\n\n", start)].replace("\n# ", "\n").removeprefix("# ")
    found = load_study({**yaml.safe_load(text), **yaml.safe_load(shown)}).grid
    assert found.sweeps["captions"][0] == "2-3" and found.sweeps["captions"][30000] == "1-2-3"
    assert found.sweeps["ranks"] == {4: "1-2-3+rank-4", 16: "1-2-3", 64: "1-2-3+rank-64"}, "those of the ablations"
    assert found.sweeps["pooling"] == {1: "1-2-3", 2: "1+tokens-144-2-3", 4: "1+tokens-36-2-3"}


def test_a_toy_study_plans_the_jobs_of_its_sweeps(world, tmp_path):
    config = toy_config(world) | {"wandb": {"mode": "disabled"}}
    config["sweeps"] = {"n": {"setting": "stages.1.max_samples", "values": [0, 4, 8, 24]}}
    study = Study(tmp_path, config)
    planned = study.planned()
    # Beside 1-2-3 and 2-3 of two folds: for 4 and 8, stage 1 once and two stages of two folds.
    assert planned["train_stage"] == (1 + 4 + 4) + 2 * (1 + 4) and planned["tabulate_scaling"] == 1
    assert (planned["predict"], planned["predict_view"]) == (2 * 2, 2 * 2), "of sweeps, held-out questions alone"
    counted = [job.rule for job in jobs(read_study(study.folder / "study.yaml"))]
    assert {rule: counted.count(rule) for rule in set(counted)} == {rule: planned[rule] for rule in set(counted)}
