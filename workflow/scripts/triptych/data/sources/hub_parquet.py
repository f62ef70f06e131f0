"""Captioned images in a hub data set of Parquet files, at a pinned revision."""

from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triptych.config.datasets import HubParquetCaptions
from triptych.data.sources import hub_rows
from triptych.data.sources.base import Item, Read, Reject, Selection, item_id
from triptych.data.sources.table_files import arrow_values, caption_text
from triptych.download import huggingface
from triptych.errors import TriptychError
from triptych.io.text import is_utf8


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
    """Read the image of a row.

    Raises:
        TriptychError: the files are unavailable.
        OSError: while it is read: a file has been damaged since it was stored.
    """
    with hub_rows.row_reader(parquet_files(settings, cache), settings.image_column) as read:
        yield read


def hub_files(settings: HubParquetCaptions) -> huggingface.HubFiles:
    """Name the files of the hub that are downloaded."""
    return hub_rows.hub_files(settings, settings.files)


def parquet_files(settings: HubParquetCaptions, cache: Path) -> dict[str, Path]:
    """Get the data set's Parquet files by their names, as `hub_rows.stored_files` does."""
    return hub_rows.stored_files(settings, "files", settings.files, cache)


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
    table = f"{settings.repo}, {name}"
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            for column in (settings.caption_column, settings.image_column):
                hub_rows.require_column(table, column, schema)
            columns = [settings.caption_column]
            if hub_rows.has_names(table, settings.image_column, schema):
                columns.append(f"{settings.image_column}.path")
            for batch in file.iter_batches(columns=columns):
                captions = arrow_values(batch.column(settings.caption_column))
                paths = [None] * len(captions)
                if len(columns) == 2:
                    paths = arrow_values(batch.column(settings.image_column).field("path"))
                yield from zip(captions, paths, strict=True)
    except (pa.ArrowException, OSError) as error:
        raise hub_rows.unreadable(path, error) from None
