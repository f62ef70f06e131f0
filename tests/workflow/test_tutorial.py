"""The tutorial's commands run as they stand there, on a finished study in place of the demonstration."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from triptych.io.parquet import read_table

TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
SOURCED = "source .venv/bin/activate\n"  # the environment of the tests is another


@pytest.fixture
def folder(study, tmp_path):
    """A finished study where the tutorial expects the demonstration, in a folder as that of the repository."""
    for name in ("results", ".snakemake"):
        shutil.copytree(study.folder / name, tmp_path / name)
    for name in ("profiles", "workflow", "Snakefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/demo.yaml").write_text(yaml.safe_dump(study.config))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/triptych"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}/workflow/scripts exec {sys.executable} -m triptych.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def test_every_command_of_the_tutorial_does_what_it_says(folder):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", TUTORIAL, flags=re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fenced if not language]  # `text` is what a command prints
    assert blocks[0] == SOURCED and len(blocks) == 8
    [number] = {word for block in blocks for word in re.findall(r"triptych ask (\w+)", block)}
    known = read_table(folder / "results/predictions/1-2-3/fold0/seed0.parquet")[0]["question_id"]
    search = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    said, place = [], folder  # one block's `cd` holds for the next
    for block in blocks[1:]:
        commands = f"set -euo pipefail\n{block.replace(number, known)}\npwd > {folder / 'place'}\n"
        done = subprocess.run(
            ["bash", "-c", commands], cwd=place, env=os.environ | {"PATH": search}, capture_output=True, text=True
        )
        assert done.returncode == 0, block + done.stdout + done.stderr
        said.append(done.stdout)
        place = (folder / "place").read_text().strip()
    read, errors, asked, _, planned, run, compared = said
    assert "majority-per-place" in read and "train" in read
    assert "mean" in errors and "size" in errors
    assert asked.count("checkpoint ") == 3 and (folder / "where.png").stat().st_size
    folds = len({row["fold"] for row in read_table(folder / "results/data/medical/folds.parquet")})
    assert re.search(rf"^train_stage +{folds}$", planned, flags=re.MULTILINE), "no other training is repeated"
    assert "1-2-3+rank-4" in run and "1-2-3+rank-4" in compared
