"""Images with questions in the Parquet files of a data set on the hub, read by the names of its columns.

A row is a question with its image, which other rows may repeat. Rows that repeat an image are one image: by its bytes,
or by its id where a column has one. An image belongs to one part alone.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.config.datasets import HubQuestions
from triptych.data.schemas import ANSWER_TYPES, STRICTEST, UNKNOWN
from triptych.data.sources import hub_rows
from triptych.data.sources.base import Item, Read, Reject
from triptych.data.sources.conversations import closed_or_open
from triptych.data.sources.hub_classes import class_names
from triptych.data.sources.options import with_options
from triptych.data.sources.slake_rows import Spellings
from triptych.data.sources.table_files import arrow_values
from triptych.download import huggingface
from triptych.errors import TriptychError
from triptych.io.manifest import sha256_bytes
from triptych.io.text import is_utf8

BATCH = 32  # rows held at a time, with their images
ABOUT = ("content_type", "modality", "location")  # `Unknown` where no column says it


class Row(NamedTuple):
    """A row as it is stored: its image's bytes and name, and the cells of the columns that the settings name."""

    image: bytes | None
    path: str | None
    cells: dict[str, Any]


def listing(settings: HubQuestions, cache: Path) -> Iterator[Item | Reject]:
    """List images and questions in the order of the files, test part first; images are hashed, and not decoded.

    Raises:
        TriptychError: a part's files are unavailable, cannot be read, or lack a column; it names the file and the
            column.
    """
    met = _Met(settings)
    for part, files in sorted(part_files(settings, cache).items(), key=lambda found: STRICTEST.index(found[0])):
        for name, file in files.items():
            for number, row in enumerate(read_rows(f"{settings.repo}, {name}", file, settings)):
                place = f"{name}:{number:09d}"
                try:
                    met.add(part, place, row)
                except TriptychError as error:
                    yield Reject("question", place, str(error))
    for line in met.notes():
        print(line, flush=True)
    yield from met.items()


@contextmanager
def reader(settings: HubQuestions, cache: Path) -> Iterator[Read]:
    """Read the image of a row.

    Raises:
        TriptychError: the files are unavailable.
        OSError: while it is read: a file has been damaged since it was stored.
    """
    files = {name: file for found in part_files(settings, cache).values() for name, file in found.items()}
    with hub_rows.row_reader(files, settings.image_column) as read:
        yield read


def hub_files(settings: HubQuestions) -> huggingface.HubFiles:
    """Name the files of the hub that are downloaded."""
    return hub_rows.hub_files(settings, *settings.parts.values())


def part_files(settings: HubQuestions, cache: Path) -> dict[str, dict[str, Path]]:
    """Get the stored Parquet files of every part by their names; downloaded where they are not stored yet.

    Raises:
        TriptychError: a part has no files, shares one with another part, or they are unavailable.
    """
    found: dict[str, dict[str, Path]] = {}
    owners: dict[str, str] = {}
    for part, pattern in settings.parts.items():
        found[part] = hub_rows.stored_files(settings, f"parts.{part}", pattern, cache)
        for name in found[part]:
            if (other := owners.setdefault(name, part)) != part:
                raise TriptychError(
                    f"{settings.repo}: {name} matches the patterns of two parts, {other} and {part}; correct the key "
                    "`parts`"
                )
    return found


def text_columns(settings: HubQuestions) -> dict[str, str]:
    """Give the columns of text that the settings name, by what they hold: question, answer, question_id, ..."""
    named = {
        key.removesuffix("_column"): getattr(settings, key)
        for key in type(settings).model_fields
        if key.endswith("_column") and key != "image_column"
    }
    return {name: column for name, column in named.items() if column is not None}


def read_rows(table: str, path: Path, settings: HubQuestions) -> Iterator[Row]:
    """Read the rows of a file, some at a time.

    Args:
        table: what errors name.
        path: the file.
        settings: the data set's.

    Raises:
        TriptychError: it cannot be read, lacks a column, or has one of a type that is not read.
    """
    texts, image = list(dict.fromkeys(text_columns(settings).values())), settings.image_column
    columns = list(dict.fromkeys([image, *texts, *settings.option_columns]))
    try:
        # Without a buffer, or with pre_buffer, Arrow would hold whole row groups of images.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            schema = file.schema_arrow
            for column in columns:
                hub_rows.require_column(table, column, schema)
            named = hub_rows.has_names(table, image, schema)
            structured = pa.types.is_struct(schema.field(image).type)
            for column in texts:
                _require_text(table, column, schema)
            classes = class_names(schema)
            for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                cells = {
                    column: _named(arrow_values(batch.column(column)), classes.get(column)) for column in columns[1:]
                }
                images = batch.column(image)
                data = images.field("bytes") if structured else images
                paths = arrow_values(images.field("path")) if named else [None] * len(batch)
                for place in range(len(batch)):
                    there = images[place].is_valid
                    row = {column: values[place] for column, values in cells.items()}
                    yield Row(data[place].as_py() if there else None, paths[place] if there else None, row)
    except (pa.ArrowException, OSError) as error:
        raise hub_rows.unreadable(path, error) from None


def _require_text(table: str, column: str, schema: pa.Schema) -> None:
    """Refuse a column that can hold neither text nor numbers.

    Raises:
        TriptychError: it is one.
    """
    kind = schema.field(column).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(test(inner) for test in (*tests, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)):
        raise TriptychError(
            f"{table}: column {column!r} is {kind}; texts and numbers are read, so name another column in the settings "
            "of the data set"
        )


