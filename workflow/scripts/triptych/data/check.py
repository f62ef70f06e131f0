"""Step: read and check the images of a source, in blocks that are kept and found again.

A block is the outcome of `BLOCK` consecutive candidates: a table of the accepted images, whose footer says what was
rejected and why. Its file is named by a hash of the candidates and the checks, so that a block is never made twice,
and never taken for other candidates or other checks. Shards are processes that make blocks side by side; a block's
bytes do not depend on the shard.
"""

import argparse
import errno
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from triptych.config.datasets import Dataset
from triptych.config.texts import cache_folder
from triptych.data.duplicates import perceptual_hashes
from triptych.data.images import THUMBNAIL, Inspected, inspect
from triptych.data.schemas import IMAGE_SCHEMA
from triptych.data.sources import source_module
from triptych.data.sources.base import Read
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import atomic_path
from triptych.io.manifest import canonical_json, sha256_bytes, sha256_json, write_record
from triptych.io.parquet import IMAGE_TABLE, ROW_GROUP, TableWriter, open_table

BLOCK = 1000  # candidates
CHECKS = 8  # raise it whenever what is accepted, or what is written of it, changes
FOOTER_KEY = b"triptych"  # of what a block's table says in its footer

# Errors that an image's own path decides; any other error of reading may pass, and is not kept.
LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
FLAT = 3  # grey levels: an image whose darkest and lightest parts differ by less shows nothing


@dataclass(frozen=True)
class Block:
    """One block in the cache: a table of IMAGE_SCHEMA, whose footer says what was rejected.

    Attributes:
        path: the table's file.
        sha256: hash of all rows; of the images' bytes, which are not in it, each row has a hash of its own.
        rejects: what was not accepted, by position among the block's candidates: (path, reason).
        notes: how accepted images were read that could have been read otherwise, by position.
        complete: False where a file could not be opened: it is tried again.
    """

    path: Path
    sha256: str
    rejects: dict[int, tuple[str, str]]
    notes: dict[int, tuple[str, ...]]
    complete: bool


def block_path(candidates: list[dict], settings: Dataset, cache: Path) -> Path:
    """Name the file of a block's table: a hash of its candidates and of the checks."""
    checks = {"checks": CHECKS, "min_side": settings.min_side, "max_pixels": settings.max_pixels}
    checks |= {"source": settings.source, "placeholders": sorted(getattr(settings, "placeholders", []))}
    checks |= {name: getattr(settings, name) for name in settings.read_options}
    key = sha256_json({**checks, "candidates": candidates})
    return cache / "blocks" / key[:2] / f"{key}.parquet"


def row_facts(row: dict) -> list:
    """List the values of a row of IMAGE_SCHEMA in order, without the image's bytes, whose sha256 is among them."""
    facts = [row[name] for name in ("id", "width", "height", "sha256", "source", "group", "split", "caption", "boxes")]
    return [*facts, row["image"]["path"]]


def ensure_block(candidates: list[dict], settings: Dataset, read: Read, path: Path) -> tuple[Block, Callable[[], None]]:
    """Make a block that is missing, is damaged, or lacks a file that was missing when it was made.

    Args:
        candidates: the block's rows of `candidates.parquet`.
        settings: the data set's.
        read: the source's reader.
        path: the block's file.

    Returns:
        The block, and a function that waits for the disk and puts the file in its place: to be called, in any thread,
        before the block is read.

    Raises:
        TriptychError: an image cannot be read for a reason that may pass.
    """
    kept = _read_block(path)
    if kept is not None and kept.complete:
        return kept, lambda: None
    rejects, notes, facts, complete = {}, {}, [], True
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        table = stack.enter_context(TableWriter(temporary, IMAGE_SCHEMA, **IMAGE_TABLE))
        for start in range(0, len(candidates), ROW_GROUP):
            accepted, refused, noted, missing = _checked(candidates[start : start + ROW_GROUP], settings, read)
            table.add_batch(pa.RecordBatch.from_pylist(accepted, schema=IMAGE_SCHEMA))
            facts += [row_facts(row) for row in accepted]
            rejects |= {start + position: why for position, why in refused.items()}
            notes |= {start + position: said for position, said in noted.items()}
            complete = complete and not missing
        block = Block(path, sha256_json(facts), rejects, notes, complete)
        reasons = {str(position): why for position, why in rejects.items()}
        footer = {"sha256": block.sha256, "rejects": reasons, "complete": complete}
        if notes:
            footer["notes"] = {str(position): said for position, said in notes.items()}
        # In the table's own file: two processes that make one block cannot mix what they found.
        table.writer.add_key_value_metadata({FOOTER_KEY: canonical_json(footer)})
        return block, stack.pop_all().close


