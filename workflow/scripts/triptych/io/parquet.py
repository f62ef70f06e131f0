"""Parquet tables with checksums."""

import base64
import binascii
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.errors import TriptychError, message_of, refusal
from triptych.io.atomic import atomic_path
from triptych.io.direct_file import DirectFile

ROW_GROUP = 100  # rows: an image is read without its neighbours by the thousand
CHECKED = {"write_page_checksum": True}  # a table's pages carry checksums, which readers compare

# Images are compressed already, and hashes cannot be.
IMAGE_TABLE = {"compression": "none", "use_dictionary": False, "write_page_index": True}


def write_table(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows as a Parquet table atomically, with about 100 rows in each group."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, row_group_size=ROW_GROUP, **CHECKED)


class TableWriter:
    """A Parquet file written in groups of `group` rows, so that memory does not grow with the table."""

    def __init__(self, path: Path, schema: pa.Schema, group: int = ROW_GROUP, **options: Any):
        self.path = path
        self.schema = schema
        self.group = group
        self.file = DirectFile(path)
        self.writer = pq.ParquetWriter(self.file, schema, **CHECKED, **options)
        self.rows: list[dict] = []
        self.batches: list[pa.RecordBatch] = []

    def add(self, row: dict) -> None:
        """Append one row."""
        self.rows.append(row)
        if len(self.rows) == self.group:
            self.add_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Append the rows of a batch that has the table's columns, in any order."""
        self.batches.append(batch.select(self.schema.names).cast(self.schema))
        while sum(len(part) for part in self.batches) >= self.group:
            pending = pa.Table.from_batches(self.batches)
            self.writer.write_table(pending.slice(0, self.group), row_group_size=self.group)
            self.batches = pending.slice(self.group).to_batches()

    def close(self) -> None:
        """Write what is left, and end the file."""
        if self.file.closed:
            return
        if self.rows:
            self.add_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
        if self.batches:
            self.writer.write_table(pa.Table.from_batches(self.batches, schema=self.schema))
        self.rows, self.batches = [], []
        self.writer.close()
        self.file.close()

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.writer.is_open = False  # after a failure, its own clean-up would write once more
            self.file.abandon()


@contextmanager
def open_table(path: Path, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file whose rows are read as they are asked for, never as a whole.

    Args:
        path: the file.
        metadata: its footer, where that has been read already; of many row groups it is large.

    Raises:
        TriptychError: the file is missing, or is damaged, which may show only when its rows are read.
    """
    try:
        options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(path, metadata=metadata, **options) as table:
            stored = (table.metadata.metadata or {}).get(b"ARROW:schema")
            # Names of columns are in the footer, which has no checksum, and once more in here.
            if stored and not pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored))).equals(table.schema_arrow):
                raise pa.ArrowInvalid("its columns are not those that were written")
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError, binascii.Error) as error:
        if (number := refusal(error)) is not None:
            raise OSError(number, os.strerror(number), os.fspath(path)) from None
        reason = message_of(error)  # Arrow's messages may have several lines
        raise TriptychError(f"{path}: cannot be read as Parquet ({reason}); delete it and run again") from None


def parts_of_table(path: Path) -> list[Path]:
    """List the files of a table: a folder's Parquet files in order, or the one file.

    Raises:
        TriptychError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    if not (parts := sorted(path.glob("*.parquet"))):
        raise TriptychError(f"{path}: holds no Parquet file; delete the folder's manifest.json and run again")
    return parts


def read_table(path: Path, columns: list[str] | None = None, optional: Sequence[str] = ()) -> list[dict]:
    """Read a Parquet table, one file or a folder of files, as a list of rows.

    Args:
        path: the file, or the folder.
        columns: which columns; None: all.
        optional: further columns, None in rows of a file that lacks them, as those of an earlier version do.

    Raises:
        TriptychError: a file is missing, damaged or without one of `columns`.
    """
    rows = []
    for part in parts_of_table(path):
        with open_table(part) as table:
            there = table.schema_arrow.names
            if lacking := set(columns or ()) - set(there):
                raise TriptychError(f"{part}: has no column {min(lacking)}; delete it and run again")
            chosen = None if columns is None else [*columns, *(name for name in optional if name in there)]
            found = table.read(chosen)
            for name in optional:
                if name not in there:
                    found = found.append_column(name, pa.nulls(len(found)))
            rows += found.to_pylist()
    return rows


def read_tables(paths: Iterable[Path], columns: list[str] | None = None, optional: Sequence[str] = ()) -> list[dict]:
    """Read the rows of several tables, in the order of their paths, as `read_table` does."""
    return [row for path in sorted(paths) for row in read_table(path, columns, optional)]


def stream_table(path: Path) -> Iterator[dict]:
    """Give the rows of a Parquet file, of which few are in memory.

    Raises:
        TriptychError: as `open_table`, also between rows.
    """
    with open_table(path) as table:
        for batch in table.iter_batches(10 * ROW_GROUP):
            yield from batch.to_pylist()
