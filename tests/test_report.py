"""The report: what it gathers, and that answers cannot break its page. `test_workflow` opens it in a browser."""

import json

from conftest import toy_config
from triptych.report.__main__ import as_json, named
from triptych.report.gather import questions_and_answers, weaknesses
from triptych.settings import load_settings
from triptych.storage import write_text


def record(question, arm, prediction, gold="liver", seed=0):
    asked = {"question_id": f"q{question}", "question": f"what is {question}?", "image_id": f"i{question}"}
    run = {"arm": arm, "split": "fold0", "seed": seed, "modality": "CT", "content_type": "Organ"}
    return {**run, **asked, "gold": gold, "prediction": prediction}


def test_every_question_stands_once_with_each_arms_first_answer():
    records = [
        record(1, "a", "liver"),
        record(1, "a", "lung", seed=1),
        record(1, "b", "lung"),
        record(2, "a", "Liver."),
    ]
    found = questions_and_answers(records, ["a", "b"])
    assert [(row[0], row[5], row[6]) for row in found["rows"]] == [
        ("what is 1?", ["liver", "lung"], [1, 0]),
        ("what is 2?", ["Liver.", ""], [1, 0]),
    ]


def test_weaknesses_are_said_where_the_numbers_show_them(world, tmp_path):
    (tmp_path / "predictions").mkdir()
    settings = load_settings(toy_config(world))
    arms = [("1-2-3", "True", 50.0), ("2-3", "True", 52.0), ("nearest-pictures", "False", 60.0)]
    rows = [{"arm": arm, "trained": trained, "all_mean": mean} for arm, trained, mean in arms]
    comparison = [{"first": "1-2-3", "second": "2-3", "detectable": 7.5}]
    write_text(tmp_path / "tables/controls.csv", "arm,swapped_lost_mean\n1-2-3,0.5\n2-3,20\n")
    said = " ".join(weaknesses(settings, tmp_path, rows, comparison))
    assert "One seed" in said and "Only 2 folds" in said and "difference of 7.5 points" in said
    assert "No schedule beats a look-up" in said and "the best is `2-3` with 52.0 %" in said
    assert "`1-2-3` loses 0.5 points only" in said and "`2-3` loses" not in said
    assert "test part has not been looked at" in said
    rows[1]["all_mean"] = 80.0
    assert "No schedule beats" not in " ".join(weaknesses(settings, tmp_path, rows, comparison))


def test_answers_cannot_break_out_of_the_page():
    text = as_json(["</script><script>alert(1)</script>", "<!--"])
    assert "</script" not in text and "<!--" not in text
    assert json.loads(text) == ["</script><script>alert(1)</script>", "<!--"]
    assert str(named("`a<b>` & c")) == "<code>a&lt;b&gt;</code> &amp; c"
