"""Steps that share a job of the cluster: what goes wrong in the middle of a job costs none that ended well."""

import math
import re
from collections import defaultdict
from pathlib import Path

import pytest
import test_slurm
from test_slurm import LOCAL, Study, ask, contents, seconds_run, study_config, wait_for
from triptych.commands.resume import left_steps, other_snakemakes

pytestmark = test_slurm.pytestmark
slurm = test_slurm.slurm
# How the job of each fold and seed is disturbed in the second of its trainings.
HOW = {
    ("fold0", 0): "cancelled",
    ("fold1", 0): "warned",
    ("fold0", 1): "late",
    ("fold1", 1): "killed",
}


def group_config(world: Path) -> dict:
    config = study_config(world) | {"seeds": [0, 1]}
    config["stages"]["3"]["epochs"] = 40
    return config


def job_of(study: Study, group: str) -> str | None:
    """Number of the job of a group that waits or runs."""
    return next((number for name, number in study.queue().items() if name.startswith(f"rule_{group}_")), None)


def group_of(at: tuple[str, int]) -> str:
    """Name of the group of a fold and seed."""
    return f"{at[0]}-seed{at[1]}"


def second_training(study: Study, fold: str, seed: int) -> tuple[str, str] | None:
    """Of a fold's two trainings the one that is done, and the other when it is under way."""
    cells = [f"{prefix}/{fold}/seed{seed}" for prefix in ("3", "1-3")]
    for done, other in (cells, cells[::-1]):
        finished = (study.results / f"checkpoints/{done}/manifest.json").exists()
        if finished and '"epoch": 1' in study.log(other) and study.process(other):
            return done, other
    return None


@pytest.fixture(scope="module")
def disturbed(slurm, world, tmp_path_factory):
    """A study of which Snakemake is killed in the first group, and every later group is disturbed in its middle."""
    study = Study(tmp_path_factory.mktemp("groups"), group_config(world))
    head = study.start()
    training = study.halt("1/shared/seed0")
    study.asked = ask("scontrol", "show", "job", job_of(study, "shared-seed0"))
    head.kill()
    head.wait()
    own = other_snakemakes, left_steps
    wait_for(lambda: not any(left(study.folder) for left in own), "steps that it ran itself are over")
    before = len(study.said())
    study.refused = study.run(module="triptych.commands.resume"), study.said()[before:]
    training.resume()
    wait_for(lambda: not study.queue(), "its jobs are over")

    head = study.start(module="triptych.commands.resume")
    study.done, study.made, halted = {}, {}, {}
    left = set(HOW)

    def ready() -> tuple[str, int] | None:
        """The next job to disturb: its second training has begun, and was halted at once; nothing is waited for."""
        for at in HOW:
            if at not in halted and (cells := second_training(study, *at)):
                done, cell = study.done[HOW[at]] = cells
                halted[at] = study.halt(cell)
                weights = study.results / f"checkpoints/{done}/connector.safetensors"
                study.made[HOW[at]] = weights.stat().st_ino
            # Over its time already, it is warned and killed at once: so it must have run for a minute.
            if at in left & halted.keys() and (HOW[at] != "late" or seconds_run(job_of(study, group_of(at))) > 61):
                return at
        return None

    while left:
        at = wait_for(ready, f"second trainings begin\n{study.said()}")
        left.remove(at)
        number = job_of(study, group_of(at))
        if HOW[at] == "cancelled":
            ask("scancel", number)
        elif HOW[at] == "warned":  # five minutes before its end
            ask("scontrol", "update", f"JobId={number}", f"TimeLimit={math.ceil(seconds_run(number) / 60) + 5}")
        elif HOW[at] == "late":
            ask("scontrol", "update", f"JobId={number}", "TimeLimit=1")
        else:
            halted[at].kill()
    assert head.wait(test_slurm.PATIENCE) == 0, study.said()
    quiet = Study(tmp_path_factory.mktemp("quiet"), group_config(world))
    assert quiet.run(profile=LOCAL) == 0, quiet.said()
    study.quiet = quiet
    return study


def test_a_killed_snakemake_is_not_resumed_beside_the_job_of_a_group(disturbed):
    status, said = disturbed.refused
    assert status == 1 and re.search(r"running rule_shared-seed0_predict_captions_train_stage", said)


def test_a_group_gets_one_gpu_the_largest_memory_and_the_time_of_all(disturbed):
    assert "Partition=gpu" in disturbed.asked and re.search(r"TresPerNode=gres[:/]gpu:1\b", disturbed.asked)
    assert "NumCPUs=8" in disturbed.asked
    assert re.search(r"TimeLimit=00:2[0-9]:00", disturbed.asked), "ten minutes for each step, and what they take"


def test_every_group_is_tried_again_once(disturbed):
    ends = defaultdict(list)
    for job in disturbed.jobs():
        name = re.match(r"rule_(fold\d-seed\d)_", job["Comment"])
        if name:
            ends[name[1]].append(job["State"].split()[0])
    wanted = {"cancelled": "CANCELLED", "warned": "FAILED", "late": "TIMEOUT", "killed": "FAILED"}
    assert ends == {f"{fold}-seed{seed}": [wanted[how], "COMPLETED"] for (fold, seed), how in HOW.items()}


def test_what_ended_well_is_kept_and_not_run_again(disturbed):
    for how, (done, cell) in disturbed.done.items():
        assert (disturbed.results / f"checkpoints/{done}/connector.safetensors").stat().st_ino == disturbed.made[how]
        assert not re.search("resuming|restored", disturbed.log(done)), how
        assert "resuming at epoch" in disturbed.log(cell), disturbed.log(cell)


def test_the_end_has_the_bytes_of_an_undisturbed_study_on_one_machine(disturbed):
    for folder in ("checkpoints", "tables"):
        assert contents(disturbed.results / folder) == contents(disturbed.quiet.results / folder), folder
    answers = [
        path.relative_to(disturbed.quiet.results) for path in disturbed.quiet.results.glob("predictions/**/*.parquet")
    ]
    assert len(answers) > 8
    for path in answers:
        assert (disturbed.results / path).read_bytes() == (disturbed.quiet.results / path).read_bytes(), path


def test_answers_of_one_job_are_given_by_one_process(disturbed):
    logs = {path: path.read_text() for path in disturbed.results.glob("logs/predict/*/fold*/seed*.log")}
    also = {path.parts[-2:] for path, text in logs.items() if "also asked in this process" in text}
    kept = {path.parts[-2:] for path, text in logs.items() if "answered already" in text and "/s" not in text}
    # Where one training of a job failed, the other's checkpoint had been asked before the next attempt.
    whole = {(fold, f"seed{seed}.log") for (fold, seed), how in HOW.items() if how in ("cancelled", "late")}
    assert also == kept == whole and len(logs) == 2 * len(HOW)


def test_nothing_is_left_to_do(disturbed):
    before = len(disturbed.said())
    assert disturbed.run("--dry-run", profile=LOCAL) == 0
    assert "Nothing to be done" in disturbed.said()[before:]
