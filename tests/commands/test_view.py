"""A study on one screen, and a run that ends with its results or with the reason why it failed."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from triptych.commands.jobs import Job, JobState
from triptych.commands.run import results
from triptych.commands.status import Outlook
from triptych.commands.view import MOST_RUNNING, screen, sparkline
from triptych.config.grid import Checkpoint


def training(prefix, split, state="pending", seed=0, **facts):
    cell = Checkpoint(prefix, split, seed)
    path = Path(f"{prefix}-{split}-{seed}")
    job = Job("train_stage", f"{prefix}/{split}/seed{seed}", (path,), path, path, prefix, cell, "1", split, seed)
    return JobState(job, state, **facts)


def answers(rule, arm, fold, state="done", seed=None, **facts):
    path = Path(f"{arm}-{fold}-{seed}-answers")
    return JobState(Job(rule, f"{arm}/{fold}", (path,), path, path, arm, split=fold, seed=seed), state, **facts)


def other(rule, name, state):
    return JobState(Job(rule, name, (), Path(name), Path(name)), state)


def shown(states, losses=None, width=160, seconds=90.0):
    ahead = Outlook(0.5, seconds, "estimated from finished jobs", {state.job: 100.0 for state in states})
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(screen(states, ahead, {states[place].job: values for place, values in (losses or {}).items()}))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([3.0], ""), ([2.0, 1.0], "█▁"), ([1.0, 1.0, 1.0], "▁▁▁"), ([0, 7, 3.5, 1], "▁█▅▂")],
)
def test_a_row_of_numbers_is_drawn_from_lowest_to_highest(values, drawn):
    assert sparkline(values) == drawn


def test_folds_are_columns_and_every_cell_says_how_far_it_is():
    states = [
        training("1", "shared", "done", score=0.0),
        training("2", "fold0", "done", score=61.25),
        training("2", "fold1", "running", fraction=0.43, detail="epoch 1", seconds_left=75.0),
        training("2-3", "fold0", "failed", detail="error: disk full (a.log)"),
        training("2-3", "fold1", "interrupted"),
        answers("predict_baseline", "majority", "fold0", score=33.8),
        answers("predict", "2-3", "fold1", "pending", 0),
    ]
    lines = shown(states, {1: [2.0, 1.0, 0.5]}).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line and not line.startswith(("training", "answers"))}
    assert "shared  " in lines[1] and lines[1].index("shared") < lines[1].index("fold0") < lines[1].index("fold1")
    assert rows["2"] == ["2", "61.2", "█▃▁", "43", "%", "done"]
    assert "2-3    " in lines[4] and lines[4].split() == ["2-3", "failed", "stopped"]
    assert rows["majority"] == ["majority", "33.8"]
    assert any("train_stage 2/fold1/seed0: epoch 1, 1 min 15 s left" in line for line in lines)
    assert "failed: train_stage 2-3/fold0/seed0: error: disk full (a.log)" in lines
    assert "3 done, 1 running, 1 failed, 1 interrupted, 1 pending; about 1 min 30 s left" in lines[-1]


def test_folds_of_every_kind_are_the_same_columns():
    """A leak study's folds have long names, and twelve columns of them would fit no terminal."""
    kinds = ("", "row-", "near-duplicate-cluster-")
    states = [
        answers("predict_baseline", "nearest-images", f"{kind}fold{fold}", score=10.0 * place + fold)
        for place, kind in enumerate(kinds, 1)
        for fold in range(2)
    ]
    drawn = [training("1", f"shared-fold{fold}", "done", score=fold) for fold in range(2)]
    lines = [line.rstrip() for line in shown([*drawn, *states], width=80).splitlines()]
    assert [line.split() for line in lines[1:3]] == [["fold0", "fold1"], ["1", "0.0", "1.0"]]
    table = lines[lines.index("answers: exact match on held-out questions, %") + 1 :]
    assert table[0].split() == ["fold0", "fold1"]
    assert [line.rsplit(maxsplit=2) for line in table[1:4]] == [
        ["nearest-images", "10.0", "11.0"],
        ["nearest-images, folds by row", "20.0", "21.0"],
        ["nearest-images, folds by near-duplicate-cluster", "30.0", "31.0"],
    ]


def test_several_seeds_have_rows_of_their_own():
    states = [training("2", fold, "done", seed, score=50.0 + seed) for fold in ("fold0", "fold1") for seed in (0, 1)]
    lines = shown(states).splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["2,", "seed", "0", "50.0", "50.0"],
        ["2,", "seed", "1", "51.0", "51.0"],
    ]


def test_other_steps_are_counted_by_rule_and_many_bars_are_cut_short():
    states = [training("2", f"fold{number}", "running") for number in range(MOST_RUNNING + 3)]
    states += [other("probe", "2", "done"), other("probe", "3", "failed"), other("fetch_dataset", "medical", "done")]
    text = shown(states, width=300)
    assert "probe 1/2  fetch_dataset 1/1" in text and "and 3 more" in text
    assert text.count("train_stage 2/fold") == MOST_RUNNING


def test_names_are_text_and_no_markup():
    states = [training("2+[red]x", "fold0", "running", detail="[bold]y[/bold]")]
    assert "2+[red]x" in shown(states) and "[bold]y[/bold]" in shown(states)


class Finished:
    """A study as far as its end needs it."""

    def __init__(self, folder):
        self.results = folder

    def path(self, name):
        return self.results / name


def test_a_run_ends_with_its_table_three_sentences_and_its_report(tmp_path):
    study = Finished(tmp_path)
    assert results(study) == []
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/schedules.md").write_text("# Schedules\n\n| arm |\n")
    assert results(study) == ["# Schedules\n\n| arm |"], "a study of one schedule, not reported"
    cards = [{"question": "?", "short": "Yes", "text": text} for text in ("It looks.", "It wins.", "20 points.")]
    (tmp_path / "results.json").write_text(json.dumps({"answer": "Stage 1 helped.", "cards": cards}))
    (tmp_path / "report.html").write_text("")
    assert results(study)[1:5] == ["", "Stage 1 helped.", "It looks.", "It wins."]
    assert results(study)[5:] == ["", f"report: {tmp_path / 'report.html'}"]
    (tmp_path / "results.json").write_text(json.dumps({"answer": "Stage 1 helped."}))
    assert results(study)[1:3] == ["", "Stage 1 helped."], "written by an earlier version"
