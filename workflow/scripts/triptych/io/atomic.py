"""Files and folders that are written whole or not at all, and names that stay below a folder."""

import contextlib
import errno
import glob
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from triptych.errors import TriptychError


def sync(path: Path) -> None:
    """Make a file, or a rename inside a folder, durable, where the file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _fresh(path: Path) -> Path:
    """Name a file or folder beside `path` that is not there."""
    return path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(4)}")


def _mode(path: Path, default: int) -> int:
    """Permissions of what is at `path`, which its replacement keeps: who opened or closed it has decided that."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else default


def _temporary_prefix(path: Path) -> str:
    """Name the process that writes, so that the rest of a killed one is known from work in progress."""
    return f".{path.name}.{socket.gethostname()}-{os.getpid()}."


def _sweep(path: Path) -> None:
    """Remove what earlier attempts to write `path` left, of processes of this machine that no longer run."""
    start = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        process = left.name.removeprefix(start).split(".")[0]
        if process.isdigit() and not _runs(int(process)):
            with contextlib.suppress(OSError):  # another user's
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, for another user
        return True
    return True


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; when the block ends well, sync it and rename it to `path`.

    An error inside the block leaves `path` as it was and removes the temporary file. A new file has the mode that the
    umask says, one that is replaced keeps its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = _fresh(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _mode(path, 0o666) | 0o200))
    mode = _mode(path, default=_mode(temporary, 0))
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where the two are on different disks, or on one without links."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well, sync its files and put it at `path`.

    A folder already at `path` is replaced only after the new one is complete. Modes are as with `atomic_path`; a file
    that was made narrower than its folder, as safetensors does, is opened as far as that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = _fresh(path)
    temporary.mkdir()
    try:
        mode = _mode(path, default=_mode(temporary, 0)) | 0o700
        temporary.chmod(mode)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                _open_as(file, mode & 0o666)
            if file.is_file() or file.is_dir():
                sync(file)
        sync(temporary)
        if path.exists():
            old = _fresh(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_as(file: Path, mode: int) -> None:
    """Let a file be read and written by whom `mode` says, unless it has other names, whose mode is decided there."""
    found = file.stat()
    if found.st_nlink == 1 and found.st_mode & mode != mode:
        file.chmod(stat.S_IMODE(found.st_mode) | mode)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def resolve_under(root: Path, name: str) -> Path:
    """Resolve `name` below `root`, links followed.

    Raises:
        TriptychError: `name` is absolute or leads out of `root`.
    """
    # With strings, and the folder's own links followed once: this is done for every image.
    top = _real_folder(os.fspath(root))
    path = os.path.join(_real_folder(os.path.join(top, os.path.dirname(name))), os.path.basename(name))  # noqa: PTH118, PTH119, PTH120
    if os.path.islink(path) or os.path.basename(name) in ("", ".", ".."):  # noqa: PTH114, PTH119
        path = os.path.realpath(path)
    if os.path.isabs(name) or os.path.commonpath((top, path)) != top:  # noqa: PTH117
        raise TriptychError(f"{name!r} leads out of {top}; only files below that folder may be named")
    return Path(path)


@lru_cache(maxsize=1024)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)
