"""The report's limitations: each is said where the study's own numbers show it, and only there."""

from dataclasses import replace

import pytest
from conftest import toy_config
from triptych.config.study import load_study
from triptych.report.limitations import limitations
from triptych.tables import schedules, stages
from triptych.tables.format import make_table


@pytest.mark.parametrize(
    ("seeds", "folds", "said"),
    [
        ([0], 1, ["One run of each schedule: ", "One held-out part: "]),
        ([0, 1], 1, ["One held-out part: "]),
        ([0], 2, ["One seed: ", "Only 2 folds: "]),
        ([0, 1], 4, ["Only 4 folds: "]),
        ([0, 1], 5, []),
    ],
)
def test_it_is_said_what_few_runs_leave_unknown(seeds, folds, said, world, tmp_path):
    (tmp_path / "predictions").mkdir()
    config = toy_config(world) | {"seeds": seeds}
    config["folds"] = {"dataset": "medical", "number": folds} | ({"group": "official"} if folds == 1 else {})
    study = replace(load_study(config), results=tmp_path)
    arms = make_table([{"arm": "1-2-3", "trained": True, "all_mean": 50.0}], schedules.COLUMNS)
    found = limitations(study, arms, [], [])
    starts = ("One run", "One seed", "One held-out part", "Only ")
    assert [line.split(": ")[0] + ": " for line in found if line.startswith(starts)] == said


@pytest.mark.parametrize(
    ("two", "three", "said"),
    [
        ({"fraction": 0.5}, {"fraction": 0.3}, "of `1-2-3`, `2-3` are limited by `fraction`"),
        ({"fraction": 0.5}, {"max_samples": 20}, "of `1-2-3`, `2-3` are limited by `fraction`"),
        ({"fraction": 0.5}, {}, None),  # stage 3 has seen all
        ({}, {}, None),
    ],
)
def test_a_schedule_that_saw_less_than_the_look_ups_is_named(two, three, said, world, tmp_path):
    config = toy_config(world)
    config["stages"]["2"] |= two
    config["stages"]["3"] |= three
    study = replace(load_study(config), results=tmp_path)
    arms = make_table([{"arm": "1-2-3", "trained": True, "all_mean": 50.0}], schedules.COLUMNS)
    found = [
        line
        for line in limitations(study, arms, [], [])
        if line.startswith("Look-ups and classifiers answer from the whole training part")
    ]
    assert (said in found[0]) if said else not found


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        (
            {"a": 50, "b": 45, **dict.fromkeys("cdefg", 1)},
            "2 of 7 subjects or groups of images have 95 % ",
        ),
        ({"a": 1}, "1 of 1 subjects or groups of images have 100 % "),
        (dict.fromkeys(map(str, range(20)), 5), None),
        ({}, None),
    ],
)
def test_few_subjects_behind_most_questions_are_said(questions, said, world, tmp_path):
    study = replace(load_study(toy_config(world)), results=tmp_path)
    arms = make_table([{"arm": "1-2-3", "trained": True, "all_mean": 50.0}], schedules.COLUMNS)
    found = limitations(study, arms, [], [], questions)
    assert (
        any(line.startswith(said) for line in found) if said else not any("of the questions" in line for line in found)
    )
    assert not any("version" in line for line in limitations(study, arms, [], [], questions, ["0.1+a"]))
    mixed = limitations(study, arms, [], [], questions, ["0.1+a", "0.1+b"])
    assert "Not all models were trained by the same version of Triptych: 0.1+a, 0.1+b." in mixed


def test_epochs_that_validation_chose_for_one_schedule_alone_are_said(world, tmp_path):
    arms = make_table([{"arm": "1-2-3", "trained": True, "all_mean": 50.0}], schedules.COLUMNS)
    config = toy_config(world)
    config["stages"]["3"] |= {"epochs": 3, "select": "best"}
    study = replace(load_study(config), results=tmp_path)

    def said(*kept, stage="3", study=study):
        """With the kept epochs of 1-2-3 and of 2-3 on two folds."""
        rows = [
            {"schedule": arm, "prefix": arm if stage == "3" else arm[:-2], "split": f"fold{fold}", "seed": 0}
            | {"stage": stage, "epoch": epoch, "kept_epoch": kept[place][fold]}
            for place, arm in enumerate(("1-2-3", "2-3"))
            for fold in (0, 1)
            for epoch in (0, 1, 2, 3)
        ]
        comparison = [{"first": "1-2-3", "second": "2-3", "detectable": 1.0}]
        found = limitations(study, arms, comparison, [], curves=make_table(rows, stages.COLUMNS))
        return [line for line in found if "validation chose" in line]

    assert said((3, 2), (3, 3)) == [
        "In 1 of 2 runs, validation chose another epoch of the last stage for `1-2-3` than for `2-3`: there, the two "
        "differ in the length of training, too."
    ]
    assert not said((3, 2), (3, 2)) and not said((None, 3), (2, 3)), "equal, or one is not finished"
    assert not said((3, 2), (3, 3), stage="2"), "not the last stage"
    config["stages"]["3"]["select"] = "last"
    assert not said((3, 2), (3, 3), study=replace(load_study(config), results=tmp_path)), "nothing was chosen"


