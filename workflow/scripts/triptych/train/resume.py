"""A training in progress on disk, so that one that was killed or sent away goes on where it was.

States are folders `state-<number>` in `last/`, beside the checkpoint to be: tensors, a record in JSON and, last, a
manifest with the hashes of both. A state appears under its name only when it is complete and synced. The newest two are
kept, so that a damaged one costs no more than the time between two. A training that is over leaves `last/finished/`.
"""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from triptych.checkpoint import code_version
from triptych.storage import (
    TriptychError,
    atomic_directory,
    fsync_directory,
    link_or_copy,
    read_json,
    require_files,
    sha256_file,
    sha256_json,
    write_record,
)
from triptych.train.parallel import gather, rank, together

FINISHED, JOB = "finished", "job.json"
FORMAT = 1  # raise it when the meaning of a state changes: older ones are then left alone
TENSORS, RECORD, MANIFEST = "tensors.safetensors", "record.json", "manifest.json"
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Paused(Exception):
    """The training was told to stop and is saved; running it again goes on."""


@dataclass(frozen=True)
class State:
    """A training between two steps: `tensors` by name, and `record`, whatever JSON can hold."""

    tensors: dict[str, torch.Tensor]
    record: dict


def save_state(folder: Path, job: Mapping[str, str], state: State, before: Path | None) -> Path:
    """Write a state as the newest one in `folder`; of the others only `before` is kept.

    Args:
        folder: where the states of this training are.
        job: hashes of all that the training depends on, by name.
        state: what to keep.
        before: the state that this process wrote or loaded last: the one known to be good.

    Returns:
        The new state's folder.
    """
    path = folder / f"state-{max(map(_number, _states(folder)), default=0) + 1:06d}"
    with atomic_directory(path) as temporary:
        save_file(state.tensors, temporary / TENSORS)
        # The order of keys is kept: metrics must come back as they went.
        (temporary / RECORD).write_text(json.dumps(state.record, ensure_ascii=False), encoding="utf-8")
        files = {name: sha256_file(temporary / name) for name in (TENSORS, RECORD)}
        manifest = {"format": FORMAT, "job": dict(job), "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for other in folder.iterdir():
        if other not in (path, before):
            shutil.rmtree(other, ignore_errors=True)
    return path


def load_state(folder: Path, job: Mapping[str, str]) -> tuple[Path, State] | None:
    """The newest state in `folder` that is whole and belongs to `job`; says which are passed over, and why."""
    for path in sorted(_states(folder), key=_number, reverse=True):
        try:
            return path, _read(path, job)
        except TriptychError as fault:
            print(f"{path.parent.name}/{path.name} is not used: {fault}", flush=True)
    return None


def _read(path: Path, job: Mapping[str, str]) -> State:
    """One state, checked.

    Raises:
        TriptychError: it is damaged, or belongs to another job.
    """
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["format"] != FORMAT:
            raise TriptychError(f"another version of Triptych wrote it (format {manifest['format']}, not {FORMAT})")
        for name in (TENSORS, RECORD):
            if sha256_file(path / name) != manifest["files"][name]:
                raise TriptychError(f"{name} is damaged: it differs from the hash in {MANIFEST}")
        differing = [name for name in sorted({*job, *manifest["job"]}) if job.get(name) != manifest["job"].get(name)]
        if differing:
            raise TriptychError(f"it belongs to a training with other {', '.join(differing)}")
        # Clones, because safetensors maps the file into memory, and it is soon deleted.
        tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
        return State(tensors, read_json(path / RECORD))
    except (OSError, KeyError, TypeError) as error:
        raise TriptychError(f"it is damaged ({type(error).__name__}: {error})") from None


def _states(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("state-*") if re.fullmatch(r"state-\d{6,}", path.name))


def _number(path: Path) -> int:
    return int(path.name.removeprefix("state-"))


def pack_tensors(trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All tensors that a training goes on from: what trains, its optimiser's state, the random generators' states."""
    tensors = {f"weight/{name}": parameter for name, parameter in trained.items()}
    for name, parameter in trained.items():
        # AdamW has nothing for a parameter before its first gradient.
        for kind, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{name}/{kind}"] = value
    generators = {"cpu": torch.get_rng_state()}
    device = next((parameter.device for parameter in trained.values()), torch.device("cpu"))
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    for process, states in enumerate(gather(generators)):
        tensors |= {_random(process, kind): state for kind, state in states.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def unpack_tensors(
    tensors: Mapping[str, torch.Tensor], trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> None:
    """Put back what `pack_tensors` took.

    Raises:
        TriptychError: the state is that of a model with other tensors.
    """
    expected = {f"weight/{name}": parameter.shape for name, parameter in trained.items()}
    found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("weight/")}
    if found != expected:
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise TriptychError(
            f"the saved state and the model differ in {', '.join(names)}; delete the folder last/ of this checkpoint "
            "and run again"
        )
    indices = {id(parameter): index for index, parameter in enumerate(_parameters(optimiser))}
    held: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"weight/{name}"])
            start = f"optimiser/{name}/"
            values = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if values:
                held[indices[id(parameter)]] = values
    # By way of the optimiser, which knows which of its tensors belong on the parameter's device.
    optimiser.load_state_dict({**optimiser.state_dict(), "state": held})
    # A process that was not there when the state was saved goes on with the generators that it has.
    if (state := tensors.get(_random(rank(), "cpu"))) is not None:
        torch.set_rng_state(state)
    if (state := tensors.get(_random(rank(), "cuda"))) is not None:
        torch.cuda.set_rng_state(state, next(iter(trained.values())).device)


def _random(process: int, kind: str) -> str:
    return f"random{process or ''}/{kind}"


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


class Keeper:
    """Decides when a training is saved and when it stops; it is asked after every step, by all processes at once.

    A state is saved every `save_minutes`, and when the training must stop: on SIGTERM, SIGINT and SIGUSR1, or when its
    time is about to end.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, object],
        save_minutes: float,
        deadline: float | None = None,
        about: Mapping[str, object] | None = None,
    ):
        """Set up for one training.

        Args:
            folder: where its states are, `last/` of the checkpoint.
            facts: all that the training depends on, by name: a state made with others is not taken up.
            save_minutes: time between two states.
            deadline: when the training must have stopped, as told by `time.monotonic()`.
            about: what those who look at a state may want to know; it decides nothing.
        """
        self.about = about or {}
        self.folder = folder
        self.job = {name: sha256_json(value) for name, value in facts.items()}
        self.codes = [code_version()]  # all versions of Triptych that took part, this one last
        self._interval = 60 * save_minutes
        self._deadline = deadline
        self._good: Path | None = None  # the state that was saved or loaded last
        self._signal: str | None = None
        self._asked = self._saved = time.monotonic()
        self._longest = 0.0  # time from one question to the next

    def listen(self) -> None:
        """Let SIGTERM, SIGINT and SIGUSR1 stop the training after its current step; a second SIGINT stops at once."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def load(self) -> State | None:
        """The state to go on from, if there is one."""
        with together():  # and nobody goes on, and saves, while another still reads
            found = load_state(self.folder, self.job)
        if found is None:
            return None
        self._good, state = found
        codes = [code for code in state.record["codes"] if code != self.codes[-1]]
        if codes:
            print(f"note: the saved state was made by Triptych {codes[-1]}, this is {self.codes[-1]}", flush=True)
        self.codes = [*codes, self.codes[-1]]
        return state

    def save(self, state: State) -> None:
        """Write a state now."""
        state = State(state.tensors, {**state.record, "codes": self.codes, "about": self.about})
        with together():
            if rank() == 0:
                self._good = save_state(self.folder, self.job, state, self._good)
        self._saved = time.monotonic()

    def ask(self, capture: Callable[[], State], place: str) -> None:
        """Save if it is time to; called where a training may stop: after a step, and within a validation.

        Args:
            capture: gives the training's state.
            place: where the training is, in words.

        Raises:
            Paused: the training must stop; it is saved.
        """
        now = time.monotonic()
        self._longest = max(self._longest, now - self._asked)
        self._asked = now
        reason = self._signal
        # The next step, with a save in it, may take as long as the longest so far, and then this state is to be saved.
        if reason is None and self._deadline is not None and now + 2 * self._longest > self._deadline:
            reason = "the time limit is near"
        asked = gather((reason, now - self._saved >= self._interval))  # all stop and save where one must
        reason = next((other for other, _ in asked if other), None)
        if reason is not None or any(due for _, due in asked):
            self.save(capture())
        if reason is not None:
            raise Paused(f"stopped ({reason}) and saved at {place}; run it again to go on")

    def finish(self) -> None:
        """Put the finished checkpoint in place of all states: links to its files, which take no room of their own.

        Snakemake deletes the outputs of what it believes unfinished: of a training that ended after the Snakemake that
        began it was killed, or of one whose parent was made again, with the same bytes.
        """
        files = [*read_json(self.folder.parent / MANIFEST)["files"], MANIFEST]
        with atomic_directory(self.folder) as temporary:
            (temporary / FINISHED).mkdir()
            for name in files:
                link_or_copy(self.folder.parent / name, temporary / FINISHED / name)
            write_record(temporary / FINISHED / JOB, {"job": dict(self.job), "code": self.codes[-1]})

    def put_back(self) -> bool:
        """Put back the checkpoint that `finish` kept, if it is this training's, of this version, and whole."""
        kept = self.folder / FINISHED
        try:
            about = read_json(kept / JOB)
            if about != {"job": dict(self.job), "code": self.codes[-1]}:
                return False
            files = read_json(kept / MANIFEST)["files"]
            require_files(kept, files, "it is not used")
        except TriptychError as fault:
            if (kept / JOB).exists():
                print(f"last/{FINISHED} is not used: {fault}", flush=True)
            return False
        if rank() == 0:
            (self.folder.parent / MANIFEST).unlink(missing_ok=True)
            for name in [*files, MANIFEST]:
                (self.folder.parent / name).unlink(missing_ok=True)
                link_or_copy(kept / name, self.folder.parent / name)
            fsync_directory(self.folder.parent)
        return True
