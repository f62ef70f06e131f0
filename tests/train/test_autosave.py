"""A training that is killed goes on where it was, and ends with the same bytes as one that is left in peace."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_inputs
from safetensors.torch import load_file, save_file
from triptych.config.stages import Connector, Lora
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, sha256_file, write_json, write_record
from triptych.train import autosave
from triptych.train.autosave import EXIT_STATUS, Autosaver, Interrupted
from triptych.train.guards import GradientGuard
from triptych.train.state import State, load_state, pack_tensors, save_state, unpack_tensors
from triptych.utils.device import best_device, device_name

KILLS = 20
FILES = ["adapter.safetensors", "connector.safetensors", "manifest.json", "metrics.jsonl"]
STAGE = {"data": "toy", "train": ["connector", "lora"], "learning_rate": {"connector": 3e-3, "lora": 1e-2}}
STAGE |= {"epochs": 2, "batch_size": 2, "weight_decay": 0.01}
STAGE |= {"select": "best", "regularisation": {"kind": "self-distillation", "weight": 0.1}}  # more to save
JOB = {
    "prefix": "3",
    "split": "shared",
    "seed": 4,
    "stage_name": "3",
    "stage": STAGE,
    "training": {"precision": "fp32"},
}
JOB |= {"connector": Connector().model_dump(), "lora": Lora(rank=2, alpha=4, dropout=0.3).model_dump()}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "workflow" / "scripts")}


class TrainingCommands:
    """Trainings of one small job, by its command line or in forks."""

    def __init__(self, world: Path, folder: Path):
        self.world, self.folder = world, folder
        names = ("data", "features", "language-model", "vision-encoder")
        self.inputs = [f"--{name}={world / name.replace('-', '_')}" for name in names]
        command = [sys.executable, str(ROOT / "tests/forks.py"), str(world)]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def arguments(self, out: Path, save_minutes: float = 0, job: dict = JOB, limit: float | None = None) -> list[str]:
        arguments = ["--job", json.dumps(job), *self.inputs, "--out", str(out)]
        runtime = {"save_minutes": save_minutes, "time_limit_minutes": limit}
        return [*arguments, "--runtime", json.dumps(runtime)]

    def start(self, out: Path, **settings) -> int:
        """Start a training in a fork; gives its process id."""
        log = out.with_suffix(".log")
        self.server.stdin.write(json.dumps({"arguments": self.arguments(out, **settings), "log": str(log)}) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self) -> int:
        """Wait for it; gives its exit status."""
        return int(self.server.stdout.readline())

    def train(self, out: Path, **settings) -> int:
        self.start(out, **settings)
        return self.end()

    def stop(self) -> None:
        """End the process that forks trainings."""
        self.server.stdin.close()
        self.server.wait()

    def command(self, out: Path, **settings) -> subprocess.Popen:
        """Start a training as the rule does, in a process of its own."""
        with out.with_suffix(".log").open("a") as log:
            command = [sys.executable, "-m", "triptych.train", *self.arguments(out, **settings)]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def trainer(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    make_inputs(world, folder / "inputs")
    trainer = TrainingCommands(folder / "inputs", folder)
    yield trainer
    trainer.stop()


def contents(out: Path) -> dict[str, bytes]:
    """All that a finished training leaves, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def log_of(out: Path) -> str:
    log = out.with_suffix(".log")
    return log.read_text() if log.exists() else ""


