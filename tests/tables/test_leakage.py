"""The leak study: what folds that cut images add, on known answers and by the step itself."""

import pytest
from conftest import toy_config
from triptych.config.grid import Checkpoint, folds_name
from triptych.config.study import load_study
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import TriptychError
from triptych.tables.format import rows_of
from triptych.tables.leakage import shown, summarise

SPLITS = {"row": ["row-fold0", "row-fold1"], "image": ["fold0", "fold1"]}


def answer(question, split, right, seed=0):
    row = dict.fromkeys(RECORD_SCHEMA.names, "")
    said = {"gold": "liver", "prediction": "liver" if right else "lung", "answer_type": "OPEN"}
    asked = {"question_id": f"q{question}", "group": f"g{question // 2}"}
    return {**row, **said, **asked, "arm": "2-3", "view": "held-out", "split": split, "seed": seed}


def answers(rights, kind, seed=0):
    return [answer(place, SPLITS[kind][place % 2], right, seed) for place, right in enumerate(rights)]


def test_inflation_is_the_mean_difference_on_the_same_questions():
    records = answers([1, 1, 1, 1, 1, 0, 1, 1], "row") + answers([1, 0, 1, 0, 1, 0, 0, 1], "image")
    row, image = rows_of(summarise(records, SPLITS))
    assert (row["folds_by"], image["folds_by"]) == ("row", "image")
    assert row["mean"] == pytest.approx(100 * 7 / 8) and image["mean"] == pytest.approx(50)
    assert row["inflation"] == pytest.approx(37.5) and row["low"] < 37.5 < row["high"]
    assert image["inflation"] is None
    assert row["questions"] == 8 and row["folds"] == 2 and row["seeds"] == 1


def test_seeds_are_averaged_question_by_question():
    records = answers([1] * 8, "row", 0) + answers([0] * 8, "row", 1) + answers([0] * 8, "image", 0)
    row, _ = rows_of(summarise(records + answers([0] * 8, "image", 1), SPLITS))
    assert row["inflation"] == pytest.approx(50)


def test_equal_differences_have_no_interval():
    table = summarise(answers([1] * 8, "row") + answers([0] * 8, "image"), SPLITS)
    assert (rows_of(table)[0]["low"], rows_of(table)[0]["high"]) == (None, None)
    assert shown(table).iloc[0, -1] == "+100.0"


def test_what_is_not_trained_has_runs_of_folds_and_no_seeds():
    records = answers([1] * 8, "row", None) + answers([0] * 8, "image", None)
    row, image = rows_of(summarise(records, SPLITS))
    assert (row["runs"], row["folds"], row["seeds"], row["sd"]) == (2, 2, 0, 0)
    assert row["inflation"] == pytest.approx(100) and image["mean"] == 0


def test_arms_that_answered_other_questions_are_refused():
    records = answers([1] * 8, "row") + answers([1] * 6, "image")
    with pytest.raises(TriptychError, match="2-3 answered different questions on folds of different kinds"):
        summarise(records, SPLITS)


def test_the_grid_trains_the_named_schedules_on_the_other_kinds_of_folds(world):
    config = toy_config(world)
    config["folds"]["group"] = "image"
    config["evaluation"]["leak"] = {"groups": ["row", "image"], "schedules": ["2-3"]}
    study = load_study(config)
    assert study.grid.leak_splits == SPLITS
    trained = {(cell.prefix, cell.split) for cell in study.grid.leak_checkpoints}
    assert trained == {(prefix, f"row-fold{fold}") for prefix in ("2", "2-3") for fold in (0, 1)}
    assert not trained & {(cell.prefix, cell.split) for cell in study.grid.checkpoints}
    assert study.grid.parent(Checkpoint("2-3", "row-fold1", 0)) == Checkpoint("2", "row-fold1", 0)
    assert [folds_name(split) for split in ("fold0", "row-fold0", "near-duplicate-cluster-fold2")] == [
        "folds",
        "folds-row",
        "folds-near-duplicate-cluster",
    ]


def test_a_schedule_of_the_leak_study_must_be_one_of_the_study(world):
    config = toy_config(world)
    config["evaluation"]["leak"] = {"schedules": ["2-4"]}
    with pytest.raises(TriptychError, match=r"evaluation\.leak\.schedules: '2-4', which is not under schedules"):
        load_study(config)
