"""Steps that are forks of a process are started, told and ended like those of a Python of their own."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import quick_python
from triptych.config.jobs import PredictionJob

JOB = {"precision": "fp32", "max_new_tokens": 4, "batch_size": 5}
SCRIPTS = Path(__file__).parents[1] / "workflow/scripts"


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Starts a step, without and with a Python of its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    program = Path(quick_python.start()).with_name("python")

    def start(*words, **variables):
        return subprocess.Popen(
            [program, *words],
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(step):
    out, err = step.communicate()
    return step.returncode, out, err


@pytest.mark.parametrize("words", [["--help"], ["--job", "{}"], ["--job", "x", "--data", "gone"]])
def test_output_and_status_are_those_of_a_python_of_its_own(python, words):
    forked, own = (ended(python("-m", "triptych.train", *words, OMP_NUM_THREADS=number)) for number in ("1", "2"))
    assert forked == own and own[0] == (0 if words == ["--help"] else 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_step_that_is_stopped_ends_as_it_would_have_and_leaves_nothing_behind(python, tmp_path, number):
    os.mkfifo(tmp_path / "checkpoint")  # which the step opens, and waits
    inputs = [f"--{name}=there" for name in ("data", "features", "vision-encoder", "language-model")]
    asked = ["--job", PredictionJob(**JOB).text(), "--checkpoint", "checkpoint", "--views", "held-out", "--out", "out"]
    step = python("-m", "triptych.evaluate.predict", *asked, *inputs)
    [server] = quick_python.SERVERS
    waits_until(lambda: len(psutil.Process(server.pid).children(recursive=True)) == 2)  # the step, and who waits for it
    step.send_signal(number)
    assert step.wait(20) == -number
    waits_until(lambda: not psutil.Process(server.pid).children(recursive=True))


def waits_until(holds):
    for _ in range(200):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("not within 20 s")
