"""Multiple choice as text: the options of a row, and which of them is right."""

from string import ascii_uppercase
from typing import Any

from triptych.config.datasets import HubQuestions
from triptych.data.sources.hub_rows import cell_text
from triptych.errors import TriptychError
from triptych.io.text import kind_of


def with_options(question: str, answer: str, cells: dict[str, Any], settings: HubQuestions) -> tuple[str, str]:
    """Give question and answer of a multiple choice as text, with the options where the settings want them.

    Args:
        question: the question.
        answer: what says which option is right.
        cells: of the row, by column.
        settings: the data set's.

    Raises:
        TriptychError: the options cannot be read, or the answer names none of them.
    """
    options = _options(cells, settings.option_columns)
    right = _right(answer, options, settings)
    letters = ascii_uppercase[: len(options)]
    listed = ", ".join(f"{letter}: {option}" for letter, option in zip(letters, options, strict=True))
    asked = question if settings.options_in == "answer" else f"{question} {listed}"
    return asked, letters[right] if settings.options_in == "question" else options[right]


def _options(cells: dict[str, Any], columns: list[str]) -> list[str]:
    """The options of a row; empty ones at the end are none."""
    values = [cells[column] for column in columns]
    if len(columns) == 1:
        [found] = values
        if not isinstance(found, list | dict):
            raise TriptychError(f"column {columns[0]!r} is {kind_of(found)}, not a list of options")
        values = list(found.values()) if isinstance(found, dict) else found
    names = columns if len(columns) > 1 else columns * len(values)
    texts = ["" if value is None else cell_text(name, value) for name, value in zip(names, values, strict=True)]
    while texts and not texts[-1]:
        texts.pop()
    if not all(texts):
        raise TriptychError(f"column {names[texts.index('')]!r} has an empty option before others")
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise TriptychError(f"has {len(texts)} options; 2 to {len(ascii_uppercase)} are read")
    return texts


def _right(answer: str, options: list[str], settings: HubQuestions) -> int:
    """The position of the right option."""
    match settings.right_option:
        case "letter":
            found = ascii_uppercase.find(answer.strip(" .:()").upper())
            right = found if len(answer.strip(" .:()")) == 1 else -1
        case "number":
            right = int(answer) if answer.isascii() and answer.isdigit() else -1
        case _:
            right = options.index(answer) if options.count(answer) == 1 else -1
    if not 0 <= right < len(options):
        raise TriptychError(
            f"column {settings.answer_column!r} does not name one of the {len(options)} options by its "
            f"{settings.right_option}: {answer[:60]!r}"
        )
    return right
