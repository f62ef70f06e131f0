"""The one error that a user sees, and how a step ends with it."""

import errno
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TriptychError(Exception):
    """A fault that the user can mend. Its message names the file, key or row, and what to do."""


def run_step(main: Callable[[], None]) -> None:
    """Run one step's command; a `TriptychError` or a full disk becomes one line on stderr and exit status 1."""
    _leave_out_pandas()
    try:
        main()
    except TriptychError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f" for {error.filename}" if error.filename else ""
        sys.exit(f"error: no space left{where} ({error}); free some and run again: finished parts are kept")


class _NoPandas:
    """An import hook by which there is no pandas."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _leave_out_pandas() -> None:
    """Let pyarrow find, once, that there is no pandas: else it imports it for its first list, 0.3 s of every step."""
    hook = _NoPandas()
    sys.meta_path.insert(0, hook)
    pa.array([0])
    sys.meta_path.remove(hook)
