"""Checks of disks: free space, number of files, quotas, and what a shared file system must be able to do."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from triptych.commands.checks.finding import Finding, Place, fault, ok, warning
from triptych.commands.estimate import disk_gb, fetched_gb
from triptych.commands.jobs import job_states
from triptych.config.texts import cache_folder
from triptych.io.atomic import atomic_directory, atomic_path

FILES_PER_JOB = 12  # checkpoint, saved states, log, times, Snakemake's records; 8 were counted
SPARE_GB = 5  # downloads, tables, temporary files
HELD = "held.lock"  # which the command that waits for a job holds meanwhile
# Another process tries to lock a file that this one holds: 0 where it is refused, 1 where it gets it, 2 where it fails.
TRY = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(0)
except OSError:
    sys.exit(2)
sys.exit(1)
"""


class Room(NamedTuple):
    """What may still be written to a folder; None: no limit is known."""

    gb: float | None
    files: int | None


def space(place: Place) -> Finding:
    """Free disk and files of the results folder, against the plan's need and quotas."""
    results = _existing(place.study.results)
    bytes_now, files_now = _used(place.study.results)
    images = 2 * sum(fetched_gb(place.study).values())  # as fetched and as prepared
    gb = max(0.0, sum(disk_gb(place.study)) + images + SPARE_GB - bytes_now / 1e9)
    files = max(0, FILES_PER_JOB * len(job_states(place.study, now=0.0)) - files_now)
    rooms = {"disk": _of_disk(results), "quota": _of_quota(results)}
    for name, room in rooms.items():
        if room.gb is not None and room.gb < gb:
            return fault(
                f"{results}: {room.gb:.1f} GB free ({name}); the study needs {gb:.1f} GB more",
                "free some space, name another folder (--directory, pathvars.results), or lower features.budget_gb",
            )
        if room.files is not None and room.files < files:
            return fault(
                f"{results}: {room.files} more files possible ({name}); the study needs {files}",
                "delete files that nobody needs, or name another folder (--directory)",
            )
    known = [f"{room.gb:.0f} GB and {room.files} files left ({name})" for name, room in rooms.items() if room.gb]
    said = f"{results}: {', '.join(known)}; needed: {gb:.1f} GB, {files} files"
    if (listed := place.study.settings.plan.disk_gb) < gb:
        return warning(f"{said}; plan.disk_gb allows {listed:g}", "raise plan.disk_gb, or lower features.budget_gb")
    return ok(said)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _used(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files below a folder."""
    sizes = [
        (Path(top) / name).lstat().st_size for top, _, names in os.walk(folder) for name in names if name[0] != "."
    ]
    return sum(sizes), len(sizes)


def _of_disk(folder: Path) -> Room:
    found = os.statvfs(folder)
    files = found.f_favail if found.f_files else None  # some file systems do not count
    return Room(found.f_bavail * found.f_frsize / 1e9, files)


def _of_quota(folder: Path) -> Room:
    """What a quota leaves of a Lustre folder, of the user's; nothing known elsewhere."""
    if shutil.which("lfs") is None:
        return Room(None, None)
    command = ["lfs", "quota", "-q", "-u", str(os.getuid()), str(folder)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return Room(None, None)
    # FOLDER kbytes quota limit grace files quota limit grace; a long name stands on a line of its own
    numbers = re.findall(r"(?<!\S)(\d+\*?|-)(?!\S)", said.stdout.replace(str(folder), " ", 1))
    if len(numbers) < 7:
        return Room(None, None)
    kb, _, kb_limit, _, files, _, files_limit = (int(word.rstrip("*").replace("-", "0")) for word in numbers[:7])
    return Room(
        (kb_limit - kb) * 1024 / 1e9 if kb_limit else None,
        max(0, files_limit - files) if files_limit else None,
    )


@contextmanager
def held_lock(folder: Path) -> Iterator[None]:
    """Hold a lock in a folder, for `locks` on another machine to find."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HELD).open("a") as file:
        with contextlib.suppress(OSError):  # without a lock, or with another's, `locks` says what it finds
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            (folder / HELD).unlink(missing_ok=True)


def locks(place: Place) -> Finding:
    """Locks of files, by which processes that share a cache take turns."""
    remedy = "name a cache on a file system with locks (Lustre: mounted with flock): export TRIPTYCH_CACHE=/folder"
    folder = _existing(cache_folder(place.study.settings.cache))
    if not os.access(folder, os.W_OK):
        return fault(f"{folder}: not writable", "name a cache of your own: export TRIPTYCH_CACHE=/folder")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return fault(f"{folder}: files cannot be locked ({error.strerror})", remedy)
        tried = subprocess.run([sys.executable, "-c", TRY, file.name]).returncode
    if tried:
        return fault(f"{folder}: two processes can lock the same file", remedy)
    held = place.folder / HELD
    if not (place.partition and held.exists()):
        return ok(f"{folder}: locks hold between processes")
    if subprocess.run([sys.executable, "-c", TRY, held]).returncode:
        return warning(
            f"{folder}: locks hold on this machine, but not between machines",
            "fetch on one machine alone (make aire-fetch), as `docs/aire.md` says",
        )
    return ok(f"{folder}: locks hold between processes and machines")


def renames(place: Place) -> Finding:
    """Atomic renames, syncs and links in the results folder: every file is written by them."""
    folder = _existing(place.study.results)
    if not os.access(folder, os.W_OK):
        return fault(f"{folder}: not writable", "name another folder (--directory, pathvars.results)")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".renames-") as scratch:
        try:
            _file_is_replaced(Path(scratch, "file"))
            _folder_is_replaced(Path(scratch, "folder"))
        except (OSError, AssertionError) as error:
            return fault(f"{folder}: a rename fails or is not seen ({error})", "use another file system for results")
        if not _works(lambda: os.link(Path(scratch, "file"), Path(scratch, "link"))):
            return warning(f"{folder}: renames are atomic; no hard links", "none needed: images are copied instead")
    return ok(f"{folder}: renames are atomic; hard links")


def _file_is_replaced(path: Path) -> None:
    path.write_text("old")
    with path.open() as reader:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
        assert path.read_text() == "new", "the old file is still there"
        assert reader.read() == "old", "an open file changed"


def _folder_is_replaced(path: Path) -> None:
    for text in ("old", "new"):
        with atomic_directory(path) as temporary:
            (temporary / text).write_text(text)
    assert [file.name for file in path.iterdir()] == ["new"], "the old folder is still there"


def _works(action: Callable[[], None]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True
