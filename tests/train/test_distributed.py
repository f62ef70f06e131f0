"""Processes that train together give what one gives, stop together, and go on with the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import make_inputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_autosave import ENVIRONMENT, JOB, STAGE, TrainingCommands, contents, kill, log_of, newest, wait_for
from triptych.config.stages import Lora
from triptych.data.questions import load_questions
from triptych.errors import TriptychError
from triptych.features.shards import TENSOR, checksum
from triptych.model.tokens import tokenise
from triptych.train import distributed
from triptych.train.sampling import partition_for_ranks

KILLS = 6
PREFIX = 7  # tokens
SHORT = {**JOB, "stage": {**STAGE, "max_samples": 80}}  # 80 steps


class ParallelCommands(TrainingCommands):
    """Trainings in several processes, in forks or with `torchrun`."""

    def start(self, out: Path, processes: int = 2, timeout: float = 60, job: dict = SHORT, **settings) -> list[int]:
        job = {"arguments": self.arguments(out, job=job, **settings), "log": str(out.with_suffix(".log"))}
        self.server.stdin.write(json.dumps({**job, "processes": processes, "timeout": timeout}) + "\n")
        self.server.stdin.flush()
        return list(map(int, self.server.stdout.readline().split()))

    def end(self) -> list[int]:
        return list(map(int, self.server.stdout.readline().split()))

    def train(self, out: Path, **settings) -> list[int]:
        self.start(out, **settings)
        return self.end()


@pytest.fixture(scope="module")
def trainer(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    make_inputs(world, folder / "inputs")
    trainer = ParallelCommands(folder / "inputs", folder)
    yield trainer
    trainer.stop()


@pytest.fixture(scope="module")
def undisturbed(trainer) -> dict[str, bytes]:
    """The files of a training by two processes that was left in peace."""
    out = trainer.folder / "undisturbed"
    assert trainer.train(out, save_minutes=10) == [0, 0], log_of(out)
    return contents(out)


# What one process gives


def job_of(parts: list[str], regularised: bool = False, adapted: Sequence[str] = (), **settings) -> dict:
    term = {"kind": "self-distillation", "weight": 0.5 if regularised else 0.0}
    stage = {**STAGE, "train": parts, "learning_rate": dict.fromkeys(parts, 3e-3), "regularisation": term, **settings}
    stage |= {"epochs": 2, "batch_size": 4, "max_samples": 30}
    lora = Lora(rank=2, alpha=4, dropout=0.0, vision_target_modules=list(adapted)).model_dump()
    return {**JOB, "stage": stage, "lora": lora if "lora" in parts else None}


@pytest.mark.parametrize(
    ("parts", "count", "settings"),
    [
        (["connector"], 1, {}),
        (["connector", "lora"], 2, {"regularised": True}),
        (["connector", "language_model"], 2, {}),
        (["connector", "vision_encoder"], 2, {"vision": {"crop": 0.2, "brightness": 0.2}}),
        (["connector", "lora"], 3, {"adapted": ("q_proj", "v_proj")}),
    ],
)
def test_several_processes_give_what_one_gives(trainer, parts, count, settings):
    found = {}
    for processes in (1, 2, 3):
        out = trainer.folder / f"{'-'.join(parts)}-{count}-{processes}"
        status = trainer.train(out, processes=processes, save_minutes=10, job=job_of(parts, **settings))
        assert status == [0] * processes, log_of(out)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found[processes] = (rows, {file.name: load_file(file) for file in out.glob("*.safetensors")})
        assert log_of(out).count("training and") == 1, "the first alone prints"
        assert (", 2 processes" in log_of(out)) == (processes == 2)
    rows, files = found.pop(1)
    assert rows[-1]["step"] == 16 and len(files) == count
    for other_rows, other_files in found.values():
        assert [row["validation_samples"] for row in other_rows] == [row["validation_samples"] for row in rows]
        for row, other in zip(rows, other_rows, strict=True):
            numbers = {name: value for name, value in row.items() if value is not None}
            assert {name: other[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-6)
        for file, tensors in files.items():
            assert other_files[file].keys() == tensors.keys()
            for name, tensor in tensors.items():
                if name.endswith("k_proj.bias"):  # softmax does not see it: its gradient is rounding, which Adam scales
                    continue
                assert torch.allclose(other_files[file][name], tensor, rtol=1e-3, atol=1e-5), name


def test_each_rank_gets_whole_images_once_and_about_as_many_tokens(prompt, trainer):
    samples = tokenise(load_questions(trainer.world / "data", "shared", "train"), prompt)[:100]
    assert partition_for_ranks(samples, PREFIX, 1) == [samples]
    for processes in (2, 3, 7):
        parts = partition_for_ranks(samples, PREFIX, processes)
        assert parts == partition_for_ranks(samples, PREFIX, processes) and len(parts) == processes
        assert sorted(s.question_id for part in parts for s in part) == sorted(s.question_id for s in samples)
        images = [{sample.image_id for sample in part} for part in parts]
        assert len(set.union(*images)) == sum(map(len, images)), "no image is on two ranks"
        loads = [
            PREFIX * len(names) + sum(len(sample.text) for sample in part)
            for names, part in zip(images, parts, strict=True)
        ]
        one = max(PREFIX + sum(len(s.text) for s in samples if s.image_id == name) for name in set.union(*images))
        assert max(loads) - min(loads) <= one
    assert [len(part) for part in partition_for_ranks(samples[:1], PREFIX, 3)] == [1, 0, 0]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    started = {"WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3, "LOCAL_RANK": 2, "TORCHELASTIC_RUN_ID": "none"}
    for name, value in started.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = r"runtime\.processes: 3 processes, but 2 GPUs"
    with pytest.raises(TriptychError, match=message), distributed.process_group():
        pass


@pytest.mark.parametrize(
    "surroundings",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "", "RANK": "x"},
        {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS": "8"},
        {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_what_the_surroundings_set_starts_no_group(monkeypatch, surroundings):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with distributed.process_group():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert not torch.distributed.is_initialized()


def test_summed_gradients_lie_in_memory_as_their_weights(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(2))
    weights = torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    bias = torch.nn.Parameter(torch.randn(4))
    weights.grad = torch.arange(48.0).reshape(4, 3, 2, 2)
    distributed.sum_gradients([weights, bias])
    assert weights.grad.stride() == weights.stride() and torch.equal(bias.grad, torch.zeros(4))
    assert torch.equal(weights.grad, 2 * torch.arange(48.0).reshape(4, 3, 2, 2))


def test_alone_nothing_is_exchanged():
    parameter = torch.nn.Parameter(torch.ones(2))
    with distributed.process_group(), distributed.fail_together():
        distributed.sum_gradients([parameter])
    assert parameter.grad is None and distributed.all_gather("a") == ["a"]
    assert distributed.all_reduce_sum([1, 2.5]) == [1, 2.5]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


# Killed and resumed


def test_killed_at_random_moments_they_end_with_the_same_bytes(trainer, undisturbed):
    moments = random.Random(5)
    kills, trainings, resumed = 0, 0, 0
    while kills < KILLS:
        trainings += 1
        out = trainer.folder / f"killed{trainings}"
        status, attempts = None, 0
        while status != [0, 0]:
            processes = trainer.start(out)
            attempts += 1
            if kills < KILLS:
                wait_for(lambda: log_of(out).count("parent: none") == attempts)  # noqa: B023
                time.sleep(moments.uniform(0, 0.6))
                for process in processes:
                    kill(process)
            status = trainer.end()
            assert status == [0, 0] or -signal.SIGKILL in status, log_of(out)
            kills += status != [0, 0]
        assert contents(out) == undisturbed
        resumed += log_of(out).count("resuming at epoch")
    assert resumed >= KILLS / 2


def test_torchrun_passes_a_signal_on_and_what_it_saved_goes_on(trainer, undisturbed):
    out = trainer.folder / "torchrun"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with out.with_suffix(".log").open("a") as log:
        command = [*torchrun, "-m", "triptych.train", *trainer.arguments(out, job=SHORT)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    wait_for(lambda: newest(out) > 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait() != 0
    assert log_of(out).count("stopped (SIGTERM) and saved at epoch 1, step") == 1, log_of(out)
    assert trainer.train(out, save_minutes=10) == [0, 0]
    assert "resuming at epoch 1, step" in log_of(out)
    assert contents(out) == undisturbed


def test_a_signal_to_one_stops_all(trainer, undisturbed):
    out = trainer.folder / "signal"
    processes = trainer.start(out, save_minutes=10)
    wait_for(lambda: '"epoch": 0' in log_of(out))
    time.sleep(0.1)
    os.kill(processes[1], signal.SIGUSR1)
    assert trainer.end() == [75, 75], log_of(out)
    assert trainer.train(out, save_minutes=10) == [0, 0]
    assert contents(out) == undisturbed


def test_a_state_of_two_processes_is_taken_up_by_another_number(trainer):
    out = trainer.folder / "number"
    for processes in (2, 1):
        assert trainer.train(out, processes=processes, limit=1e-6) == [75] * processes
    assert trainer.train(out, save_minutes=10) == [0, 0], log_of(out)
    assert log_of(out).count("resuming at epoch") == 2


# Failures


def test_a_guard_that_fails_in_one_process_stops_all_with_one_message(trainer):
    inputs = trainer.folder / "poisoned"
    shutil.copytree(trainer.world, inputs)
    manifest = json.loads((inputs / "features" / "manifest.json").read_text())
    shard = next(shard for shard in manifest["shards"] if "image5" in shard["images"])
    file = inputs / "shards" / shard["file"]
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    tensors[TENSOR][shard["images"].index("image50")] = float("nan")
    metadata["crc32"] = "".join(f"{checksum(tokens):08x}" for tokens in tensors[TENSOR])
    save_file(tensors, file, metadata)
    out = trainer.folder / "guard"
    swapped = [argument.replace(str(trainer.world), str(inputs)) for argument in trainer.inputs]
    before, trainer.inputs = trainer.inputs, swapped
    try:
        assert trainer.train(out, job=JOB, save_minutes=10) == [1, 1]
    finally:
        trainer.inputs = before
    assert log_of(out).count("error:") == 1 and "Traceback" not in log_of(out)
    assert "the loss is nan" in log_of(out) and not (out / "manifest.json").exists()


@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_dies_the_other_ends(trainer, dead):
    out = trainer.folder / f"dead{dead}"
    processes = trainer.start(out)
    wait_for(lambda: newest(out) > 5)
    kill(processes[dead])
    status = trainer.end()
    assert status[dead] == -signal.SIGKILL and status[1 - dead] == 1
    assert "error: another process of this training has ended or does not answer" in log_of(out)


def test_when_one_hangs_the_other_ends_in_time(trainer):
    out = trainer.folder / "hangs"
    processes = trainer.start(out, timeout=2)
    wait_for(lambda: newest(out) > 5)
    os.kill(processes[1], signal.SIGSTOP)
    wait_for(lambda: "does not answer" in log_of(out), 20)
    kill(processes[1])
    assert trainer.end() == [1, -signal.SIGKILL]
