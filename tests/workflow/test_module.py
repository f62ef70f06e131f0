"""Another workflow uses the rules as a module, under other names and with another folder of results."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

SNAKEFILE = """
configfile: "study.yaml"

module triptych:
    snakefile: "{root}/Snakefile"
    config: config["study"]
    pathvars:
        results="{results}"

use rule * from triptych{names}

rule summary:
    default_target: True
    input: "{results}/report.html", "{results}/tables/schedules.md"
    output: "summary.txt"
    shell: "touch {{output}}"
"""


def snakemake(folder, config, results, names, *arguments):
    """Run Snakemake in a workflow that uses the study's rules; gives what it says."""
    (folder / "study.yaml").write_text(yaml.safe_dump({"study": config}))
    (folder / "Snakefile").write_text(SNAKEFILE.format(root=ROOT, results=results, names=names))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize(("names", "prefix"), [("", ""), (" as study_*", "study_")])
def test_a_workflow_plans_the_whole_study_as_a_module(config, tmp_path, names, prefix):
    said = snakemake(tmp_path, config, "elsewhere/study", names, "--dry-run", "--printshellcmds")
    jobs = dict(line.split() for line in said.split("Job stats:")[1].split("total")[0].splitlines()[3:] if line.strip())
    assert jobs[f"{prefix}train_stage"] == "9" and jobs["summary"] == "1"
    assert all(name.startswith(prefix) for name in jobs if name != "summary")
    assert "elsewhere/study/checkpoints" in said and " results/" not in said


def test_a_step_of_a_module_finds_its_code_and_writes_where_it_should(config, tmp_path):
    target = "elsewhere/sources/medical/manifest.json"
    snakemake(tmp_path, config, "elsewhere", " as study_*", target)
    assert (tmp_path / target).exists() and not (tmp_path / "results").exists()


def test_without_settings_of_its_own_a_module_is_the_default_study(tmp_path):
    (tmp_path / "Snakefile").write_text(f'module triptych:\n    snakefile: "{ROOT}/Snakefile"\n')
    with (tmp_path / "Snakefile").open("a") as file:
        file.write("use rule * from triptych\n")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--list-rules"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "train_stage" in run.stdout, run.stdout + run.stderr
