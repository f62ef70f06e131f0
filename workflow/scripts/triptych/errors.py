"""The one error that a user sees, and how a step ends with it."""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TriptychError(Exception):
    """An error that the user can correct. Its message names the file, key or row, and says what to do."""


def run_step(main: Callable[[], None]) -> None:
    """Run one step's command; a `TriptychError` or a full disk becomes one line on stderr and exit status 1."""
    _leave_out_pandas()
    _close_standard_input()
    try:
        main()
    except TriptychError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f" for {error.filename}" if error.filename else ""
        sys.exit(f"error: no space left{where} ({error}); free some and run again: what is finished is kept")


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
