"""Calibration and selective answering: by hand, by another way, and their invariances."""

import sys

import numpy as np
import pytest
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import TriptychError
from triptych.evaluate.calibration import (
    accepted_errors,
    accuracy_at,
    area_under_risk_coverage,
    expected_calibration_error,
)
from triptych.io.parquet import write_table
from triptych.tables import calibration
from triptych.tables.format import read_csv


def test_the_calibration_error_by_hand():
    # Two bins: 0.2 and 0.4 with one of two right, 0.9 and 0.7 and 1.0 with two of three right.
    confidence, right = [0.2, 0.9, 0.4, 0.7, 1.0], [True, True, False, False, True]
    expected = 2 / 5 * abs(0.5 - 0.3) + 3 / 5 * abs(2 / 3 - 2.6 / 3)
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(expected)
    assert expected_calibration_error([0.5], [True], bins=2) == 0.5, "a bin has its upper end"
    assert expected_calibration_error([0.5, 0.9], [True, False], bins=2) == pytest.approx((0.5 + 0.9) / 2)
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0
    assert expected_calibration_error([0.0, 1.0], [True, False]) == 1


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_the_calibration_error_is_that_of_every_bin_by_itself(bins):
    generator = np.random.default_rng(bins)
    confidence, right = generator.random(300), generator.random(300) < 0.6
    expected = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(expected)


def test_a_calibrated_model_has_an_error_that_many_answers_make_small():
    generator = np.random.default_rng(0)
    confidence = generator.random(200_000)
    assert expected_calibration_error(confidence, generator.random(200_000) < confidence) < 0.01


def test_risk_and_coverage_by_hand():
    # Most confident first: right, wrong, right, right, wrong.
    confidence, right = [0.9, 0.1, 0.8, 0.7, 0.6], [True, False, False, True, True]
    errors = accepted_errors(confidence, right)
    assert errors.tolist() == [0, 1, 1, 1, 2]
    assert [accuracy_at(share, errors) for share in (0.2, 0.4, 0.5, 0.8, 1.0)] == pytest.approx(
        [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]
    )
    assert area_under_risk_coverage(errors) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert accuracy_at(0.9, np.arange(10)) == pytest.approx(1 - 8 / 9), "nine of ten, whatever rounding says"


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_equally_confident_answers_has_no_influence(seed):
    generator = np.random.default_rng(seed)
    confidence, right = generator.integers(1, 5, 40) / 5, generator.random(40) < 0.5
    order = generator.permutation(40)
    assert accepted_errors(confidence, right) == pytest.approx(accepted_errors(confidence[order], right[order]))
    plain = []  # the mean over many orders of the ties
    for _ in range(3000):
        mixed = generator.permutation(40)
        ranked = mixed[np.argsort(-confidence[mixed], kind="stable")]
        plain.append(np.cumsum(~right[ranked]))
    assert accepted_errors(confidence, right) == pytest.approx(np.mean(plain, axis=0), abs=0.1)


def test_confidence_that_says_nothing_gives_the_share_of_wrong_answers():
    right = [True] * 3 + [False]
    errors = accepted_errors([0.7] * 4, right)
    assert area_under_risk_coverage(errors) == pytest.approx(0.25)
    assert accuracy_at(0.5, errors) == pytest.approx(0.75)
    best = area_under_risk_coverage(accepted_errors([4, 3, 2, 1], right))
    worst = area_under_risk_coverage(accepted_errors([1, 2, 3, 4], right))
    assert best < 0.25 < worst


def record(arm, number, right, confidence, split="fold0", seed=0):
    said = {"gold": "liver", "prediction": "Liver." if right else "lung", "logprob": float(np.log(confidence))}
    return {**dict.fromkeys(RECORD_SCHEMA.names), "arm": arm, "split": split, "seed": seed,
            "question_id": f"q{number}", **said}  # fmt: skip


def test_the_table_has_means_and_spreads_over_runs(tmp_path, monkeypatch):
    rows = [record("a", number, number > 0, 0.9, seed=0) for number in range(4)]
    rows += [record("a", number, True, 1.0, seed=1) for number in range(4)]
    rows += [record("b", number, False, 0.5) for number in range(4)]
    write_table(tmp_path / "answers.parquet", rows, RECORD_SCHEMA)
    told = ["--predictions", str(tmp_path / "answers.parquet"), "--schedules", "b", "a", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["calibration", *told])
    calibration.main()
    table = read_csv(tmp_path / "calibration.csv", calibration.COLUMNS).set_index("arm")
    assert table.index.tolist() == ["b", "a"] and table.loc["a", "runs"] == 2
    assert table.loc["a", "ece_mean"] == pytest.approx((15 + 0) / 2, abs=1e-3)  # 90 % sure, 75 % right
    assert table.loc["a", "ece_sd"] == pytest.approx(15 / 2**0.5, abs=1e-3)
    assert table.loc["a", "aurc_mean"] == pytest.approx((25 + 0) / 2, abs=1e-3)
    assert table.loc["b", ["confidence_mean", "accuracy_mean", "aurc_mean"]].tolist() == pytest.approx([50, 0, 100])
    page = (tmp_path / "calibration.md").read_text()
    assert "15 bins of equal width" in page and "no confidence interval" in page and "**b**" in page
    assert (tmp_path / "calibration.tex").exists()


def test_what_has_no_probability_is_named():
    rows = [record("majority", 7, True, 0.5) | {"logprob": None, "seed": None}]
    with pytest.raises(TriptychError, match="majority has no log-probability of its answer to question q7"):
        calibration.summarise(rows, ["majority"])
    with pytest.raises(TriptychError, match="no predictions of a"):
        calibration.summarise(rows, ["a"])


def test_a_log_probability_that_rounding_put_above_0_is_certainty():
    found = calibration.of_run([record("a", 0, True, 1.0) | {"logprob": 1e-7}])
    assert found["confidence"] == 100 and found["ece"] == 0
