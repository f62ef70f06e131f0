"""Tables of the user's: CSV, TSV, JSON, JSON lines and Parquet, read row by row as names and captions.

A row that cannot be used costs that row alone; a table that cannot be read stops the run. Where a table is read in
another way than its format says (another separator or encoding), a line says so.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.data.sources.conversations import first_answer, is_conversation
from triptych.errors import TriptychError, message_of
from triptych.io.json_list import read_json_list
from triptych.io.text import encoding_of, kind_of, open_text, parse_json, plain_text

Row = tuple[str, tuple[str, str] | None, str]
Found = Iterator[tuple[int, dict | None, str]]  # number of a row, its values or None, and why it cannot be read

CAPTION, CONVERSATIONS = "caption", "conversations"  # a table without the one may have the other, as LLaVA's
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Columns:
    """Names of the two columns or keys that are read: of the image's name or address, and of its caption."""

    name: str
    caption: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.name, self.caption))


def read_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Read the images that a table names, with their captions.

    Args:
        path: a .csv or .tsv (header line; commas, semicolons, tabs or bars), .json (list of objects), .jsonl (an
            object a line) or .parquet file.
        columns: which columns or keys. Where rows have no `caption`, the first answer of their `conversations` is it.

    Yields:
        For each row its position (`table.csv:7`: the line of CSV and JSON lines, else the row; both from 1), then
        either name and caption and "", or None and why the row cannot be used.

    Raises:
        TriptychError: the table is missing, cannot be read, is of another kind, or has no such column at all.
    """
    readers = {
        ".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows,
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise TriptychError(f"{path}: a table must be one of {', '.join(readers)}; convert it or name another")
    if not path.is_file():
        raise TriptychError(f"{path}: no such table; correct its name in the settings of the data set")
    rows, answers, known = 0, 0, set()
    try:
        for number, found, reason in readers[path.suffix.lower()](path, columns):
            row = None
            if not reason:
                rows += 1
                answers += CONVERSATIONS in found and found.get(columns.caption) is found[CONVERSATIONS]
                known |= {name for name in columns if name in found}
                try:
                    row = _text(columns.name, found), _caption(columns.caption, found)
                except TriptychError as error:
                    reason = str(error)
            yield f"{path.name}:{number}", row, reason
    except OSError as error:  # ArrowInvalid of a broken Parquet file comes as one in places
        raise TriptychError(f"{path}: cannot be read ({message_of(error)}); restore the file") from None
    if answers:
        print(f"{path.name}: the caption is the first answer of {CONVERSATIONS!r} in {answers} rows", flush=True)
    if rows and (missing := [name for name in columns if name not in known]):
        raise TriptychError(f"{path}: no row has the key {missing[0]!r}; correct the key in the settings or the table")


def caption_text(cell: Any) -> str:
    """Find the caption in a cell: a text, the first text of a list of texts, or the first answer of a conversation.

    A list or conversation may be written as JSON, as it stands in a cell of CSV.

    Raises:
        TriptychError: it is none of these, is empty or is not valid UTF-8; the message follows the name of the cell.
    """
    if isinstance(cell, str):
        cell = _unwrapped(cell)
    if is_conversation(cell):
        cell = first_answer(cell)
        if not isinstance(cell, str):
            raise TriptychError("is a conversation without an answer of gpt or assistant")
    elif isinstance(cell, list | tuple):
        cell = next((text for text in cell if text is not None and (not isinstance(text, str) or text.strip())), "")
    if isinstance(cell, dict):
        raise TriptychError(f"is a mapping ({', '.join(map(str, cell))}), and which of its values is meant is unknown")
    if cell is None:
        raise TriptychError("is missing or null")
    if not isinstance(cell, str):
        raise TriptychError(f"is {kind_of(cell)}, not text")
    if not cell.strip():
        raise TriptychError("is empty")
    return plain_text(cell)


def _unwrapped(text: str) -> Any:
    """The list or mapping that a text is as JSON, or else the text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        value = parse_json(text)
    except ValueError:
        return text
    return value if isinstance(value, list | dict) else text


