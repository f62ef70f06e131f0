"""LLaVA-Pretrain: 558k captioned web images of the hub, whose archive is read in place (27 GB, not unpacked)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.config.datasets import LlavaPretrainCaptions
from triptych.data.sources.base import MAX_BYTES, Item, Read, Reject, chosen
from triptych.download import huggingface
from triptych.errors import TriptychError
from triptych.io.text import is_utf8, read_json_file

REPO = "liuhaotian/LLaVA-Pretrain"
PAIRS = "blip_laion_cc_sbu_558k.json"
IMAGES = "images.zip"


def listing(settings: LlavaPretrainCaptions, cache: Path) -> Iterator[Item | Reject]:
    """List pairs in selection order; entries that lack a part or whose image is not in the archive are rejected.

    Raises:
        TriptychError: the two files are unavailable or cannot be read.
    """
    pairs = huggingface.download(REPO, PAIRS, settings.revision, cache)
    images = huggingface.download(REPO, IMAGES, settings.revision, cache)
    items = []
    with huggingface.open_zip(images) as archive:
        members = {member.filename: member for member in archive.infolist()}
    for position, entry in enumerate(_entries(pairs)):
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
        items.append(Item(f"llava-pretrain-{name}", image, image, caption=caption, stamp=stamp))
    yield from chosen(items, settings.seed)


@contextmanager
def reader(settings: LlavaPretrainCaptions, cache: Path) -> Iterator[Read]:
    """Read members of the archive; no more than the declared size of one is ever read out of it.

    Raises:
        TriptychError: the archive is unavailable or cannot be read.
    """
    with huggingface.open_zip(huggingface.download(REPO, IMAGES, settings.revision, cache)) as archive:

        def read(place: str) -> bytes:
            try:
                member = archive.getinfo(place)
                if member.file_size > MAX_BYTES:
                    raise TriptychError(f"{place}: larger than {MAX_BYTES} bytes")
            except KeyError:
                raise TriptychError(f"{IMAGES} has no member {place!r}") from None
            return huggingface.read_member(archive, member)

        yield read


def hub_files(settings: LlavaPretrainCaptions) -> huggingface.HubFiles:
    """Name the files of the hub that are downloaded."""
    return huggingface.HubFiles("dataset", REPO, settings.revision, (PAIRS, IMAGES))


def _entries(path: Path) -> list:
    entries = read_json_file(path, "delete the file, which is a download, and run again")
    if not isinstance(entries, list):
        raise TriptychError(f"{path}: must be a list of entries; check the revision")
    return entries


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
