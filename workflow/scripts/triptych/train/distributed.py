"""Training in several processes, as `torchrun` starts them: each computes its share of every step, and sums are taken.

A process that is alone does nothing here. torch's wrapper, DistributedDataParallel, is not used: the loop adds up the
passes of a step itself, and what trains is small, so one sum of the gradients a step is all there is to do.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed, nn

from triptych.errors import TriptychError

TIMEOUT = timedelta(minutes=10)  # of one exchange; the slowest process loads its models in that time


Value = TypeVar("Value")


class Elsewhere(Exception):
    """Another process of this training has failed, and says why."""


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 prints and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that `torchrun` started, until the block ends; each has its share of threads, and a GPU.

    Raises:
        TriptychError: there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    here, number = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if number >= torch.cuda.device_count():
            raise TriptychError(f"training.processes: {here} processes, but {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(number)
    torch.set_num_threads(max(1, torch.get_num_threads() // here))
    with _answered():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    yield
    distributed.destroy_process_group()  # not after an error: the others may be waiting, and must see this one end


@contextmanager
def only_the_first_prints() -> Iterator[None]:
    """Lets no process but the first print in the block."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise TriptychError(
            "another process of this training has ended or does not answer; run it again to go on"
        ) from None


def gather(value: Value) -> list[Value]:
    """The value that each process gave, in all of them."""
    values = [value] * world_size()
    if world_size() > 1:
        with _answered():
            distributed.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """A block that may fail in one process alone: where it does, all leave it, and the first that failed says why.

    Raises:
        Elsewhere: it failed in another process.
    """
    fault = None
    try:
        yield
    except Exception as error:
        fault = error
    failed = gather(fault is not None)
    if fault is not None and failed.index(True) == rank():
        raise fault
    if any(failed):
        raise Elsewhere


def total(numbers: Sequence[float]) -> list[float]:
    """Sums over the processes."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    with _answered():
        distributed.all_reduce(sums)
    return sums.tolist()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the sum of all gradients; a process without a gradient adds zero."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with _answered():
        distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
