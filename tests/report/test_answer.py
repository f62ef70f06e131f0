"""The first screen's sentences claim what the statistics allow, and nothing more; their intervals are the tables'."""

import random
from dataclasses import replace

import numpy as np
import pandas
import pytest
from conftest import toy_config
from triptych.config.study import load_study
from triptych.evaluate.statistics import Estimate, verdict
from triptych.report import rows
from triptych.report.answer import card_image, card_lookup, card_power, caveat, plain_answer, question
from triptych.report.view import templates
from triptych.tables import evidence
from triptych.tables.format import make_table
from triptych.tables.pairs import correct_column, pair
from triptych.tables.runs import group_runs
from triptych.tables.verdicts import by_fold, compare, conclude, mean_with_interval


@pytest.fixture(scope="module")
def study(world, tmp_path_factory):
    return replace(load_study(toy_config(world)), results=tmp_path_factory.mktemp("results"))


def row(effect, low, high, p_holm=0.5, runs=6, margin=1.0, **more):
    found = {"first": "1-2-3", "second": "2-3", "effect": effect, "low": low, "high": high, "p_holm": p_holm}
    runs_of = {"runs": runs, "folds": 5, "seeds": 5}
    return found | runs_of | {"equivalence_margin": margin, "detectable": 4.0, "df": 5} | more


def said(study, *values, **more):
    return plain_answer(study, [row(*values, **more)], [])


def test_the_answer_says_what_is_found_shown_equal_or_open(study):
    assert question(study, [row(1, 0, 2)]) == (
        "Does stage 1 (data: general-24) help a model to answer the questions of the data set medical?"
    )
    assert said(study, 3.0, 1.5, 4.5, p_holm=0.001) == (
        "Stage 1 helped here: models with stage 1 answered 3.0 more of 100 questions correctly than models without, "
        "more than the 1 point that counts as a difference."
    )
    assert said(study, -3.0, -5.5, -0.5, p_holm=0.02).startswith("Stage 1 harmed here: models with stage 1 answered")
    assert "though perhaps not more than the 1 point" in said(study, -3.0, -5.5, -0.5, p_holm=0.02)
    assert "a true difference from 5.0 fewer to 1.0 more in 100 is not ruled out" in said(study, -2.0, -5.0, 1.0)
    assert said(study, 0.04, -4.0, 4.1).startswith(
        "It is not shown that stage 1 helps or harms: models with stage 1 and"
    )
    assert said(study, 0.2, -0.4, 0.8).startswith("Stage 1 makes no difference that matters here")
    assert "slightly in favour of with stage 1" in said(study, 0.5, 0.1, 0.9, p_holm=0.01)


@pytest.mark.parametrize(
    "more", [{"runs": 1, "low": None}, {"low": None, "high": None}, {"low": 3.0, "high": 3.0, "p_holm": 0.0}]
)
def test_one_run_one_image_or_no_spread_answer_nothing(study, more):
    found = plain_answer(study, [row(3.0, 1.0, 5.0) | more], [])
    assert found.startswith("This study cannot tell") and "helped" not in found


def test_differences_are_shown_also_beside_schedules_that_answer_alike():
    records = [
        {"arm": arm, "view": "held-out", "split": split, "seed": 0, "question_id": f"{split}-{number}",
         "group": f"{split}-{number}", "content_type": "", "answer_type": "OPEN", "gold": "liver",
         "prediction": "liver" if number % step else "lung"}
        for arm, step in (("a", 2), ("b", 3), ("c", 2)) for split in ("fold0", "fold1") for number in range(24)
    ]  # fmt: skip
    for others in (["b", "c"], ["c", "b"]):
        compared = conclude([compare("a", other, pair(records, "a", other), 1.0, 0) for other in others])
        page = '{% import "macros.html.j2" as draw with context %}{% include "arms.html.j2" %}'
        scores = {f"{name}_{part}": None for name in ("all", "open", "closed", "yes_no") for part in ("mean", "sd")}
        arm = {"arm": "a", "questions": 48, "trained": True, "folds": 2, "seeds": 1, **scores}
        empty = {"schedules": [arm], "left_out": {}, "numbers": {"paired": pandas.DataFrame()}}
        empty["above_chart"] = {"rows": []}
        text = (
            templates()
            .from_string(page)
            .render(**empty, comparison=compared, difference_chart=rows.differences(compared))
        )
        assert "a minus b" in text and "a minus c" in text and "P(equivalent)" in text
        assert (card_power(compared)["short"] == "Unknown") == (others[0] == "c")
    assert "no spread by which to judge" in card_power(compared)["text"]


