"""The table of occlusion: what a schedule that looks at the box scores, and one that looks nowhere."""

import pytest
from triptych.errors import TriptychError
from triptych.tables.occlusion import of_record, shown, summarise

INSIDE = [0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0]  # of 3 x 3 squares
HITS = [False] * 8 + [True]


def record(arm, drops, image=0, fold=0, seed=0, inside=INSIDE, hits=HITS):
    run = {"arm": arm, "split": f"fold{fold}", "seed": seed, "question_id": f"q{image}", "image_id": f"i{image}"}
    return {**run, "group": f"i{image}", "drops": drops, "inside": inside, "hits": hits}


def test_one_question_is_scored_by_its_largest_drop_and_its_mass():
    found = of_record(record("a", [-5.0, 1.0, 0, 0, 1.0, 0, 0, 0, 2.0]))
    assert found["pointing"] == pytest.approx({"": 100, "random": 100 / 9, "centre": 0})
    assert found["mass"] == pytest.approx({"": 100 * (0.5 + 2) / 4, "random": 100 * 1.5 / 9, "centre": 50})


def test_squares_that_matter_equally_count_in_part():
    flat = of_record(record("a", [0.0] * 9))
    assert flat == {"pointing": pytest.approx({"": 100 / 9, "random": 100 / 9, "centre": 0})}, "there is no mass"
    two = of_record(record("a", [3.0] + [0.0] * 7 + [3.0]))
    assert two["pointing"][""] == 50


def test_an_even_grid_has_four_squares_in_the_middle():
    inside = [0.0] * 16
    inside[5] = 1.0
    hits = [number == 10 for number in range(16)]
    found = of_record(record("a", [1.0] + [0.0] * 15, inside=inside, hits=hits))
    assert (found["pointing"]["centre"], found["mass"]["centre"]) == (25, 25)


def test_schedules_are_rows_with_intervals_over_images():
    looks = [record("looks", [0.0] * 8 + [1.0], image, image % 2) for image in range(8)]
    wild = [record("wild", [float(place == image) for place in range(9)], image, image % 2) for image in range(8)]
    table = summarise(looks + wild, ["looks", "wild"]).set_index("arm")
    assert table.loc["looks", ["pointing", "mass"]].tolist() == [100, 100]
    assert table.loc["looks", ["pointing_low", "mass_high"]].isna().all(), "all alike"
    assert table.loc["looks", "pointing_above_random"] == pytest.approx(100 - 100 / 9)
    assert table.loc["wild", "pointing"] == 0 and table.loc["wild", "mass"] == pytest.approx(50 / 8)
    assert table.loc["wild", "mass_low"] < 50 / 8 < table.loc["wild", "mass_high"]
    assert table.loc["wild", ["questions", "groups", "runs", "without_drop"]].tolist() == [8, 8, 2, 0]
    text = shown(table.reset_index())
    assert text.iloc[0, 0] == "**looks**" and text.iloc[0, 3] == "100.0" and "(" in text.iloc[1, 6]


def test_one_image_has_no_interval_and_no_mass_is_no_number():
    row = summarise([record("a", [0.0] * 9)], ["a"]).iloc[0]
    assert row["without_drop"] == 1 and row[["pointing_low", "mass", "mass_random"]].isna().all()
    assert "nan" not in "".join(shown(summarise([record("a", [0.0] * 9)], ["a"])).iloc[0]).lower()


def test_a_schedule_without_records_is_named():
    with pytest.raises(TriptychError, match="no occlusion of b"):
        summarise([record("a", [0.0] * 9)], ["a", "b"])
