"""Designs of about a study's cost, and what its own comparisons say of them."""

from dataclasses import replace
from itertools import pairwise
from statistics import stdev

import pytest
import yaml
from conftest import ROOT, toy_config
from triptych.commands import designs, estimate, plan
from triptych.commands.cost import questions, training_cost
from triptych.commands.designs import Contrast, contrasts, hours_of_a_seed, predicted, run_sd
from triptych.commands.jobs import job_states
from triptych.config.grid import Checkpoint
from triptych.config.study import load_study
from triptych.evaluate.statistics import minimum_detectable_effect
from triptych.io.manifest import write_json

EFFECTS = {"fold0, seed 0": 4.0, "fold0, seed 1": -2.0, "fold1, seed 0": 1.0, "fold1, seed 1": 0.0}
ROW = {
    "first": "1-2-3", "second": "2-3", "effect": 0.75, "run_effects": EFFECTS, "folds": 2, "seeds": 2,
    "standard_error": 2.0, "df": 3, "detectable": minimum_detectable_effect(2.0, 3), "disagree": 0.1,
}  # fmt: skip


@pytest.fixture
def study(world, tmp_path):
    return replace(load_study({**toy_config(world), "seeds": [0, 1]}), results=tmp_path / "results")


def full(tmp_path, folds=5, seeds=3, **changed):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["folds"] |= {"number": folds, **changed}
    return replace(load_study({**config, "seeds": list(range(seeds))}), results=tmp_path)


def found_hours(study, rate=1e12):
    return {name: training_cost(study, Checkpoint(name, "", 0)).flops / rate / 3600 for name in study.grid.prefixes}


def compared(study, *rows):
    write_json(study.results / "tables/comparison.json", {"comparisons": list(rows)})
    return contrasts(study)


def test_the_hours_of_a_design_are_those_of_its_trainings_and_answers(study):
    states = job_states(study, now=0.0)
    found = estimate.hours(study, states)
    assert 2 * hours_of_a_seed(study, found.rate) == pytest.approx(found.left)
    # Of five folds, each trains on four fifths, not half; answers and stage 1 cost the same as with two.
    more, shared = hours_of_a_seed(study, found.rate, number=5), found.of_training["1"]
    two = hours_of_a_seed(study, found.rate, number=2)
    answers = 2 * 3.6 * found.of_prediction["2-3"] * 2  # folds x (views and gold answers) x schedules
    assert (more - shared - answers) / (two - shared - answers) == pytest.approx(5 * 0.8 / (2 * 0.5), rel=0.02)


def test_designs_cost_about_the_same_and_more_folds_detect_more(tmp_path):
    study = full(tmp_path)
    found = designs.designs(study, 1e12, None)
    assert [one.folds for one in found] == sorted({one.folds for one in found}) and len(found) > 4
    [own] = [one for one in found if one.folds == 5]
    assert own.seeds == 3 and own.detectable == pytest.approx(estimate.detectable(study)[0])
    assert all(0.8 <= one.hours / own.hours <= 1.2 for one in found)
    assert all(one.detectable > other.detectable for one, other in pairwise(found))


def test_the_plan_marks_its_own_design_and_those_with_few_draws_of_a_shared_stage(tmp_path):
    said = list(plan.design_lines(full(tmp_path), 1e12))
    [own] = [line for line in said if "as configured" in line]
    assert "5 folds x 3 seeds" in own and "few draws" in own
    [three] = [line for line in said if "3 folds x 5 seeds" in line]
    assert "few draws" not in three and said[-2].lstrip().startswith("* folds share")
    each = found_hours(full(tmp_path))["1"]
    assert f"this study would take {(15 - 3) * each:.1f} GPU hours more" in said[-1]
    study = full(tmp_path, shared_stages="per-fold")
    assert not any("few draws" in line or "*" in line for line in plan.design_lines(study, 1e12))


def test_official_parts_and_a_single_schedule_leave_no_choice(tmp_path, world):
    assert designs.designs(full(tmp_path, folds=1, group="official"), 1e12, None) == []
    alone = {**toy_config(world), "schedules": [["2", "3"]]}
    assert designs.designs(replace(load_study(alone), results=tmp_path), 1e12, None) == []


def test_what_runs_vary_by_is_less_what_questions_add_by_chance(study):
    [known] = compared(study, ROW)
    assert known.spread == stdev(EFFECTS.values()) == pytest.approx((18.75 / 3) ** 0.5)
    number, _ = questions(study, "medical")
    assert number == 1000  # as nothing is prepared
    assert run_sd(study, known) == pytest.approx((6.25 - 1e4 * 0.1 / 500) ** 0.5)
    assert run_sd(study, replace(known, disagree=0.9)) == 0, "all of it by chance"


def test_the_studys_own_comparison_is_where_other_designs_start(study):
    [known] = compared(study, ROW)
    assert predicted(study, 2, 2, known) == pytest.approx(known.detectable)
    # By hand: variances of runs and questions as in the plan's formula, scaled by what was found for 2 x 2.
    spread = run_sd(study, known)
    number, images = questions(study, "medical")
    asked = 1e4 * 0.1 * (1 + (number / images - 1) * 0.02) / number
    before, after = (1 + 4 / 1) * spread**2 / 4 + asked, (1 + 10 / 4) * spread**2 / 10 + asked
    error = 2.0 * (after / before) ** 0.5
    assert predicted(study, 5, 2, known) == pytest.approx(minimum_detectable_effect(error, 9))
    calm = replace(known, run_effects=(0.7, 0.8, 0.75, 0.75))
    assert predicted(study, 5, 2, calm) > predicted(study, 5, 2, known), "more runs help where runs vary"


def test_the_plan_says_how_much_each_contrast_varied(study):
    other = {**ROW, "second": "3", "run_effects": {"fold0, seed 0": 1.0, "fold1, seed 0": 2.0}, "effect": 1.5}
    compared(study, ROW, other)
    said = "\n".join(plan.lines(study, job_states(study, 0.0)))
    assert "contrast    1-2-3 minus 2-3: +0.8 points; standard deviation 2.5 between 4 runs; detects " in said
    assert "contrast    1-2-3 minus 3: +1.5 points; standard deviation 0.7 between 2 runs" in said


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"detectable": 3.0}],
        [{**ROW, "standard_error": None, "detectable": None}],  # a single run
        [{name: value for name, value in ROW.items() if name != "run_effects"}],
        [{**ROW, "run_effects": {"fold0, seed 0": 1.0}}],
        [{**ROW, "standard_error": 0.0, "detectable": 0.0}],  # all answers alike
    ],
)
def test_a_comparison_without_a_spread_leaves_the_assumptions(study, rows):
    assert compared(study, *rows) == []
    assert "standard deviation of 2.8 points" in "\n".join(plan.lines(study, [])) or rows


def test_the_comparison_of_an_earlier_version_has_the_share_of_differing_answers_assumed(study):
    [known] = compared(study, {name: value for name, value in ROW.items() if name != "disagree"})
    assert known == replace(known, disagree=estimate.DISAGREE) and isinstance(known, Contrast)
