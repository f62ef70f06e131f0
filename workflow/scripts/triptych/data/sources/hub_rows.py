"""Rows of Parquet files on the hub, at a pinned revision: the files, their columns, the bytes of their images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache as cache_all
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.config.datasets import HubParquetCaptions, HubQuestions
from triptych.data.sources.base import MAX_BYTES, Read
from triptych.data.sources.table_files import require_one
from triptych.download import huggingface
from triptych.errors import TriptychError, message_of
from triptych.io.manifest import read_json, sha256_json, write_json
from triptych.io.text import plain_text

DOWNLOADS = 8  # files at a time, as in the hub's own client
ROW_GROUPS = 2  # kept in memory by a reader: rows are asked for in the order of their places
LISTED = 4  # files named in an error

Settings = HubParquetCaptions | HubQuestions


def hub_files(settings: Settings, *patterns: str) -> huggingface.HubFiles:
    """Name the files of the hub that glob patterns mean; `**/` matches any folders, also none."""
    both = dict.fromkeys(form for pattern in patterns for form in (pattern, pattern.replace("**/", "")))
    return huggingface.HubFiles("dataset", settings.repo, settings.revision, tuple(both))


def stored_files(settings: Settings, key: str, pattern: str, cache: Path) -> dict[str, Path]:
    """Get the Parquet files of a pattern by their names, in the order of these; downloaded where they are not stored.

    The list of names is kept in the cache: with it and the files, no network is needed.

    Args:
        settings: the data set's.
        key: of the pattern in the settings, for errors.
        pattern: a glob pattern.
        cache: folder of downloads.

    Raises:
        TriptychError: the pattern may match other files, none matches, or they are unavailable.
    """
    if not pattern.endswith(".parquet"):
        raise TriptychError(f"{key}: {pattern!r} must end in .parquet; no other files are downloaded")
    asked = {"repo": settings.repo, "revision": settings.revision, "files": pattern}
    note = cache / "hub-parquet" / f"{sha256_json(asked)[:16]}.json"
    if note.is_file():
        names = read_json(note)["names"]
    else:
        if not (names := huggingface.list_files(hub_files(settings, pattern), cache)):
            raise TriptychError(_no_match(settings, key, pattern, cache))
        write_json(note, {**asked, "names": names})
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        files = pool.map(lambda name: huggingface.download(settings.repo, name, settings.revision, cache), names)
        return dict(zip(names, files, strict=True))


def _no_match(settings: Settings, key: str, pattern: str, cache: Path) -> str:
    others = huggingface.list_files(hub_files(settings, "*.parquet"), cache)
    more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
    there = f"its Parquet files are {', '.join(others[:LISTED])}{more}" if others else "it has no Parquet files"
    return f"{settings.repo}: no file matches {pattern!r} at {settings.revision}; correct the key `{key}` ({there})"


@contextmanager
def row_reader(files: dict[str, Path], column: str) -> Iterator[Read]:
    """Read the image of a row; the last row groups stay in memory, so rows in order are quick.

    Args:
        files: stored files by name.
        column: which column the images are in.

    Raises:
        OSError: while it is read: a file has been damaged since it was stored.
    """

    @cache_all
    def starts(name: str) -> list[int]:
        """The first row of each row group, and the number of rows."""
        metadata = pq.read_metadata(files[name])
        first = [0]
        for group in range(metadata.num_row_groups):
            first.append(first[-1] + metadata.row_group(group).num_rows)
        return first

    @lru_cache(maxsize=ROW_GROUPS)
    def images(name: str, group: int) -> pa.ChunkedArray:
        with pq.ParquetFile(files[name]) as file:
            return file.read_row_group(group, columns=[column]).column(0)

    def read(place: str) -> bytes:
        name, _, digits = place.rpartition(":")
        if name not in files:
            raise TriptychError(f"{place}: no such file among those of the data set")
        row = int(digits)
        try:
            first = starts(name)
            group = next(number for number in range(len(first) - 1) if first[number] <= row < first[number + 1])
            cell = images(name, group)[row - first[group]]
            if isinstance(cell, pa.StructScalar) and cell.is_valid:
                cell = cell["bytes"]
            data = cell.as_py()
        except StopIteration:
            raise TriptychError(f"{place}: no such row") from None
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk; Arrow's own, of what it reads, have none
                raise
            huggingface.stop_if_damaged(files[name])
            raise TriptychError(f"{place}: cannot be read as it is published ({message_of(error)})") from None
        try:
            return image_bytes(data, column)
        except TriptychError as error:
            raise TriptychError(f"{place}: {error}") from None

    yield read


def image_bytes(data: bytes | None, column: str) -> bytes:
    """Give the bytes of an image back.

    Raises:
        TriptychError: there are none, or too many; the message follows the row's place.
    """
    if not data:
        raise TriptychError(f"column {column!r} holds no bytes of an image")
    if len(data) > MAX_BYTES:
        raise TriptychError(f"larger than {MAX_BYTES} bytes")
    return data


def require_column(table: str, column: str, schema: pa.Schema) -> None:
    """Refuse a table without a column, or with several of its name.

    Raises:
        TriptychError: it is one; the message begins with `table`.
    """
    if column not in schema.names:
        raise TriptychError(f"{table}: has no column {column!r}, but {', '.join(map(repr, schema.names))}")
    require_one(table, column, schema.names)


def has_names(table: str, column: str, schema: pa.Schema) -> bool:
    """Tell whether images have names beside their bytes.

    Raises:
        TriptychError: the column holds no images.
    """
    kind = schema.field(column).type
    if pa.types.is_struct(kind):
        parts = {kind.field(index).name for index in range(kind.num_fields)}
        if "bytes" in parts:
            return "path" in parts
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return False
    raise TriptychError(f"{table}: column {column!r} is {kind}; images are bytes or {{bytes, path}}")


def unreadable(path: Path, error: Exception) -> TriptychError:
    """Give the error on a stored file that is no Parquet."""
    return TriptychError(f"{path}: cannot be read as Parquet ({message_of(error)}); delete the file and run again")


def cell_text(column: str, cell: Any) -> str:
    """Give a cell, a text or a number, as text on one line; it may be empty.

    Raises:
        TriptychError: it is neither.
    """
    try:
        return " ".join(plain_text(cell).split())
    except TriptychError as error:
        raise TriptychError(f"column {column!r} {error}") from None
