"""The whole of config/config.yaml from the loopback hub, with tiny models and its sizes cut, as a user runs it."""

import os
import subprocess
from collections import Counter

import hub_files
import pytest
import quick_python
import yaml
from conftest import KEY, ROOT
from hub import Fault, Hub
from triptych.io.manifest import read_json

CONFIG = ROOT / "config" / "config.yaml"
SETTINGS = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
CUTS = {
    "seeds": [0],
    "shards": 1,
    "schedules": [[1, 2, 3], [2, 3]],
    "folds": {"number": 2},
    "datasets": {
        "general": {"sizes": [24], "validation_fraction": 0.2},
        "medical": {"expected": {"images": 20, "train": 48, "validation": 6, "test": 6}},
    },
    "stages": {1: {"data": "general-24", "batch_size": 8}, 2: {"epochs": 1}, 3: {"epochs": 1}},
    "lora": {"rank": 2},
    "training": {"precision": "fp32"},
    "evaluation": {
        "max_new_tokens": 4,
        "probe": {"seeds": 1, "hidden": 8, "rare": 2},
        "leak": {"groups": ["row", "image"]},
    },
}


def run(folder, *words, **variables):
    environment = {**os.environ, "PYTHONPATH": "", "HF_TOKEN": KEY, "WANDB_API_KEY": KEY, **variables}
    command = [quick_python.start(), "-m", *words]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def snakemake(folder, *words, **variables):
    cuts = [f"{name}={yaml.safe_dump(value, default_flow_style=True).strip()}" for name, value in CUTS.items()]
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--profile", str(ROOT / "profiles" / "local")]
    command += ["--cores", "2", "--directory", str(folder), "--configfile", str(CONFIG), *words, "--config", *cuts]
    return run(folder, *command, **variables)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the finished study, and what was asked of the hub, which was cut and busy at times."""
    folder = tmp_path_factory.mktemp("study")
    files, revisions = hub_files.repositories(SETTINGS)
    cut, busy = Fault("GET /store/", cut=3000, times=2), Fault("HEAD", status=503, times=2)
    with Hub(files, cut, busy, Fault("/tree/", status=429), revisions=revisions, tokens=[KEY]) as hub:
        snakemake(folder)
    return folder, hub


def test_the_study_ends_with_its_report(finished):
    folder, _ = finished
    results = folder / "results" / "slake"
    assert "1-2-3" in (results / "report.html").read_text(encoding="utf-8")
    counts = read_json(results / "data" / "general-24" / "manifest.json")["counts"]
    assert sum(counts["images"].values()) == 24 and not counts["rejects"], counts
    trained = {path.parent.parent.parent.name for path in results.glob("checkpoints/*/*/*/manifest.json")}
    assert trained == {"1", "1-2", "1-2-3", "2", "2-3"}
    assert (results / "tables" / "comparison.csv").is_file()


def test_the_hub_was_asked_once_for_what_is_used_and_for_nothing_else(finished):
    _, hub = finished
    got = Counter(request.line.rsplit("/", 1)[1] for request in hub.requests if request.line.startswith("GET /"))
    got.subtract(request.line.rsplit("/", 1)[1] for request in hub.requests if "/tree/" in request.line)
    wanted = Counter(name for names in hub_files.downloaded(SETTINGS).values() for name in names)
    assert set(+got) == set(wanted)
    assert 0 < got.total() - wanted.total() <= 2, "two downloads were cut"
    assert not hub.asked(".bin") and not hub.asked(".py") and not hub.asked("KG.zip")


def test_no_file_holds_a_token_or_a_signature(finished):
    folder, _ = finished
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert KEY.encode() not in data and b"Signature=" not in data, path


def test_the_same_steps_run_again_without_the_hub(finished):
    """As `make aire-fetch` does in the end, and as a second study would."""
    folder, _ = finished
    before = read_json(folder / "results/slake/models/language_model/manifest.json")
    words = "--until", "fetch_dataset", "prepare_model", "--forcerun", "fetch_dataset", "prepare_model"
    snakemake(folder, *words, HF_HUB_OFFLINE="1")
    assert read_json(folder / "results/slake/models/language_model/manifest.json") == before
