"""A baseline, a control and a result are each added by one entry, and are then in jobs, plan, tables and report."""

import json
import re
import shutil
from dataclasses import replace

import pandas
import pytest
from triptych.commands import plan, verify
from triptych.commands.jobs import job_states, jobs
from triptych.config.arms import BASELINES, CONTROLS, Baseline, Control
from triptych.config.paths import STEPS, Step
from triptych.config.study import load_study, read_study
from triptych.config.wildcards import asked_views
from triptych.evaluate import baselines, predict
from triptych.evaluate.controls import Shown
from triptych.io.manifest import write_record
from triptych.report.gather import gather
from triptych.report.view import render
from triptych.tables import schedules

TABLES = {
    "schedules",
    "above_lookups",
    "by_content",
    "controls",
    "comparison",
    "comparison_by_type",
    "calibration",
    "probe",
    "leak",
    "captions",
}


def always_yes(training, vectors):
    return lambda row: "yes"


def first_image(questions, features, encoder, device):
    images = {row["image_id"] for row in questions}
    return Shown(dict.fromkeys(images, min(images)), features)


@pytest.fixture
def finished(study, tmp_path, monkeypatch):
    """A copy of the finished toy study, as this process sees it."""
    shutil.copytree(study.folder, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    found = read_study(tmp_path / "study/study.yaml")
    return replace(found, results=tmp_path / "study/results")


def run(monkeypatch, step, *arguments):
    monkeypatch.setattr("sys.argv", ["step", *map(str, arguments)])
    step.main()


def tabulate(monkeypatch, study):
    answers = [path for path in study.results.glob("predictions/*/fold*/*.parquet") if "-test" not in path.name]
    arms = ["--schedules", *study.grid.schedules, "--baselines", *BASELINES]
    run(monkeypatch, schedules, "--predictions", *answers, *arms, "--out", study.results / "tables")


def test_a_baseline_is_one_entry(finished, monkeypatch):
    before = sum(job.rule == "predict_baseline" for job in jobs(finished))
    monkeypatch.setitem(BASELINES, "always-yes", Baseline(f"{__name__}:always_yes"))
    added = [job for job in jobs(finished) if job.arm == "always-yes"]
    assert sum(job.rule == "predict_baseline" for job in jobs(finished)) == before + 2 == before + len(added)
    states = job_states(finished, 0.0)
    assert [state.state for state in states if state.job in added] == ["pending"] * 2
    assert re.search(rf"^predict_baseline +{before + 2} +{before} +2$", "\n".join(plan.lines(finished, states)), re.M)
    data = ["--data", finished.results / "data/medical", "--features", finished.results / "features/medical"]
    for job, fold in zip(added, finished.grid.folds, strict=True):
        run(monkeypatch, baselines, "--baseline", "always-yes", *data, "--split", fold, "--out", job.outputs[0])
    tabulate(monkeypatch, finished)
    table = pandas.read_csv(finished.results / "tables/schedules.csv").set_index("arm")
    assert table.loc["always-yes", "questions"] == table.loc["majority", "questions"]
    assert not table.loc["always-yes", "trained"]
    page, _ = render(finished, gather(finished, TABLES))
    assert "always-yes" in page


@pytest.mark.parametrize("name", ["first", "swapped-alike"])
def test_a_control_is_one_entry(finished, monkeypatch, name):
    if name == "first":
        monkeypatch.setitem(CONTROLS, name, Control(f"{__name__}:first_image", "the first image", "the first one"))
    config = finished.settings.model_dump(exclude_unset=True)
    config["evaluation"]["controls"] = ["swapped", "blank", name]
    study = replace(load_study(config), results=finished.results)
    asking = [job for job in jobs(study) if job.rule == "predict"]
    assert len(asking) == len(study.grid.schedules) * 2
    before = {path: path.stat().st_mtime_ns for job in asking for path in job.outputs[:-1]}
    models = study.results / "models"
    told = {"precision": "fp32", "max_new_tokens": 6, "batch_size": 5, "constrained": True}
    for job in asking:
        prefix, fold = job.outputs[0].parts[-3:-1]
        files = ["--checkpoint", study.results / f"checkpoints/{prefix}/{fold}/seed0/manifest.json"]
        files += ["--data", study.results / "data/medical/folds.json", "--features", study.results / "features/medical"]
        files += ["--vision-encoder", models / "vision_encoder", "--language-model", models / "language_model"]
        files += ["--views", *asked_views(study), "--out", *job.outputs]
        run(monkeypatch, predict, *files, "--job", json.dumps(told))
        assert job.done
    assert before == {path: path.stat().st_mtime_ns for path in before}, "the new view alone is asked"
    tabulate(monkeypatch, study)
    table = pandas.read_csv(study.results / "tables/controls.csv").set_index("arm")
    assert table[f"{name}_mean"].notna().all() and {"swapped_mean", "blank_mean"} < set(table.columns)
    assert (table[f"{name}_left_out"] == 0).all(), "each fold holds out two subjects of each modality"
    assert CONTROLS[name].heading in (study.results / "tables/controls.md").read_text()
    page, _ = render(study, gather(study, TABLES))
    assert CONTROLS[name].heading in page


def test_a_result_is_one_entry(finished, monkeypatch, capsys):
    monkeypatch.setitem(STEPS, "summarise", Step("summarise", "data set", "/{dataset}", "data/{dataset}/summary.json"))
    added = [job for job in jobs(finished) if job.rule == "summarise"]
    assert [*(path for job in added for path in job.outputs)] == [
        finished.results / f"data/{name}/summary.json" for name in finished.grid.used_datasets
    ]
    assert "summarise" in "\n".join(plan.lines(finished, job_states(finished, 0.0)))
    for job in added:
        write_record(job.outputs[0], {"images": 1})
    assert {state.state for state in job_states(finished, 0.0) if state.job in added} == {"done"}
    cache = finished.results.parent / "cache"
    assert not list(verify.damages(finished.results, cache))
    damaged = added[0].outputs[0]
    damaged.write_text(damaged.read_text().replace("1", "2", 1))
    [(damage, remove)] = verify.damages(finished.results, cache)
    assert "summary.json: damaged or edited" in damage and remove == [damaged]
