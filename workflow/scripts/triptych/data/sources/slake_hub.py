"""SLAKE from the hub, at a pinned revision; downloaded and unpacked once."""

import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

from triptych.config.datasets import SlakeHubVqa
from triptych.data.sources.base import Item, Read, Reject
from triptych.data.sources.slake_layout import folder_listing, folder_reader
from triptych.download.huggingface import HubFiles, check_revision, download, open_zip, read_member
from triptych.errors import TriptychError, refusal
from triptych.io.atomic import atomic_directory, resolve_under

SLAKE = "BoKelvin/SLAKE"
SLAKE_TABLES = ("train.json", "validation.json", "test.json")
SLAKE_IMAGES = "imgs.zip"
SLAKE_KEPT = ("source.jpg", "detection.json")  # of each image's folder; masks are not used
MAX_UNPACKED_BYTES = 2_000_000_000  # of SLAKE's images, which take 0.5 GB: far below a bomb


def listing(settings: SlakeHubVqa, cache: Path) -> Iterator[Item | Reject]:
    """List images and questions of SLAKE.

    Raises:
        TriptychError: as `slake_folder` and `folder_listing`.
    """
    yield from folder_listing(slake_folder(cache, settings.revision), settings.language, settings.expected)


def reader(settings: SlakeHubVqa, cache: Path) -> AbstractContextManager[Read]:
    """Read images by name.

    Raises:
        TriptychError: as `slake_folder`.
    """
    return folder_reader(slake_folder(cache, settings.revision))


def hub_files(settings: SlakeHubVqa) -> HubFiles:
    """Name the files of the hub that are downloaded."""
    return HubFiles("dataset", SLAKE, settings.revision, (*SLAKE_TABLES, SLAKE_IMAGES))


def slake_folder(cache: Path, revision: str) -> Path:
    """Give the folder with SLAKE's three tables and `imgs/xmlab<ID>/source.jpg`; downloaded and unpacked once.

    Raises:
        TriptychError: the files are unavailable, or the archive holds links, names that lead out of the folder, no
            images, or more than `MAX_UNPACKED_BYTES`; nothing is left behind then.
    """
    check_revision(SLAKE, revision)
    folder = cache / f"slake-{revision[:12]}"
    if folder.is_dir():
        return folder
    tables = {name: download(SLAKE, name, revision, cache) for name in SLAKE_TABLES}
    images = download(SLAKE, SLAKE_IMAGES, revision, cache)
    with atomic_directory(folder) as temporary:
        for name, path in tables.items():
            shutil.copyfile(path, temporary / name)
        _unpack(images, temporary, folder)
    return folder


def _unpack(path: Path, temporary: Path, folder: Path) -> None:
    """Write the members that are kept below `temporary`, to be `folder`; all names and kinds are checked first."""
    root = folder.resolve()
    with open_zip(path) as archive:
        targets = {}
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise TriptychError(f"{path.name}: member {member.filename!r} is a link or device; refused")
            if "\\" in member.filename:
                raise TriptychError(f"{path.name}: member {member.filename!r} has a backslash in its name; refused")
            target = temporary / resolve_under(root, member.filename).relative_to(root)
            if PurePosixPath(member.filename).name in SLAKE_KEPT and not member.is_dir():
                targets[target] = member
        if sum(member.file_size for member in targets.values()) > MAX_UNPACKED_BYTES:
            raise TriptychError(f"{path.name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes; refused")
        for target, member in targets.items():
            data = read_member(archive, member)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            except OSError as error:  # a name that is too long, or a file where another member needs a folder
                if refusal(error) is not None:
                    raise
                raise TriptychError(
                    f"{path}: {member.filename[:80]!r} cannot be unpacked ({error.strerror}); check the revision"
                ) from None
    if not any(target.name == "source.jpg" for target in targets):
        raise TriptychError(f"{path.name}: holds no source.jpg; check the revision")
