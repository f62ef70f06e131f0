"""The grid: prefixes are shared, parents are found, splits are right."""

import pytest
from triptych.config.grid import Checkpoint
from triptych.config.study import load_study


@pytest.fixture
def study(demo_config):
    return load_study(demo_config)


def test_two_schedules_on_three_folds_need_thirteen_trainings(study):
    found = study.grid.checkpoints
    assert len(found) == len(set(found)) == 13
    by_prefix = {prefix: sum(cell.prefix == prefix for cell in found) for prefix in study.grid.prefixes}
    assert by_prefix == {"1": 1, "2": 3, "1-2": 3, "2-3": 3, "1-2-3": 3}


def test_parents_come_before_children_and_belong_to_the_grid(study):
    found = study.grid.checkpoints
    for position, cell in enumerate(found):
        parent = study.grid.parent(cell)
        assert parent is None or parent in found[:position]


def test_a_fold_starts_from_the_shared_checkpoint_then_from_its_own(study):
    assert study.grid.parent(Checkpoint("1", "shared", 0)) is None
    assert study.grid.parent(Checkpoint("1-2", "fold1", 0)) == Checkpoint("1", "shared", 0)
    assert study.grid.parent(Checkpoint("1-2-3", "fold1", 0)) == Checkpoint("1-2", "fold1", 0)
    assert study.grid.parent(Checkpoint("2", "fold1", 0)) is None


def test_stage_names_are_free(demo_config):
    demo_config["datasets"]["general-10k"] = {"source": "openmoji", "sizes": [10000]}
    demo_config["stages"]["1-10k"] = {**demo_config["stages"][1], "data": "general-10k-10000"}
    demo_config["schedules"].append(["1-10k", 2, 3])
    study = load_study(demo_config)
    assert study.grid.prefixes["1-10k-2"].stages == ("1-10k", "2")
    assert study.grid.last_stage("1-10k-2-3") == "3"
    assert study.grid.parent(Checkpoint("1-10k-2", "fold0", 0)) == Checkpoint("1-10k", "shared", 0)


def test_seeds_multiply_everything(demo_config):
    demo_config["seeds"] = [0, 1, 2]
    assert len(load_study(demo_config).grid.checkpoints) == 39


def test_probes_are_compared_with_the_checkpoint_before_medical_data_else_with_a_random_connector(demo_config):
    demo_config["stages"] |= dict.fromkeys(("1b", "1c"), demo_config["stages"][1])
    demo_config["schedules"] += [[1, "1c", 2], ["1b", 2]]
    demo_config["ablations"] = {
        "linear": {"connector": {"kind": "linear"}},
        "slow": {"stages": {2: {"max_samples": 50}}},
    }
    study = load_study(demo_config)
    expected = {"1-2": "1", "1-2-3": "1", "1-1c-2": "1-1c", "1b-2": "1b", "2-3": "random-connector", "1-1c": "1"}
    expected |= {"1": "random-connector", "random-connector": None, "pre-projection": None}
    expected |= {"1-2+slow-3": "1", "1+linear-2": "1+linear", "1+linear": None}  # the random one is no linear one
    assert {name: study.grid.reference(name) for name in expected} == expected
