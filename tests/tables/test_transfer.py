"""The table of a data set that nothing trains on: known answers."""

import pytest
from triptych.config.arms import BASELINES
from triptych.errors import TriptychError
from triptych.evaluate.baselines import apart
from triptych.tables import transfer
from triptych.tables.format import rows_of


def answers(arm, right, split="fold0", seed=0, questions=8, group=None):
    """A run that answers the first `right` of its questions right, each about an image of its own."""
    about = {"modality": "", "location": "", "content_type": "", "answer_type": "OPEN", "gold": "liver"}
    return [
        {
            **about, "arm": arm, "view": "test", "split": split, "seed": seed, "question_id": f"q{number}",
            "image_id": f"i{number}", "group": group or f"i{number}", "question": "which organ?",
            "prediction": "liver" if number < right else "lung", "gold_logprob": -1.0,
        }
        for number in range(questions)
    ]  # fmt: skip


def test_the_interval_of_an_arm_covers_runs_and_images():
    runs = [
        answers("2-3", right, split, seed) for right, split, seed in ((4, "fold0", 0), (6, "fold1", 0), (5, "fold0", 1))
    ]

    def interval(records):
        [row] = rows_of(transfer.summarise(records, ["2-3"]))
        return row["low"], row["high"]

    low, high = interval([row for run in runs for row in run])
    assert 0 <= low < 62.5 < high <= 100
    one = interval(runs[0])
    assert one[0] < 50 < one[1] and one[1] - one[0] < high - low, "of one run, images alone"
    assert interval(answers("2-3", 4, group="p1")) == (None, None)
    for right in (0, 8):  # equal answers have no spread by which to judge other images: no interval of width 0
        assert interval(answers("2-3", right)) == (None, None)
        assert interval(answers("2-3", right) + answers("2-3", right, "fold1")) == (None, None)


def test_arms_are_scored_on_the_same_questions_and_compared():
    records = [row for fold in ("fold0", "fold1") for row in answers("1-2-3", 6, fold) + answers("2-3", 4, fold)]
    records += answers("majority-in-domain", 8, "shared", None)
    table = rows_of(transfer.summarise(records, ["1-2-3", "2-3", "majority-in-domain"]))
    assert [(row["arm"], row["all_mean"], row["runs"], row["trained"]) for row in table] == [
        ("1-2-3", 75, 2, True), ("2-3", 50, 2, True), ("majority-in-domain", 100, 1, False),
    ]  # fmt: skip
    [row] = transfer.compared(records, ["1-2-3", "2-3"], 1.0, {})
    assert (row["effect"], row["questions"], row["runs"], row["folds"]) == (25, 8, 2, 2)
    assert transfer.compared(records, ["1-2-3"], 1.0, {}) == []
    with pytest.raises(TriptychError, match="answered different questions"):
        transfer.summarise([*records, *answers("majority", 8, questions=7, seed=None)], ["1-2-3", "majority"])


def test_an_arm_without_answers_is_an_error():
    with pytest.raises(TriptychError, match=r"no predictions of .*1-3"):
        transfer.summarise(answers("2-3", 4), ["2-3", "1-3"])


def test_what_is_in_domain_is_said_only_where_there_is_some():
    records = answers("2-3", 4)
    text = transfer.about("rad", "test", transfer.summarise(records, ["2-3"]))
    assert "8 questions, the part `test` of rad" in text and "in-domain" not in text
    records += answers("majority-in-domain", 2, "shared", None)
    assert "in-domain" in transfer.about("rad", "test", transfer.summarise(records, ["2-3", "majority-in-domain"]))


def test_images_of_two_data_sets_with_one_id_stay_apart():
    """Both data sets have an image 1: the nearest training image of the asked one is 2."""
    import numpy as np

    kind = {"question": "what?", "content_type": "Organ", "answer_type": "OPEN"}
    rows = [
        {**kind, "question_id": f"q{name}", "image_id": name, "answer": answer}
        for name, answer in (("1", "far"), ("2", "near"))
    ]
    [posed] = apart([{**rows[0], "question_id": "other"}])
    vectors = {"1": np.array([1.0, 0.0]), "2": np.array([0.0, 1.0]), posed["image_id"]: np.array([0.1, 1.0])}
    copies = [{**rows[1], "question_id": f"q2{n}"} for n in range(2)]
    assert posed["image_id"] not in ("1", "2")
    assert BASELINES["nearest-images"].load()([*rows, *copies], vectors)(posed) == "near"
