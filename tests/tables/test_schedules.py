"""Scores, baselines and tables on records with known answers."""

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from triptych.data.lookups import commonest, majority, majority_per_place, majority_per_question, nearest
from triptych.errors import TriptychError
from triptych.evaluate.metrics import (
    always_the_same,
    bleu_1,
    exact_match,
    is_yes_no,
    normalise,
    rouge_l,
    scores,
    token_f1,
    token_recall,
)
from triptych.tables.format import rows_of
from triptych.tables.schedules import (
    by_content,  # fmt: skip
    controls,
    paired_differences,
    schedules_markdown,
    shown_controls,
    summarise,
)


@pytest.mark.parametrize(
    ("prediction", "gold", "hit"),
    [
        ("MRI", "mri", True),
        (" Left lung. ", "left  lung", True),
        ("X-Ray", "xray", True),
        ("lung", "left lung", False),
        ("", "no", False),
    ],
)
def test_exact_match_ignores_case_punctuation_and_blanks(prediction, gold, hit):
    assert exact_match({"prediction": prediction, "gold": gold}) is hit
    assert normalise(normalise(gold)) == normalise(gold)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (" Yes. ", "yes"),
        ("是的。", "yes"),
        ("不包含", "no"),
        ("False", "no"),
        ("Left Lung, Right", "left lung right"),
        ("CT (computed tomography)", "ct"),
        ("X-Ray", "xray"),
        ("胸腔（肺部）", "胸腔"),
        ("T2-weighted", "t2 weighted"),
    ],
)
def test_answers_are_normalised_as_lmms_eval_does(answer, normal):
    """Examples of lmms-eval's own tests of its SLAKE tasks, and two more."""
    assert normalise(answer) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "recall", "bleu", "rouge"),
    [
        ("the left lung", "left lung", 0.8, 1.0, 2 / 3, 0.8),
        ("lung", "left lung", 2 / 3, 0.5, np.exp(-1), 2 / 3),
        ("lung left", "left lung", 1.0, 1.0, 1.0, 0.5),
        ("a a a", "a b", 0.4, 0.5, 1 / 3, 0.4),
        ("", "left lung", 0.0, 0.0, 0.0, 0.0),
        ("左肺上叶", "右肺上叶", 0.75, 0.75, 0.75, 0.75),
        ("肺", "左肺", 2 / 3, 0.5, np.exp(-1), 2 / 3),
        ("(A)", "(B)", 0.0, 0.0, 0.0, 0.0),
        ("", "", 1.0, 1.0, 1.0, 1.0),
    ],
)
def test_measures_of_words_have_known_values(prediction, gold, f1, recall, bleu, rouge):
    record = {"prediction": prediction, "gold": gold}
    found = [measure(record) for measure in (token_f1, token_recall, bleu_1, rouge_l)]
    assert found == pytest.approx([f1, recall, bleu, rouge])


def test_llava_meds_rule_counts_right_choices_as_wrong():
    choices = [{"prediction": "left", "gold": "left", "answer_type": "CLOSED"}]
    found = scores([*choices, {"prediction": "no", "gold": "no", "answer_type": "CLOSED"}])
    columns = ("closed", "yes_no", "llava_med_closed", "llava_med_ceiling")
    assert [found[column] for column in columns] == [100, 100, 50, 50]
    assert scores(choices)["yes_no"] is None


def test_yes_and_no_are_told_by_the_rule_of_exact_match():
    said = [("Yes\u200b", True), ("(Yes)", True), ("\u662f\u7684", True), ("Yes (left lung)", False), ("left", False)]
    for number, (gold, counts) in enumerate(said):
        record = {"question_id": f"q{number}", "answer_type": "CLOSED", "gold": gold, "prediction": "yes"}
        assert is_yes_no(record) == counts
        assert always_the_same([record]) == (100 if counts else None) == scores([record])["yes_no"]


def test_accuracies_are_per_cent_by_answer_type():
    records = [
        {"prediction": "a", "gold": "a", "answer_type": "OPEN"},
        {"prediction": "b", "gold": "a", "answer_type": "OPEN"},
        {"prediction": "no", "gold": "no", "answer_type": "CLOSED"},
        {"prediction": "no", "gold": "no", "answer_type": "CLOSED"},
    ]
    assert scores(records, ("all", "open", "closed")) == {"all": 75.0, "open": 50.0, "closed": 100.0}
    assert scores(records[:2])["closed"] is None


def training():
    asked = [("what?", "CT"), ("what?", "MRI"), ("what?", "CT"), ("is it?", "no"), ("is it?", "no"), ("is it?", "no")]
    return [
        {"question_id": str(index), "question": question, "answer": answer}
        for index, (question, answer) in enumerate(asked, start=5)  # "5" to "10": numbers, not letters, give the order
    ]