def wait_for(condition, seconds: float = 60) -> None:
    """Look until something is so, as closely as one core allows."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.0002)


@pytest.fixture(scope="module")
def undisturbed(trainer) -> dict[str, bytes]:
    """The files of a training that was left in peace."""
    out = trainer.folder / "undisturbed"
    assert trainer.train(out, save_minutes=10) == 0, log_of(out)
    files = contents(out)
    assert sorted(files) == FILES, "the saved states are gone"
    rows = [json.loads(line) for line in files["metrics.jsonl"].decode().splitlines()]
    assert read_json(out / "manifest.json")["device"] == device_name(best_device())
    assert [row["epoch"] for row in rows] == [0, 1, 2] and rows[-1]["step"] > 150
    return files


@pytest.fixture(scope="module")
def stopped(trainer, undisturbed) -> Path:
    """A training that was told to stop in its second epoch, with two states; for copies."""
    out = trainer.folder / "stopped"
    process = trainer.start(out)
    wait_for(lambda: '"epoch": 1' in log_of(out))
    states = newest(out)
    wait_for(lambda: newest(out) > states + 10)
    os.kill(process, signal.SIGTERM)
    assert trainer.end() == EXIT_STATUS
    return out


def newest(out: Path) -> int:
    return max((int(path.name.removeprefix("state-")) for path in (out / "last").glob("state-*")), default=0)


def copy_of(stopped: Path, name: str) -> Path:
    return Path(shutil.copytree(stopped, stopped.with_name(name)))


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
        os.kill(process, signal.SIGKILL)


def test_killed_at_random_moments_it_ends_with_the_same_bytes(trainer, undisturbed):
    moments = random.Random(3)
    kills, trainings, resumed = 0, 0, 0
    while kills < KILLS:
        trainings += 1
        out = trainer.folder / f"killed{trainings}"
        status, attempts = None, 0
        while status != 0:
            saved = newest(out)
            process = trainer.start(out)
            attempts += 1
            if kills < KILLS:
                wait_for(lambda: log_of(out).count("parent: none") == attempts)  # noqa: B023
                if kills % 2:  # while it trains, on a machine of any speed
                    wait_for(lambda: newest(out) > saved or (out / "manifest.json").exists())  # noqa: B023
                time.sleep(moments.uniform(0, 0.25))
                kill(process)
            status = trainer.end()
            assert status in (0, -signal.SIGKILL), log_of(out)
            kills += status != 0
        assert contents(out) == undisturbed
        resumed += log_of(out).count("resuming at epoch")
    assert resumed >= KILLS / 2


def test_killed_at_the_worst_moments_it_ends_with_the_same_bytes(trainer, undisturbed):
    out = trainer.folder / "worst"
    moments = {
        "a state is being written": lambda: list(out.glob("last/.state-*")),
        "the first epoch is over": lambda: '"epoch": 1' in log_of(out),
        "a state is being written again": lambda: list(out.glob("last/.state-*")),
        "the last epoch is over": lambda: '"epoch": 2' in log_of(out),
        "the checkpoint is being written": lambda: list(out.glob(".new*")) or (out / "connector.safetensors").exists(),
        "the checkpoint is half there": lambda: (out / "connector.safetensors").exists(),
    }
    for moment, come in moments.items():
        process = trainer.start(out)
        wait_for(come)
        kill(process)
        # Writing a checkpoint takes a moment only: a slow machine may see it too late.
        assert trainer.end() == -signal.SIGKILL or "checkpoint" in moment, moment
    assert trainer.train(out) == 0
    assert contents(out) == undisturbed


def test_on_the_command_line_too(trainer, undisturbed):
    out = trainer.folder / "command"
    for number, status in ((signal.SIGTERM, EXIT_STATUS), (signal.SIGKILL, -signal.SIGKILL)):
        before = newest(out)
        process = trainer.command(out)
        wait_for(lambda: newest(out) > before + 30)  # noqa: B023
        process.send_signal(number)
        assert process.wait() == status, log_of(out)
    assert "stopped (SIGTERM) and saved at epoch 1, step" in log_of(out)
    assert trainer.train(out) == 0
    assert log_of(out).count("resuming at epoch 1, step") == 2
    assert contents(out) == undisturbed


@pytest.mark.parametrize("number", autosave.SIGNALS)
def test_a_signal_saves_and_asks_to_be_run_again(trainer, undisturbed, number):
    out = trainer.folder / f"signal{number}"
    process = trainer.start(out, save_minutes=10)
    wait_for(lambda: '"epoch": 0' in log_of(out))
    time.sleep(0.1)
    os.kill(process, number)
    assert trainer.end() == EXIT_STATUS, log_of(out)
    last = log_of(out).splitlines()[-1]
    assert last.startswith(f"stopped ({number.name}) and saved at epoch 1, step ") and "exit status 75" in last
    assert trainer.train(out, save_minutes=10) == 0
    assert contents(out) == undisturbed


def test_a_hang_up_that_nohup_ignores_stays_ignored(tmp_path):
    before = {number: signal.getsignal(number) for number in autosave.SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        Autosaver(tmp_path, {}, 10).handle_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        Autosaver(tmp_path, {}, 10).handle_signals()
        assert callable(signal.getsignal(signal.SIGHUP))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_full_disk_is_one_line_and_the_state_before_stays(trainer, undisturbed, stopped):
    out = copy_of(stopped, "full")
    before = newest(out)
    with out.with_suffix(".log").open("w") as log:
        command = [sys.executable, "-m", "triptych.train", *trainer.arguments(out)]
        # As on a full disk: no file may grow beyond what the inputs and the log need, and a state is larger.
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))  # noqa: E731
        process = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT, preexec_fn=limit)
    assert process.returncode == 1 and "Traceback" not in log_of(out)
    last = log_of(out).splitlines()[-1]
    assert last.startswith("error: no space left: ") and last.endswith(
        "free some space and run again: what is finished is kept"
    )
    assert newest(out) == before and "resuming at epoch" in log_of(out)
    assert trainer.train(out) == 0 and contents(out) == undisturbed


def test_a_time_limit_saves_and_asks_to_be_run_again(trainer, undisturbed):
    out = trainer.folder / "limit"
    assert trainer.train(out, save_minutes=10, limit=1e-6) == EXIT_STATUS
    assert "stopped (the time limit is near) and saved at epoch 0, step 0 of 196" in log_of(out)
    status, attempts = EXIT_STATUS, 0
    while status == EXIT_STATUS and attempts < 20:
        status, attempts = trainer.train(out, save_minutes=10, limit=0.02), attempts + 1
    assert status == 0, log_of(out)
    assert log_of(out).count("resuming at") == attempts
    assert contents(out) == undisturbed


def test_a_finished_checkpoint_is_restored_where_nothing_has_changed(trainer, undisturbed):
    out = trainer.folder / "again"
    assert trainer.train(out, save_minutes=10) == 0
    assert [path.name for path in (out / "last").iterdir()] == ["finished"], "the saved states are gone"
    for name in undisturbed.keys() - {"adapter.safetensors"}:
        (out / name).unlink()  # as Snakemake does with the outputs that it knows of
    assert trainer.train(out, save_minutes=10) == 0
    assert contents(out) == undisturbed and "its checkpoint is restored" in log_of(out)
    flip(out / "connector.safetensors")
    (out / "manifest.json").unlink()
    assert trainer.train(out, save_minutes=10) == 0
    assert "last/finished is not used: " in log_of(out) and "connector.safetensors: differs" in log_of(out)
    assert contents(out) == undisturbed
    other = {**JOB, "stage": {**STAGE, "weight_decay": 0.1}}
    assert trainer.train(out, job=other, save_minutes=10) == 0
    assert log_of(out).count("is restored") == 1 and contents(out) != undisturbed


def test_another_prompt_trains_again(trainer, undisturbed):
    out = trainer.folder / "asked"
    assert trainer.train(out, save_minutes=10) == 0
    model = trainer.world / "language_model/manifest.json"
    before = model.read_text()
    facts = {key: value for key, value in json.loads(before).items() if key != "seal"}
    try:
        write_json(model, facts | {"settings": facts["settings"] | {"prompt": "assistant <image> {question} "}})
        assert trainer.train(out, save_minutes=10) == 0
    finally:
        model.write_text(before)
    assert "is restored" not in log_of(out)
    assert read_json(out / "manifest.json")["prompt"] == "assistant <image> {question} "
    assert contents(out)["metrics.jsonl"] != undisturbed["metrics.jsonl"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_damaged_state_is_passed_over(trainer, undisturbed, stopped):
    for name, damaged, said in (("damaged", 1, "resuming at epoch 2"), ("all-damaged", 2, '"epoch": 0')):
        out = copy_of(stopped, name)
        states = sorted((out / "last").iterdir())
        assert len(states) == 2
        for state in states[-damaged:]:
            flip(state / "tensors.safetensors")
        assert trainer.train(out, save_minutes=10) == 0, log_of(out)
        assert f"last/{states[-1].name} is not used: tensors.safetensors is damaged" in log_of(out)
        assert said in log_of(out)
        assert contents(out) == undisturbed


def test_a_state_of_another_training_is_not_taken_up(trainer, undisturbed, stopped):
    out = copy_of(stopped, "other")
    other = {**JOB, "stage": {**STAGE, "weight_decay": 0.1}}
    assert trainer.train(out, job=other) == 0
    assert "is not used: it belongs to a training job with different settings" in log_of(out)
    assert "resuming" not in log_of(out)
    fresh = trainer.folder / "fresh"
    assert trainer.train(fresh, job=other, save_minutes=10) == 0
    assert contents(out) == contents(fresh) != undisturbed


@pytest.mark.parametrize("finished", [False, True])
def test_what_a_gpu_has_made_is_not_made_again_on_the_cpu_unless_that_is_wanted(tmp_path, monkeypatch, finished):
    def saver(device, precision="float32", settings="s"):
        depends = {"device": device, "precision": precision, "settings": settings}
        return Autosaver(tmp_path / "last", depends, 10)

    def begin(*job):
        return saver(*job).restore_finished() or saver(*job).load() is not None

    write_record(tmp_path / "manifest.json", {"files": {}})
    saver("cuda", "bfloat16").keep_finished() if finished else saver("cuda", "bfloat16").save(State({}, {"a": 1}))
    kept = sorted(path.read_bytes() for path in tmp_path.rglob("*.json"))
    assert begin("cuda", "bfloat16"), "on a GPU it goes on"
    for precision in ("float32", "bfloat16"):
        with pytest.raises(TriptychError, match=r"a GPU has made this, .*runtime\.device: cpu to begin this training"):
            begin("cpu", precision)
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*.json")) == kept
    assert not begin("cpu", "float32", "other settings"), "another training"
    monkeypatch.setenv("TRIPTYCH_DEVICE", "cpu")
    assert not begin("cpu")


@pytest.mark.parametrize("finished", [False, True])
def test_what_hardware_of_another_precision_has_made_is_not_made_again(tmp_path, finished):
    def saver(precision, settings="auto"):
        return Autosaver(tmp_path / "last", {"device": "cuda", "settings": settings, "precision": precision}, 10)

    def begin(*job):
        return saver(*job).restore_finished() or saver(*job).load() is not None

    write_record(tmp_path / "manifest.json", {"files": {}})
    saver("bfloat16").keep_finished() if finished else saver("bfloat16").save(State({}, {"a": 1}))
    with pytest.raises(TriptychError, match=r"another precision than this machine chooses .*hardware as before"):
        begin("float32")
    assert begin("bfloat16")
    assert not begin("float32", "fp32"), "asked for"


def test_the_optimiser_goes_on_in_memory_as_its_weights_lie_there(tmp_path):
    """As those of the packaged encoder do, channels last: fused optimisers read both in the order of memory."""

    def made(seed):
        torch.manual_seed(seed)
        weights = {"w": torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))}
        return weights, torch.optim.AdamW(weights.values(), fused=True)

    def step(weights, optimiser):
        for number in range(3):
            gradient = torch.arange(48.0).reshape(4, 3, 2, 2) * (number + 1)
            weights["w"].grad = gradient.to(memory_format=torch.channels_last)
            optimiser.step()

    weights, optimiser = made(0)
    step(weights, optimiser)
    save_file(pack_tensors(weights, optimiser), tmp_path / "state.safetensors")
    other, resumed = made(1)
    step(other, resumed)
    unpack_tensors(load_file(tmp_path / "state.safetensors"), other, resumed)
    moments = [value for value in resumed.state[other["w"]].values() if value.dim()]
    assert len(moments) == 2 and all(value.stride() == other["w"].stride() for value in moments)
    for one in ((weights, optimiser), (other, resumed)):
        step(*one)
    assert torch.equal(weights["w"], other["w"])


def test_a_faster_device_begins_again_by_itself(tmp_path):
    Autosaver(tmp_path, {"device": "cpu"}, 10).save(State({}, {}))
    assert Autosaver(tmp_path, {"device": "cuda"}, 10).load() is None


def test_states_of_another_version_are_taken_up_and_it_is_recorded(trainer, stopped):
    out = copy_of(stopped, "version")
    for state in (out / "last").iterdir():
        record = read_json(state / "record.json")
        assert len(record["codes"]) == 1
        (state / "record.json").write_text(json.dumps({**record, "codes": ["0.0.1+old"]}))
        manifest = read_json(state / "manifest.json")
        manifest["files"]["record.json"] = sha256_file(state / "record.json")
        write_json(state / "manifest.json", manifest)
    assert trainer.train(out, save_minutes=10) == 0
    assert read_json(out / "manifest.json")["earlier_code"] == ["0.0.1+old"]
    assert "made by Triptych 0.0.1+old" in log_of(out)


def state(value: int) -> State:
    return State({"weight/w": torch.full((3,), float(value))}, {"value": value})


def two_states(folder: Path) -> tuple[Path, Path]:
    first = save_state(folder, {"data": "a"}, state(1), None)
    return first, save_state(folder, {"data": "a"}, state(2), first)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip(path / "tensors.safetensors"), "tensors.safetensors is damaged"),
        (lambda path: (path / "record.json").write_text("{}"), "record.json is damaged"),
        (lambda path: (path / "record.json").unlink(), "FileNotFoundError"),
        (lambda path: (path / "manifest.json").unlink(), "no such file"),
        (lambda path: (path / "manifest.json").write_text('{"form'), "not valid JSON"),
        (lambda path: (path / "manifest.json").write_text("[]"), "TypeError"),
        (lambda path: (path / "manifest.json").write_text('{"format": 0}'), "another version of Triptych"),
    ],
)
def test_every_damage_is_noticed_and_named(tmp_path, capsys, damage, reason):
    first, second = two_states(tmp_path / "last")
    damage(second)
    path, found = load_state(tmp_path / "last", {"data": "a"})
    assert (path, found.record) == (first, {"value": 1}) and torch.equal(found.tensors["weight/w"], torch.ones(3))
    said = capsys.readouterr().out
    assert said.startswith("last/state-000002 is not used: ") and reason in said


def test_the_newest_two_good_states_are_kept_and_nothing_else(tmp_path):
    first, second = two_states(tmp_path / "last")
    (tmp_path / "last" / ".state-000003.left-over").mkdir()
    third = save_state(tmp_path / "last", {"data": "a"}, state(3), first)  # the second was found to be damaged
    assert sorted((tmp_path / "last").iterdir()) == [first, third] and not second.exists()
    assert load_state(tmp_path / "last", {"data": "b"}) is None


def test_nothing_to_go_on_from(tmp_path, capsys):
    assert load_state(tmp_path / "last", {}) is None
    assert capsys.readouterr().out == ""


class Clock:
    """A clock that is told the time."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_an_autosaver_saves_in_time_and_stops_before_the_limit(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(autosave, "time", clock)
    autosaver = Autosaver(tmp_path / "last", {"data": "a"}, save_minutes=0.5, deadline=100.0)
    saved = []

    def capture() -> State:
        saved.append(clock.now)
        return state(1)

    with pytest.raises(Interrupted, match=r"the time limit is near.*epoch 1, step 9"):
        for step in range(1, 20):
            clock.now = 10.0 * step
            autosaver.save_if_due(capture, f"epoch 1, step {step}")
    assert saved == [30, 60, 90], "every half minute, and before the next step could pass the limit"


def test_the_gradient_guard_goes_on_with_what_it_saw():
    parameters = {"w": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(2))}
    guard, optimiser = GradientGuard(parameters), torch.optim.SGD(parameters.values())
    guard.resume(1, ["w"])
    with pytest.raises(TriptychError, match="no gradient reaches b;"):
        guard.check_change(optimiser)  # after the second step
    guard.resume(7, ["w"])
    guard.check_change(optimiser)


def test_tensors_of_another_model_are_refused():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)
    tensors = pack_tensors(dict(one.named_parameters()), torch.optim.AdamW(one.parameters()))
    with pytest.raises(TriptychError, match=r"differ in weight/bias, weight/weight; delete the folder last/"):
        unpack_tensors(tensors, dict(two.named_parameters()), torch.optim.AdamW(two.parameters()))
