"""One command as a job, where a profile sends it: here on this machine; tests/workflow/test_slurm.py has a cluster."""

import sys

import pytest
import yaml
from conftest import ROOT
from triptych.commands.cluster import partitions, read_profile, resources_of, submit
from triptych.errors import TriptychError

AIRE, LOCAL = ROOT / "profiles/aire", ROOT / "profiles/local"


@pytest.fixture
def profile(tmp_path):
    """Writes a profile that makes a folder's jobs run on this machine."""

    def write(**options):
        (tmp_path / "profile").mkdir(exist_ok=True)
        (tmp_path / "profile/profile.yaml").write_text(yaml.safe_dump({"cores": 1, **options}))
        return tmp_path / "profile"

    return write


def test_partitions_and_resources_are_those_of_the_profile(profile):
    assert partitions(AIRE) == {"gpu": "encode_images", "nodes": ""} and partitions(LOCAL) == {}
    training, table = resources_of(AIRE, "train_stage"), resources_of(AIRE, "tabulate")
    assert training["gres"].startswith("gpu:") and training["slurm_partition"] == "gpu"
    assert "gres" not in table and table["slurm_partition"] == "nodes" and table["runtime"] == 120
    one = {"default-resources": {"slurm_partition": "all"}, "set-resources": {"predict": {"mem_mb": 5}}}
    assert partitions(profile(**one)) == {"all": ""}
    assert resources_of(profile(**one), "predict") == {"slurm_partition": "all", "mem_mb": 5}


def test_a_job_has_a_time_of_its_own_and_no_signal_of_a_training(profile, tmp_path):
    training = {"runtime": 720, "slurm_extra": "--nice=5 --signal=TERM@300", "mem_mb": "20 * $TRIPTYCH_PROCESSES"}
    rules = {"set-resources": {"train_stage": training}, "default-resources": {"runtime": 60, "disk_mb": 7}}
    assert submit(profile(**rules, retries=2), "train_stage", ["echo", "so"], tmp_path / "job", 3) == "so\n"
    sent = read_profile(tmp_path / "job/profile")
    own = {"runtime": 3, "slurm_extra": "--nice=5", "mem_mb": "20 * $TRIPTYCH_PROCESSES", "disk_mb": 7}
    assert sent["set-resources"] == {"job": own} and sent["retries"] == 0


def test_the_output_is_handed_back_word_for_word(tmp_path):
    asks = "import os, sys; print('{a} $HOME \"q\"', os.environ['HF_HUB_OFFLINE'], sys.executable)"
    asks += "; import triptych; print('err', file=sys.stderr)"
    said = submit(LOCAL, "", ["python", "-c", asks], tmp_path / "job", 1)
    assert said == f'{{a}} $HOME "q" 1 {sys.executable}\nerr\n'
    assert submit(LOCAL, "", ["echo", "again"], tmp_path / "job", 1) == "again\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["bash", "-c", "echo begun; echo 'error: no driver' >&2; exit 3"], "the job failed: error: no driver"),
        (["no-such-command"], "no-such-command: not found"),
    ],
)
def test_a_job_that_fails_says_why(command, said, tmp_path):
    with pytest.raises(TriptychError, match=said):
        submit(LOCAL, "", command, tmp_path / "job", 1)


def test_an_option_that_snakemake_refuses_is_named(profile, tmp_path):
    with pytest.raises(TriptychError, match=r"error: .*executor.*smurl"):
        submit(profile(executor="smurl"), "", ["true"], tmp_path / "job", 1)


def test_a_job_that_does_not_end_is_given_up(tmp_path):
    with pytest.raises(TriptychError, match="not finished after 4 s and is cancelled"):
        submit(LOCAL, "", ["sleep", "100"], tmp_path / "job", 1, patience=4)


@pytest.mark.parametrize("text", ["", "a: [", "- cores"])
def test_what_is_no_profile_is_refused(text, tmp_path):
    (tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(TriptychError, match=str(tmp_path)):
        submit(tmp_path, "", ["true"], tmp_path / "job", 1)