def test_baselines_say_the_commonest_answer():
    assert majority(training(), {})({"question": "what?"}) == "no"
    predict = majority_per_question(training(), {})
    assert predict({"question": "what?"}) == "CT"
    assert predict({"question": "new?"}) == "no"


def test_baselines_count_spellings_of_an_answer_and_of_a_question_as_they_are_scored():
    said = [("Is it?", "Yes")] * 3 + [("is  it?", "yes")] * 2 + [("Is it?", "no")] * 4 + [("where?", "no")]
    rows = [
        {"question_id": str(place), "question": question, "answer": answer, "modality": "CT", "location": "Lung"}
        for place, (question, answer) in enumerate(said)
    ]
    asked = {"question": "IS IT?", "modality": "CT", "location": "Lung"}
    assert majority_per_question(rows, {})(asked) == majority_per_place(rows, {})(asked) == "Yes"
    vectors = dict.fromkeys("ab", np.ones(2))
    kind = {"answer_type": "CLOSED", "content_type": "Any"}
    near = [{**row, **kind, "image_id": "a"} for row in (rows[0], rows[3], rows[5])]
    assert nearest(near, vectors)({**asked, **kind, "image_id": "b"}) == "Yes", "two of three, in two spellings"


def test_the_majority_of_a_place_is_told_modality_and_body_part():
    places = [("CT", "Lung"), ("CT", "Lung"), ("MRI", "Brain"), ("CT", "Lung"), ("CT", "Lung"), ("CT", "Lung")]
    rows = [{**row, "modality": m, "location": p} for row, (m, p) in zip(training(), places, strict=True)]
    predict = majority_per_place(rows, {})
    assert predict({"question": "what?", "modality": "MRI", "location": "Brain"}) == "CT"
    assert predict({"question": "what?", "modality": "CT", "location": "Lung"}) == "CT"
    rows[1]["answer"] = rows[0]["answer"] = "PET"
    predict = majority_per_place(rows, {})
    assert predict({"question": "what?", "modality": "CT", "location": "Lung"}) == "PET"
    assert predict({"question": "what?", "modality": "MRI", "location": "Brain"}) == "CT"
    assert predict({"question": "what?", "modality": "PET", "location": "Brain"}) == "no", "of all, where it is new"


def test_the_nearest_images_vote_on_the_same_question():
    def row(number, image, question, answer, content="Organ"):
        kind = {"content_type": content, "answer_type": "OPEN"}
        return {"question_id": f"q{number}", "image_id": image, "question": question, "answer": answer, **kind}

    vectors = {
        name: np.array([np.cos(angle), np.sin(angle)]) for name, angle in zip("abcdx", (0, 1, 2, 3, 0.9), strict=True)
    }
    known = [row(0, "a", "what?", "far"), row(1, "b", "what?", "near"), row(2, "c", "what?", "far")]
    known += [row(3, "d", "what?", "near"), row(4, "b", "where?", "here", "Position")]
    predict = nearest(known, vectors)
    assert predict(row(9, "x", "what?", "")) == "far", "two of the three nearest images"
    assert nearest(known[:2], vectors)(row(9, "x", "what?", "")) == "near", "of equals, the nearest"
    assert predict(row(9, "x", "new?", "", "Position")) == "here", "the same kind of question, where it is new"
    assert predict(row(9, "x", "new?", "", "Colour")) == "near", "any question, where the kind is new too"


def test_of_equal_answers_the_first_asked_is_taken_whatever_the_order_of_the_rows():
    rows = [{"question_id": "9", "answer": "b"}, {"question_id": "10", "answer": "a"}]
    assert commonest(rows) == commonest(rows[::-1]) == "b"


def records(arm, hits_by_run, trained=True):
    return [
        {
            "arm": arm,
            "split": f"fold{fold}",
            "seed": 0 if trained else None,
            "question_id": f"q{fold}-{index}",
            "prediction": "yes" if hit else "no",
            "gold": "yes",
            "answer_type": "OPEN" if index % 2 else "CLOSED",
        }
        for fold, hits in enumerate(hits_by_run)
        for index, hit in enumerate(hits)
    ]


A = records("1-2-3", [[1, 1, 1, 0], [1, 1, 0, 0]])
B = records("2-3", [[1, 0, 1, 0], [0, 1, 0, 0]])
MAJORITY = records("majority", [[0, 0, 1, 0], [0, 0, 1, 0]], trained=False)