def arrow_values(column: pa.Array) -> list:
    """Give cells as Python values; bytes are texts, and what is not UTF-8 becomes lone surrogates."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # of texts in lists
        values = [_arrow_value(cell) for cell in column]
    return [value.decode(errors="surrogateescape") if isinstance(value, bytes) else value for value in values]


def _arrow_value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return "\udcff"


def _text(name: str, found: dict) -> str:
    value = found.get(name)
    if value is None:
        raise TriptychError(f"{name!r} is missing or null")
    if not isinstance(value, str):
        raise TriptychError(f"{name!r} is {kind_of(value)}, not text")
    if not value.strip():
        raise TriptychError(f"{name!r} is empty")
    try:
        return plain_text(value)
    except TriptychError as error:
        raise TriptychError(f"{name!r} {error}") from None


def _caption(name: str, found: dict) -> str:
    try:
        return caption_text(found.get(name))
    except TriptychError as error:
        raise TriptychError(f"{name!r} {error}") from None


def _csv_rows(path: Path, columns: Columns) -> Found:
    with open_text(path, newline="") as file:
        first = file.readline()
        separator, header = _header(path, columns, first)
        places = _places(path, columns, [name.strip() for name in header])
        usual = "\t" if path.suffix.lower() == ".tsv" else ","
        padded = any(name.startswith(" ") for name in header)
        _say_how(path, separator if separator != usual else "", padded)
        file.seek(0)
        # Strict, so that a quote that is never closed is an error, not a caption of many lines.
        reader = csv.reader(file, strict=True, delimiter=separator, skipinitialspace=padded)
        next(reader)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, None, f"not valid CSV (up to line {reader.line_num}: {error}); is a quote not closed?"
                continue
            if cells and len(cells) != len(header):
                number = f"{len(cells)}, not {len(header)}; quote cells that hold {SEPARATORS[separator]}"
                yield line, None, f"has another number of cells than the header ({number})"
            elif cells:
                yield line, {name: cells[place] for name, place in places.items()}, ""


def _header(path: Path, columns: Columns, line: str) -> tuple[str, list[str]]:
    """The separator with which the first line of a table has both columns, or else a comma; and that line's cells."""
    error = None
    found: list[tuple[str, list[str]]] = []
    for separator in ("\t", ",") if path.suffix.lower() == ".tsv" else SEPARATORS:
        try:
            header = next(csv.reader([line], strict=True, delimiter=separator), [])
        except csv.Error as fault:
            error = error or fault
            continue
        found.append((separator, header))
        if all(_same(name, [cell.strip() for cell in header]) for name in columns):
            return separator, header
    if not found:
        raise TriptychError(f"{path}: its first line is not valid CSV ({message_of(error)})")
    return found[0]


def _say_how(path: Path, separator: str, padded: bool) -> None:
    with path.open("rb") as file:
        encoding = encoding_of(file.read(4))
    said = [f"as {encoding.upper()}"] if not encoding.startswith("utf-8") else []
    said += [f"with {SEPARATORS[separator]} between its cells"] if separator else []
    said += ["without the blanks before its cells"] if padded else []
    if said:
        print(f"{path.name}: read {', '.join(said)}", flush=True)


def _json_rows(path: Path, columns: Columns) -> Found:
    yield from _objects(enumerate(read_json_list(path, "a list of objects, one for each image"), start=1), columns)


def _jsonl_rows(path: Path, columns: Columns) -> Found:
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
            except ValueError as error:
                yield number, None, f"not valid JSON ({message_of(error)})"
            else:
                yield from _objects([(number, entry)], columns)


def _objects(entries: Iterable[tuple[int, Any]], columns: Columns) -> Found:
    for number, entry in entries:
        if not isinstance(entry, dict):
            yield number, None, f"is {kind_of(entry)}, not an object with keys"
        elif columns.caption == CAPTION and CAPTION not in entry and is_conversation(entry.get(CONVERSATIONS)):
            yield number, {**entry, CAPTION: entry[CONVERSATIONS]}, ""
        else:
            yield number, entry, ""


def _parquet_rows(path: Path, columns: Columns) -> Found:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            places = _places(path, columns, names)
            for batch in file.iter_batches(columns=sorted({names[place] for place in places.values()})):
                # Old files hold text as bytes, and in any file a text may be no UTF-8.
                texts = {name: arrow_values(batch.column(names[place])) for name, place in places.items()}
                for cells in zip(*texts.values(), strict=True):
                    number += 1
                    yield number, dict(zip(texts, cells, strict=True)), ""
    except pa.ArrowException as error:
        raise TriptychError(f"{path}: cannot be read as Parquet ({message_of(error)}); restore the file") from None


def _places(path: Path, columns: Columns, found: list[str]) -> dict[str, int]:
    """The place of each column among those found: by its name, or by a name that differs in case and blanks alone.

    Raises:
        TriptychError: there is none of the name, or there are several.
    """
    places = {}
    for name in columns:
        same = _same(name, found)
        if not same and name == columns.caption == CAPTION:
            same = _same(CONVERSATIONS, found)
        if not same:
            named = ", ".join(map(repr, found)) or "none at all"
            raise TriptychError(f"{path}: has no column {name!r}, but {named}; name it in the settings of the data set")
        require_one(path, same, found)
        places[name] = found.index(same)
        if same != name:
            print(f"{path.name}: column {same!r} is read as {name!r}", flush=True)
    return places


def require_one(table: object, name: str, found: list[str]) -> None:
    """Refuse a table with several columns of a name: which one is meant is unknown.

    Raises:
        TriptychError: it has; the message begins with `table`.
    """
    if found.count(name) > 1:
        numbers = " and ".join(str(place) for place, other in enumerate(found, start=1) if other == name)
        raise TriptychError(f"{table}: has several columns {name!r}, {numbers}; rename or drop those not meant")


def _same(name: str, found: list[str]) -> str:
    """The column of a name; empty where there is none, or several that differ in case alone."""
    if name in found:
        return name
    alike = [other for other in found if other.strip().casefold() == name.strip().casefold()]
    return alike[0] if len(alike) == 1 else ""
