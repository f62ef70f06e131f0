"""What every source yields: images with what is said about them, and what cannot be used.

A source is a module with two functions:

- `listing(settings, cache)` yields an `Item` for every image and a `Reject` for every row that cannot be one. It
  brings the raw files into `cache` where they are missing, but reads no image. Caption sources yield in the order in
  which images are chosen (`Selection`).
- `reader(settings, cache)` is a context manager; it gives a function from an item's `place` to the image's bytes.
  That function raises TriptychError or OSError for an image that cannot be read, and only that image is rejected.

A source may have three more. `bring(settings, cache, places)` brings into the cache what `reader` needs for the images
that are read at first: later steps may have no network. `card(settings, cache, counts)` gives the text of its data
card. `hub_files(settings)` says what it downloads from the hub, for `triptych fetch --check`.
"""

import json
import stat
import unicodedata
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from triptych.errors import TriptychError
from triptych.io.atomic import resolve_under
from triptych.io.manifest import sha256_bytes
from triptych.io.text import is_utf8
from triptych.utils.seeds import stable_order

Read = Callable[[str], bytes]  # from an item's place to the image's bytes
MAX_BYTES = 50_000_000  # of one image as a file: far above any that is used, far below a bomb


@dataclass(frozen=True)
class Item:
    """One image of a source, not read yet.

    Attributes:
        id: unique within the source, and the same for every size and order of it.
        path: how the source names the image (file, archive member, URL); kept in the table.
        place: what `reader` finds the image by.
        split: train, validation or test; empty lets a hash of `path` decide between the first two.
        caption: raw text of a captioned image.
        group: the patient or other unit that folds must not cut; empty where the image is a group of its own.
        boxes: organ boxes as JSON, where the source has them.
        questions: rows of `QUESTION_FIELDS` and `question_id`.
        stamp: changes with the image's bytes, as far as that shows without reading them (size, time, CRC).
    """

    id: str
    path: str
    place: str
    split: str = ""
    caption: str | None = None
    group: str = ""
    boxes: str | None = None
    questions: list[dict] = field(default_factory=list)
    stamp: str = ""


@dataclass(frozen=True)
class Reject:
    """Something of the source that is not used, and why."""

    kind: str  # "image", "question" or "boxes"
    id: str
    reason: str


def read_below(root: Path, name: str) -> bytes:
    """Read an image file below `root`.

    Raises:
        TriptychError: the name leads out of `root`, or is of no plain file, or of one that is too large.
        OSError: the file cannot be read.
    """
    if "\0" in name:
        raise TriptychError(f"{name!r}: not a file name")
    path = resolve_under(root, name)
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # reading a pipe or device would not end
        raise TriptychError(f"{name}: no image file")
    if about.st_size > MAX_BYTES:
        raise TriptychError(f"{name}: larger than {MAX_BYTES} bytes")
    return path.read_bytes()


def item_id(path: str, caption: str) -> str:
    """Name a captioned image whose source gives it no id: a hash of what the source says of it."""
    return sha256_bytes(f"{path}\x1f{caption}".encode(errors="surrogatepass"))[:16]


class Selection:
    """Items in the order in which they are chosen: by a hash of seed, path and caption alone.

    The order of the source does not matter, and a smaller set is the beginning of a larger one. Of items with one id
    the first is kept. A table may have millions of rows: they are kept as bytes, in half the memory of objects.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._items, self._ends = bytearray(), array("Q", [0])  # as JSON, one after the other
        self._keys, self._ids = bytearray(), array("q")  # 32 bytes, and a hash of the id, for each

    def add(self, item: Item) -> None:
        """Add an item."""
        self._keys += stable_order(self._seed, item.path, item.caption or "")
        self._ids.append(hash(item.id))
        text = json.dumps(list(vars(item).values()), ensure_ascii=False, separators=(",", ":"))
        self._items += text.encode(errors="surrogatepass")
        self._ends.append(len(self._items))

    def __iter__(self) -> Iterator[Item | Reject]:
        """Give the items in order, and a reject for each whose id another one before it has."""
        hashes = np.sort(np.array(self._ids, np.int64))
        repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())  # or alike by chance
        seen = set()
        for position in map(int, self._order()):
            item = self._item(position)
            if self._ids[position] in repeated:
                if item.id in seen:
                    yield Reject("image", item.id, "the source names it more than once; one of them is used")
                    continue
                seen.add(item.id)
            yield item

    def _item(self, position: int) -> Item:
        data = self._items[self._ends[position] : self._ends[position + 1]]
        return Item(*json.loads(data.decode(errors="surrogatepass")))

    def _order(self) -> np.ndarray:
        """Positions by key, then by id."""
        keys = np.frombuffer(self._keys, ">u8").reshape(-1, 4).astype(np.uint64)
        order = np.lexsort(keys.T[::-1])
        first = keys[order, 0]
        edges = np.flatnonzero(np.diff(first, prepend=first[:1] + 1, append=first[-1:] + 1))
        several = np.diff(edges) > 1
        for start, stop in zip(edges[:-1][several].tolist(), edges[1:][several].tolist(), strict=True):
            if len({self._ids[position] for position in order[start:stop]}) > 1:
                alike = sorted(order[start:stop].tolist(), key=lambda at: (keys[at].tolist(), self._item(at).id))
                order[start:stop] = alike
        return order


def hashed_split(seed: int, name: str, validation_fraction: float) -> str:
    """Assign `validation` to about that share of all names, `train` to the others, by a hash of seed and name alone."""
    share = int.from_bytes(stable_order(seed, "validation", name)[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"


def clean_caption(text: str | None, shortest: int, longest: int) -> str:
    """Bring a caption into Unicode's composed form, without control characters and repeated spaces; any language.

    Args:
        text: the raw caption.
        shortest: least number of characters.
        longest: largest number of characters.

    Raises:
        TriptychError: it is missing, undecodable, too short or too long.
    """
    if text is None or not text.strip():
        raise TriptychError("no caption")
    if "\N{REPLACEMENT CHARACTER}" in text or not is_utf8(text):
        raise TriptychError("the caption is not valid UTF-8")
    if not text.isprintable():  # nearly all are, and looking at every character takes long
        text = "".join(" " if unicodedata.category(sign) in ("Cc", "Cs", "Co", "Cn") else sign for sign in text)
    clean = " ".join(unicodedata.normalize("NFC", text).split())
    if not shortest <= len(clean) <= longest:
        raise TriptychError(
            f"the caption is too short or too long: {len(clean)} characters, not {shortest} to {longest}"
        )
    return clean
