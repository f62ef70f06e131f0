"""Scores, baselines and tables on records with known answers."""

import numpy as np
import pytest
from triptych.baseline import commonest, majority, majority_per_question, nearest_pictures
from triptych.score import accuracies, exact_match, normalise
from triptych.storage import TriptychError, csv_text
from triptych.tables import COLUMNS, as_markdown, paired_differences, summarise


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


def test_accuracies_are_per_cent_by_answer_type():
    records = [
        {"prediction": "a", "gold": "a", "answer_type": "OPEN"},
        {"prediction": "b", "gold": "a", "answer_type": "OPEN"},
        {"prediction": "no", "gold": "no", "answer_type": "CLOSED"},
        {"prediction": "no", "gold": "no", "answer_type": "CLOSED"},
    ]
    assert accuracies(records) == {"ALL": 75.0, "OPEN": 50.0, "CLOSED": 100.0}
    assert accuracies(records[:2])["CLOSED"] is None


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


def test_the_nearest_pictures_vote_on_the_same_question():
    def row(number, image, question, answer, content="Organ"):
        kind = {"content_type": content, "answer_type": "OPEN"}
        return {"question_id": f"q{number}", "image_id": image, "question": question, "answer": answer, **kind}

    vectors = {
        name: np.array([np.cos(angle), np.sin(angle)]) for name, angle in zip("abcdx", (0, 1, 2, 3, 0.9), strict=True)
    }
    known = [row(0, "a", "what?", "far"), row(1, "b", "what?", "near"), row(2, "c", "what?", "far")]
    known += [row(3, "d", "what?", "near"), row(4, "b", "where?", "here", "Position")]
    predict = nearest_pictures(known, vectors)
    assert predict(row(9, "x", "what?", "")) == "far", "two of the three nearest pictures"
    assert nearest_pictures(known[:2], vectors)(row(9, "x", "what?", "")) == "near", "of equals, the nearest"
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
    rows = summarise(A + B + MAJORITY, ["1-2-3", "2-3", "majority"])
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


def test_the_tables_say_the_same_in_both_forms():
    rows = summarise(A + B + MAJORITY, ["1-2-3", "2-3", "majority"])
    csv, markdown = csv_text(rows, COLUMNS, 4), as_markdown(rows, A + B + MAJORITY, ["1-2-3", "2-3"])
    assert csv.splitlines()[1].startswith("1-2-3,True,8,2,2,1,62.5000,17.6777")
    assert "| **1-2-3**" in markdown and "62.5 ± 17.7" in markdown
    assert "`1-2-3` less `2-3`, paired by run: +25.0 ± 0.0 points (+25.0, +25.0)" in markdown
    assert summarise((A + B)[::-1], ["1-2-3", "2-3"]) == summarise(A + B, ["1-2-3", "2-3"])
