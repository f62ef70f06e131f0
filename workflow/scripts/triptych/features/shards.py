"""Shards of vision features: each holds the tokens of consecutive images, and is named by a hash of what decides them.

A data set that begins with the images of another one reuses the other's shards; a run that was killed reuses those that
it had finished; after a change of encoder, layer, preprocessing or images, no shard is reused.
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open

from triptych.errors import TriptychError, message_of
from triptych.io.atomic import atomic_path
from triptych.io.manifest import canonical_json, read_json, sha256_json
from triptych.utils.device import DTYPES

SHARD = 1024  # images in a file: 128 MB at 49 x 1280 tokens in bf16
LONGEST_HEADER = 100_000  # bytes; of a shard of 1024 images, 8,500
TENSOR = "features"
# Part of every key. Raise it when the code's decoding, preprocessing or choice of tokens changes: new shards are made.
CODE = 1
UPRIGHT = "upright"  # key of a header: shards without it were made when some orientations of JPEGs were not seen
_ORIGIN = ("folder", "package", "repo", "revision")  # settings that say where an encoder came from, no part of its key

Dtype = Literal["bf16", "fp32"]
_STORED = {"bf16": "BF16", "fp32": "F32"}  # names in a safetensors header


@dataclass(frozen=True)
class Shard:
    """One shard of a data set: its key, and the rows of `images/` whose tokens it holds."""

    key: str
    rows: range

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.key}.safetensors"


def encoder_hashes(folder: Path) -> dict[str, str]:
    """Identify an encoder: sha256 of each of its files and of its settings (layer, size of the images, ...)."""
    manifest = read_json(folder / "manifest.json")
    settings = {name: value for name, value in manifest["settings"].items() if name not in _ORIGIN}
    identity = {**manifest["files"], "settings": sha256_json(settings)}
    # Earlier code computed in the dtype that weights are stored in: tokens of then are not those of now.
    return identity if _stored_in_fp32(folder, manifest["files"]) else {**identity, "computes": "fp32"}


def _stored_in_fp32(folder: Path, files: Iterable[str]) -> bool:
    for name in files:
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "pt") as file:
                names = list(file.keys())
                if {file.get_slice(tensor).get_dtype() for tensor in names} & {"F16", "BF16"}:
                    return False
    return True


def plan(images: Sequence[str], encoder: dict[str, str], dtype: Dtype, size: int = SHARD) -> list[Shard]:
    """Divide a data set into shards.

    Args:
        images: sha256 of the images, in the order of the table.
        encoder: as `encoder_hashes` gives it.
        dtype: of the stored tokens.
        size: images in a shard; the last may hold fewer.
    """
    rows = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    # "pictures" is the key's former word for images: another word would make every shard again.
    parts = {"code": CODE, "encoder": encoder, "dtype": dtype}
    return [Shard(sha256_json({**parts, "pictures": list(images[part.start : part.stop])}), part) for part in rows]


def made_anew(shard: Shard) -> Shard:
    """Give the shard with another key, for one whose file holds tokens that earlier code computed wrongly.

    The file itself stays: manifests of before name it.
    """
    return Shard(sha256_json({"code": CODE + 1, "instead_of": shard.key}), shard.rows)


@contextmanager
def new_shard(path: Path, key: str, shape: Sequence[int], dtype: Dtype) -> Iterator[Callable[[torch.Tensor], None]]:
    """Write a shard batch by batch, so that it is never in memory as a whole; it gets its name when it is complete.

    Args:
        path: of the shard.
        key: of the shard.
        shape: (R, N, D) of the whole shard.
        dtype: of the tokens.

    Yields:
        A function that appends tokens (B, N, D) of that dtype, on the CPU.

    Raises:
        ValueError: other tokens were appended than the shape says.
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
    """Header of a finished shard: shape (R, N, D), sha256 of the tokens, a CRC-32 of each image, whether `UPRIGHT`."""

    shape: list[int]
    sha256: str
    checksums: list[int] | None  # None in shards of earlier versions
    upright: bool


def read_header(path: Path, key: str) -> Header:
    """Read the header of a finished shard, but not its tokens.

    Shards get their names only when complete, so key and length tell that a shard is whole.

    Raises:
        TriptychError: the file is missing, truncated, or another shard.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
            stored, facts = header["__metadata__"], header[TENSOR]
            if stored["key"] != key or os.fstat(file.fileno()).st_size != 8 + length + facts["data_offsets"][1]:
                raise ValueError("its key or length is not the one it was written with")
            text = stored.get("crc32")
            checksums = None if text is None else [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
            if checksums is not None and len(checksums) != facts["shape"][0]:
                raise ValueError("its checksums are not one for each image")
            return Header(facts["shape"], stored["sha256"], checksums, UPRIGHT in stored)
    except FileNotFoundError:
        raise TriptychError(f"{path}: missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TriptychError(f"{path}: damaged ({message_of(error)})") from None


def require_whole(path: Path, key: str) -> None:
    """Read a whole shard and compare its tokens with their sha256.

    Raises:
        TriptychError: the shard is missing or damaged.
    """
    header = read_header(path, key)
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        if hashlib.file_digest(file, "sha256").hexdigest() != header.sha256:
            raise TriptychError(f"{path}: damaged (its tokens differ from their sha256)")


def is_complete(path: Path, key: str) -> bool:
    """Tell whether a shard exists and is undamaged; a damaged one is named on stdout."""
    if not path.exists():
        return False
    try:
        require_whole(path, key)
    except TriptychError as error:
        print(f"{error}; it is computed again", flush=True)
        return False
    return True


def checksum(tokens: torch.Tensor) -> int:
    """Compute the CRC-32 of one image's tokens (N, D) as they are stored."""
    return zlib.crc32(tokens.contiguous().view(torch.uint8).numpy().data)


def _size(shape: Sequence[int], dtype: Dtype) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


def _header(key: str, sha256: str, checksums: Sequence[int], shape: Sequence[int], dtype: Dtype) -> bytes:
    """Build the start of a safetensors file: length, then JSON, padded; its length is the same for any hashes."""
    facts = {"dtype": _STORED[dtype], "shape": list(shape), "data_offsets": [0, _size(shape, dtype)]}
    about = {"key": key, "sha256": sha256, "crc32": "".join(f"{value:08x}" for value in checksums)}
    about[UPRIGHT] = "every orientation is applied"
    text = canonical_json({"__metadata__": about, TENSOR: facts}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
