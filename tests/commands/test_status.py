"""What status says of a study: the jobs are Snakemake's, and each is told from what it left on disk."""

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, toy_config
from triptych.commands import estimate, status
from triptych.commands.cost import GOLD
from triptych.commands.jobs import JobState, job_states, jobs
from triptych.commands.status import outlook, summary, table
from triptych.config.paths import CHECKPOINT_FOLDER, below
from triptych.config.study import load_study
from triptych.io.manifest import write_json
from triptych.train import progress
from triptych.train.progress import Meter
from triptych.utils.terminal import bar, duration

NOW = 1_800_000_000.0
RESULTS = Path("results")
ROW = {"epoch": 1, "validation_loss": 0.5, "validation_accuracy": 0.25}


@pytest.fixture
def study(world, tmp_path, monkeypatch):
    """The toy study, in a folder where nothing has run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(toy_config(world)))
    return load_study(toy_config(world))


def folder_of(prefix: str, split: str) -> Path:
    return below(RESULTS, CHECKPOINT_FOLDER, prefix=prefix, split=split, seed=0)


def log(prefix: str, split: str, text: str, age: float = 5) -> None:
    path = RESULTS / f"logs/train_stage/{prefix}/{split}/seed0.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - age, NOW - age))


def finish(prefix: str, split: str, seconds: float) -> None:
    write_json(folder_of(prefix, split) / "manifest.json", {"metrics": ROW})
    times = RESULTS / f"benchmarks/train_stage/{prefix}/{split}/seed0.jsonl"
    times.parent.mkdir(parents=True, exist_ok=True)
    times.write_text(json.dumps({"s": seconds}) + "\n")


def lock() -> None:
    Path(".snakemake/locks").mkdir(parents=True)
    Path(".snakemake/locks/0.input.lock").touch()


def of(reports: list[JobState], name: str) -> JobState:
    [report] = [report for report in reports if report.job.rule == "train_stage" and report.job.name == name]
    return report


ABLATIONS = {"last": {"models": {"vision_encoder": {"layer": -1}}}, "slow": {"stages": {"2": {"max_samples": 9}}}}


@pytest.mark.parametrize(("ablations", "leak"), [({}, []), (ABLATIONS, []), ({}, ["2-3"])])
def test_the_steps_are_the_jobs_that_snakemake_plans(world, study, ablations, leak):
    config = {**toy_config(world), "ablations": ablations}
    config["evaluation"] = {**config["evaluation"], "leak": {"schedules": leak}}
    Path("study.yaml").write_text(yaml.safe_dump(config))
    study = load_study(config)
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", "study.yaml", "--printshellcmds"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    stats = result.stdout.split("Job stats:")[1].split("total")[0]
    planned = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)", stats, re.MULTILINE)}
    counted = Counter(job.rule for job in jobs(study))
    assert {rule: planned.get(rule) for rule in counted} == counted
    # Two folds each: of every schedule all views in one job; of the leak study's three other kinds of folds one view.
    assert counted["predict"] == (2 + len(ablations)) * 2 and counted["predict_view"] == len(leak) * 3 * 2
    # Their files, too: an output or a log by another name would be left for ever.
    text = result.stdout + result.stderr
    for job in jobs(study):
        assert all(str(path) in text for path in job.outputs) and f"> {job.log} 2>&1" in text


def test_each_state_is_told_from_what_a_step_left(study):
    lock()
    finish("1", "shared", 60)
    folder = folder_of("1-2", "fold0")
    write_json(folder / "last/state-000002/record.json", {"progress": {"rows": [ROW]}, "about": {}})
    log("1-2", "fold0", "epoch 2 step 30/40 loss 0.6931 90 s left\n")
    log("1-2", "fold1", "some words\nerror: the loss is not finite at step 3\n")
    log("2", "fold0", "stopped (SIGTERM) and saved at epoch 1, step 3 of 9; run it again to go on (exit status 75)\n")
    log("2", "fold1", "epoch 1 step 1/9 loss 2.0 9 s left\n", age=3600)
    reports = job_states(study, NOW)
    states = {name: of(reports, f"{name}/seed0").state for name in ("1/shared", "1-2/fold0", "1-2/fold1", "2/fold0")}
    assert list(states.values()) == ["done", "running", "failed", "interrupted"]
    assert of(reports, "2/fold1/seed0").state == "interrupted", "silent for an hour"
    assert of(reports, "2-3/fold0/seed0").state == "pending"
    assert of(reports, "1/shared/seed0").detail == "epoch 1: validation loss 0.500, exact match 25.0 %"
    running = of(reports, "1-2/fold0/seed0")
    assert running.detail == "epoch 1: validation loss 0.500, exact match 25.0 %, step 30 of 40"
    assert (running.fraction, running.seconds_left) == (1.0, 90), "one epoch of one is measured"
    assert of(reports, "1-2/fold1/seed0").detail.startswith("error: the loss is not finite at step 3 (results/logs/")


def test_what_torchrun_adds_does_not_hide_how_a_training_ended(study):
    lock()
    report = "Traceback (most recent call last):\n  x\ntorch.distributed.elastic.ChildFailedError:\n=====\n"
    log("2", "fold0", f"stopped (the time limit is near) and saved at epoch 1; run it again to go on\n{report}")
    others = "error: another process of this training has ended or does not answer; run it again to go on\n"
    log("2", "fold1", f"error: the loss is not finite at step 3\n{others}{report}")
    reports = job_states(study, NOW)
    assert of(reports, "2/fold0/seed0").state == "interrupted"
    failed = of(reports, "2/fold1/seed0")
    assert failed.state == "failed" and failed.detail.startswith("error: the loss is not finite at step 3 (")


def test_nothing_runs_where_no_snakemake_does(study):
    log("1", "shared", "epoch 1 step 5/10 loss 1.0 5 s left\n")
    report = of(job_states(study, NOW), "1/shared/seed0")
    assert report.state == "interrupted" and report.fraction == 0.5


def test_a_damaged_checkpoint_is_one_line_and_the_others_are_shown(study):
    finish("1", "shared", 60)
    manifest = folder_of("1", "shared") / "manifest.json"
    manifest.write_text("{")
    finish("2", "fold0", 60)
    reports = job_states(study, NOW)
    assert of(reports, "1/shared/seed0").state == "failed" and "not valid JSON" in of(reports, "1/shared/seed0").detail
    assert of(reports, "2/fold0/seed0").state == "done"


def planned(study, reports) -> estimate.Hours:
    return estimate.hours(study, reports)


def test_before_anything_has_finished_the_time_left_is_the_plans(study, monkeypatch):
    reports = job_states(study, NOW)
    ahead = outlook(study, reports)
    hours = planned(study, reports)
    assert ahead.seconds == pytest.approx(3600 * hours.left / study.settings.plan.at_once) and ahead.seconds > 0
    assert ahead.share == 0 and hours.measured == 0
    assert ahead.source == "estimated from the plan, at the rate that is assumed"
    monkeypatch.setattr(estimate, "benched_rate", lambda study: (1e12, "NVIDIA L40S"))
    said = "estimated from the plan, at the rate that `triptych bench` measured on NVIDIA L40S"
    assert outlook(study, reports).source == said


def test_the_time_left_is_that_of_finished_steps_of_the_same_kind(study):
    lock()
    for prefix, split, seconds in (("1", "shared", 100), ("2", "fold0", 10), ("2", "fold1", 30)):
        finish(prefix, split, seconds)
    log("1-2", "fold0", "epoch 1 step 1/2 loss 1.0 8 s left\n")
    log("1-2", "fold1", "epoch 1 step 1/2 loss 1.0 9 s left\n")
    reports = job_states(study, NOW)
    ahead, hours = outlook(study, reports), planned(study, reports)
    # Of stage 3 and of predictions none has finished: two folds of two schedules, of six predictions each.
    rest = sum(2 * hours.of_training[arm] + (6 + 2 * GOLD) * hours.of_prediction[arm] for arm in ("2-3", "1-2-3"))
    assert ahead.seconds == pytest.approx((8 + 9 + 3600 * rest) / 2)
    assert ahead.source == "estimated from finished jobs and, at their rate, from the plan" and hours.measured == 3

    finish("2-3", "fold0", 50)
    for prefix in ("1-2-3", "2-3"):
        times = RESULTS / f"benchmarks/predict/{prefix}/fold0/seed0.jsonl"
        times.parent.mkdir(parents=True)
        times.write_text('{"s": 4}\n')
        for view in ("", "-swapped", "-blank"):
            write_predictions(RESULTS / f"predictions/{prefix}/fold0/seed0{view}.parquet")
    reports = job_states(study, NOW)
    ahead = outlook(study, reports)
    # Two that run say 8 and 9; of stage 3, three are left, of 50 each; of the answers of four runs, those of two, of 4
    # each. Two at a time.
    assert ahead.seconds == (8 + 9 + 3 * 50 + 2 * 4) / 2 and ahead.source == "estimated from finished jobs"
    # Stage 2 takes 20 each: two are done and two are half done; of stage 3 one of four is done.
    assert ahead.share == pytest.approx((100 + 3 * 20 + 50 + 2 * 4) / (100 + 4 * 20 + 4 * 50 + 4 * 4))
    [predicted] = [report for report in reports if report.job.name == "2-3/fold0/seed0" and report.job.cell is None]
    assert predicted.detail == "exact match 50.0 %"


def test_every_running_job_has_a_bar_and_the_time_that_it_takes_still(study):
    lock()
    logs = {
        "train_stage/1/shared/seed0": "epoch 1 step 1/4 loss 1.0 90 s left\n",
        "train_stage/2/fold0/seed0": "2 fold0 seed 0: 9 training and 9 validation samples\n",
        "predict/2-3/fold0/seed0": "5/50 questions, 0.4/s\n20/50 questions, 0.5/s\n",
        "encode_images/medical": "10/20 images, 5/s, 2 s left\n",
        "encode_images/general-24": "loading\n",
    }
    for name, text in logs.items():
        path = RESULTS / f"logs/{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (NOW, NOW))
    reports = job_states(study, NOW)
    ahead = outlook(study, reports)
    *lines, _ = summary(reports, ahead)
    wait = duration(3600 * planned(study, reports).of_training["2"])
    assert lines == [
        f"{bar(0)} encode_images general-24: runs",
        f"{bar(0.5)} encode_images medical: 10 of 20 images, 2 s left",
        f"{bar(0.25)} train_stage 1/shared/seed0: step 1 of 4, 1 min 30 s left",
        f"{bar(0)} train_stage 2/fold0/seed0: runs, {wait} left",
        f"{bar(0.4)} predict 2-3/fold0/seed0: 20 of 50 questions, 1 min left",
    ]


def write_predictions(path: Path) -> None:
    import pandas

    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame({"prediction": ["Left.", "ct"], "gold": ["left", "MRI"]}).to_parquet(path)


def test_the_text_is_plain_and_ends_with_the_whole(study, monkeypatch, capsys):
    lock()
    finish("1", "shared", 60)
    log("1-2", "fold0", "error: no space left\n")
    monkeypatch.setattr("sys.argv", ["status", "--configfile", "study.yaml"])
    status.main()
    text = capsys.readouterr().out
    assert text.isascii() and "\x1b" not in text
    lines = text.splitlines()
    assert lines[-2].startswith("failed: train_stage 1-2/fold0/seed0: error: no space left (results/logs/train_stage/")
    assert re.search(
        r"\] 1 done, 1 failed, 62 pending; about .+ left, estimated from finished jobs and, at their rate", lines[-1]
    )
    reports = job_states(study, NOW)
    assert re.search(r"^train_stage 1-2/fold0/seed0 +failed +see below$", text, re.MULTILINE)
    assert lines == [*table(reports), *summary(reports, outlook(study, reports))]


def test_bars_and_durations():
    assert [bar(value, 4) for value in (0, 0.5, 0.99, 1, 2)] == ["[----]", "[##--]", "[###-]", "[####]", "[####]"]
    seconds = (0, 45, 60, 200, 7500, 97200)
    assert [duration(value) for value in seconds] == ["0 s", "45 s", "1 min", "3 min 20 s", "2 h 5 min", "1 d 3 h"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (io.StringIO, "epoch 1 step 2/6 loss 0.5000 22 s left\nepoch 2 step 6/6 loss 0.5000 0 s left\n"),
        (
            Terminal,
            "\r[####--------------------] epoch 1 step 1/6 loss 0.5000, 30 s left\x1b[K"
            "\r[########----------------] epoch 1 step 2/6 loss 0.5000, 22 s left\x1b[K",
        ),
    ],
)
def test_a_training_shows_lines_in_a_log_and_a_bar_on_a_terminal(stream, expected, monkeypatch):
    clock = iter([0, 6, 11, 11.1, 11.2, 11.3, 11.4])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stdout", shown := stream())
    meter = Meter(steps=6, epoch_steps=3, done=0)
    for step in range(1, 7):
        meter.show(1 + step // 4, step, 0.5)
    text = shown.getvalue()
    assert text.startswith(expected)
    if stream is Terminal:
        assert text.count("\n") == 2, "a bar of each epoch stays"
