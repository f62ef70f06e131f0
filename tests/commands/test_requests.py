"""What steps on GPUs ask for, and which share a job: as Snakemake groups them, by formula, within what there is."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT
from triptych.commands import plan
from triptych.commands.jobs import job_states
from triptych.commands.requests import LONGEST, Grouping, Requests, gpu_steps
from triptych.config.study import load_study

AIRE = yaml.safe_load((ROOT / "profiles/aire/profile.yaml").read_text())
WHOLE = Grouping(AIRE["groups"], AIRE["group-components"])
BEFORE = 473  # jobs on GPUs, and starts of torch, of the study when every view of every answer was a job


def config(name="config"):
    return yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())


def requests(tmp_path, config, grouping=WHOLE):
    return Requests(replace(load_study(config), results=tmp_path / "results"), grouping)


def most(found, rule, attempt=1):
    """The most memory and time that a step of a rule asks for."""
    steps = [step.wildcards for step in gpu_steps(found.study) if step.rule == rule]
    return max(found.memory(rule, step, attempt) for step in steps), max(
        found.minutes(rule, step, attempt) for step in steps
    )


def grouped_by_snakemake(folder, config, components):
    """Sizes of the groups that a dry run shows."""
    profile = folder / "profile"
    profile.mkdir()
    changed = AIRE | {"group-components": dict.fromkeys(AIRE["group-components"], components)}
    (profile / "profile.yaml").write_text(yaml.safe_dump(changed))
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--profile", str(profile)]
    command += ["--directory", str(folder), "--configfile", str(folder / "study.yaml"), "--dry-run"]
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")}
    )
    text = run.stdout + run.stderr
    assert run.returncode == 0, text
    sizes, group = [], None
    for line in text.splitlines():
        if "Group job " in line:
            sizes.append(group := 0)
        elif line.startswith("["):  # a job of no group
            group = None
        elif group is not None and re.match(r"    Job \d+:", line):
            sizes[-1] += 1
    return sorted(sizes)


def drawn_for_each_fold(name="config"):
    study = config(name)
    return study | {"folds": {**study["folds"], "shared_stages": "per-fold"}}


def test_a_shared_stage_that_is_drawn_for_each_fold_is_a_job_with_its_captions(tmp_path):
    once, per_fold = (requests(tmp_path, study) for study in (config(), drawn_for_each_fold()))
    assert (len(once.jobs), len(per_fold.jobs)) == (20, 32), "15 draws of stage 1 instead of 3"
    rules = [sorted(step.rule for step in job) for job in per_fold.jobs]
    assert rules.count(["predict_captions", "train_stage"]) == 15
    assert once.waits() == per_fold.waits()


def test_snakemake_makes_the_same_jobs_of_draws_for_each_fold(tmp_path):
    study = drawn_for_each_fold("slake-leak") | {"seeds": [0]}
    found = requests(tmp_path, study)
    jobs = [len(job) for job in found.jobs if job[0].rule != "encode_images"]
    assert sorted(jobs) == grouped_by_snakemake(tmp_path, study, 100)


@pytest.mark.parametrize(
    ("name", "components"), [("config", 100), ("config", 1), ("slake-leak", 2), ("ablations", 100), ("ablations", 2)]
)
def test_jobs_are_those_that_snakemake_makes(name, components, tmp_path):
    study = config(name) | {"seeds": [0]}
    found = requests(tmp_path, study, Grouping(WHOLE.names, dict.fromkeys(WHOLE.components, components)))
    jobs = [len(job) for job in found.jobs if job[0].rule != "encode_images"]
    assert sorted(jobs) == grouped_by_snakemake(tmp_path, study, components)
    assert sum(jobs) == sum(step.rule != "encode_images" for step in gpu_steps(found.study))


def test_the_full_study_is_few_jobs_and_half_the_starts(tmp_path):
    found = requests(tmp_path, config())
    # Two data sets to encode; for each seed, what all folds share; each fold and seed.
    assert len(found.jobs) == 2 + 3 + 5 * 3 <= 150
    # Ten trainings and one process of answers in each fold and seed.
    assert found.starts() == 2 + 3 + 3 + 15 * (10 + 1) <= BEFORE / 2
    assert found.waits() == 3
    alone = requests(tmp_path, config(), Grouping())
    assert len(alone.jobs) == alone.starts() == 263 and alone.waits() == 5


def test_answers_of_different_models_are_not_given_by_one_process(tmp_path):
    study = config() | {"schedules": [[2, 3], [3]], "seeds": [0]}
    models = {"language_model": {"repo": "other/model-3B", "revision": "0" * 40, "prompt": "<image> {question}"}}
    one = requests(tmp_path, study).starts()
    study["ablations"] = {"larger": {"models": models}}
    # Five folds: two more trainings and one more process of answers in each, and an encoder that is the same.
    assert requests(tmp_path, study).starts() == one + 5 * 3


def test_memory_grows_with_models_samples_processes_and_attempts(tmp_path):
    study = config()
    memory, _ = most(requests(tmp_path, study), "train_stage")
    # Base, ten bytes for each of 1.1e9 parameters, features of 30,000 images of 576 x 768 numbers of two bytes.
    assert memory == pytest.approx(8000 + 11000 + 30000 * 576 * 768 * 2 / 1e6, abs=1)
    assert most(requests(tmp_path, study), "train_stage", attempt=3)[0] == pytest.approx(2 * memory, abs=1)
    asked, _ = most(requests(tmp_path, study), "predict")
    assert asked < memory, "fewer images"
    study["runtime"]["processes"] = 3
    assert most(requests(tmp_path, study), "train_stage")[0] == pytest.approx(3 * memory, abs=2)
    assert most(requests(tmp_path, study), "predict")[0] == asked
    study["models"]["language_model"]["repo"] = "other/model-7B"
    assert most(requests(tmp_path, study), "predict")[0] == pytest.approx(asked + 10 * 5900, abs=1)
    study["features"] = {"budget_gb": 1}
    assert most(requests(tmp_path, study), "predict")[0] == pytest.approx(asked + 10 * 5900, abs=1)
    assert most(requests(tmp_path, study), "train_stage")[0] == pytest.approx(3 * (8000 + 70000), rel=0.01), "SLAKE's"


def test_time_grows_with_epochs_views_and_attempts(tmp_path):
    study = config()
    (_, training), (_, answers) = (most(requests(tmp_path, study), rule) for rule in ("train_stage", "predict"))
    assert most(requests(tmp_path, study), "train_stage", attempt=2)[1] == 2 * training
    study["stages"][1]["epochs"] *= 3
    assert 2.5 * training < most(requests(tmp_path, study), "train_stage")[1] < 3 * training
    study["plan"] = {"tflops": 3.62}
    alone = most(requests(tmp_path, study, Grouping()), "predict")[1]
    assert alone > 5 * answers
    study["evaluation"]["controls"] = []
    assert most(requests(tmp_path, study, Grouping()), "predict")[1] < alone / 2


def test_no_job_asks_for_more_time_than_any_may_have(tmp_path):
    study = config()
    study["plan"] = {"tflops": 1}
    for grouping in (WHOLE, Grouping(WHOLE.names), Grouping()):
        found = requests(tmp_path, study, grouping)
        times = [sum(found.minutes(step.rule, step.wildcards) for step in job) for job in found.jobs]
        assert 0.9 * LONGEST < max(times) <= LONGEST + 20, "rounded"


def test_the_plan_counts_jobs_of_the_profile_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def planned(name: str, *options: str) -> list[list[str]]:
        plan.main(["--configfile", str(ROOT / f"config/{name}.yaml"), *options])
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    def counted(rows: list[list[str]], words: str) -> list[str]:
        return next(row[len(words.split()) :] for row in rows if " ".join(row).startswith(words))

    aire, local = ("--profile", str(ROOT / "profiles/aire")), ("--profile", str(ROOT / "profiles/local"))
    rows = planned("config", *aire)
    assert counted(rows, "as the profile groups them")[::2] == ["20", "173"], "jobs, and starts of torch"
    for options in ((), local):
        rows = planned("config", *options)
        assert counted(rows, "each step a job")[::2] == ["263", "263"]
        assert not any(row[:2] == ["as", "the"] for row in rows)
    for options, lines in (((), 0), (local, 0), (aire, 1)):
        rows = planned("slake-cpu", *options)
        assert sum(row[:2] == ["on", "GPUs"] for row in rows) == lines, "hours of a CPU, unless a profile says else"


def test_measured_peaks_stand_beside_what_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = requests(tmp_path, config())
    states = job_states(found.study, 0.0)
    done = next(state for state in states if state.job.rule == "predict")
    done.job.times.parent.mkdir(parents=True)
    done.job.times.write_text('{"s": 420, "max_rss": 6543.2}\n')
    states = [replace(state, state="done") if state is done else state for state in states]
    from triptych.commands.asked import gpu_lines

    lines = {line.split()[0]: line.split()[1:] for line in gpu_lines(found.study, WHOLE, states) if line}
    assert lines["predict"][1::2] == ["6543", "7"] and lines["train_stage"][1::2] == ["-", "-"]
