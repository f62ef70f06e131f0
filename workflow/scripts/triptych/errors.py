"""The one error that a user sees, and how a step ends with it."""

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

# What the machine refuses, whatever a file holds, by `errno`: what it is called, and what to do about it.
FULL = ("no space left", "free some space and run again: what is finished is kept")
CLOSED = (
    "permission denied",
    "let its owner open it (chmod -R g+rwX, and umask 002 from then on), or use a cache of your own (TRIPTYCH_CACHE) "
    "and results of your own (pathvars.results)",
)
NO_MEMORY = (
    "out of memory",
    "give the step more (mem_mb in the profile), or set runtime.gradient_checkpointing: always; of answers, a smaller "
    "evaluation.batch_size",
)
NO_GPU_MEMORY = (
    "out of the GPU's memory",
    "set runtime.gradient_checkpointing: always; of answers, a smaller evaluation.batch_size; of features, a smaller "
    "features.batch_size; nvidia-smi shows what else uses the GPU",
)
TOO_MANY = ("too many open files", "allow more (ulimit -n 4096) and run again")
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), CLOSED),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), TOO_MANY),
    errno.ENOMEM: NO_MEMORY,
}
# What may also be a fault of a single file, which some steps reject or make again; where it ends a step, it is this.
MISPLACED = ("not a place for files", "move what stands in its way, or name another folder in the settings")
FAILED = ("the file system fails", "run again; if that does not help, ask those who keep it")
LAST = {
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), MISPLACED),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO, errno.ETIMEDOUT), FAILED),
}
_ADDRESS = re.compile(r"<[^>]*\b0x[0-9a-fA-F]+>|\b0x[0-9a-fA-F]{6,}\b")
# What libraries say where memory runs out: on a CPU, and on a GPU.
MEMORY_WORDS = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|CUDA out of memory|CUDA error: out of memory|"
    r"CUBLAS_STATUS_ALLOC_FAILED|Triton Error \[CUDA\]: out of memory"
)
OF_A_GPU = re.compile(r"\bCUDA\b|CUBLAS|\bGPU\b")


class TriptychError(Exception):
    """An error that the user can correct. Its message names the file, key or row, and says what to do."""


def message_of(error: BaseException) -> str:
    """Give what another library's error says, as one line without memory addresses, which differ from run to run."""
    return _ADDRESS.sub("", " ".join(str(error).split()))


def run_step(main: Callable[[], None]) -> None:
    """Run one step's command; a `TriptychError`, and what the machine refuses, is one line on stderr and status 1."""
    _leave_out_pandas()
    _close_standard_input()
    try:
        main()
    except TriptychError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        number = refusal(error)
        on_gpu = number == errno.ENOMEM and OF_A_GPU.search(str(error))
        found = (
            NO_GPU_MEMORY
            if on_gpu
            else REFUSALS.get(number) or LAST.get(error.errno if isinstance(error, OSError) else None)
        )
        if found is None:
            raise
        what, remedy = found
        where = getattr(error, "filename", None) or message_of(error)
        sys.exit(f"error: {what}: {where}; {remedy}")


def refusal(error: BaseException) -> int | None:
    """Give the `errno` of an error that says what the machine refuses, a key of REFUSALS; None of any other error.

    Not all libraries raise an OSError: safetensors says it in words, and torch has a type of its own for memory.
    """
    number = getattr(error, "errno", None)
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if {"MemoryError", "OutOfMemoryError"} & kinds or MEMORY_WORDS.search(str(error)):
        number = errno.ENOMEM
    return number if number in REFUSALS else None


def out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, of the machine or of a GPU."""
    return refusal(error) == errno.ENOMEM


def _close_standard_input() -> None:
    """Give the step, and all that it starts, an empty standard input: no library's question is ever answered there."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


class _NoPandas:
    """An import hook that hides pandas."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _leave_out_pandas() -> None:
    """Hide pandas while pyarrow looks for it, once: for its first list pyarrow would import it, 0.3 s of every step."""
    hook = _NoPandas()
    sys.meta_path.insert(0, hook)
    pa.array([0])
    sys.meta_path.remove(hook)
