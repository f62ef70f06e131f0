"""Shards of vision features: each holds the tokens of consecutive images, and is named by all that decides them.

A data set that begins with the images of another one finds the other's shards, a run that was killed finds those that
it had finished, and a change of encoder, layer, preprocessing or images finds none.
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from triptych.errors import TriptychError
from triptych.io.atomic import atomic_path
from triptych.io.manifest import canonical_json, read_json, sha256_json

SHARD = 1024  # images in a file: 128 MB at 49 x 1280 tokens in bf16


LONGEST_HEADER = 100_000  # bytes; of a shard of 1024 images, 8,500


TENSOR = "features"


# Part of every key. Raise it when the code's decoding, preprocessing or choice of tokens changes: new shards are made.
CODE = 1


_PLACES = ("folder", "package", "repo", "revision")  # say where an encoder's files came from; hashes say what they are


Dtype = Literal["bf16", "fp32"]


TORCH = {"bf16": torch.bfloat16, "fp32": torch.float32}


_STORED = {"bf16": "BF16", "fp32": "F32"}  # names in a safetensors header


@dataclass(frozen=True)
class Shard:
    """One shard of a data set: its key, and the rows of `images/` that it holds."""

    key: str
    rows: range

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.key}.safetensors"


def encoder_hashes(folder: Path) -> dict[str, str]:
    """What an encoder is: sha256 of each of its files and of its settings (layer, size of the images, ...)."""
    manifest = read_json(folder / "manifest.json")
    settings = {name: value for name, value in manifest["settings"].items() if name not in _PLACES}
    return {**manifest["files"], "settings": sha256_json(settings)}


def plan(images: Sequence[str], encoder: dict[str, str], dtype: Dtype, size: int = SHARD) -> list[Shard]:
    """Cut a data set into shards.

    Args:
        images: sha256 of the images, in the order of the table.
        encoder: as `encoder_hashes` gives it.
        dtype: of the stored tokens.
        size: images in a shard; the last may hold fewer.
    """
    rows = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    parts = {"code": CODE, "encoder": encoder, "dtype": dtype}
    return [Shard(sha256_json({**parts, "pictures": list(images[part.start : part.stop])}), part) for part in rows]


@contextmanager
def new_shard(path: Path, key: str, shape: Sequence[int], dtype: Dtype) -> Iterator[Callable[[torch.Tensor], None]]:
    """Write a shard part by part, so that it is never in memory as a whole; it gets its name when it is complete.

    Args:
        path: the shard's file.
        key: its key.
        shape: (R, N, D) of the whole.
        dtype: of the tokens.

    Yields:
        A function that appends tokens (B, N, D) of that dtype, on the CPU.
    """
    digest, checksums = hashlib.sha256(), []
    with atomic_path(path) as temporary, temporary.open("wb") as file:

        def add(tokens: torch.Tensor) -> None:
            data = tokens.contiguous().view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
            checksums.extend(map(checksum, tokens))

        start = file.write(_header(key, digest.hexdigest(), [0] * shape[0], shape, dtype))
        yield add
        if file.tell() - start != _size(shape, dtype):
            raise ValueError(f"{path}: {file.tell() - start} bytes of tokens, not those of shape {list(shape)}")
        file.seek(0)
        file.write(_header(key, digest.hexdigest(), checksums, shape, dtype))


@dataclass(frozen=True)
class Header:
    """What a finished shard says of itself: shape (R, N, D); of the tokens' bytes, sha256 and a checksum an image."""

    shape: list[int]
    sha256: str
    checksums: list[int] | None  # None in shards of Triptych before they were kept


def read_header(path: Path, key: str) -> Header:
    """The header of a finished shard.

    Shards get their names only when complete, so its key and its length tell that it is whole; tokens are not read.

    Raises:
        TriptychError: the file is missing, cut short, or another shard.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
            stored, facts = header["__metadata__"], header[TENSOR]
            if stored["key"] != key or os.fstat(file.fileno()).st_size != 8 + length + facts["data_offsets"][1]:
                raise ValueError("its key or length is not the one it was written with")
            told = stored.get("crc32")
            checksums = None if told is None else [int(told[at : at + 8], 16) for at in range(0, len(told), 8)]
            if checksums is not None and len(checksums) != facts["shape"][0]:
                raise ValueError("its checksums are not one for each image")
            return Header(facts["shape"], stored["sha256"], checksums)
    except FileNotFoundError:
        raise TriptychError(f"{path}: missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TriptychError(f"{path}: damaged ({error})") from None


def require_whole(path: Path, key: str) -> None:
    """Read all of a shard and compare its tokens with their sha256.

    Raises:
        TriptychError: it is missing or damaged.
    """
    header = read_header(path, key)
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        if hashlib.file_digest(file, "sha256").hexdigest() != header.sha256:
            raise TriptychError(f"{path}: damaged (its tokens differ from their sha256)")


def is_complete(path: Path, key: str) -> bool:
    """Tell whether a shard is there and undamaged; one that is not is named on stdout."""
    if not path.exists():
        return False
    try:
        require_whole(path, key)
    except TriptychError as error:
        print(f"{error}; it is made again", flush=True)
        return False
    return True


def checksum(tokens: torch.Tensor) -> int:
    """CRC-32 of one image's tokens (N, D) as they are stored."""
    return zlib.crc32(tokens.contiguous().view(torch.uint8).numpy().data)


def _size(shape: Sequence[int], dtype: Dtype) -> int:
    return math.prod(shape) * TORCH[dtype].itemsize


def _header(key: str, sha256: str, checksums: Sequence[int], shape: Sequence[int], dtype: Dtype) -> bytes:
    """Start of a safetensors file: length, then JSON padded to whole words; as long for any hashes."""
    facts = {"dtype": _STORED[dtype], "shape": list(shape), "data_offsets": [0, _size(shape, dtype)]}
    about = {"key": key, "sha256": sha256, "crc32": "".join(f"{value:08x}" for value in checksums)}
    text = canonical_json({"__metadata__": about, TENSOR: facts}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
