"""Hooks into Snakemake's internals: without them the workflow runs all the same."""

import os
import subprocess
import sys
import time
import types

import pytest
from conftest import ROOT, Study, toy_config
from snakemake.io import AnnotatedString
from triptych import workflow_hooks
from triptych.errors import TriptychError
from triptych.evaluate.answered import is_answered
from triptych.utils import kills


@pytest.fixture
def small(world, tmp_path):
    """A toy study of one schedule."""
    config = toy_config(world) | {"schedules": [["2"]], "wandb": {"mode": "disabled"}}
    config["evaluation"] |= {"controls": [], "leak": None, "captions": None, "probe": None}
    return Study(tmp_path, config)


def test_the_workflow_runs_with_all_hooks_off(small, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_HOOKS", "off")
    small.snakemake()
    assert (small.results / "report.html").exists()
    small.config["stages"]["2"]["epochs"] = 2
    assert small.trained() == {"2/fold0", "2/fold1"}, "changed settings are noticed by Snakemake alone"


def test_a_snakemake_without_what_a_hook_needs_is_told_in_a_line_and_goes_on(capsys):
    workflow_hooks.protect_trainings(types.SimpleNamespace(), 0)
    workflow_hooks.record_unwatched(types.SimpleNamespace(dag=types.SimpleNamespace(jobs=[types.SimpleNamespace()])))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all("this version of Snakemake lacks" in line for line in told)
    assert "are not listed beforehand" in told[0] and "changed settings are not noticed" in told[1]


def test_too_many_finished_trainings_are_an_error_and_no_missing_hook(tmp_path):
    manifest = tmp_path / "manifest.json"
    manifest.touch()
    job = types.SimpleNamespace(
        rule=types.SimpleNamespace(name="train_stage"),
        wildcards=types.SimpleNamespace(prefix="2", split="fold0", seed="0"),
        output=types.SimpleNamespace(manifest=str(manifest)),
    )
    dag = types.SimpleNamespace(needrun_jobs=lambda: [job], reason=lambda job: "Forced execution")
    workflow = types.SimpleNamespace(dag=dag)
    with pytest.raises(TriptychError, match="2 on fold0, seed 0: Forced execution"):
        workflow_hooks.protect_trainings(workflow, 0)
    workflow_hooks.protect_trainings(workflow, 1)


@pytest.mark.parametrize(("ahead", "refused"), [(7200, True), (90, True), (20, False), (-7200, False)])
def test_an_input_that_is_dated_ahead_is_named_with_what_to_do(tmp_path, monkeypatch, ahead, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my results").mkdir()
    path = tmp_path / "my results/manifest.json"
    path.touch()
    os.utime(path, (time.time() + ahead,) * 2)
    job = types.SimpleNamespace(input=[str(tmp_path / "not made yet"), str(path)])
    workflow = types.SimpleNamespace(dag=types.SimpleNamespace(needrun_jobs=lambda: [job]))
    if refused:
        with pytest.raises(TriptychError, match=r"manifest\.json is dated .* ahead of the clock.*: touch '.*json'$"):
            workflow_hooks.refuse_dates_ahead(workflow)
    else:
        workflow_hooks.refuse_dates_ahead(workflow)
    job.input[1] = AnnotatedString(path)
    job.input[1].flags["ancient"] = True
    workflow_hooks.refuse_dates_ahead(workflow)
    assert [found.name for found in tmp_path.iterdir()] == ["my results"]


@pytest.mark.parametrize(
    ("recorded", "read"),
    [
        # What the job of one view recorded; with and without a limit; of captions, which recorded no view beside it.
        (
            ["'blank'", '\'{"batch_size":64,"precision":"auto","view":"blank"}\''],
            ['\'{"batch_size":64,"precision":"auto"}\''],
        ),
        (
            ['\'{"batch_size":5,"limit":9,"precision":"fp32","view":"captions"}\''],
            ['\'{"batch_size":5,"limit":9,"precision":"fp32"}\''],
        ),
        # What is recorded now, and what other rules record, stays as it is.
        (['\'{"batch_size":64,"precision":"auto"}\''], ['\'{"batch_size":64,"precision":"auto"}\'']),
        (["'held-out'"], ["'held-out'"]),
        (["'a'", '\'{"stage":{"precision":"auto"}}\''], ["'a'", '\'{"stage":{"precision":"auto"}}\'']),
        ([], []),
        (None, None),
    ],
)
def test_what_the_job_of_one_view_recorded_is_read_without_the_view(recorded, read):
    assert workflow_hooks.without_view(recorded) == read


def test_the_record_of_answers_is_written_from_snakemakes_where_nothing_has_changed(tmp_path):
    names = ("checkpoint", "data")
    checksums = {f"{name}.json": f"sha256:{name}" for name in names}

    def settle(rule="predict", forced=False, incomplete=(), changed=False, checksums=checksums):
        answers = tmp_path / "seed0.parquet"
        answers.write_text("answers")
        job = types.SimpleNamespace(
            rule=types.SimpleNamespace(name=rule),
            output=[str(answers), str(tmp_path / "seed0-new.parquet")],
            input={name: f"{name}.json" for name in names},
            params=types.SimpleNamespace(job="settings"),
        )

        async def found(job):
            return list(incomplete)

        persistence = types.SimpleNamespace(
            incomplete=found,
            metadata=lambda path: types.SimpleNamespace(input_checksums=checksums),
            params_changed=lambda job, path: changed,
        )
        dag = types.SimpleNamespace(needrun_jobs=lambda: [job], reason=lambda job: types.SimpleNamespace(forced=forced))
        workflow_hooks.settle_answers(types.SimpleNamespace(dag=dag, persistence=persistence))
        return is_answered(answers, "settings", {name: name for name in names})

    assert not settle(rule="probe") and not settle(changed=True) and not settle(checksums=None)
    assert not settle(checksums={"data.json": "sha256:data"}), "an input that Snakemake did not hash"
    assert settle() and settle(changed=True), "what is recorded stays: the step compares it"
    assert settle(forced=True, incomplete=["seed0.parquet"]), "a killed job is forced, too, and goes on"
    assert not settle(forced=True) and not (tmp_path / "seed0.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["seed0.parquet"]


def test_snakemakes_internals_are_used_in_one_file_only():
    package = ROOT / "workflow/scripts/triptych"
    names = [path for path in package.rglob("*.py") if "import snakemake" in path.read_text(encoding="utf-8")]
    names += [path for path in package.rglob("*.py") if "from snakemake" in path.read_text(encoding="utf-8")]
    assert {path.name for path in names} == {"workflow_hooks.py"}
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert "snakemake.common" not in rules and "persistence" not in rules and ".dag" not in rules


KILLED = """from triptych import workflow_hooks
workflow_hooks.explain_kills()
rule step:
    output: "out"
    log: "step.log"
    resources: mem_mb=123
    shell: "echo works > {{log}}; {command}"
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exec python -c 'import os; os.kill(os.getpid(), 9)'", True),
        ("bash -c 'kill -9 $$'; exit $?", True),
        ("exit 1", False),
        ("exec python -c 'import os; os.kill(os.getpid(), 15)'", False),
    ],
)
def test_the_log_of_a_killed_step_says_so_with_its_memory(command, said, tmp_path):
    (tmp_path / "Snakefile").write_text(KILLED.format(command=command))
    words = [sys.executable, "-m", "snakemake", "--cores", "1", "--show-failed-logs", "--directory", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")}
    run = subprocess.run(
        [*words, "--snakefile", str(tmp_path / "Snakefile")], capture_output=True, text=True, env=environment
    )
    last = (tmp_path / "step.log").read_text().splitlines()[-1]
    assert run.returncode == 1 and last.startswith("error: ") == said, run.stderr
    if said:
        assert "killed" in last and "it had asked for 123 MB" in last and last in run.stderr


@pytest.mark.parametrize(
    ("events", "more", "said"),
    [
        ("low 0\noom 2\noom_kill 2\n", 1, "error: out of memory: the system killed the step; it had asked for 9 MB"),
        ("oom_kill 0\n", 0, "error: killed (SIGKILL), but not for its memory; it had asked for 9 MB"),
        (None, None, "error: killed (SIGKILL), as the system does when memory runs out; it had asked for 9 MB"),
    ],
)
def test_the_control_group_tells_memory_from_other_kills(events, more, said, tmp_path):
    (tmp_path / "own").write_text("4:memory:/other\n0::/slurm/job_1/step_0\n")
    if events:
        (tmp_path / "slurm/job_1/step_0").mkdir(parents=True)
        (tmp_path / "slurm/job_1/step_0/memory.events").write_text(events)
    counted = kills.kills_for_memory(tmp_path / "own", tmp_path)
    assert counted == (int(events.split()[-1]) if events else None)
    kills.note_kill(tmp_path / "log", {"mem_mb": 9}, more)
    assert (tmp_path / "log").read_text().startswith(said)


def test_what_slurm_says_of_memory_is_written_into_the_log_of_the_step_that_ran(tmp_path, monkeypatch):
    from snakemake.executors import local
    from snakemake_interface_executor_plugins.executors.base import AbstractExecutor

    told = []
    monkeypatch.setattr(local, "run_wrapper", lambda *arguments: None)
    monkeypatch.setattr(AbstractExecutor, "report_job_error", lambda self, job, msg=None, **others: told.append(msg))
    workflow_hooks.explain_kills()
    members = []
    for age, name in enumerate(("early", "late", "unborn")):
        members.append(types.SimpleNamespace(log=[str(tmp_path / name)], resources={"mem_mb": 7 + age}))
        if name != "unborn":
            (tmp_path / name).write_text("works\n")
            os.utime(tmp_path / name, (age, age))

    class Group(list):
        def is_group(self):
            return True

    for status in ("FAILED", "OUT_OF_MEMORY"):
        AbstractExecutor.report_job_error(
            None, types.SimpleNamespace(job=Group(members)), f"SLURM status is: '{status}'"
        )
    assert len(told) == 2 and (tmp_path / "early").read_text() == "works\n" and not (tmp_path / "unborn").exists()
    lines = (tmp_path / "late").read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("error: out of memory") and "8 MB" in lines[1]
