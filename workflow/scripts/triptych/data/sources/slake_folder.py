"""SLAKE, or a data set in its layout, in a folder of the user's."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from triptych.config.datasets import SLAKE_VARIABLE, SlakeFolderVqa
from triptych.data.schemas import SPLITS
from triptych.data.sources.base import Item, Read, Reject
from triptych.data.sources.slake_layout import folder_listing, folder_reader
from triptych.errors import TriptychError
from triptych.utils.terminal import announce


def listing(settings: SlakeFolderVqa, cache: Path) -> Iterator[Item | Reject]:
    """List images and questions of the folder.

    Raises:
        TriptychError: as `local_folder` and `folder_listing`.
    """
    folder = local_folder(settings)
    print(f"read from {folder.resolve()}", flush=True)
    if settings.overruled:
        announce(
            f"warning: the key `folder` is {folder}, and {SLAKE_VARIABLE} is {settings.overruled}: the key is read. "
            "Leave out one of them",
            warning=True,
        )
    yield from folder_listing(folder, settings.language, settings.expected)


def reader(settings: SlakeFolderVqa, cache: Path) -> AbstractContextManager[Read]:
    """Read images by name.

    Raises:
        TriptychError: as `local_folder`.
    """
    return folder_reader(local_folder(settings))


def local_folder(settings: SlakeFolderVqa) -> Path:
    """Give the user's folder in SLAKE's layout, after a check of what it holds.

    Raises:
        TriptychError: neither is given, or the folder lacks a part.
    """
    folder = settings.location
    if folder is None:
        raise TriptychError(
            f"datasets: no folder is given for SLAKE; set {SLAKE_VARIABLE}=/path/to/slake, or the key `folder` of the "
            "data set. The folder holds train.json, validation.json, test.json and imgs/"
        )
    name = "the key `folder`" if settings.folder else SLAKE_VARIABLE
    for part in [*(f"{split}.json" for split in SPLITS), "imgs"]:
        if not (folder / part).exists():
            raise TriptychError(
                f"{folder / part}: not there; {name} must name a folder with "
                "train.json, validation.json, test.json and imgs/, as in the hub data set BoKelvin/SLAKE"
                + _hint(folder)
            )
    return folder


def _hint(folder: Path) -> str:
    """What is there instead of the folder's parts, where that is a likely slip."""
    if (folder / "validate.json").exists() and not (folder / "validation.json").exists():
        return "; older copies call it validate.json: rename it"
    if (folder / "imgs.zip").exists() and not (folder / "imgs").exists():
        return "; unpack imgs.zip"
    if below := sorted(folder.glob("*/train.json")):
        return f"; did you mean {below[0].parent}?"
    return ""
