"""Saved states of a training under way: written, found again, and turned into tensors and back."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from triptych.errors import TriptychError, message_of, refusal
from triptych.io.atomic import atomic_directory
from triptych.io.manifest import read_json, sha256_file, sha256_json
from triptych.train.distributed import all_gather, rank
from triptych.utils.device import cpu_wanted

FORMAT = 1  # raise it when the meaning of a state changes: states of another format are not used
TENSORS, RECORD, MANIFEST = "tensors.safetensors", "record.json", "manifest.json"


class OtherHardwareError(TriptychError):
    """What other hardware has made would be made again here, though nobody has asked for that."""


@dataclass(frozen=True)
class State:
    """A training between two steps: `tensors` by name, and `record`, anything that JSON can hold."""

    tensors: dict[str, torch.Tensor]
    record: dict


def save_state(folder: Path, job: Mapping[str, str], state: State, previous: Path | None) -> Path:
    """Write a state as the newest one in `folder`; of the others, only `previous` is kept.

    Args:
        folder: of the states of this training.
        job: hashes of all that the training depends on, by name.
        state: to write.
        previous: the state that this process wrote or loaded last, which is known to be undamaged.

    Returns:
        The new state's folder.
    """
    path = folder / f"state-{max(map(number, states(folder)), default=0) + 1:06d}"
    with atomic_directory(path) as temporary:
        save_file(state.tensors, temporary / TENSORS)
        # The order of keys is kept, because metrics are written again in it.
        (temporary / RECORD).write_text(json.dumps(state.record, ensure_ascii=False), encoding="utf-8")
        files = {name: sha256_file(temporary / name) for name in (TENSORS, RECORD)}
        manifest = {"format": FORMAT, "job": dict(job), "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for other in folder.iterdir():
        if other not in (path, previous):
            shutil.rmtree(other, ignore_errors=True)
    return path


def load_state(folder: Path, job: Mapping[str, str]) -> tuple[Path, State] | None:
    """Load the newest undamaged state of `job` in `folder`; prints which states are skipped, and why.

    Raises:
        OtherHardwareError: a GPU has saved this training, and this process has none; or hardware for which
            `training.precision: auto` chose another precision has.
    """
    for path in sorted(states(folder), key=number, reverse=True):
        try:
            return path, _read(path, job)
        except OtherHardwareError:
            raise
        except TriptychError as error:
            print(f"{path.parent.name}/{path.name} is not used: {error}", flush=True)
    return None


def _read(path: Path, job: Mapping[str, str]) -> State:
    """Read a state and check it.

    Raises:
        TriptychError: the state is damaged, or belongs to another job.
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
            refuse_other_hardware(path, job, manifest["job"])
            raise TriptychError(f"it belongs to a training job with different {', '.join(differing)}")
        # Clones, because safetensors maps the file into memory, and the file is soon deleted.
        tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
        return State(tensors, read_json(path / RECORD))
    except (OSError, KeyError, TypeError) as error:
        if refusal(error) is not None:  # the state is good, and must not be trained again
            raise
        raise TriptychError(f"it is damaged ({type(error).__name__}: {message_of(error)})") from None


def refuse_other_hardware(path: Path, job: Mapping[str, str], other: Mapping[str, str]) -> None:
    """Compare a training with one that is kept at `path`, by the hashes of what they depend on.

    Raises:
        OtherHardwareError: the kept one is the same but for its device, a GPU, and the precision that went with it; or
            but for a precision that hardware chose, because the setting is the same.
    """
    if {name for name in {*job, *other} if job.get(name) != other.get(name)} == {"precision"}:
        raise OtherHardwareError(
            f"{path}: was computed in another precision than this machine chooses (training.precision: auto); run it "
            f"again on hardware as before, or delete {path.parent} to begin this training again here"
        )
    rest = {*job, *other} - {"device", "precision"}
    devices = job.get("device"), other.get("device")
    alike = all(job.get(name) == other.get(name) for name in rest)
    if alike and devices == (sha256_json("cpu"), sha256_json("cuda")) and not cpu_wanted():
        raise OtherHardwareError(
            f"{path}: a GPU has made this, and torch can use none here; run it again where there is one, or set "
            "runtime.device: cpu to begin this training again on the CPU"
        )


def states(folder: Path) -> Iterator[Path]:
    """Give the folders of the saved states in `folder`."""
    return (path for path in folder.glob("state-*") if re.fullmatch(r"state-\d{6,}", path.name))


def number(path: Path) -> int:
    """Give the number of a saved state from the name of its folder."""
    return int(path.name.removeprefix("state-"))


def pack_tensors(trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Collect the tensors of a state: weights that train, the optimiser's, and the random generators'."""
    tensors = {f"weight/{name}": parameter for name, parameter in trained.items()}
    for name, parameter in trained.items():
        # An optimiser has nothing for a parameter before its first gradient; some count its steps in a plain number.
        for kind, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{name}/{kind}"] = torch.as_tensor(value)
    generators = {"cpu": torch.get_rng_state()}
    device = next((parameter.device for parameter in trained.values()), torch.device("cpu"))
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    for process, states in enumerate(all_gather(generators)):
        tensors |= {_random(process, kind): state for kind, state in states.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def unpack_tensors(
    tensors: Mapping[str, torch.Tensor], trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> None:
    """Restore what `pack_tensors` collected, in place.

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
    optimiser_state: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"weight/{name}"])
            start = f"optimiser/{name}/"
            values = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            values = {key: _restored(value, parameter) for key, value in values.items()}
            if values:
                optimiser_state[indices[id(parameter)]] = values
    # Through the optimiser's own method, which knows which of its tensors belong on the parameter's device.
    optimiser.load_state_dict({**optimiser.state_dict(), "state": optimiser_state})
    # A process beyond those that saved the state keeps the generators that it has.
    if (state := tensors.get(_random(rank(), "cpu"))) is not None:
        torch.set_rng_state(state)
    if (state := tensors.get(_random(rank(), "cuda"))) is not None:
        torch.cuda.set_rng_state(state, next(iter(trained.values())).device)


def _restored(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor | int:
    """A tensor of the optimiser as it was: of a parameter's shape, it lies in memory as the parameter does."""
    if value.dtype == torch.int64:
        return value.item()
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def _random(process: int, kind: str) -> str:
    return f"random{process or ''}/{kind}"


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
