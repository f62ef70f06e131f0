"""Names of image files as people write them in tables: made on Windows, with blanks, in another case."""

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path


def locate(root: Path, name: str) -> tuple[str, str]:
    """Find the file that a table names: its name below `root`, and a stamp of its size and time.

    A name that is not there is tried with `/` for `\\`, without blanks around it, and in another case where one file
    only has it so. Nothing is opened here, and `read_below` refuses what leads out of `root`.

    Returns:
        The name as it stands and an empty stamp where there is no such file.
    """
    for spelling in _spellings(root, name):
        try:
            about = os.stat(os.path.join(root, spelling))  # noqa: PTH116, PTH118 - done for every image
        except (OSError, ValueError):
            continue
        return spelling, f"{about.st_size}-{about.st_mtime_ns}"
    return name, ""


def plain_name(name: str) -> str:
    """Give a file name with `/` between its folders, without blanks around it."""
    return name.strip().replace("\\", "/").removeprefix("./")


class Respelt:
    """Counts the names of a table whose files were found in another spelling."""

    def __init__(self) -> None:
        self._number, self._example = 0, ""

    def meet(self, name: str, file: str) -> None:
        """Count a name of the table with that of its file."""
        if name != file:
            self._number += 1
            self._example = self._example or f"{name!r} as {file!r}"

    def say(self) -> None:
        """Say how many there were."""
        if self._number:
            print(
                f"{self._number} image names were found in another spelling (\\ for /, case, blanks): {self._example}",
                flush=True,
            )


def _spellings(root: Path, name: str) -> Iterator[str]:
    yield name
    plain = plain_name(name)
    yield plain
    found: list[str] = []
    for part in plain.split("/"):
        if part in ("", ".", ".."):
            return
        folder = os.path.join(root, *found)  # noqa: PTH118
        try:
            same = _names(folder, os.stat(folder).st_mtime_ns).get(_folded(part), [])  # noqa: PTH116
        except (OSError, ValueError):
            return
        if part not in same and len(same) != 1:
            return
        found.append(part if part in same else same[0])
    yield "/".join(found)


@lru_cache(maxsize=64)
def _names(folder: str, changed: int) -> dict[str, list[str]]:
    """Names in a folder, by how they read without regard to case; `changed` lets a changed folder be listed again."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        names.setdefault(_folded(name), []).append(name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
