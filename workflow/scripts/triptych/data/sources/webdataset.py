"""Captioned images in tar shards of the webdataset layout, read in place: `key.jpg` with `key.txt` or `key.json`."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.config.datasets import WebdatasetCaptions
from triptych.config.texts import located
from triptych.data.formats.recognise import SUFFIXES
from triptych.data.sources.base import MAX_BYTES, Item, Read, Reject, Selection, item_id
from triptych.data.sources.table_files import caption_text
from triptych.errors import TriptychError, message_of
from triptych.io.atomic import resolve_under
from triptych.io.text import as_utf8, decode_text, is_utf8, parse_json

KINDS = (*SUFFIXES, "txt", "json")  # of members that are read; others are further facts of a sample
MAX_CAPTION_BYTES = 1_000_000
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def listing(settings: WebdatasetCaptions, cache: Path) -> Iterator[Item | Reject]:
    """List images of all shards in selection order; only the tar headers and the captions are read.

    Raises:
        TriptychError: there are no shards, or one is compressed, cut off or damaged; it names the shard.
    """
    folder, selection = located(settings.folder), Selection(settings.seed)
    for name in _shards(folder, settings.shards):
        path = resolve_under(folder, name)
        about = path.stat()
        for found in _shard_items(name, path, settings.caption_key, f"{about.st_size}-{about.st_mtime_ns}"):
            if isinstance(found, Reject):
                yield found
            else:
                selection.add(found)
    yield from selection


@contextmanager
def reader(settings: WebdatasetCaptions, cache: Path) -> Iterator[Read]:
    """Read an image's bytes out of its shard, at the place that `listing` gave."""
    folder = located(settings.folder)

    def read(place: str) -> bytes:
        shard, offset, size = place.rsplit(":", 2)
        if int(size) > MAX_BYTES:
            raise TriptychError(f"{place}: larger than {MAX_BYTES} bytes")
        with resolve_under(folder, shard).open("rb") as file:
            file.seek(int(offset))
            data = file.read(int(size))
        if len(data) != int(size):
            raise TriptychError(f"{shard}: has become shorter since it was listed; run the fetch step again")
        return data

    yield read


def _shards(folder: Path, pattern: str) -> list[str]:
    try:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError) as error:  # an absolute pattern, or one that leads out
        said = message_of(error)
        raise TriptychError(f"shards: {pattern!r} is no pattern of files below `folder` ({said})") from None
    if strange := next((name for name in names if not is_utf8(name)), ""):
        raise TriptychError(f"{folder}: the name of the shard {as_utf8(strange)!r} is not valid UTF-8; rename it")
    if not names:
        raise TriptychError(f"{folder}: no file matches {pattern!r}; correct `folder` or `shards` of the data set")
    return names