def test_the_plain_answer_never_claims_what_the_verdict_does_not(study):
    chance = random.Random(0)
    for _ in range(500):
        effect, half, margin = chance.uniform(-6, 6), chance.uniform(0.1, 6), chance.choice([0.5, 1.0, 3.0])
        low, high, p_holm = effect - half, effect + half, chance.choice([0.0001, 0.049, 0.06, 0.9])
        words = verdict("1-2-3", "2-3", Estimate(effect, 1.0, 5, p_holm, low, high), p_holm, margin, 4.0)
        plain = said(study, effect, low, high, p_holm=p_holm, margin=margin)
        assert ("helped here" in plain) == words.startswith("1-2-3 is better")
        assert ("harmed here" in plain) == words.startswith("2-3 is better")
        assert ("no difference that matters" in plain) == ("are equivalent" in words)
        assert ("is not shown that" in plain) == words.startswith("No difference")
        assert ("perhaps not more" in plain) == ("remains open" in words)


def test_one_draw_of_a_shared_stage_stands_beside_the_answer(study):
    found = row(3.0, 1.5, 4.5, 0.001)
    assert caveat(study, [found]) == "", "five folds, five seeds"
    assert caveat(study, [found | {"seeds": 1}]) == (
        "All folds share one training of stage 1 (one per seed): how others would differ is not known, and intervals "
        "may be too narrow."
    )
    assert caveat(study, [found | {"seeds": 1, "first": "2-3", "second": "2"}]) == "", "neither has a shared stage"
    assert caveat(study, []) == ""


def test_schedules_that_differ_in_more_than_added_stages_are_named(study):
    other = row(3.0, 1.5, 4.5, p_holm=0.01, first="2-3", second="1-2-3")
    assert question(study, [other]).startswith("Which answers more questions")
    assert plain_answer(study, [other], []).startswith("2-3 is better here: 2-3 answered 3.0 more of 100 questions")


def looks(**p_holm):
    """What schedule a loses with each control: its corrected p value, where it has one; negative: it gains."""
    return [
        {"arm": "a", "view": view.replace("_", "-"), "effect": -5.0 if p is not None and p < 0 else 5.0}
        | {"low": None if p is None else 1.0, "high": 9.0, "p_holm": p and abs(p)}
        for view, p in p_holm.items()
    ]


@pytest.mark.parametrize(
    ("rows", "short"),
    [
        (looks(swapped=0.01), "Yes, at least its kind"),
        (looks(swapped=0.01, blank=0.01), "Yes, at least its kind"),
        (looks(swapped=0.4, swapped_alike=0.01), "Yes"),
        (looks(blank=0.01), "Not shown"),  # a grey image is unlike all others: it may only throw models off
        (looks(swapped=0.4, blank=0.01), "Not shown"),
        (looks(swapped=0.01, swapped_alike=0.04), "Yes"),
        (looks(swapped=0.01, swapped_alike=0.06), "Beyond its kind: not shown"),
        (looks(swapped=0.01, swapped_alike=-0.01), "Beyond its kind: not shown"),
        (looks(swapped=0.06, blank=0.2), "Not shown"),  # each interval is above 0, but there are two
        (looks(swapped=-0.01), "Not shown"),
        (looks(swapped=None), "Not shown"),
        ([], "Not asked"),
    ],
)
def test_a_model_looks_at_the_image_only_where_corrected_p_values_show_it(rows, short):
    assert card_image(rows, ["a"])["short"] == short
    assert card_image(rows, ["b"])["short"] == "Not asked"


def test_controls_that_show_nothing_are_named_beside_those_that_do():
    assert card_image(looks(swapped=0.01, blank=0.3), ["a", "z"])["text"] == (
        "a answers fewer questions correctly with another image than with the question's own image. "
        "With blank image, this is not shown. Whether it sees more, this study did not ask (control swapped-alike)."
    )


def test_the_other_schedules_are_named_by_what_is_shown_for_them():
    none = looks(swapped=0.3)
    others = [{**row, "arm": arm} for arm, p in (("b", 0.01), ("c", 0.3), ("d", 0.02)) for row in looks(swapped=p)]
    said = (
        "a is not shown to answer fewer questions correctly with other images. Shown, for at least its kind, for b, d. "
        "Not shown for c."
    )
    assert card_image([*none, *others], ["a", "b", "c", "d"])["text"] == said
    kind = [{**row, "arm": "c"} for row in looks(swapped=0.01, swapped_alike=0.6)]
    assert card_image([*none, *kind], ["a", "c"])["text"].endswith(". Not shown beyond its kind for c.")


