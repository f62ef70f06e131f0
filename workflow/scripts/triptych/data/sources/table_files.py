"""Tables of the user's: CSV, JSON, JSON lines and Parquet, read as text row by row.

A row that cannot be used costs that row alone; a table that cannot be read stops the run.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.errors import TriptychError
from triptych.io.text import is_utf8, kind_of, open_text, parse_json, read_json_file

Row = tuple[str, dict[str, str] | None, str]


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Read some columns of a table as text.

    Args:
        path: a .csv (comma, header line), .json (list of objects), .jsonl (an object a line) or .parquet file.
        columns: names of the columns or keys.

    Yields:
        For each row its position (`table.csv:7`: the line of CSV and JSON lines, else the row; both from 1), then
        either the columns' values and "", or None and why the row cannot be used.

    Raises:
        TriptychError: the table is missing, cannot be read, is of another kind, or has no such column at all.
    """
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise TriptychError(f"{path}: a table must be one of {', '.join(readers)}; convert it or name another")
    if not path.is_file():
        raise TriptychError(f"{path}: no such table; correct its name in the settings of the data set")
    rows, known = 0, set()
    try:
        for number, found, reason in readers[path.suffix.lower()](path, columns):
            if not reason:
                rows += 1
                known |= {name for name in columns if name in found}
                reason = next(filter(None, (_text_error(name, found.get(name)) for name in columns)), "")
            yield f"{path.name}:{number}", None if reason else {name: found[name] for name in columns}, reason
    except OSError as error:  # ArrowInvalid of a broken Parquet file comes as one in places
        raise TriptychError(f"{path}: cannot be read ({error}); restore the file") from None
    if rows and (missing := [name for name in columns if name not in known]):
        raise TriptychError(f"{path}: no row has the key {missing[0]!r}; correct the key in the settings or the table")


def first_text(cell: Any) -> str | None:
    """Find the text of a cell: of a list or mapping the first that is not blank, None where there is none."""
    if isinstance(cell, str):
        return cell
    parts = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list | tuple) else ()
    return next((text for text in map(first_text, parts) if text and text.strip()), None)


def _text_error(name: str, value: Any) -> str:
    if value is None:
        return f"{name!r} is missing or null"
    if not isinstance(value, str):
        return f"{name!r} is {kind_of(value)}, not text"
    if not value.strip():
        return f"{name!r} is empty"
    return "" if is_utf8(value) else f"{name!r} is not valid UTF-8"


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict | None, str]]:
    with open_text(path, newline="") as file:
        # Strict, so that a quote that is never closed is an error, not a caption of many lines.
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise TriptychError(f"{path}: its first line is not valid CSV ({error})") from None
        _require_columns(path, columns, header)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, None, f"not valid CSV up to line {reader.line_num} ({error}); is a quote not closed?"
                continue
            if cells and len(cells) != len(header):
                reason = f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold commas"
                yield line, None, reason
            elif cells:
                yield line, dict(zip(header, cells, strict=True)), ""


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict | None, str]]:
    entries = read_json_file(path)
    if not isinstance(entries, list):
        raise TriptychError(f"{path}: must be a list of objects, one for each image")
    yield from _objects(enumerate(entries, start=1))


def _jsonl_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict | None, str]]:
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
            except ValueError as error:
                yield number, None, f"not valid JSON ({error})"
            else:
                yield from _objects([(number, entry)])


def _objects(entries: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, dict | None, str]]:
    for number, entry in entries:
        if isinstance(entry, dict):
            yield number, entry, ""
        else:
            yield number, None, f"is {kind_of(entry)}, not an object with keys"


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict | None, str]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches(columns=list(columns)):
                # Old files hold text as bytes, and in any file a text may be no UTF-8.
                texts = {name: _parquet_texts(batch.column(name)) for name in columns}
                for cells in zip(*texts.values(), strict=True):
                    number += 1
                    yield number, dict(zip(texts, cells, strict=True)), ""
    except pa.ArrowException as error:
        raise TriptychError(f"{path}: cannot be read as Parquet ({error}); restore the file") from None


def _parquet_texts(column: pa.Array) -> list:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values = column.to_pylist()
    return [value.decode(errors="surrogateescape") if isinstance(value, bytes) else value for value in values]


def _require_columns(path: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    for name in columns:
        if name not in found:
            raise TriptychError(f"{path}: has no column {name!r}, but {', '.join(map(repr, found)) or 'none at all'}")