def _shard_items(name: str, path: Path, caption_key: str | None, stamp: str) -> Iterator[Item | Reject]:
    """The images of one shard, in the order in which their keys appear."""
    samples: dict[str, dict[str, tuple[int, int, bytes]]] = {}
    others: list[str] = []  # members of no kind that is read, of samples or not
    with path.open("rb") as file:
        _refuse_compressed(path, file.read(6))
    try:
        with tarfile.open(path, "r:") as tar:
            while member := tar.next():
                tar.members = []  # tarfile remembers all of them, which nothing needs here
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    yield Reject("image", _shown(name, member.name), "is a link, device or sparse file; refused")
                    continue
                key, suffix = _key_and_suffix(member.name)
                if suffix not in KINDS:
                    others += [] if _has_sample(member.name, samples) else [member.name]
                    continue
                if suffix in samples.setdefault(key, {}):
                    yield Reject("image", _shown(name, member.name), "the shard has two members of this name")
                    continue
                text = b""
                if suffix in ("txt", "json") and member.size <= MAX_CAPTION_BYTES:
                    text = tar.extractfile(member).read()
                samples[key][suffix] = (member.offset_data, member.size, text)
            _require_end(path, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise TriptychError(f"{path}: cut off or damaged ({message_of(error)}); get the shard again") from None
    for member in others:
        if not _has_sample(member, samples):
            yield Reject("image", _shown(name, member), f"no image of this key ({', '.join(SUFFIXES)})")
    _leave_out_further(name, samples)
    for key, parts in samples.items():
        suffix = next((suffix for suffix in SUFFIXES if suffix in parts), "")
        member = f"{key}.{suffix}" if suffix else key
        try:
            if not suffix:
                raise TriptychError(f"no image of this key ({', '.join(SUFFIXES)})")
            offset, size, _ = parts[suffix]
            if not is_utf8(member):
                raise TriptychError("its name is not valid UTF-8")
            if size > MAX_BYTES:
                raise TriptychError(f"larger than {MAX_BYTES} bytes")
            caption = _caption(parts, caption_key)
        except TriptychError as error:
            yield Reject("image", _shown(name, member), str(error))
            continue
        for other in SUFFIXES:
            if other in parts and other != suffix:
                yield Reject("image", _shown(name, f"{key}.{other}"), "another image of its key is used")
        # Places sort by offset, so that sorted reads go through the shard once.
        path_in_set, place = f"{name}/{member}", f"{name}:{offset:012d}:{size}"
        yield Item(item_id(path_in_set, caption), path_in_set, place, caption=caption, stamp=stamp)


def _shown(shard: str, member: str) -> str:
    """The name of a member for messages, whatever its bytes are."""
    return f"{shard}/{member}".encode(errors="replace").decode()


def _refuse_compressed(path: Path, start: bytes) -> None:
    for mark, kind in _COMPRESSED.items():
        if start.startswith(mark):
            raise TriptychError(f"{path}: compressed with {kind}; unpack it to a plain .tar, which is read in place")


def _require_end(path: Path, offset: int) -> None:
    """Require the end of an archive at `offset`: tarfile takes a header that it cannot read for the end.

    Raises:
        TriptychError: neither an empty block nor the end of the file is there.
    """
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0") or len(block) % tarfile.BLOCKSIZE:
        raise TriptychError(f"{path}: cut off or damaged at byte {offset}; get the shard again")


def _key_and_suffix(name: str) -> tuple[str, str]:
    """`a/b.jpg` -> `a/b` and `jpg`.

    A key ends at the first dot of the file name, as in webdataset; at the last where only that leaves a kind that is
    read: `patient1.2.png` -> `patient1.2` and `png`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if suffix.lower() not in KINDS:
        stem, _, suffix = base.rpartition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _has_sample(name: str, samples: dict[str, dict]) -> bool:
    """Whether a member such as `0001.seg.npy` is a further file of a sample: of `0001.seg`, or else of `0001`."""
    folder, slash, base = name.rpartition("/")
    while base := base.rpartition(".")[0]:
        if f"{folder}{slash}{base}" in samples:
            return True
    return False


def _leave_out_further(shard: str, samples: dict[str, dict]) -> None:
    """Take further files of samples out of a shard's, and say how many they are."""
    further = [key for key, parts in samples.items() if _is_further(key, parts, samples)]
    for key in further:
        del samples[key]
    if further:
        print(f"{shard}: {len(further)} further files of samples are not used, such as {further[0]!a}", flush=True)


def _is_further(key: str, parts: dict, samples: dict[str, dict]) -> bool:
    """Whether `0001.mask.png` belongs to the sample `0001`: it is no pair of its own, and that has an image."""
    has_image, has_caption = (not parts.keys().isdisjoint(kinds) for kinds in (SUFFIXES, ("txt", "json")))
    folder, slash, base = key.rpartition("/")
    first = f"{folder}{slash}{base.partition('.')[0]}"
    return not (has_image and has_caption) and first != key and not samples.get(first, {}).keys().isdisjoint(SUFFIXES)


def _caption(parts: dict[str, tuple[int, int, bytes]], named: str | None) -> str:
    """The caption of a sample: the key `named` of its JSON; where none is named, its text file, or else `caption`.

    Raises:
        TriptychError: there is none, or it cannot be read.
    """
    kind, key = "txt" if "txt" in parts and named is None else "json", named or "caption"
    if kind not in parts:
        files = "no .json" if named else "neither .txt nor .json"
        raise TriptychError(f"no caption: there is {files} of this key (with {key!r} in it)")
    _, size, data = parts[kind]
    if size > MAX_CAPTION_BYTES:
        raise TriptychError(f"its .{kind} is larger than {MAX_CAPTION_BYTES} bytes")
    try:
        text = decode_text(data)
        if kind == "json":
            text = parse_json(text)
            if not isinstance(text, dict) or key not in text:
                raise TriptychError(f"its .json has no key {key!r}")
            text = text[key]
    except UnicodeDecodeError:
        raise TriptychError(f"its .{kind} is not valid UTF-8") from None
    except ValueError as error:
        raise TriptychError(f"its .json is not valid JSON ({message_of(error)})") from None
    try:
        return caption_text(text)
    except TriptychError as error:
        raise TriptychError(f"its .txt {error}" if kind == "txt" else f"{key!r} in its .json {error}") from None
