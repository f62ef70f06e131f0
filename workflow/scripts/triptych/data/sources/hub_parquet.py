"""Captioned images in a hub data set of Parquet files, at a pinned revision."""

from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache as cache_all
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triptych.config.datasets import HubParquetCaptions
from triptych.data.sources.base import MAX_BYTES, Item, Read, Reject, Selection, item_id
from triptych.data.sources.table_files import arrow_values, caption_text, require_one
from triptych.download import huggingface
from triptych.errors import TriptychError, message_of
from triptych.io.manifest import read_json, sha256_json, write_json
from triptych.io.text import is_utf8

DOWNLOADS = 8  # files at a time, as in the hub's own client
ROW_GROUPS = 2  # kept in memory by a reader: rows are asked for in the order of their places


def listing(settings: HubParquetCaptions, cache: Path) -> Iterator[Item | Reject]:
    """List rows in selection order; only captions and the images' names are read.

    Raises:
        TriptychError: the files are unavailable, cannot be read, or lack a column; it names the file and the column.
    """
    files = parquet_files(settings, cache)
    # Some data sets give many images one name: there the place tells them apart. So that few rows are kept as objects,
    # all are gone through twice: first for the hashes of names and captions.
    hashes = array("q")
    for row in _rows(files, settings):
        if isinstance(row, Reject):
            yield row
        else:
            hashes.append(hash(row[:2]))
    ordered = np.sort(np.array(hashes, np.int64))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())  # or alike by chance
    selection, unsure = Selection(settings.seed), []
    for row in _rows(files, settings):
        if isinstance(row, Reject):
            continue
        path, text, place = row
        if hash(row[:2]) in repeated:
            unsure.append(row)
        else:
            selection.add(Item(item_id(path, text), path, place, caption=text))
    named = Counter((path, text) for path, text, _ in unsure)
    for path, text, place in unsure:
        name = path if named[path, text] == 1 else place
        selection.add(Item(item_id(name, text), path, place, caption=text))
    yield from selection


@contextmanager
def reader(settings: HubParquetCaptions, cache: Path) -> Iterator[Read]:
    """Read the image of a row; the last row groups stay in memory, so rows in order are quick.

    Raises:
        TriptychError: the files are unavailable.
        OSError: while it is read: a file has been damaged since it was stored.
    """
    files = parquet_files(settings, cache)

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
            return file.read_row_group(group, columns=[settings.image_column]).column(0)

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
        if not data:
            raise TriptychError(f"{place}: column {settings.image_column!r} holds no bytes of an image")
        if len(data) > MAX_BYTES:
            raise TriptychError(f"{place}: larger than {MAX_BYTES} bytes")
        return data

    yield read


def hub_files(settings: HubParquetCaptions) -> huggingface.HubFiles:
    """Name the files of the hub that are downloaded."""
    # `**/` matches any folders, also none.
    patterns = (settings.files, settings.files.replace("**/", ""))
    return huggingface.HubFiles("dataset", settings.repo, settings.revision, patterns)


def parquet_files(settings: HubParquetCaptions, cache: Path) -> dict[str, Path]:
    """Get the data set's Parquet files by their names, in the order of these; downloaded where they are not stored yet.

    The list of names is kept in the cache: with it and the files, no network is needed.

    Raises:
        TriptychError: the pattern may match other files, none matches, or they are unavailable.
    """
    if not settings.files.endswith(".parquet"):
        raise TriptychError(f"files: {settings.files!r} must end in .parquet; no other files are downloaded")
    asked = {"repo": settings.repo, "revision": settings.revision, "files": settings.files}
    note = cache / "hub-parquet" / f"{sha256_json(asked)[:16]}.json"
    if note.is_file():
        names = read_json(note)["names"]
    else:
        if not (names := huggingface.list_files(hub_files(settings), cache)):
            raise TriptychError(f"{settings.repo}: no file matches {settings.files!r} at {settings.revision}")
        write_json(note, {**asked, "names": names})
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        files = pool.map(lambda name: huggingface.download(settings.repo, name, settings.revision, cache), names)
        return dict(zip(names, files, strict=True))


def _rows(files: dict[str, Path], settings: HubParquetCaptions) -> Iterator[tuple[str, str, str] | Reject]:
    """Name, caption and place of each row, or why it cannot be used."""
    for name, file in files.items():
        for number, (caption, path) in enumerate(_captions(name, file, settings)):
            place = f"{name}:{number:09d}"
            try:
                yield path if path and is_utf8(path) else place, caption_text(caption), place
            except TriptychError as error:
                yield Reject("image", place, f"column {settings.caption_column!r} {error}")


def _captions(name: str, path: Path, settings: HubParquetCaptions) -> Iterator[tuple[object, str | None]]:
    """The caption and, where there is one, the name of the image in each row."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            for column in (settings.caption_column, settings.image_column):
                if column not in schema.names:
                    raise TriptychError(
                        f"{settings.repo}, {name}: has no column {column!r}, but {', '.join(map(repr, schema.names))}"
                    )
                require_one(f"{settings.repo}, {name}", column, schema.names)
            columns = [settings.caption_column]
            if _has_names(schema.field(settings.image_column).type, name, settings):
                columns.append(f"{settings.image_column}.path")
            for batch in file.iter_batches(columns=columns):
                captions = arrow_values(batch.column(settings.caption_column))
                paths = [None] * len(captions)
                if len(columns) == 2:
                    paths = arrow_values(batch.column(settings.image_column).field("path"))
                yield from zip(captions, paths, strict=True)
    except (pa.ArrowException, OSError) as error:
        said = message_of(error)
        raise TriptychError(f"{path}: cannot be read as Parquet ({said}); delete the file and run again") from None


def _has_names(kind: pa.DataType, name: str, settings: HubParquetCaptions) -> bool:
    """Whether images have names beside their bytes.

    Raises:
        TriptychError: the column holds no images.
    """
    if pa.types.is_struct(kind):
        parts = {kind.field(index).name for index in range(kind.num_fields)}
        if "bytes" in parts:
            return "path" in parts
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return False
    raise TriptychError(
        f"{settings.repo}, {name}: column {settings.image_column!r} is {kind}; images are bytes or {{bytes, path}}"
    )
