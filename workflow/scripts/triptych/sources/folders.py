"""Data and models of the user's own, in local folders."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from triptych.settings import FolderCaptions
from triptych.sources.records import CaptionRecord, hashed_split
from triptych.storage import TriptychError, resolve_under, sha256_bytes, stable_order

CAPTIONS = "captions.jsonl"


def caption_folder_records(settings: FolderCaptions) -> Iterator[CaptionRecord]:
    """Choose `size` captioned pictures of a folder.

    The choice depends on the seed and the lines themselves, not on their order, and a smaller set is the beginning of
    a larger one. A picture is for validation by a hash of its name.

    Raises:
        TriptychError: a line or picture cannot be read, or there are fewer than `size` of them.
    """
    folder = Path(settings.folder).expanduser()
    pairs = sorted(set(_pairs(folder / CAPTIONS)), key=lambda pair: stable_order(settings.seed, *pair))
    if len(pairs) < settings.size:
        raise TriptychError(f"{folder / CAPTIONS}: has {len(pairs)} pictures, but `size` asks for {settings.size}")
    for image, caption in pairs[: settings.size]:
        path = resolve_under(folder, image)
        if not path.is_file():
            raise TriptychError(f"{path}: no such picture, though {CAPTIONS} names it")
        split = hashed_split(settings.seed, image, settings.validation_fraction)
        yield CaptionRecord(sha256_bytes(f"{image} {caption}".encode())[:16], path.read_bytes(), caption, split)


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TriptychError(f"{path}: cannot be read ({error}); it holds one JSON object a line") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            image, caption = record["image"], record["caption"].strip()
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError):
            image, caption = "", ""
        if not image or not caption:
            raise TriptychError(f'{path}, line {number}: must be {{"image": "a/b.jpg", "caption": "some words"}}')
        yield image, caption


def copy_model(folder: Path, patterns: list[str], out: Path) -> None:
    """Copy a model's files that match `patterns` from a local folder into `out`.

    Raises:
        TriptychError: the folder has no safetensors.
    """
    files = {path for pattern in patterns for path in folder.expanduser().glob(pattern) if path.is_file()}
    if not any(path.suffix == ".safetensors" for path in files):
        raise TriptychError(f"{folder}: has no .safetensors file; name a folder that `save_pretrained` has written")
    for path in sorted(files):
        shutil.copyfile(path, out / path.name)