def _read_block(path: Path) -> Block | None:
    """A block that is there and whole; None where it must be made."""
    try:
        with open_table(path) as table:
            footer = json.loads(table.metadata.metadata[FOOTER_KEY])
        rejects = {int(position): tuple(why) for position, why in footer["rejects"].items()}
        notes = {int(position): tuple(said) for position, said in footer.get("notes", {}).items()}
        return Block(path, footer["sha256"], rejects, notes, footer["complete"])
    except (TriptychError, ValueError, KeyError, TypeError, AttributeError):
        return None


def block_error(path: Path, sha256: str | None = None) -> str | None:
    """Read every byte of a block, and say what is wrong with it; None where nothing is.

    Args:
        path: the block's table, or another one of IMAGE_SCHEMA.
        sha256: hash of its rows; None for the one in its footer.
    """
    if sha256 is None:
        block = _read_block(path)
        if block is None:
            return f"{path}: its footer cannot be read"
        sha256 = block.sha256
    facts = []
    try:
        with open_table(path) as table:
            for batch in table.iter_batches(ROW_GROUP):
                for row in batch.to_pylist():
                    if sha256_bytes(row["image"]["bytes"]) != row["sha256"]:
                        return f"{path}: the bytes of image {row['id']} differ from its sha256"
                    facts.append(row_facts(row))
    except (TriptychError, KeyError, TypeError) as error:
        return str(error)
    return None if sha256_json(facts) == sha256 else f"{path}: its rows differ from their hash"