def test_ends_of_an_interval_stay_within_what_is_possible(study):
    assert said(study, 13.3, -138.3, 164.9).endswith("than models without, and no true difference is ruled out.")
    assert "from 100.0 fewer to 64.9 more in 100 is not ruled out" in said(study, 13.3, -138.3, 64.9)


def test_several_controls_are_listed():
    text = card_image(looks(swapped=0.01, swapped_alike=0.02, blank=0.01), ["a"])["text"]
    assert "with another image, another of its kind and blank image than" in text


def test_what_is_not_shown_to_cost_points_is_not_said_to():
    text = card_image(looks(blank=0.01, swapped=0.4, swapped_alike=0.6), ["a"])["text"]
    assert text == (
        "a answers fewer questions correctly with blank image than with the question's own image. "
        "With another image and another of its kind, this is not shown. "
        "A grey image is unlike all others: a loss with it alone shows no use of the image."
    )


def above(arm, lookup, effect, p_holm):
    return {"arm": arm, "lookup": lookup, "effect": effect, "p_holm": p_holm, "low": 0, "high": 1}


def test_a_schedule_beats_a_look_up_only_where_it_beats_all_of_them():
    rows = [above("a", "x", 5, 0.01), above("a", "y", 5, 0.2), above("b", "x", -5, 0.01), above("b", "y", 1, 0.9)]
    assert card_lookup(rows, ["a", "b"])["short"] == "Not shown"
    assert card_lookup(rows[2:], ["b"])["short"] == "No"
    worse = [above("a", "x", -16, 0.9), above("a", "y", -9, 0.01), above("b", "x", 2, 0.9), above("b", "z", -8, 0.01)]
    said = card_lookup(worse, ["a", "b"])
    assert said["short"] == "No" and said["text"].endswith("classifier: a than y, b than z."), "x is shown for neither"
    rows[1]["p_holm"] = 0.04
    assert card_lookup(rows, ["a", "b"])["text"].startswith("a answers more questions correctly than every")
    rows[1]["p_holm"] = None
    assert card_lookup(rows, ["a", "b"])["short"] == "Not shown"


def test_power_is_that_of_the_primary_comparison():
    found = card_power([row(1, 0, 2)])
    assert found["short"] == "About 4 points"
    # Of five degrees of freedom: chi square's quantiles are 0.831 and 12.833.
    least, most = 4 * (5 / 12.833) ** 0.5, 4 * (5 / 0.831) ** 0.5
    assert f"it may be {least:.1f} to {most:.1f} points." in found["text"] and found["to"] == "differences"
    assert "it may be 1.8 to more than 100 points." in card_power([row(1, 0, 2, df=1)])["text"]
    assert "it may be 3.7 to 4.3 points." in card_power([row(1, 0, 2, df=300)])["text"]
    assert card_power([])["to"] == "arms"
    assert card_power([])["short"] == card_power([row(1, 0, 2, detectable=None)])["short"] == "Unknown"


def records(arm, chance, likely, seeds=(0, 1)):
    asked = [(f"fold{number % 3}", f"q{number}", f"g{number % 9}") for number in range(90)]
    return [
        {"arm": arm, "split": fold, "seed": seed, "question_id": name, "group": group, "view": "held-out"}
        | {"gold": "a", "prediction": "a" if chance.random() < likely else "b", "content_type": "x", "answer_type": "y"}
        for seed in seeds
        for fold, name, group in asked
    ]


def test_intervals_are_those_of_the_comparison_of_schedules():
    chance = random.Random(1)
    every = [*records("one", chance, 0.7, [0]), *records("two", chance, 0.4, [0])]
    [expected] = conclude([compare("one", "two", pair(every, "one", "two"), 1.0, 0)])
    own = {arm: evidence.answered(runs) for arm, runs in group_runs(every).items()}
    [found] = evidence.lost(own, {"swapped": {"one": group_runs(every)["two"]}}, ["one"])
    assert {name: found[name] for name in ("effect", "low", "high", "p")} == pytest.approx(
        {name: expected[name] for name in ("effect", "low", "high", "p")}
    )
    assert evidence.accuracies(own)["one"]["mean"] == pytest.approx(expected["first_accuracy"])


def test_seeds_of_a_fold_are_one_unit_against_a_look_up():
    """A look-up answers alike for all seeds: answers that seeds give alike, too, tell no more than those of one."""
    chance = random.Random(4)
    once, look = records("one", chance, 0.7, [0]), records("look", chance, 0.5, [None])
    twice = [*once, *({**record, "seed": 1} for record in once)]

    def found(answers):
        own = {arm: evidence.answered(runs) for arm, runs in group_runs([*answers, *look]).items()}
        [above] = evidence.above_lookups(own, ["one"], ["look"])
        return [*above.values()][2:], evidence.accuracies(own)["one"]

    for one, two in zip(found(once)[0], found(twice)[0], strict=True):
        assert one == pytest.approx(two)
    assert found(once)[1] == pytest.approx(found(twice)[1])


