"""The folder of this repository, and the working folder, may have any name that a file system takes."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from triptych import workflow_hooks
from triptych.errors import TriptychError

ODD = "é {x} 'q' \"b\" &;"


def test_steps_run_from_a_checkout_with_blanks_braces_quotes_and_other_letters(config, tmp_path):
    checkout = tmp_path / ODD / "check out"
    for name in ("workflow", "Snakefile"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        checkout.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, checkout / name)
    work = tmp_path / ODD / "work"
    work.mkdir()
    (work / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "results/sources/medical/manifest.json", "--cores", "1"]
    command += ["--snakefile", str(checkout / "Snakefile"), "--configfile", str(work / "study.yaml")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (work / "results/sources/medical/manifest.json").exists()


@pytest.mark.parametrize("sign", ["$HOME", "`id`", "\\"])
@pytest.mark.parametrize("place", ["checkout", "work", "config"])
def test_a_cluster_is_told_no_path_that_its_submission_would_change(place, sign):
    def started(odd, local):
        paths = {name: Path(f"/a/{ODD}{odd * (name == place)}") for name in ("checkout", "work", "config")}
        workflow = types.SimpleNamespace(
            local_exec=local, workdir_init=str(paths["work"]), configfiles=[paths["config"]]
        )
        workflow_hooks.refuse_expanded_paths(workflow, paths["checkout"])

    with pytest.raises(TriptychError, match="which submission to the cluster reads as something else"):
        started(sign, local=False)
    started(sign, local=True)
    started("", local=False)