def test_a_row_is_mean_and_spread_over_runs():
    rows = rows_of(summarise(A + B + MAJORITY, ["1-2-3", "2-3", "majority"]))
    assert [row["all_mean"] for row in rows] == [62.5, 37.5, 25.0]
    assert rows[0]["all_sd"] == pytest.approx(17.6777, abs=1e-4)
    assert (rows[0]["open_mean"], rows[0]["closed_mean"]) == (50.0, 75.0)
    assert (rows[0]["runs"], rows[0]["folds"], rows[0]["seeds"], rows[0]["questions"]) == (2, 2, 1, 8)
    assert (rows[2]["seeds"], rows[2]["trained"]) == (0, False)


def test_differences_are_taken_run_by_run():
    assert paired_differences(A + B, "1-2-3", "2-3") == [25.0, 25.0]


def test_arms_that_answered_other_questions_cannot_be_compared():
    with pytest.raises(TriptychError, match="answered different questions"):
        summarise(A + B[:-1], ["1-2-3", "2-3"])
    with pytest.raises(TriptychError, match="have different gold answers"):
        summarise([*A, *B[:-1], {**B[-1], "gold": "another"}], ["1-2-3", "2-3"])


def test_the_page_shows_means_spreads_and_paired_differences():
    table = summarise(A + B + MAJORITY, ["1-2-3", "2-3", "majority"])
    text = schedules_markdown(table, A + B + MAJORITY, ["1-2-3", "2-3"])
    assert "| **1-2-3**" in text and "62.5 ± 17.7" in text
    assert "`1-2-3` minus `2-3`, paired by run: +25.0 ± 0.0 points (+25.0, +25.0)" in text
    assert_frame_equal(summarise((A + B)[::-1], ["1-2-3", "2-3"]), summarise(A + B, ["1-2-3", "2-3"]))


def test_answers_that_the_two_rules_judge_differently_are_counted():
    said = [
        {**record, "prediction": "T2-", "gold": "T2+"} if record["question_id"] == "q0-1" else record for record in A
    ]
    table = summarise(said + B, ["1-2-3"])
    [row] = rows_of(table)
    assert (row["all_mean"], row["lmms_eval_mean"], row["rules_differ"]) == (50.0, 62.5, 1)
    text = schedules_markdown(table, said, ["1-2-3"])
    assert "| lmms-eval   |" in text and "\n1 of the kept answers are right by one of two rules alone" in text
    assert "of the kept answers" not in schedules_markdown(summarise(A, ["1-2-3"]), A, ["1-2-3"])


def test_controls_tell_what_is_lost_run_by_run():
    blind = records("1-2-3", [[1, 1, 0, 0], [1, 0, 0, 0]])
    [row] = rows_of(controls(A, {"swapped": blind, "blank": []}, ["1-2-3"]))
    assert (row["true_mean"], row["swapped_mean"], row["swapped_lost_mean"], row["swapped_lost_sd"]) == (
        62.5,
        37.5,
        25,
        0,
    )
    assert "blank_mean" not in row
    with pytest.raises(TriptychError, match="1-2-3 has different runs with swapped images"):
        controls(A, {"swapped": blind[:4]}, ["1-2-3"])


def test_a_drop_is_over_the_questions_that_a_control_asked():
    alike = [
        {**record, "prediction": "no", "gold": "yes"}
        for record in A
        if record["question_id"] not in {"q0-0", "q1-3"}  # the first is right with its own image, the other wrong
    ]
    table = controls(A, {"swapped": A, "swapped-alike": alike, "blank": []}, ["1-2-3"])
    [row] = rows_of(table)
    own = {
        run: [r for r in A if r["split"] == f"fold{run}" and r["question_id"] not in ("q0-0", "q1-3")] for run in (0, 1)
    }
    expected = [100 * sum(r["prediction"] == r["gold"] for r in rows) / len(rows) for rows in own.values()]
    assert row["swapped-alike_mean"] == 0 and row["true_mean"] == 62.5
    assert row["swapped-alike_lost_mean"] == pytest.approx(sum(expected) / 2)
    assert row["swapped-alike_lost_mean"] != pytest.approx(62.5)
    assert (row["swapped_left_out"], row["swapped-alike_left_out"], row["swapped_lost_mean"]) == (0, 2, 0)
    heading = list(shown_controls(table).columns)
    assert heading[2:] == ["own image", "another image", "drop", "another of its kind (2 left out)", "drop"]


def test_content_rows_count_their_own_questions():
    about = [
        {
            **record,
            "modality": "CT" if record["question_id"].endswith("0") else "MRI",
            "location": "",
            "content_type": "Organ",
        }
        for record in A
    ]
    rows = {(row["aspect"], row["value"]): row for row in rows_of(by_content(about, ["1-2-3"]))}
    assert (rows["modality", "CT"]["questions"], rows["modality", "CT"]["mean"]) == (2, 100.0)
    assert (rows["modality", "MRI"]["questions"], rows["modality", "MRI"]["mean"]) == (6, 50.0)
    assert rows["answer_type", "OPEN"]["folds"] == 2