@pytest.mark.parametrize(("folds", "seeds"), [(3, 2), (3, 3), (5, 3)])
def test_false_positives_against_a_look_up_stay_below_6_per_cent(folds, seeds):
    """Of 1,500 made-up studies, whose seeds of a fold hardly differ and whose folds share training data."""
    generator, images = np.random.default_rng(0), 40
    runs = [(f"fold{fold}", seed) for fold in range(folds) for seed in range(seeds) for _ in range(images)]
    groups = [f"{fold}-{image}" for fold in range(folds) for _ in range(seeds) for image in range(images)]
    found = {by_fold: 0, list: 0}
    for _ in range(1500):
        shared = generator.normal() * folds**-0.5 + generator.normal(size=(folds, 1, 1)) * (1 - 1 / folds) ** 0.5
        effects = 0.95 * shared + 0.3 * generator.normal(size=(folds, seeds, 1))
        values = (effects + generator.normal(size=(folds, 1, images))).flatten()
        for units in found:
            found[units] += mean_with_interval(values, units(runs), groups)["p"] < 0.05
    assert found[by_fold] / 1500 < 0.06 and found[list] / 1500 > 0.09, "runs as units would claim too much"


def test_a_look_up_is_paired_with_every_seed_of_a_schedule():
    chance = random.Random(2)
    every = [*records("one", chance, 0.7), *records("look", chance, 0.5, [None]), *records("none", chance, 0, [None])]
    own = {arm: evidence.answered(runs) for arm, runs in group_runs(every).items()}
    rows = {row["lookup"]: row for row in evidence.above_lookups(own, ["one"], ["look", "none"])}
    mean = {arm: np.mean([100 * right for right, _ in answers.values()]) for arm, answers in own.items()}
    assert rows["look"]["effect"] == pytest.approx(mean["one"] - mean["look"])
    assert all(row["p"] <= row["p_holm"] for row in rows.values()) and rows["none"]["low"] > 0


def test_p_stands_where_it_is_known_and_asked_for():
    found = [above("a", "x", 5, 0.0004), above("a", "y", 5, 0.034), above("a", "z", 5, None)]
    texts = [drawn["text"] for drawn in rows.above(found)["rows"]]
    assert texts == ["+5.0 (+0.0 to +1.0), p < 0.001", "+5.0 (+0.0 to +1.0), p = 0.034", "+5.0 (+0.0 to +1.0)"]
    assert not any("p " in drawn["text"] for drawn in rows.above(found, with_p=False)["rows"])
    lost = looks(swapped=0.01, blank=None)
    named = rows.lost(lost, ["a"])["rows"]
    assert named[0]["name"] == "a: another image" and named[0]["text"].endswith("p = 0.010")
    assert rows.lost(lost, ["a"], name_arms=False, with_p=False)["rows"][0]["name"] == "another image"


def test_the_table_of_points_above_look_ups_says_what_is_known():
    rows = [
        {"arm": "one", "lookup": "look", "effect": -3.25, "low": -7.0, "high": 0.5, "p": 0.04, "p_holm": 0.08},
        {"arm": "one", "lookup": "none", "effect": 70.0, "low": None, "high": None, "p": None, "p_holm": None},
    ]
    table = make_table(rows, evidence.LOOKUP_COLUMNS)
    shown = evidence.shown_lookups(table).to_numpy().tolist()
    assert shown[0] == ["one", "look", "-3.2", "-7.0 to +0.5", "0.080"]
    assert shown[1][:4] == ["one", "none", "+70.0", ""]


def test_p_values_are_corrected_for_all_that_are_there():
    rows = [{"p": p, "p_holm": None} for p in (0.01, None, 0.04, 0.03)]
    correct_column(rows, "p")
    found = [row["p_holm"] for row in rows]
    assert found.pop(1) is None and found == pytest.approx([0.03, 0.06, 0.06])


def test_one_run_has_an_interval_over_images_and_one_image_has_none():
    run, points = [("fold0", 0)] * 40, [100.0] * 30 + [0.0] * 10
    found = mean_with_interval(points, run, [f"g{number}" for number in range(40)])
    assert found["low"] < found["effect"] == 75 < found["high"]
    assert mean_with_interval(points, run, ["g"] * 40)["low"] is None
    same = mean_with_interval([100.0] * 40, [("fold0", 0), ("fold1", 0)] * 20, [f"g{number}" for number in range(40)])
    assert same == {"effect": 100.0, "low": None, "high": None, "p": None}
