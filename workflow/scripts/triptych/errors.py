"""The one error that a user sees, and how a step ends with it."""

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

# What the machine refuses, whatever a file holds: what to do about it, by `errno`.
NO_SPACE = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space and run again: what is finished is kept"
)
REMEDIES = NO_SPACE | {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "let its owner open it (chmod -R g+rwX, and umask 002 from then on), or use a cache of your own "
        "(TRIPTYCH_CACHE) and results of your own (pathvars.results)",
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n 4096) and run again"),
}


class TriptychError(Exception):
    """An error that the user can correct. Its message names the file, key or row, and says what to do."""


def run_step(main: Callable[[], None]) -> None:
    """Run one step's command; a `TriptychError`, and what the machine refuses, is one line on stderr and status 1."""
    _leave_out_pandas()
    _close_standard_input()
    try:
        main()
    except TriptychError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if (number := refusal(error)) is None:
            raise
        what = "no space left" if number in NO_SPACE else os.strerror(number).lower()
        where = getattr(error, "filename", None) or " ".join(str(error).split())
        sys.exit(f"error: {what}: {where}; {REMEDIES[number]}")


def refusal(error: BaseException) -> int | None:
    """Give the `errno` of an error that says what the machine refuses, one of REMEDIES; None of any other error.

    Libraries that are written in Rust say it in words: safetensors of a full disk, for one.
    """
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    return number if number in REMEDIES else None


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