def _named(values: list, names: list[str] | None) -> list:
    """Give the names of classes for their numbers, where the column has classes; None for a number without a name."""
    if names is None:
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]


class _Met:
    """Images and questions of the rows so far; parts come strictest first."""

    def __init__(self, settings: HubQuestions):
        self._settings = settings
        self._columns = text_columns(settings)
        self._parts: dict[str, str] = {}  # part of an image by the hash of its bytes
        self._hashes: dict[str, str] = {}  # hash of an image's bytes by its id
        self._subjects: dict[str, str] = {}
        self._first: dict[str, tuple[str, str]] = {}  # path and place of an image's first row with a usable question
        self._questions: dict[str, list[dict]] = {}
        self._asked: set[str] = set()
        self._spellings = Spellings()
        self._shared: set[str] = set()
        self._elsewhere: Counter[str] = Counter()

    def add(self, part: str, place: str, row: Row) -> None:
        """Add the question of a row.

        Raises:
            TriptychError: it cannot be used; the message is the reason.
        """
        sha256 = sha256_bytes(hub_rows.image_bytes(row.image, self._settings.image_column))
        own = self._parts.setdefault(sha256, part)
        image = self._image_id(row, sha256)
        if own != part:
            self._shared.add(image)
            self._elsewhere[f"{part} -> {own}"] += 1
            if self._settings.shared_images == "leave-out":
                raise TriptychError(f"its image is in part {own}, too: {image}")
        subject = self._cell(row, "subject", may_be_empty=True)
        question = self._question(row)
        question_id = self._cell(row, "question_id")
        if not question_id:
            said = "\x1f".join([image, question["question"], question["answer"]])
            question_id = sha256_bytes(said.encode())[:16]
        if question_id in self._asked:
            with_id = self._settings.question_id_column is not None
            what = f"the question id of another row: {question_id}" if with_id else "image, question and answer"
            raise TriptychError(f"repeats {what}" + ("" if with_id else " of another row"))
        known = self._subjects.get(image) or subject
        if subject and known != subject:
            raise TriptychError(f"names another subject than an earlier row of its image: {subject!r}, not {known!r}")
        self._subjects[image] = known
        self._asked.add(question_id)
        self._first.setdefault(image, (row.path if row.path and is_utf8(row.path) else place, place))
        self._questions.setdefault(image, []).append({"question_id": question_id, **question})

    def items(self) -> Iterator[Item]:
        """Give the images that have a question."""
        for image, questions in self._questions.items():
            path, place = self._first[image]
            sha256, subject = self._hashes[image], self._subjects[image]
            group = f"subject {subject}" if subject else ""
            yield Item(image, path, place, self._parts[sha256], group=group, questions=questions, stamp=sha256)

    def notes(self) -> Iterator[str]:
        """Say how rows were read that could have been read otherwise, a line each."""
        yield from self._spellings.notes()
        if self._settings.answer_type_column is None:
            closed = sum(row["answer_type"] == "CLOSED" for rows in self._questions.values() for row in rows)
            listed = " or options are listed in the question" if self._lists_options else ""
            yield (
                f"answer types, which no column states: {closed} of {len(self._asked)} questions are CLOSED, because "
                f"the answer is yes or no{listed}; the others are OPEN"
            )
        if self._shared:
            done = "left out" if self._settings.shared_images == "leave-out" else "moved"
            moves = ", ".join(f"{move}: {number}" for move, number in sorted(self._elsewhere.items()))
            yield f"{len(self._shared)} images are in several parts; questions {done}: {moves}"

    @property
    def _lists_options(self) -> bool:
        return bool(self._settings.option_columns) and self._settings.options_in != "answer"

    def _image_id(self, row: Row, sha256: str) -> str:
        """The id of a row's image.

        Raises:
            TriptychError: an earlier row has the id with other bytes.
        """
        image = self._cell(row, "image_id") or sha256[:16]
        if self._hashes.setdefault(image, sha256) != sha256:
            raise TriptychError(f"has another image than an earlier row with its image id: {image}")
        return image

    def _question(self, row: Row) -> dict[str, str]:
        """The fields of a question, `QUESTION_FIELDS`."""
        question, answer = self._cell(row, "question"), self._cell(row, "answer")
        if self._settings.option_columns:
            question, answer = with_options(question, answer, row.cells, self._settings)
        derived = "CLOSED" if self._lists_options else closed_or_open(answer)
        answer_type = self._cell(row, "answer_type").upper()
        if "answer_type" in self._columns and answer_type not in ANSWER_TYPES:
            column = self._columns["answer_type"]
            raise TriptychError(f"column {column!r} is neither OPEN nor CLOSED: {answer_type[:60]!r}")
        fields = {"question": question, "answer": answer, "answer_type": answer_type or derived}
        stated = dict(fields)
        for name in ABOUT:
            text = self._cell(row, name, may_be_empty=True)
            fields[name] = text or UNKNOWN
            stated[name] = row.cells[self._columns[name]] if text else UNKNOWN
        self._spellings.fold(fields, stated)
        return fields

    def _cell(self, row: Row, name: str, may_be_empty: bool = False) -> str:
        """A cell as text on one line; empty where the settings name no column for it.

        Raises:
            TriptychError: it is no text, or is missing or empty and may not be.
        """
        if (column := self._columns.get(name)) is None:
            return ""
        cell = row.cells[column]
        text = "" if cell is None and may_be_empty else hub_rows.cell_text(column, cell)
        if not text and not may_be_empty:
            raise TriptychError(f"column {column!r} is empty")
        return text
