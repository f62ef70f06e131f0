"""Rows of questions in SLAKE's layout: read, checked, and brought to one spelling."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from triptych.data.schemas import ANSWER_TYPES, QUESTION_FIELDS
from triptych.data.sources.conversations import is_conversation, question_rows
from triptych.errors import TriptychError
from triptych.io.json_list import read_json_list
from triptych.io.text import kind_of, plain_text

LANGUAGES = ("en", "zh")
NEEDED = ("qid", "img_id", "img_name", *QUESTION_FIELDS)
GROUPING = ("answer_type", "content_type", "modality", "location")  # by which folds are balanced and answers counted


def rows_of_part(file: Path, say: bool = True) -> Iterator[tuple[str, Any]]:
    """Read a part's table: each row with its position, `train.json[7]`; LLaVA's conversations become rows of questions.

    Args:
        file: the table.
        say: whether to say how many conversations were read.

    Raises:
        TriptychError: the file is missing or is no list.
    """
    conversations = 0
    for number, entry in enumerate(read_json_list(file, "a list of records, as in SLAKE")):
        position = f"{file.name}[{number}]"
        rows: Iterable[Any] = [entry]
        if isinstance(entry, dict) and "question" not in entry and is_conversation(entry.get("conversations")):
            conversations += 1
            rows = list(question_rows(entry, position)) or rows
        for row in rows:
            yield position, row
    if say and conversations:
        print(
            f"{file}: {conversations} conversations, read as questions with their answers; where an entry does not say "
            "it, answers of yes and no are CLOSED and others OPEN, and content, modality and location are Unknown",
            flush=True,
        )


def language_of(row: Any) -> str | None:
    """Give the language of a row without regard to case and blanks; None where it states none that is known."""
    stated = row.get("q_lang") if isinstance(row, dict) else None
    folded = stated.strip().casefold() if isinstance(stated, str) else None
    return folded if folded in LANGUAGES else None


def is_asked(row: Any, language: str) -> bool:
    """Tell whether a row has the language that is asked for, or states none, or an unknown one, which is a fault."""
    return language == "both" or language_of(row) in (None, language)


def checked_row(row: Any) -> dict[str, str]:
    """Give the fields of a row as text.

    Raises:
        TriptychError: it cannot be used; the message follows the row's position.
    """
    if not isinstance(row, dict):
        raise TriptychError(f"is {kind_of(row)}, not a record")
    if missing := [key for key in NEEDED if row.get(key) is None]:
        raise TriptychError(f"lacks {', '.join(missing)}")
    if not isinstance(row["img_name"], str) or "\0" in row["img_name"]:
        raise TriptychError("has an img_name that is not a file name")
    fields = {}
    for key in (*NEEDED, "subject"):
        try:
            fields[key] = "" if row.get(key) is None else plain_text(row[key])
        except TriptychError as error:
            raise TriptychError(f"has {'an' if key[0] in 'aeiou' else 'a'} {key} that {error}") from None
    for key in ("qid", "img_id", "question", "answer"):
        fields[key] = fields[key].strip()
    fields["subject"] = " ".join(fields["subject"].split())
    if not fields["question"] or not fields["answer"]:
        raise TriptychError("has an empty question or answer")
    if blank := [key for key in ("qid", "img_id", "img_name") if not fields[key].strip()]:
        raise TriptychError(f"has an empty {blank[0]}")
    if row.get("q_lang") is not None and language_of(row) is None:
        raise TriptychError(f"has a q_lang that is neither en nor zh: {str(row['q_lang'])[:60]!r}")
    fields["answer_type"] = " ".join(fields["answer_type"].split()).upper()
    if fields["answer_type"] not in ANSWER_TYPES:
        raise TriptychError(f"has an answer_type that is neither OPEN nor CLOSED: {str(row['answer_type'])[:60]!r}")
    return fields


class Spellings:
    """Brings values that differ in case and blanks alone to the spelling that is met first: `CT` for ` ct`.

    Folds are balanced and results are counted by these values: two spellings of one would be two groups.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}
        self._changed: Counter[tuple[str, str, str]] = Counter()

    def fold(self, fields: dict[str, str], stated: dict[str, Any]) -> None:
        """Bring the fields of a row to one spelling; `stated` is the row as the source has it, for the count."""
        for key in GROUPING:
            value = " ".join(fields[key].split())
            fields[key] = value = self._known.setdefault((key, value.casefold()), value)
            if isinstance(was := stated[key], str) and was != value:
                self._changed[key, was, value] += 1

    def notes(self) -> Iterator[str]:
        """Say what was brought to another spelling, a line for each field."""
        for key in GROUPING:
            found = [(was, to, number) for (field, was, to), number in self._changed.items() if field == key]
            if found:
                was, to, _ = found[0]
                number = sum(number for *_, number in found)
                yield f"{key}: {number} values differed in case or blanks and are read alike: {was!r} as {to!r}"
