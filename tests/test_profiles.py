"""The profiles fit the workflow, and the check that says so finds what Snakemake ignores in silence."""

import sys

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import check_profiles

AIRE = yaml.safe_load((ROOT / "profiles/aire/profile.yaml").read_text())


def copy() -> dict:
    return yaml.safe_load(yaml.safe_dump(AIRE))


@pytest.fixture(scope="module")
def known():
    return check_profiles.rules()


@pytest.fixture(scope="module")
def keys():
    return check_profiles.options()


@pytest.mark.parametrize("name", ["aire", "local"])
def test_the_profiles_fit(name, known, keys):
    profile = yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text())
    assert check_profiles.faults(profile, known, keys) == []


def rename(mapping, old, new):
    mapping[new] = mapping.pop(old)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: rename(p, "slurm-logdir", "slurm-log-dir"), "slurm-log-dir: Snakemake has no such option"),
        (
            lambda p: rename(p["set-resources"], "train_stage", "train_stages"),
            "set-resources.train_stages: no such rule",
        ),
        (
            lambda p: rename(p["set-resources"], "train_stage", "train_stages"),
            "set-resources.train_stage: the rule needs a GPU",
        ),
        (
            lambda p: rename(p["set-resources"]["predict"], "gres", "gpus"),
            "set-resources.predict.gpus: no known resource",
        ),
        (
            lambda p: p["set-resources"].update(check_pictures={"gres": "gpu:1"}),
            "set-resources.check_pictures: the rule makes no use of its GPU",
        ),
        (
            lambda p: p["set-resources"].update(tabulate={"runtime": 5}),
            "set-resources.tabulate: the rule runs on the login node",
        ),
        (
            lambda p: p["set-resources"]["train_stage"].update(runtime=6),
            "set-resources.train_stage: runtime must be more than the 300 s",
        ),
        (
            lambda p: p["set-resources"]["train_stage"].update(slurm_extra="--signal=USR1@300"),
            "only --signal=TERM@<seconds> lets a training save",
        ),
        (lambda p: p["default-resources"].pop("runtime"), "set-resources.check_pictures.runtime: missing"),
    ],
)
def test_what_snakemake_would_ignore_is_found(change, said, known, keys):
    profile = copy()
    change(profile)
    assert any(said in line for line in check_profiles.faults(profile, known, keys)), said
