"""Curves of scale: known answers of differences and slopes, what is said of them, and the figure's axis."""

import pytest
from triptych.errors import TriptychError
from triptych.tables import scaling
from triptych.tables.format import rows_of

RUNS = [("fold0", 0), ("fold1", 0), ("fold0", 1), ("fold1", 1)]


def answers(arm, right, questions=20, runs=RUNS, group=None):
    """Runs that answer the first `right` questions right, one more in the last run than in the first."""
    found = []
    for place, (split, seed) in enumerate(runs):
        for number in range(questions):
            good = number < right + (place == len(runs) - 1) - (place == 0)
            row = {"arm": arm, "view": "held-out", "split": split, "seed": seed, "question_id": f"{split}-{number}"}
            row |= {"group": group or f"{split}-{number}", "content_type": "", "answer_type": "OPEN", "gold": "liver"}
            found.append({**row, "prediction": "liver" if good else "lung"})
    return found


def sweep(*arms, setting="stages.1.max_samples"):
    return {"captions": {"setting": setting, "arms": list(arms)}}


def test_the_slope_is_that_of_a_doubling_and_0_is_left_out():
    # 10, 30, 50 and 70 %: 20 points from 8 to 16 to 32, and no line through 0.
    records = [row for arm, right in (("2-3", 2), ("a", 6), ("b", 10), ("c", 14)) for row in answers(arm, right)]
    rows = rows_of(scaling.summarise(records, sweep((0, "2-3"), (8, "a"), (16, "b"), (32, "c"))))
    assert [round(row["mean"], 6) for row in rows] == [10, 30, 50, 70]
    assert [row["smaller_effect"] for row in rows] == [None, *map(pytest.approx, (20, 20, 20))]
    assert [row["smallest_effect"] for row in rows] == [None, *map(pytest.approx, (20, 40, 60))]
    assert {(row["slope_per"], round(row["slope"], 6)) for row in rows} == {("doubling", 20)}
    assert rows[0]["slope_low"] < 20 < rows[0]["slope_high"] and rows[0]["low"] < 10 < rows[0]["high"]
    assert (rows[0]["questions"], rows[0]["runs"], rows[0]["folds"], rows[0]["seeds"]) == (40, 4, 2, 2)
    text = scaling.sentence(rows)
    assert text.startswith("captions: each doubling of stages.1.max_samples adds +20.00 points") and "left out" in text


def test_values_close_to_each_other_have_a_slope_per_unit_with_0():
    records = [row for arm, right in (("a", 4), ("b", 10), ("c", 10)) for row in answers(arm, right)]
    rows = rows_of(scaling.summarise(records, sweep((0, "a"), (1, "b"), (2, "c"), setting="lora.x")))
    assert (rows[0]["slope_per"], rows[0]["slope"]) == ("unit", pytest.approx(15)), "(50 - 20) / 2"
    assert "each unit of lora.x adds +15.00" in scaling.sentence(rows)


def test_uneven_steps_have_the_slope_of_least_squares():
    records = [row for arm, right in (("a", 4), ("b", 8), ("c", 10)) for row in answers(arm, right)]
    found = scaling.slope(records, [(1, "a"), (2, "b"), (16, "c")])  # places 0, 1, 4; 20, 40, 50 %
    assert found["slope"] == pytest.approx((-5 / 3 * 20 - 2 / 3 * 40 + 7 / 3 * 50) / (25 / 9 + 4 / 9 + 49 / 9))


def test_of_two_values_the_slope_is_their_difference_with_its_interval():
    records = answers("a", 6) + answers("b", 11)
    _, row = rows_of(scaling.summarise(records, sweep((4, "a"), (16, "b"))))
    for part, slope in (("effect", "slope"), ("low", "slope_low"), ("high", "slope_high")):
        assert row[slope] == pytest.approx(row[f"smaller_{part}"] / 2), "two doublings"


