"""LLaVA-Pretrain: 558k captioned web images of the hub; of its archive (27 GB) the chosen images are fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.config.datasets import LlavaPretrainCaptions
from triptych.data.sources.base import MAX_BYTES, Item, Read, Reject, Selection
from triptych.download import huggingface
from triptych.download.hub_zip import open_members
from triptych.errors import TriptychError
from triptych.io.json_list import read_json_list
from triptych.io.text import is_utf8

REPO = "liuhaotian/LLaVA-Pretrain"
PAIRS = "blip_laion_cc_sbu_558k.json"
IMAGES = LlavaPretrainCaptions.archive


def listing(settings: LlavaPretrainCaptions, cache: Path) -> Iterator[Item | Reject]:
    """List pairs in selection order; entries that lack a part or whose image is not in the archive are rejected.

    Raises:
        TriptychError: the two files are unavailable or cannot be read.
    """
    pairs = huggingface.download(REPO, PAIRS, settings.revision, cache)
    selection = Selection(settings.seed)
    with open_members(REPO, IMAGES, settings.revision, cache) as archive:
        members = archive.members
    entries = read_json_list(
        pairs, "a list of entries; check the revision", "delete the file, which is a download, and run again"
    )
    for position, entry in enumerate(entries):
        try:
            name, image, caption = _parts(entry)
            if image not in members:
                raise TriptychError(f"its image is not in {IMAGES}: {image!r}")
        except TriptychError as error:
            name = entry.get("id") if isinstance(entry, dict) else None
            named = isinstance(name, str) and name and is_utf8(name)
            yield Reject("image", name if named else f"{PAIRS}[{position}]", f"{PAIRS}[{position}]: {error}")
            continue
        stamp = f"{members[image].CRC:08x}-{members[image].file_size}"
        selection.add(Item(f"llava-pretrain-{name}", image, image, caption=caption, stamp=stamp))
    yield from selection


def bring(settings: LlavaPretrainCaptions, cache: Path, places: list[str]) -> None:
    """Fetch the images at some places, unless they are in the cache.

    Raises:
        TriptychError: the archive is unavailable.
    """
    with open_members(REPO, IMAGES, settings.revision, cache) as archive:
        archive.bring(places, MAX_BYTES)


@contextmanager
def reader(settings: LlavaPretrainCaptions, cache: Path) -> Iterator[Read]:
    """Read members of the archive; one that was not fetched ahead is fetched when it is read.

    Raises:
        TriptychError: the archive is unavailable or cannot be read.
    """
    with open_members(REPO, IMAGES, settings.revision, cache) as archive:
        yield lambda place: archive.read(place, MAX_BYTES)


def hub_files(settings: LlavaPretrainCaptions) -> huggingface.HubFiles:
    """Name the files of the hub that are downloaded; of the images, in part."""
    return huggingface.HubFiles("dataset", REPO, settings.revision, (PAIRS, IMAGES))


def _parts(entry: object) -> tuple[str, str, str]:
    """The id, image and caption of an entry; the caption is the first answer of the conversation.

    Raises:
        TriptychError: it lacks one of them.
    """
    if not isinstance(entry, dict):
        raise TriptychError("is not an object with id, image and conversations")
    turns = entry.get("conversations")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    parts = {
        "id": entry.get("id"),
        "image": entry.get("image"),
        "caption": next((turn.get("value") for turn in turns if turn.get("from") == "gpt"), None),
    }
    for name, text in parts.items():
        if not isinstance(text, str) or not text.strip():
            raise TriptychError(f"has no {name}")
        if not is_utf8(text):
            raise TriptychError(f"its {name} is not valid UTF-8")
    return parts["id"], parts["image"], parts["caption"]
