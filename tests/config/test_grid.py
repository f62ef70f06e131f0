"""The grid: prefixes are shared, parents are found, splits are right."""

import pytest
from triptych.config import jobs
from triptych.config.grid import Checkpoint
from triptych.config.paths import STEPS
from triptych.config.study import load_study
from triptych.config.wildcards import EACH, trainings_to_come


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


def test_the_chain_behind_a_training_is_counted_by_its_longest_way(demo_config):
    def lengths(config):
        grid = load_study(config).grid
        return {prefix: trainings_to_come(grid, prefix) for prefix in grid.prefixes}

    assert lengths(demo_config) == {"1": 3, "2": 2, "1-2": 2, "1-2-3": 1, "2-3": 1}
    others = lengths(demo_config | {"schedules": [[2, 3], [1, 2], [3]]})
    assert others == {"1": 2, "2": 2, "3": 1, "2-3": 1, "1-2": 1}


@pytest.fixture
def drawn(demo_config):
    """The demonstration with a draw of stage 1 for each fold, two seeds, and a leak study."""
    demo_config["folds"]["shared_stages"] = "per-fold"
    demo_config["evaluation"] |= {"leak": {"groups": ["row", "subject"], "schedules": ["1-2-3"]}}
    return load_study(demo_config | {"seeds": [0, 1]})


def test_shared_stages_can_be_drawn_for_each_fold(study, drawn):
    found = drawn.grid.checkpoints
    assert len(found) == len(set(found)) == 2 * 15, "instead of 13 a seed"
    assert drawn.grid.splits("1") == ["shared-fold0", "shared-fold1", "shared-fold2"]
    assert drawn.grid.splits("2") == drawn.grid.splits("1-2-3") == study.grid.folds
    assert drawn.grid.parent(Checkpoint("1", "shared-fold1", 1)) is None
    assert drawn.grid.parent(Checkpoint("1-2", "fold1", 1)) == Checkpoint("1", "shared-fold1", 1)
    assert drawn.grid.parent(Checkpoint("1-2-3", "fold1", 1)) == Checkpoint("1-2", "fold1", 1)
    assert drawn.grid.shared_prefixes == study.grid.shared_prefixes == ["1"]
    assert study.grid.drawn_once == {"1-2-3": "1"} and drawn.grid.drawn_once == {}
    assert drawn.grid.reference("1-2-3") == "1"


def test_folds_of_every_kind_start_from_the_draw_of_their_number(drawn):
    grid = drawn.grid
    assert {cell.split for cell in grid.leak_checkpoints} == {"row-fold0", "row-fold1", "row-fold2"}
    assert {cell.prefix for cell in grid.leak_checkpoints} == {"1-2", "1-2-3"}, "and no further draw of stage 1"
    assert grid.parent(Checkpoint("1-2", "row-fold2", 0)) == Checkpoint("1", "shared-fold2", 0)
    assert all(grid.parent(cell) in {*grid.trainings, None} for cell in grid.trainings)


def test_two_shared_stages_are_one_chain_for_each_fold(demo_config):
    demo_config["stages"]["1b"] = demo_config["stages"][1]
    demo_config["schedules"] = [[1, "1b", 2], [2]]
    demo_config["folds"]["shared_stages"] = "per-fold"
    grid = load_study(demo_config).grid
    assert grid.parent(Checkpoint("1-1b", "shared-fold1", 0)) == Checkpoint("1", "shared-fold1", 0)
    assert grid.parent(Checkpoint("1-1b-2", "fold1", 0)) == Checkpoint("1-1b", "shared-fold1", 0)


def test_how_often_shared_stages_are_drawn_cuts_no_fold_again_and_once_is_not_recorded(demo_config):
    once = load_study(demo_config)
    said = load_study({**demo_config, "folds": {**demo_config["folds"], "shared_stages": "once"}})
    per_fold = load_study({**demo_config, "folds": {**demo_config["folds"], "shared_stages": "per-fold"}})
    assert jobs.folds_text(once) == jobs.folds_text(said) == jobs.folds_text(per_fold)
    assert "shared_stages" not in once.settings.folds.model_dump() | said.settings.folds.model_dump()
    assert said.grid.checkpoints == once.grid.checkpoints
    cell = Checkpoint("2-3", "fold1", 0)
    assert jobs.training_text(once, cell) == jobs.training_text(per_fold, cell), "the other schedule stays"
    assert "per-fold" in per_fold.text()
    captions = [list(EACH["captions"](study)) for study in (once, per_fold)]
    paths = [[STEPS["predict_captions"].outputs(cell)[0] for cell in cells] for cells in captions]
    assert paths[0] == ["predictions/1/shared/seed0.parquet"]
    assert paths[1] == [f"predictions/1/shared-fold{fold}/seed0.parquet" for fold in range(3)]
    logs = {STEPS["predict_captions"].log.format(**cell) for cells in captions for cell in cells}
    assert logs == {"logs/predict_captions/1/seed0.log"} | {
        f"logs/predict_captions/1/seed0-fold{fold}.log" for fold in range(3)
    }


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