def test_one_run_says_images_and_one_image_says_nothing_of_others():
    one = [row for arm, right in (("a", 5), ("b", 6)) for row in answers(arm, right, runs=RUNS[:1])]
    rows = rows_of(scaling.summarise(one, sweep((1, "a"), (64, "b"))))
    assert "interval over images" in scaling.sentence(rows) and "no slope is shown" in scaling.sentence(rows)
    same = [row for arm in ("a", "b") for row in answers(arm, 5, group="i1")]
    rows = rows_of(scaling.summarise(same, sweep((1, "a"), (64, "b"))))
    assert rows[1]["smaller_low"] is None and "no spread by which to judge other images" in scaling.sentence(rows)
    assert scaling.shown(scaling.summarise(same, sweep((1, "a"), (64, "b")))).iloc[1, 6] == "+0.0"


@pytest.mark.parametrize("values", [(10, 30, 100), (500, 1000, 3000, 9000), (1, 2, 3, 4, 7), (2, 3, 5, 7, 11, 13)])
@pytest.mark.parametrize("runs", [RUNS, RUNS[:1]])
@pytest.mark.parametrize("gain", [0, 20])
def test_curves_of_equal_answers_have_no_interval_whatever_weights_round_to(values, runs, gain):
    def all_alike(arm, right):
        return [{**row, "prediction": "liver" if right else "lung"} for row in answers(arm, 9, runs=runs)]

    arms = [(value, str(value)) for value in values]
    records = [row for number, (_, arm) in enumerate(arms) for row in all_alike(arm, not gain or number)]
    found = scaling.slope(records, arms)
    assert found["slope_low"] is None and (found["slope"] > 1 if gain else found["slope"] == 0)
    rows = rows_of(scaling.summarise(records, sweep(*arms, setting="lora.rank")))
    assert "no spread by which to judge other images" in scaling.sentence(rows)


def test_folds_that_share_few_draws_are_warned_of():
    table = scaling.summarise(answers("a", 4) + answers("b", 8), sweep((1, "a"), (2, "b")))
    [text] = scaling.said(table, {"a": "1+a", "b": "1"})
    assert "All folds share 2 trainings of stage 1+a and stage 1" in text
    assert "share" not in scaling.said(table, {})[0]


def test_a_value_without_answers_is_an_error():
    with pytest.raises(TriptychError, match="no predictions of schedule b"):
        scaling.summarise(answers("a", 4), sweep((1, "a"), (2, "b")))


def test_answers_to_other_images_are_no_part_of_a_curve():
    other = [{**row, "view": "test"} for row in answers("b", 8)]
    with pytest.raises(TriptychError, match="view"):
        scaling.summarise(answers("a", 4) + other, sweep((1, "a"), (2, "b")))


def test_the_axis_is_logarithmic_above_a_factor_of_20_with_0_one_step_before():
    assert scaling.axis_places([1, 4, 20]) == [1, 4, 20]
    assert scaling.axis_places([0, 1, 10, 100]) == pytest.approx([-1, 0, 1, 2])
    assert scaling.axis_places([10, 1000]) == pytest.approx([1, 3])
    assert scaling.axis_places([0, 5]) == [0, 5], "one value that is not 0 spans nothing"


def test_values_that_gave_the_same_models_are_refused():
    def kept(arm, right, shift):
        return [{**row, "gold_logprob": -1.0 - shift - place} for place, row in enumerate(answers(arm, right))]

    records = kept("a", 6, 0.0) + kept("b", 9, 0.5) + kept("c", 9, 0.5)
    with pytest.raises(TriptychError, match=r"4000 and 8000 of stages\.1\.max_samples gave the same models"):
        scaling.summarise(records, sweep((1000, "a"), (4000, "b"), (8000, "c")))
    limits = sweep((1, "a"), (10, "b"), (100, "c"), setting="stages.3.clip_norm")
    assert len(scaling.summarise(records, limits)) == 3, "gradients may be below both limits"
    records = kept("a", 6, 0.0) + kept("b", 9, 0.5) + kept("c", 9, 0.25)
    assert len(scaling.summarise(records, sweep((1000, "a"), (4000, "b"), (8000, "c")))) == 3
