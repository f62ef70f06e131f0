"""Captions: own ones are scored beside another image's."""

import pytest
from triptych.tables.captions import COLUMNS, shown, summarise, with_others
from triptych.tables.format import rows_of


def record(number, prediction, seed=0):
    gold = f"a photograph of thing{number}"
    run = {"arm": "1", "split": "shared", "seed": seed}
    return {**run, "question_id": str(number), "gold": gold, "prediction": prediction, "answer_type": "OPEN"}


def test_right_captions_are_worth_more_than_their_style():
    right = [record(number, f"a photograph of thing{number}", seed) for number in range(6) for seed in (0, 1)]
    [row] = rows_of(summarise(right))
    assert row["captions"] == 6 and row["seeds"] == 2
    assert row["rouge_l_own_mean"] == row["token_f1_own_mean"] == 100 and row["rouge_l_own_sd"] == 0
    assert row["rouge_l_other_mean"] == row["token_f1_other_mean"] == pytest.approx(75)  # three words of four


def test_draws_of_a_stage_for_each_fold_are_runs_of_their_own():
    rows = [
        {**record(number, f"a photograph of thing{number if fold else 9}", seed), "split": f"shared-fold{fold}"}
        for number in range(6) for seed in (0, 1) for fold in (0, 1)
    ]  # fmt: skip
    table = summarise(rows)
    [row] = rows_of(table)
    assert (row["captions"], row["folds"], row["seeds"]) == (6, 2, 2) and row["rouge_l_own_sd"] > 10
    assert shown(table)["folds x seeds"].tolist() == ["2 x 2"]
    once = summarise([record(number, "x", seed) for number in range(6) for seed in (0, 1)])
    assert list(once) == list(COLUMNS) and shown(once)["seeds"].tolist() == ["2"]


def test_a_caption_that_is_always_the_same_gains_nothing_over_another_image():
    [row] = rows_of(summarise([record(number, "a photograph of something") for number in range(6)]))
    assert row["rouge_l_own_mean"] == row["rouge_l_other_mean"]


def test_no_caption_is_compared_with_that_of_its_own_image():
    records = [record(number, "x") for number in range(20)]
    own = {row["question_id"]: row["gold"] for row in records}
    others = with_others(records)
    assert sorted(row["gold"] for row in others) == sorted(own.values())
    assert all(row["gold"] != own[row["question_id"]] for row in others)
