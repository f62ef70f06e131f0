"""The conda environment holds what the lock files hold, and with `--sdm conda` steps run in it.

A script plays conda: it makes the environment that it is given, in which Python is this one.
"""

import os
import re
import subprocess
import sys

import yaml
from conftest import ROOT

ENVIRONMENT = yaml.safe_load((ROOT / "workflow/envs/triptych.yaml").read_text())
CONDA = """#!/bin/sh
case "$1 $2" in
    "info --json") echo '{{"conda_prefix": "{folder}", "platform": "linux-64"}}' ;;
    "--version ") echo "conda 25.9.0" ;;
    "config --get") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    "env create")
        for word; do
            case "$last" in --file) file=$word ;; --prefix) prefix=$word ;; esac
            case "$word" in --file=*) file=${{word#*=}} ;; --prefix=*) prefix=${{word#*=}} ;; esac
            last=$word
        done
        cp "$file" {folder}/asked.yaml
        mkdir -p "$prefix/bin"
        printf '#!/bin/sh\\necho "$@" >> {folder}/ran\\nexec {python} "$@"\\n' > "$prefix/bin/python"
        chmod +x "$prefix/bin/python" ;;
esac
"""


def pins() -> list[str]:
    return next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))


def test_the_environment_holds_what_the_lock_files_hold():
    others = {ROOT / f"requirements-{name}.lock" for name in ("cuda12", "docs")}
    files = set(ROOT.glob("requirements*.lock")) - others
    locked = "\n".join(path.read_text() for path in files)
    assert sorted(pins()) == sorted(line.rstrip(" \\") for line in re.findall(r"^\w.*==.*", locked, flags=re.MULTILINE))
    assert "python =3.11" in ENVIRONMENT["dependencies"], "which the locked CPU build of torch is for"


def test_with_conda_steps_run_in_the_environment(config, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/conda").write_text(CONDA.format(folder=tmp_path, python=sys.executable))
    (tmp_path / "bin/conda").chmod(0o755)
    (tmp_path / "bin/activate").write_text('export PATH="$1/bin:$PATH"\n')
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "results/sources/medical/manifest.json", "--sdm", "conda"]
    command += ["--cores", "1", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "study.yaml"]
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "ran").read_text().startswith("-m triptych.data.fetch ")
    assert yaml.safe_load((tmp_path / "asked.yaml").read_text()) == ENVIRONMENT
