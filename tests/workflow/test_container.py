"""The container's definition holds what an installation needs, and with `--sdm apptainer` steps run in the container.

A script plays Apptainer: it runs the command with the container's programs first in PATH.
"""

import os
import re
import subprocess
import sys

import yaml
from conftest import ROOT

DEFINITION = (ROOT / "containers/triptych.def").read_text()
APPTAINER = """#!/bin/bash
[ "$1" = --version ] && {{ echo "apptainer version 1.3.6"; exit; }}
echo "$@" >> {folder}/asked
while [ "$1" != exec ]; do shift; done
while [ "$1" != bash ] && [ "$1" != sh ]; do shift; done
PATH={folder}/inside:/usr/bin:/bin exec "$@"
"""


def section(name: str) -> str:
    return re.search(rf"^%{name}\n((?:    .*\n|\n)*)", DEFINITION, re.MULTILINE)[1]


def test_the_definition_is_one_that_apptainer_reads():
    lines = [line for line in DEFINITION.splitlines() if line and not line.startswith("#")]
    heads = [line for line in lines if not line.startswith("    ")]
    assert heads[0].startswith("Bootstrap: ") and heads[1].startswith("From: python:3.11")
    known = {"%arguments", "%files", "%post", "%environment", "%test", "%runscript", "%labels"}
    assert set(heads[2:]) == known and len(heads[2:]) == len(known)
    used = set(re.findall(r"{{ (\w+) }}", section("post")))
    assert used == {line.split("=")[0].strip() for line in section("arguments").splitlines() if line.strip()}
    for script in ("post", "test", "runscript", "environment"):
        code = re.sub(r"{{ \w+ }}", "13", section(script))
        assert subprocess.run(["sh", "-n"], input=code, text=True).returncode == 0, script


def test_the_container_gets_all_that_the_installation_reads():
    copied = {line.split()[0] for line in section("files").splitlines() if line.strip()}
    assert all((ROOT / name).exists() for name in copied)
    locked = {path.name for path in ROOT.glob("requirements*.lock")} - {"requirements-docs.lock"}
    needed = locked | {"Makefile", "pyproject.toml", "README.md"}
    assert needed <= copied and "workflow" in copied


def test_with_apptainer_steps_run_in_the_container(config, tmp_path):
    for name in ("bin", "inside"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin/apptainer").write_text(APPTAINER.format(folder=tmp_path))
    inside = f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\nexec {sys.executable} "$@"\n'
    (tmp_path / "inside/python").write_text(inside)
    for path in ("bin/apptainer", "inside/python"):
        (tmp_path / path).chmod(0o755)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "results/sources/medical/manifest.json", "--sdm", "apptainer"]
    command += ["--apptainer-args", "--nv --bind /tmp", "--cores", "1"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "study.yaml"]
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "ran").read_text().startswith("-m triptych.data.fetch ")
    asked = (tmp_path / "asked").read_text()
    assert "--nv --bind /tmp" in asked and f"{ROOT}/containers/triptych.sif" in asked
