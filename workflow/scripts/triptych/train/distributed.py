"""Training in several processes that `torchrun` starts: each computes its part of every step, and results are summed.

A process that is alone does nothing here. torch's wrapper, DistributedDataParallel, is not used: the trainer itself
accumulates the gradients of a step, and what trains is small, so that one all-reduce a step is all there is to do.
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
from triptych.utils.device import has_gpu

TIMEOUT = timedelta(minutes=10)  # of one exchange; the slowest process loads its models in that time

Value = TypeVar("Value")


class OtherProcessFailed(Exception):
    """Another process of this training has failed; that process says why."""


def world_size() -> int:
    """Tell how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Tell this process's number; process 0 prints and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, until the block ends; each gets its CPU threads, and a GPU.

    `WORLD_SIZE` alone, as clusters and other programs set it, starts nothing.

    Raises:
        TriptychError: there are fewer GPUs than processes.
    """
    if not distributed.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    local_size, local_rank = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if has_gpu():
        if local_rank >= torch.cuda.device_count():
            raise TriptychError(f"runtime.processes: {local_size} processes, but {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local_rank)
    torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    with _lost_process_as_error():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpu() else "gloo", timeout=TIMEOUT)
    yield
    distributed.destroy_process_group()  # not after an error: the others may be waiting, and must see this one end


@contextmanager
def print_on_first_rank() -> Iterator[None]:
    """Let only process 0 print within the block."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield


@contextmanager
def _lost_process_as_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise TriptychError(
            "another process of this training has ended or does not answer; run it again to go on"
        ) from None


def all_gather(value: Value) -> list[Value]:
    """Give every process the values of all of them, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        with _lost_process_as_error():
            distributed.all_gather_object(values, value)
    return values


@contextmanager
def fail_together() -> Iterator[None]:
    """Let an error in one process end the block in all of them; the first process that failed raises its own error.

    Raises:
        OtherProcessFailed: another process failed.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = all_gather(error is not None)
    if error is not None and failed.index(True) == rank():
        raise error
    if any(failed):
        raise OtherProcessFailed


def all_reduce_sum(numbers: Sequence[float]) -> list[float]:
    """Sum each number over the processes, in double precision."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    with _lost_process_as_error():
        distributed.all_reduce(sums)
    return sums.tolist()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in place; a process without a gradient adds zero."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with _lost_process_as_error():
        distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
        summed = part.view_as(parameter)
        # In memory as the parameter, which need not be row by row: fused optimisers require it.
        alike = summed.stride() == parameter.stride()
        parameter.grad = summed if alike else torch.empty_like(parameter, requires_grad=False).copy_(summed)