def test_subjects_and_look_alikes_that_folds_do_not_keep_apart_are_said(world, tmp_path):
    study = replace(load_study(toy_config(world)), results=tmp_path)
    arms = make_table([{"arm": "1-2-3", "trained": True, "all_mean": 50.0}], schedules.COLUMNS)
    counts = {"images": 100, "identical_images": 0, "similar_images": 20, "seen_subject_images": None}
    overlaps = [
        {"part": "fold0 held out", **counts},
        {"part": "fold1 held out", **counts, "similar_images": 3, "identical_images": 1},
        {"part": "fold0 validation", **counts, "similar_images": 100},
    ]
    found = " ".join(limitations(study, arms, [], [], overlaps=overlaps, subjects_named=False))
    assert "24 of 200 held-out images (12 %) look like an image that their fold trains on" in found
    assert "The data name no subjects: images of one subject may be both" in found
    assert "of subjects that" not in found
    overlaps[1]["seen_subject_images"] = 30
    found = " ".join(limitations(study, arms, [], [], overlaps=overlaps[1:], subjects_named=True))
    assert "look like" not in found and "no subjects" not in found
    assert "30 of 100 held-out images are of subjects that their fold trains on: scores are not those of new" in found


def test_a_grey_image_alone_is_said_to_show_no_use_of_images(world, tmp_path):
    study = replace(load_study(toy_config(world)), results=tmp_path)
    arms = make_table([{"arm": "1-2-3", "trained": True, "all_mean": 50.0}], schedules.COLUMNS)
    grey = {"arm": "1-2-3", "view": "blank", "effect": 50.0, "p_holm": 0.001}
    assert "a grey one alone was shown" in " ".join(limitations(study, arms, [], [grey]))
    both = [grey, {**grey, "view": "swapped"}]
    assert "a grey one alone" not in " ".join(limitations(study, arms, [], both) + limitations(study, arms, [], []))


def test_limitations_are_said_where_the_numbers_show_them(world, tmp_path):
    (tmp_path / "predictions").mkdir()
    study = replace(load_study(toy_config(world)), results=tmp_path)
    arms = [("1-2-3", True, 50.0), ("2-3", True, 52.0), ("nearest-images", False, 60.0)]
    rows = [{"arm": arm, "trained": trained, "all_mean": mean} for arm, trained, mean in arms]
    rows += [
        {"arm": "majority", "trained": False, "all_mean": 30.0, "yes_no_mean": 0.0}
    ]  # the commonest answer is "CT"
    rows[0]["yes_no_mean"], rows[1]["yes_no_mean"] = 57.5, 60.0
    comparison = [{"first": "1-2-3", "second": "2-3", "detectable": 7.5}]
    lost = [
        {"arm": "1-2-3", "view": "swapped", "effect": 9.5, "p_holm": 0.06},
        {"arm": "2-3", "view": "swapped", "effect": 9.5, "p_holm": 0.04},
        {"arm": "1-2-3", "view": "swapped-alike", "effect": -3.0, "p_holm": 0.01},
        {"arm": "2-3", "view": "swapped-alike", "effect": 3.0, "p_holm": None},
        {"arm": "1-2-3", "view": "blank", "effect": 0.0, "p_holm": 1.0},
    ]

    def sentences(comparison, test_questions=1061):
        arms = make_table(rows, schedules.COLUMNS)
        return " ".join(limitations(study, arms, comparison, lost, test_questions=test_questions, always=56.5))

    said = sentences(comparison)
    assert "One seed" in said and "Only 2 folds" in said and "at 80 % power is 7.5 points" in said
    assert "No schedule scores above `nearest-images` (60.0 %): the best is `2-3` with 52.0 %." in said
    assert "`1-2-3` was trained on more samples than `2-3`: " in said
    assert "`1-2-3` is not shown to lose points with another image: use of the image is not shown." in said
    alike = "not shown to lose points with another image of the same modality and body part: use of more than these two"
    assert f"`1-2-3` and `2-3` are {alike} is not shown." in said and said.count("shown to lose points") == 2
    assert "On yes/no questions `1-2-3` scores 57.5 %, and always the same answer, yes or no, 56.5 %." in said
    assert said.count("On yes/no questions") == 1
    assert "No schedule has been asked the source's own test part yet (1,061 questions; `snakemake test`)." in said
    assert "own test part" not in sentences(comparison, test_questions=0), "the source has none"
    assert "All folds share one training of stage 1 (one per seed)" in said
    assert "smaller differences are missed more often" in said
    many = [{"first": "1-2-3", "second": f"v{size}", "detectable": size} for size in (2.0, 3.5, 4.0, 5.0, 6.5)]
    many[0]["second"] = "2-3"
    said = sentences(many)
    assert (
        "In 4 of 5 comparisons the minimum detectable effect at 80 % power is 3.5 to 6.5 points" in said
        and "`v4.0`" not in said
    )
    rows.append({"arm": "majority-per-place", "trained": False, "all_mean": 61.0})
    assert "above `majority-per-place` (61.0 %) and `nearest-images` (60.0 %): the best" in sentences(comparison)
    rows[1]["all_mean"] = 80.0
    assert "No schedule scores above" not in sentences(comparison) and "one of two rules" not in sentences(comparison)
    rows[0]["rules_differ"], rows[1]["rules_differ"] = 2, 1
    assert "3 of the kept answers are right by one of two rules alone" in sentences(comparison)
