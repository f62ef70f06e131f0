"""A JSON list that others wrote, read element by element: neither the file nor the list is in memory as a whole."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from triptych.errors import TriptychError, message_of
from triptych.io.text import DECODER, TOO_DEEP, Unreadable, is_too_deep, open_text, parse_json

CHUNK = 1 << 20  # characters read at a time
_AFTER = ",] \t\n\r"  # what follows an element: before anything else, a number may only be cut
_BLANK = re.compile(r"[ \t\n\r]*")
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)


def read_json_list(path: Path, wanted: str, remedy: str = "restore the file") -> Iterator[Any]:
    """Give the elements of a list; one that is nested more than 100 levels deep is `Unreadable`.

    Args:
        path: the file, of any usual encoding.
        wanted: what it must be, for the message where it is something else: `a list of records`.
        remedy: what to do where it cannot be read.

    Raises:
        TriptychError: it is missing, is no list, or is not JSON, which may show only after many elements.
    """
    with open_text(path, newline="") as file:
        text = _Text(file)
        try:
            if not text.begins_with("["):
                parse_json(text.rest())
                raise TriptychError(f"{path}: must be {wanted}")
            yield from _elements(text)
        except json.JSONDecodeError as error:
            raise TriptychError(f"{path}: not valid JSON ({text.place_of(error)}); {remedy}") from None
        except ValueError as error:
            raise TriptychError(f"{path}: not valid JSON ({message_of(error)}); {remedy}") from None


class _Text:
    """A text that is read as far as it is looked at, and forgotten where it is done with."""

    def __init__(self, file: TextIO):
        self._file = file
        self._gone, self._lines, self._column = 0, 0, 0  # characters, lines and characters of the last line, forgotten
        self.held, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Forget what is done with, and read as much again as is held; tell whether there was more."""
        done = self.held[: self.at]
        self._gone += len(done)
        self._lines += done.count("\n")
        self._column = len(done) - done.rfind("\n") - 1 if "\n" in done else self._column + len(done)
        read = self._file.read(max(CHUNK, len(self.held) - self.at))
        self.held, self.at, self.ended = self.held[self.at :] + read, 0, not read
        return bool(read)

    def begins_with(self, sign: str) -> bool:
        """Pass blanks, and `sign` where it comes next."""
        while True:
            self.at = _BLANK.match(self.held, self.at).end()
            if self.at < len(self.held):
                found = self.held[self.at] == sign
                self.at += found
                return found
            if not self.more():
                return False

    def rest(self) -> str:
        """Read the text to its end, and give what is left of it."""
        while self.more():
            pass
        return self.held[self.at :]

    def place_of(self, error: json.JSONDecodeError) -> str:
        """Say what is wrong and where in the whole text."""
        line, column = self._lines + error.lineno, error.colno + (self._column if error.lineno == 1 else 0)
        return f"{error.msg}: line {line} column {column} (char {self._gone + error.pos})"


def _elements(text: _Text) -> Iterator[Any]:
    if text.begins_with("]"):
        return _require_end(text)
    while True:
        text.begins_with("")
        yield _element(text)
        if text.begins_with("]"):
            return _require_end(text)
        if not text.begins_with(","):
            raise json.JSONDecodeError("Expecting ',' delimiter", text.held, text.at)


def _element(text: _Text) -> Any:
    """The element that comes next; more is read until all of it is held, and the sign after it, which ends numbers."""
    while True:
        try:
            value, end = DECODER.raw_decode(text.held, text.at)
        except RecursionError:
            value, end = Unreadable(), _end_of(text.held, text.at)
        except json.JSONDecodeError:
            if text.ended:
                raise
            text.more()
            continue
        if text.ended or (end < len(text.held) and text.held[end] in _AFTER):
            break
        text.more()
    if not isinstance(value, Unreadable) and is_too_deep(value, text.held[text.at : end]):
        value = Unreadable()
    if end > len(text.held):
        raise ValueError(TOO_DEEP)
    text.at = end
    return value


def _end_of(held: str, start: int) -> int:
    """The end of a list or object, whose inside is not looked at; beyond the text where it does not end in it."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(held, start):
        sign = found[0]
        if sign == '"':  # a string that does not end
            break
        depth += (sign in "[{") - (sign in "]}")
        if depth == 0:
            return found.end()
    return len(held) + 1


def _require_end(text: _Text) -> None:
    text.begins_with("")
    if text.at < len(text.held):
        raise json.JSONDecodeError("Extra data", text.held, text.at)