def planned_blocks(candidates: int, settings: Dataset) -> int:
    """Count the blocks that are made at first: of a caption set's size and oversample, of all of a question set."""
    return -(-min(candidates, settings.wanted if settings.has_captions else candidates) // BLOCK)


class Candidates:
    """The candidates that the fetch step listed in a folder, in the order in which they are chosen, block by block."""

    def __init__(self, source: Path, settings: Dataset):
        """Open the table.

        Raises:
            TriptychError: it is missing.
        """
        self._path = source / "candidates.parquet"
        with open_table(self._path) as table:
            self._footer = table.metadata
        groups = range(self._footer.num_row_groups)
        self._ends = np.cumsum([self._footer.row_group(group).num_rows for group in groups])  # of groups, in rows
        self.blocks = -(-self._footer.num_rows // BLOCK)
        self.planned = planned_blocks(self._footer.num_rows, settings)

    def block(self, number: int) -> list[dict]:
        """Read the rows of one block.

        Raises:
            TriptychError: the table is damaged.
        """
        start, stop = number * BLOCK, min((number + 1) * BLOCK, self._footer.num_rows)
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        with open_table(self._path, self._footer) as table:
            rows = table.read_row_groups(list(range(first, last + 1)))
        return rows.slice(start - (int(self._ends[first - 1]) if first else 0), stop - start).to_pylist()


def _checked(
    candidates: list[dict], settings: Dataset, read: Read
) -> tuple[list[dict], dict[int, tuple[str, str]], dict[int, tuple[str, ...]], bool]:
    """Read and check candidates: rows of IMAGE_SCHEMA, rejects and notes by position, whether files are missing.

    Images are read in the order of their places, which suits archives.

    Raises:
        TriptychError: an image cannot be read for a reason that may pass.
    """
    accepted: dict[int, dict] = {}
    rejects, notes, missing = {}, {}, False
    for position in sorted(range(len(candidates)), key=lambda position: candidates[position]["place"]):
        candidate = candidates[position]
        try:
            data = read(candidate["place"])
            found = inspect(data, settings.min_side, settings.max_pixels)
            sha256 = sha256_bytes(found.data)
            own = sha256 if found.data is data else sha256_bytes(data)
            _require_content(found, {sha256, own}, settings)
        except OSError as error:
            if error.errno not in LASTING:
                raise TriptychError(f"{candidate['path']}: {error.strerror or error}; run again") from None
            rejects[position] = (candidate["path"], error.strerror)
            missing = True
            continue
        except TriptychError as error:
            rejects[position] = (candidate["path"], str(error).removeprefix(f"{candidate['path']}: "))
            continue
        if found.notes:
            notes[position] = found.notes
        accepted[position] = {
            **{name: candidate[name] for name in ("id", "group", "split", "caption", "boxes")},
            "image": {"bytes": found.data, "path": candidate["path"]},
            "width": found.width,
            "height": found.height,
            "sha256": sha256,
            "thumbnail": found.thumbnail.tobytes(),
            "source": settings.source,
        }
    rows = [accepted[position] for position in sorted(accepted)]
    if rows:
        thumbnails = np.frombuffer(b"".join(row["thumbnail"] for row in rows), np.uint8)
        hashes = perceptual_hashes(thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL))
        for row, value in zip(rows, hashes, strict=True):
            row["phash"] = f"{value:016x}"
    return rows, dict(sorted(rejects.items())), notes, missing


def _require_content(found: Inspected, hashes: set[str], settings: Dataset) -> None:
    """Refuse an image that shows nothing, or takes the place of a missing one.

    Raises:
        TriptychError: it is a placeholder, or shows nothing.
    """
    if hashes.intersection(getattr(settings, "placeholders", ())):
        raise TriptychError("a placeholder: its sha256 is among `placeholders`")
    if int(found.thumbnail.max()) - int(found.thumbnail.min()) < FLAT:
        raise TriptychError("shows nothing: one flat colour")


def main() -> None:
    """Make one shard's blocks: every n-th of those that the data set needs at first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="the data set's settings as JSON")
    parser.add_argument("--source", type=Path, required=True, help="folder that the fetch step wrote")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of downloads and blocks")
    parser.add_argument("--shard", required=True, help="which of how many: <number>-of-<all>")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write: the shard's blocks")
    arguments = parser.parse_args()
    settings = TypeAdapter(Dataset).validate_json(arguments.settings)
    shard, shards = map(int, arguments.shard.split("-of-"))
    candidates = Candidates(arguments.source, settings)
    mine = range(shard - 1, candidates.planned, shards)
    start, done, names = time.monotonic(), 0, {}
    finished: Future | None = None
    with source_module(settings).reader(settings, arguments.cache) as read, ThreadPoolExecutor(1) as disk:
        for number in mine:
            rows = candidates.block(number)
            path = block_path(rows, settings, arguments.cache)
            if path.exists() and (error := block_error(path)):
                print(f"{error}; it is made again", flush=True)
                path.unlink(missing_ok=True)
            block, finish = ensure_block(rows, settings, read, path)
            if finished:
                finished.result()  # at most one block waits for the disk while the next is made
            finished = disk.submit(finish)
            names[str(number)] = block.path.stem
            done += len(rows)
            rate = done / (time.monotonic() - start)
            print(f"{len(names)} of {len(mine)} blocks, {done} images, {rate:.0f}/s", flush=True)
        if finished:
            finished.result()
    write_record(arguments.out, {"blocks": names})


if __name__ == "__main__":
    run_step(main)
