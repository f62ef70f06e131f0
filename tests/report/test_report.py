"""The report: what it gathers, and that answers cannot break its page. `test_page` opens it in a browser."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from shutil import copyfile
from types import SimpleNamespace

import pandas
import pytest
import screenshots
from browser import CHROMIUM, Browser
from conftest import ROOT, toy_config
from generated import full_gathered, full_study
from PIL import Image
from triptych.commands import estimate
from triptych.commands.jobs import jobs
from triptych.config import paths
from triptych.config.study import load_study
from triptych.data.rejects import SUMMARY
from triptych.data.schemas import QUESTION_SCHEMA, REJECT_SCHEMA
from triptych.errors import TriptychError
from triptych.io.atomic import write_text
from triptych.io.manifest import write_json
from triptych.io.parquet import write_table
from triptych.report import curves
from triptych.report.charts import pivot, shown_stages
from triptych.report.gallery import confusions, first_shown, packed, questions_and_answers
from triptych.report.gather import HEALTH, OPTIONAL, read_and_rejected
from triptych.report.provenance import MADE_BY, planned_and_used, trained_from
from triptych.report.rejected import rejected
from triptych.report.results import images_asked, results
from triptych.report.view import as_json, named
from triptych.tables import stages
from triptych.tables.format import make_table


def record(question, arm, prediction, gold="liver", seed=0, logprob=None):
    asked = {"question_id": f"q{question}", "question": f"what is {question}?", "image_id": f"i{question}"}
    run = {"arm": arm, "split": "fold0", "seed": seed, "modality": "CT", "content_type": "Organ"}
    return {**run, **asked, "gold": gold, "prediction": prediction, "logprob": logprob}


def test_every_question_stands_once_with_each_arms_first_answer():
    records = [
        record(1, "a", "liver", logprob=math.log(0.255)),
        record(1, "a", "lung", seed=1),
        record(1, "b", "lung"),
        record(2, "a", "Liver."),
    ]
    found = questions_and_answers(records, ["a", "b"])
    shown = [(row["id"], row["question"], row["answers"], row["right"], row["sure"]) for row in found["rows"]]
    assert shown == [
        ("q1", "what is 1?", ["liver", "lung"], [1, 0], [26, None]),
        ("q2", "what is 2?", ["Liver.", ""], [1, 0], [None, None]),
    ]
    short = packed(found)
    assert short["arms"] == ["a", "b"] and len(set(short["texts"])) == len(short["texts"])
    name, *places = short["rows"][0]
    assert name == "q1" and [short["texts"][place] for place in places[:3]] == ["what is 1?", "liver", "i1"]
    assert [short["texts"][places[6]], *places[7:9]] == ["liver", 1, 26] and places[10:12] == [0, -1]


def test_questions_come_in_the_order_of_their_numbers():
    names = ["10", "2", "x", "a10b2", "a2b10", "", "a2b9", "02", "²"]
    records = [{**record(0, "a", "liver"), "question_id": name} for name in names]
    shown = [row["id"] for row in questions_and_answers(records, ["a"])["rows"]]
    assert shown == ["", "2", "02", "10", "a2b9", "a2b10", "a10b2", "x", "²"]


def test_readers_without_scripts_see_what_schedules_disagree_about_first():
    rows = [{"id": number, "right": [1, int(number in (3, 5)), number % 2]} for number in range(20)]
    assert [row["id"] for row in first_shown({"rows": rows}, 2, most=4)] == [0, 1, 2, 4]
    rows = [{"id": number, "right": [1, int(number not in (3, 5)), number % 2]} for number in range(20)]
    assert [row["id"] for row in first_shown({"rows": rows}, 2, most=4)] == [3, 5, 0, 1]


def test_confusions_count_all_runs_and_answers_as_they_are_scored():
    records = [record(1, "a", "Liver."), record(1, "a", "lung", seed=1), record(2, "a", "heart"), record(3, "b", "x")]
    records += [record(number, "a", "lung", gold="lung") for number in (4, 5)]
    found = confusions(records, ["a"], most=2)
    assert list(found) == ["a"] and found["a"]["answers"] == ["liver", "lung"]
    third = pytest.approx(100 / 3)
    assert found["a"]["rows"] == [
        {"gold": "liver", "number": 3, "shares": [third, third, third]},
        {"gold": "lung", "number": 2, "shares": [0.0, 100.0, 0.0]},
    ]


def test_rejects_stand_by_cause_with_the_kept_image_that_they_are_about(world, tmp_path, monkeypatch):
    study = replace(load_study(toy_config(world)), results=tmp_path)
    assert rejected(study, "medical") == []
    reasons = [("question", "q1", "train.json[3]: is empty"), ("question", "q2", "train.json[4]: is empty")]
    reasons += [("image", "b", "train.json[5]: near-duplicate of a")]
    rows = [dict(zip(REJECT_SCHEMA.names, reason, strict=True)) for reason in reasons]
    write_table(study.path(paths.REJECTS, dataset="medical"), rows, REJECT_SCHEMA)
    asked = [dict.fromkeys(QUESTION_SCHEMA.names, "") | {"question_id": "q1", "image_id": "a"}]
    write_table(study.path(paths.SOURCE_FOLDER, dataset="medical") / "questions.parquet", asked, QUESTION_SCHEMA)
    monkeypatch.setattr("triptych.report.rejected.ImageTable", lambda path: SimpleNamespace(image_ids=["a"]))
    monkeypatch.setattr("triptych.report.rejected.thumbnails", lambda folder, ids: dict.fromkeys(ids, "data:"))
    found = rejected(study, "medical")
    assert [(entry["kind"], entry["number"]) for entry in found] == [("question", 2), ("image", 1)]
    assert found[0]["cause"] == "is empty"
    assert [example["thumbnail"] for entry in found for example in entry["examples"]] == ["data:", "", "data:"]


def test_what_was_trained_from_what_names_parents_devices_hours_and_hashes(world, tmp_path):
    study = replace(load_study(toy_config(world)), results=tmp_path)
    write_json(tmp_path / "checkpoints/2/fold0/seed0/manifest.json", {"device": "cpu", "files": {"b": "2", "a": "1"}})
    write_text(tmp_path / "benchmarks/train_stage/2/fold0/seed0.jsonl", json.dumps({"s": 5400}) + "\n")
    found = {entry["prefix"]: entry for entry in trained_from(study)}
    assert {name: entry["parent"] for name, entry in found.items()} == {
        **{"1": None, "2": None, "1-2": "1"},
        **{"2-3": "2", "1-2-3": "1-2"},
    }
    two = found["2"]
    assert (two["devices"], two["hours"], two["hash"], two["jobs"]) == (["cpu"], 1.5, "1", 2)
    assert found["1"]["schedules"] == ["1-2-3"] and found["1"]["hours"] is None and found["1"]["jobs"] == 1


def test_commands_name_rules_that_make_the_tables():
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert all(f"rule {rule}:" in rules or f"as {rule} with" in rules for rule in MADE_BY.values())
    assert OPTIONAL.keys() <= MADE_BY.keys(), "every table that the page may show"


def test_the_first_screen_says_what_was_read_and_rejected(world, tmp_path):
    study = replace(load_study(toy_config(world)), results=tmp_path)
    write_json(tmp_path / "data" / "medical" / SUMMARY, {"image": {"no bytes": 3}})
    counts = {"images": {"train": 17}, "questions": {"train": 51}, "rejects": {"image": 3, "question": 9}}
    captions = {"images": {"train": 24}, "questions": {"train": 24}, "rejects": {}}
    assert read_and_rejected(study, {"medical": counts, "general-24": captions}) == [
        (
            "warning: 15.0 % of the images and 15.0 % of the questions of medical were rejected. "
            "20 images seen, 17 accepted, 3 rejected (no bytes: 3); 60 questions seen, 51 accepted, 9 rejected",
            True,
        ),
        ("general-24: 24 images seen, 24 accepted, 0 rejected", False),
    ]


def test_images_are_counted_by_subject_only_where_there_are_some(world, tmp_path):
    study = full_study(world, tmp_path)
    found = results(study, full_gathered(study, 60))

    def said(subjects, named):
        return images_asked(found.model_copy(update={"subjects": subjects, "subjects_named": named}))

    assert said(6, True) == "12 images of 6 subjects or groups of images"
    assert said(60, True) == "12 images", "folds by row: each question is a group"
    assert said(12, False) == said(60, False) == "12 images (the data name no subjects)"
    assert said(9, False) == "12 images in 9 groups (the data name no subjects)"


def test_the_table_of_stages_says_which_epochs_were_kept():
    run = {"schedule": "2-3", "stage": "3", "prefix": "2-3", "seed": 0, "train_loss": 1.0}
    rows = [
        {**run, "split": f"fold{fold}", "epoch": epoch, "kept_epoch": kept}
        for fold, kept in enumerate((4, 2, 4))
        for epoch in range(5)
    ]
    assert shown_stages(make_table(rows, stages.COLUMNS))["kept epoch"].tolist() == ["2 to 4"]
    assert shown_stages(make_table(rows[:5], stages.COLUMNS))["kept epoch"].tolist() == ["4"]
    rows = [row | {"kept_epoch": None} for row in rows]
    assert shown_stages(make_table(rows, stages.COLUMNS))["kept epoch"].tolist() == [""]


def test_answers_cannot_break_out_of_the_page():
    text = as_json(["</script><script>alert(1)</script>", "<!--"])
    assert "</script" not in text and "<!--" not in text
    assert json.loads(text) == ["</script><script>alert(1)</script>", "<!--"]
    assert str(named("`a<b>` & c")) == "<code>a&lt;b&gt;</code> &amp; c"


def test_hours_used_stand_beside_those_that_the_configuration_assumed(world, tmp_path):
    study = replace(load_study(toy_config(world)), results=tmp_path)
    assert planned_and_used(study) == []
    for name, seconds in (("1/shared", 1800), ("2/fold0", 3600), ("2/fold1", 7200)):
        write_text(tmp_path / f"checkpoints/{name}/seed0/manifest.json", "{}")
        write_text(tmp_path / f"benchmarks/train_stage/{name}/seed0.jsonl", json.dumps({"s": seconds}) + "\n")
    for view in ("", "-swapped", "-blank"):
        write_text(tmp_path / f"predictions/2-3/fold0/seed0{view}.parquet", "")
    write_text(tmp_path / "benchmarks/predict/2-3/fold0/seed0.jsonl", '{"s": 36}\n')
    write_text(tmp_path / "checkpoints/2-3/fold0/seed0/manifest.json", "{}")  # copied here: no time is known
    write_text(tmp_path / "benchmarks/train_stage/1-2/fold0/seed0.jsonl", '{"s": 99}\n')  # not there any more
    # The trainings above are finished, and yet the rate is the configuration's.
    before = estimate.hours(study, [])
    assert before.rate == study.settings.plan.tflops * 1e12 * study.settings.plan.utilisation
    done = {step.name: step for step in jobs(study)}
    one, two, answer = (before.of(done[f"{name}/seed0"]) for name in ("1/shared", "2/fold0", "1-2-3/fold1"))
    *rows, total = planned_and_used(study)
    assert rows == [
        {"what": "1", "jobs": 1, "planned": pytest.approx(one), "used": 0.5},
        {"what": "2", "jobs": 2, "planned": pytest.approx(2 * two), "used": 3.0},
        {"what": "predictions", "jobs": 1, "planned": pytest.approx(answer), "used": 0.01},
    ]
    planned = pytest.approx(one + 2 * two + answer)
    assert total == {"what": "all", "jobs": 4, "planned": planned, "used": pytest.approx(3.51)}


def test_a_stage_that_schedules_share_is_drawn_once_and_stages_share_a_scale():
    def row(schedule, stage, prefix, epoch, loss):
        run = {"schedule": schedule, "stage": stage, "prefix": prefix, "split": "fold0", "seed": 0}
        return {**run, "epoch": epoch, "validation_loss": loss}

    rows = [row(schedule, "1", "1", epoch, 2.0) for schedule in ("1-2", "1-3") for epoch in (0, 1)]
    rows += [row("1-3", "3", "1-3", epoch, 1.0) for epoch in (0, 1)]
    rows += [{**row("1-3", "1", "1", 0, 10.0), "split": "fold1"}]
    frame = make_table(rows, {**stages.COLUMNS, **HEALTH})
    drawn = curves.charts(frame, ["1", "3"], ["1-3", "1-2"])["validation_loss"]
    points = {stage: [(one["name"], one["points"]) for one in series] for stage, series in drawn["series"].items()}
    assert points == {
        "1": [("1-3", [(0, 6.0, 2.0, 10.0, 2), (1, 2.0, 2.0, 2.0, 1)])],
        "3": [("1-3", [(0, 1.0, 1.0, 1.0, 1), (1, 1.0, 1.0, 1.0, 1)])],
    }
    assert drawn["limits"][0] < 1 and 10 < drawn["limits"][1] < 11 and drawn["write"](10.0) == "10"
    assert curves.named(frame, ["1-3", "1-2"]) == {0: "1-3"}
    assert curves.has_lines(drawn)
    frame["train_loss"] = [None if row["epoch"] == 0 else 1.0 for row in rows]
    found = curves.charts(frame, ["1", "3"], ["1-3", "1-2"])
    assert not curves.has_lines(found["training_loss"]), "one epoch gives it a single value"


def test_numbers_of_a_chart_are_a_table_and_what_is_not_there_is_empty():
    rows = [{"run": "fold0", "arm": "a", "accuracy": 50.0}, {"run": "fold0", "arm": "b", "accuracy": 25.25}]
    rows += [{"run": "fold1", "arm": "b", "accuracy": 0.0}]
    shown = pivot(pandas.DataFrame(rows), "run", "arm", "accuracy", ["b", "a"])
    assert list(shown.columns) == ["run", "b", "a"]
    assert shown.to_numpy().tolist() == [["fold0", "25.2", "50.0"], ["fold1", "0.0", ""]]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_picture_of_a_page_is_as_large_as_the_window_and_light_and_not_too_many_bytes(tmp_path, monkeypatch):
    write_text(tmp_path / "page.html", '<meta name="color-scheme" content="light dark"><body>words</body>')
    with Browser() as browser:
        browser.open((tmp_path / "page.html").as_uri())
        camera = screenshots.Camera(browser, tmp_path)
        camera.take("page", 400, 600)
        with Image.open(tmp_path / "page.png") as image:
            assert image.size == (600, 400) and image.convert("L").getpixel((599, 399)) == 255
        monkeypatch.setattr(screenshots, "MOST", 100)
        with pytest.raises(TriptychError, match=r"other: \d+ bytes are more than 100; take a smaller window"):
            camera.take("other", 400)
    assert not (tmp_path / "other.png").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_pictures_need_a_finished_demonstration(tmp_path):
    (tmp_path / "config").mkdir()
    copyfile(ROOT / "config/demo.yaml", tmp_path / "config/demo.yaml")
    command = [sys.executable, str(ROOT / "tools/screenshots.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "report.html: no such file; run `make demo` first" in done.stderr
