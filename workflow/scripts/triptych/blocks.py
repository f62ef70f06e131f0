"""Step: read and check the pictures of a source, in blocks that are kept and found again.

A block is the outcome of `BLOCK` consecutive candidates: every row, accepted or rejected with its reason. Its file is
named by a hash of the candidates and the checks, so that a block is never made twice, and one of other candidates or
other checks is never met. Shards are processes that make blocks side by side; a block's bytes do not depend on which.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from triptych.pictures import THUMBNAIL, Inspected, inspect, perceptual_hashes
from triptych.settings import Captions, Dataset
from triptych.sources import source_module
from triptych.sources.items import Read
from triptych.sources.packages import default_cache
from triptych.storage import (
    PICTURE_TABLE,
    ROW_GROUP,
    TriptychError,
    atomic_path,
    read_table,
    run_step,
    sha256_bytes,
    sha256_json,
    write_json,
)

BLOCK = 1000
CHECKS = 1  # raise it whenever what is accepted, or what is written of it, changes
FLAT = 3  # grey levels between the darkest and the lightest part of a picture that shows nothing
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
        ("thumbnail", pa.binary(THUMBNAIL * THUMBNAIL)),
        ("group", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("boxes", pa.string()),
        ("reason", pa.string()),
    ]
)


def block_keys(candidates: list[dict], settings: Dataset) -> list[str]:
    """Name of every block of `candidates`: a hash of its rows and of the checks."""
    checks = {"checks": CHECKS, "min_side": settings.min_side, "max_pixels": settings.max_pixels}
    checks |= {"source": settings.source, "placeholders": sorted(getattr(settings, "placeholders", []))}
    starts = range(0, len(candidates), BLOCK)
    return [sha256_json({**checks, "candidates": candidates[start : start + BLOCK]}) for start in starts]


def block_path(cache: Path, key: str) -> Path:
    """File of a block."""
    return cache / "blocks" / key[:2] / f"{key}.parquet"


def ensure_block(candidates: list[dict], settings: Dataset, read: Read, path: Path) -> bool:
    """Make one block where it is not there yet; tells whether it was made.

    Args:
        candidates: the block's rows of `candidates.parquet`.
        settings: the data set's.
        read: the source's reader.
        path: the block's file.
    """
    if path.is_file():
        return False
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, **PICTURE_TABLE) as writer:
        for start in range(0, len(candidates), ROW_GROUP):
            rows = _checked(candidates[start : start + ROW_GROUP], settings, read)
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return True


def read_candidates(source: Path) -> list[dict]:
    """The candidates that `sources.fetch` listed in folder `source`, in the order in which they are chosen.

    Raises:
        TriptychError: the table is missing.
    """
    return read_table(source / "candidates.parquet")


def planned_blocks(candidates: list[dict], settings: Dataset) -> int:
    """How many blocks are made at first: all of a question set's, and those of a caption set's size and spares."""
    number = min(len(candidates), settings.wanted) if isinstance(settings, Captions) else len(candidates)
    return -(-number // BLOCK)


def _checked(candidates: list[dict], settings: Dataset, read: Read) -> list[dict]:
    """Rows of SCHEMA, in the order of `candidates`; read in the order of their places, which suits archives."""
    rows = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate["place"]):
        row = {name: candidate[name] for name in ("id", "group", "split", "caption", "boxes")}
        try:
            data = read(candidate["place"])
            found = inspect(data, settings.min_side, settings.max_pixels)
            sha256 = sha256_bytes(data)
            if isinstance(settings, Captions):
                _require_content(found, sha256, settings)
        except (TriptychError, OSError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            reason = reason.removeprefix(f"{candidate['path']}: ")  # the row says it already
            rows[candidate["id"]] = row | {"image": {"bytes": None, "path": candidate["path"]}, "reason": reason}
            continue
        rows[candidate["id"]] = row | {
            "image": {"bytes": data, "path": candidate["path"]},
            "width": found.width,
            "height": found.height,
            "sha256": sha256,
            "thumbnail": found.thumbnail.tobytes(),
        }
    ordered = [rows[candidate["id"]] for candidate in candidates]
    usable = [row for row in ordered if "reason" not in row]
    if usable:
        thumbnails = np.frombuffer(b"".join(row["thumbnail"] for row in usable), np.uint8)
        hashes = perceptual_hashes(thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL))
        for row, value in zip(usable, hashes, strict=True):
            row["phash"] = f"{value:016x}"
    return ordered


def _require_content(found: Inspected, sha256: str, settings: Captions) -> None:
    """Refuse pictures that stand for a missing one."""
    if sha256 in settings.placeholders:
        raise TriptychError("a placeholder: its sha256 is among `placeholders`")
    if int(found.thumbnail.max()) - int(found.thumbnail.min()) < FLAT:
        raise TriptychError("shows nothing: one flat colour")


def main() -> None:
    """Make one shard's blocks: every n-th of those that the data set needs at first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="the data set's settings as JSON")
    parser.add_argument("--source", type=Path, required=True, help="folder that sources.fetch wrote")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of downloads and blocks")
    parser.add_argument("--shard", required=True, help="which share: <number>-of-<all>")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write: the shard's blocks")
    arguments = parser.parse_args()
    settings = TypeAdapter(Dataset).validate_json(arguments.settings)
    number, shards = map(int, arguments.shard.split("-of-"))
    candidates = read_candidates(arguments.source)
    keys = block_keys(candidates[: planned_blocks(candidates, settings) * BLOCK], settings)
    mine = range(number - 1, len(keys), shards)
    start, made = time.monotonic(), 0
    with source_module(settings).reader(settings, arguments.cache) as read:
        for position, block in enumerate(mine, start=1):
            rows = candidates[block * BLOCK : (block + 1) * BLOCK]
            made += len(rows) * ensure_block(rows, settings, read, block_path(arguments.cache, keys[block]))
            rate = made / (time.monotonic() - start)
            print(f"{position} of {len(mine)} blocks of {BLOCK}, {made} pictures read, {rate:.0f}/s", flush=True)
    write_json(arguments.out, {"blocks": {str(block): keys[block] for block in mine}})


if __name__ == "__main__":
    run_step(main)
