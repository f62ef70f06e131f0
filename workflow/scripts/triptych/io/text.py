"""Text and JSON that others wrote: in any usual encoding, with a byte-order mark or not, up to JSON's limits.

Bytes that are not of the encoding are read as lone surrogates, so that only the row that has them is refused, by
`is_utf8`.
"""

import codecs
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from triptych.errors import TriptychError, message_of

_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LEVELS = 100  # of lists and objects in each other: far above any that is meant, far below what stops a program
TOO_DEEP = f"nested more than {_LEVELS} levels deep"
_DIGITS = 300  # of an integer: those of a floating-point number end there, and Python reads no more than 4,300


def encoding_of(start: bytes) -> str:
    """Name the encoding of a text by its first four bytes: by its byte-order mark, or by the zeros of UTF-16."""
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    if b"\0" in start[:2] and len(start) > 1:
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    return "utf-8"


def decode_text(data: bytes) -> str:
    """Decode a text of any usual encoding, without its byte-order mark.

    Raises:
        UnicodeDecodeError: it is UTF-16 or UTF-32 and cut off.
    """
    encoding = encoding_of(data[:4])
    return data.decode(encoding, _on_error(encoding))


def read_text(path: Path) -> str:
    """Read a text file of any usual encoding.

    Raises:
        TriptychError: it is missing or cannot be read; it names the file.
    """
    with _naming(path):
        return decode_text(path.read_bytes())


@contextmanager
def open_text(path: Path, newline: str) -> Iterator[TextIO]:
    """Open a text file of any usual encoding; `newline` as in `open`.

    Raises:
        TriptychError: as `read_text`, also while its lines are read.
    """
    with _naming(path):
        with path.open("rb") as file:
            encoding = encoding_of(file.read(4))
        with path.open(encoding=encoding, errors=_on_error(encoding), newline=newline) as text:
            yield text


def parse_json(text: str) -> Any:
    """Parse JSON; an integer of more than 300 digits is infinite, as a floating-point number of that size is.

    Raises:
        ValueError: it is not JSON, or is nested more than 100 levels deep.
    """
    try:
        value = DECODER.decode(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if is_too_deep(value, text):
        raise ValueError(TOO_DEEP)
    return value


def is_too_deep(value: Any, text: str) -> bool:
    """Tell whether a value, parsed from `text`, is nested more than 100 levels deep.

    Such a value could not be written again: that fails at a few hundred levels, where reading it still works.
    """
    if text.count("[") + text.count("{") <= _LEVELS:
        return False
    level = [value]
    for _ in range(_LEVELS):
        level = [
            below
            for above in level
            for below in (above.values() if isinstance(above, dict) else above)
            if isinstance(below, dict | list)
        ]
        if not level:
            return False
    return True


def read_json_file(path: Path, remedy: str = "restore the file") -> Any:
    """Read a JSON file that others wrote; `remedy` says what to do where it cannot be read.

    Raises:
        TriptychError: it is missing or is not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise TriptychError(f"{path}: not valid JSON ({message_of(error)}); {remedy}") from None


def is_utf8(text: str) -> bool:
    """Tell whether a text is free of lone surrogates, which bytes that are not UTF-8 are read as."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_utf8(text: str) -> str:
    """Write lone surrogates as escapes, so that the text can be stored and shown."""
    return text if is_utf8(text) else text.encode(errors="backslashreplace").decode()


def plain_text(value: Any) -> str:
    """Give a text, or a finite number as text: what may stand in a field of a record.

    A whole number is written as one, also where a table holds it as 7.0: pandas does so in columns with gaps.

    Raises:
        TriptychError: it is neither, or not valid UTF-8; the message follows the name of the field.
    """
    if isinstance(value, str):
        if not is_utf8(value):
            raise TriptychError("is not valid UTF-8")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TriptychError(f"is {kind_of(value)}, not text")
    if not math.isfinite(value):
        raise TriptychError("is not a finite number")
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return str(value)


_EXACT = 2.0**53  # from here on, floats have gaps between whole numbers


class Unreadable:
    """Stands for a value of JSON that is nested too deeply to be read."""


_KINDS: dict[type, str] = {
    Unreadable: TOO_DEEP, str: "text", type(None): "null", bool: "true or false", dict: "a mapping", list: "a list",
    int: "a number", float: "a number",
}  # fmt: skip


def kind_of(value: Any) -> str:
    """Name the kind of a value of JSON or Parquet for messages."""
    return _KINDS.get(type(value), type(value).__name__)


def _integer(digits: str) -> float:
    if len(digits) <= _DIGITS:
        return int(digits)
    return -math.inf if digits.startswith("-") else math.inf


DECODER = json.JSONDecoder(parse_int=_integer)


def _on_error(encoding: str) -> str:
    return "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise TriptychError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TriptychError(f"{path}: cannot be read ({message_of(error)}); restore the file") from None
