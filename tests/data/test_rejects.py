"""Rejects as people see them: causes without places, counts in one line, and warnings on the screen."""

import os
import pty
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT, write_slake
from triptych.config.datasets import SlakeFolderVqa
from triptych.data.fetch import fetch
from triptych.data.rejects import cause, causes_of, counted, summary, top_causes
from triptych.utils.terminal import SCREEN


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("train.json[17] has an empty question or answer", "has an empty question or answer"),
        ("train.json[3]: has no caption", "has no caption"),
        ("validation.json[3] has a q_lang that is neither en nor zh: 'x y'", "has a q_lang that is neither en nor zh"),
        ("test.json[0] repeats the qid of another row: 17", "repeats the qid of another row"),
        (
            "test.json[0] has an image that already belongs to train.json: 4",
            "has an image that already belongs to train.json",
        ),
        ("toy1/detection.json: not a list of organ boxes (a box has four numbers)", "not a list of organ boxes"),
        (
            "has another number of cells than the header (3, not 2; quote)",
            "has another number of cells than the header",
        ),
        ("not valid JSON (Expecting value: line 1 column 1 (char 0))", "not valid JSON"),
        ("the caption is too short or too long: 2 characters, not 3 to 2000", "the caption is too short or too long"),
        ("the same image as 9a8b", "the same image"),
        ("12 x 40 pixels, a side below 8", "width x height in pixels, a side below 8"),
        (
            "'../a b.png' leads out of /data/imgs; only files below that folder may be named",
            "its name leads out of the folder",
        ),
        ("'caption' is missing or null", "'caption' is missing or null"),
        ("the source names it more than once; one of them is used", "the source names it more than once"),
        ("HTTP 404", "HTTP 404"),
        ("No such file or directory", "No such file or directory"),
    ],
)
def test_a_cause_has_no_place(reason, expected):
    assert cause(reason) == expected


def test_rows_of_one_cause_are_counted_together():
    reasons = [f"train.json[{number}] lacks modality" for number in range(3)]
    assert Counter(map(cause, [*reasons, "x"])) == {"lacks modality": 3, "x": 1}
    assert top_causes(Counter(a=1, b=5, c=2)) == "b: 5; c: 2; a: 1"
    assert top_causes(Counter(a=1, b=5, c=2, d=1)) == "b: 5; c: 2; a: 1; d: 1"
    assert top_causes(Counter(a=1, b=5, c=2, d=1, e=3)) == "b: 5; e: 3; c: 2; 2 other causes: 2"


def test_counts_make_one_line_and_warn_above_a_share():
    counts = {"images": {"train": 90, "test": 5}, "questions": {"train": 300}, "rejects": {"image": 5, "question": 9}}
    found = counted(counts, {"image": {"no bytes": 5}})
    line, loud = summary("medical", found)
    assert line == (
        "medical: 100 images seen, 95 accepted, 5 rejected (no bytes: 5); 309 questions seen, 300 accepted, 9 rejected"
    )
    assert not loud  # 5 % and no more
    counts["rejects"]["question"] = 100
    line, loud = summary("medical", counted(counts, {}))
    assert loud and line.startswith("warning: 25.0 % of the questions of medical were rejected. 100 images seen")
    captions = {"images": {"train": 9}, "questions": {"train": 9}, "rejects": {"image": 1}, "seen": 10}
    assert list(counted(captions, {})) == ["images"]
    assert summary("a", counted({"images": {}, "questions": {}, "rejects": {}}, {})) == (
        "a: 0 images seen, 0 accepted, 0 rejected",
        False,
    )


def run_prepare(folder, screen: int, **environment) -> str:
    settings = SlakeFolderVqa(source="slake-folder", folder=str(folder / "slake"))
    fetch(settings, folder / "cache", folder / "source")
    command = [sys.executable, "-m", "triptych.data.prepare", "--settings", settings.model_dump_json()]
    command += ["--source", folder / "source", "--cache", folder / "cache", "--out", folder / "medical"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts"), SCREEN: str(screen), **environment}
    done = subprocess.run(command, env=variables, pass_fds=[screen], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_many_rejects_are_a_warning_on_the_screen(tmp_path, environment, coloured):
    write_slake(tmp_path / "slake")
    for image in range(7):
        (tmp_path / "slake" / "imgs" / f"toy{image}" / "source.png").unlink()
    seen, screen = pty.openpty()
    log = run_prepare(tmp_path, screen, **{"NO_COLOR": "", **environment})
    shown = os.read(seen, 10_000).decode().strip()
    line = log.splitlines()[-1]
    assert line == (
        "warning: 35.0 % of the images and 35.0 % of the questions of medical were rejected. "
        "20 images seen, 13 accepted, 7 rejected (No such file or directory: 7); "
        "60 questions seen, 39 accepted, 21 rejected (its image was rejected: 21)"
    )
    assert shown == (f"\x1b[1;33m{line}\x1b[0m" if coloured else line)
    assert causes_of(tmp_path / "medical") == {
        "image": {"No such file or directory": 7},
        "question": {"its image was rejected": 21},
    }
    os.close(seen)
    os.close(screen)


def test_a_good_data_set_ends_with_its_counts(tmp_path):
    write_slake(tmp_path / "slake")
    reading, writing = os.pipe()
    run_prepare(tmp_path, writing)
    os.close(writing)
    with os.fdopen(reading) as file:
        assert (
            file.read()
            == "medical: 20 images seen, 20 accepted, 0 rejected; 60 questions seen, 60 accepted, 0 rejected\n"
        )
