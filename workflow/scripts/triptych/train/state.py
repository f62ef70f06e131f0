"""Saved states of a training under way."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from triptych.errors import TriptychError
from triptych.io.atomic import atomic_directory
from triptych.io.manifest import read_json, sha256_file
from triptych.train.distributed import gather, rank

FORMAT = 1  # raise it when the meaning of a state changes: older ones are then left alone


TENSORS, RECORD, MANIFEST = "tensors.safetensors", "record.json", "manifest.json"


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
    path = folder / f"state-{max(map(number, states(folder)), default=0) + 1:06d}"
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
    for path in sorted(states(folder), key=number, reverse=True):
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


def states(folder: Path) -> Iterator[Path]:
    """Give the folders of the saved states in `folder`."""
    return (path for path in folder.glob("state-*") if re.fullmatch(r"state-\d{6,}", path.name))


def number(path: Path) -> int:
    """Give the number of a saved state from the name of its folder."""
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
