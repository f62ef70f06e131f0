"""Medical questions in SLAKE's layout, in which several sources keep them.

The folder holds train.json, validation.json and test.json, lists of rows, and the images below imgs/. A row's
`subject`, where there is one, is its group; otherwise the image is.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from triptych.data.schemas import QUESTION_FIELDS, SPLITS
from triptych.data.sources.base import Item, Read, Reject, read_below
from triptych.data.sources.table_files import is_utf8
from triptych.errors import TriptychError
from triptych.io.atomic import resolve_under
from triptych.io.manifest import canonical_json, read_json


def folder_listing(
    folder: Path, language: str = "en", expected: Mapping[str, int] | None = None
) -> Iterator[Item | Reject]:
    """List images and questions of a folder, in the order of its files; rows that cannot be used, with the reason.

    With Chinese questions an image belongs to the part of its English ones: the two languages' official parts overlap.

    Args:
        folder: the folder.
        language: language of the questions: `en`, `zh` or `both`.
        expected: numbers of images, and of questions per part; None for any.

    Raises:
        TriptychError: a file is not a list of rows, no question has the language, or the numbers are not the expected
            ones.
    """
    tables = {part: _rows(folder / f"{part}.json") for part in SPLITS}
    asked = {
        part: [(position, row) for position, row in enumerate(rows) if _is_asked(row, language)]
        for part, rows in tables.items()
    }
    if any(tables.values()) and not any(asked.values()):
        raise TriptychError(f"{folder}: no question has q_lang {language!r}; change the key `language` of the data set")
    if expected:
        _require_counts(asked, expected, folder)
    english_parts = {} if language == "en" else _english_parts(tables)
    images: dict[str, _Image] = {}
    yield from _questions(asked, english_parts, images)
    for image_id, image in images.items():
        yield from _items(folder, image_id, image)


@contextmanager
def folder_reader(folder: Path) -> Iterator[Read]:
    """Read images below `imgs/` of a folder by name."""

    def read(place: str) -> bytes:
        return read_below(folder / "imgs", place)

    yield read


@dataclass(frozen=True)
class _Image:
    """An image: the first row that names it, the part that it belongs to, and its questions."""

    row: dict
    part: str
    questions: list[dict]


def _questions(
    asked: Mapping[str, list[tuple[int, dict]]], english_parts: Mapping[str, str], images: dict[str, _Image]
) -> Iterator[Reject]:
    """Put the questions of all parts into `images`, by image id; give those that cannot be used."""
    seen: set[str] = set()
    for table, rows in asked.items():
        for position, row in rows:
            question_id = str(row.get("qid", f"{table}.json[{position}]"))
            if reason := _error(row, question_id in seen):
                yield Reject("question", question_id, f"{table}.json[{position}] {reason}")
                continue
            image_id = str(row["img_id"])
            part = english_parts.get(image_id, table)
            image = images.setdefault(image_id, _Image(row, part, []))
            if image.part != part or image.row["img_name"] != row["img_name"]:
                reason = f"{table}.json[{position}]: image {image_id} already belongs to {image.part}.json"
                yield Reject("question", question_id, reason)
                continue
            seen.add(question_id)
            fields = {name: str(row[name]).strip() for name in QUESTION_FIELDS}
            image.questions.append({"question_id": question_id, **fields})


def _items(folder: Path, image_id: str, image: _Image) -> Iterator[Item | Reject]:
    """The image as an `Item`, after a reject where its organ boxes cannot be read."""
    boxes, stamp, name = None, "", image.row["img_name"]
    try:
        path = resolve_under(folder / "imgs", name)
        about = path.stat()
        stamp = f"{about.st_size}-{about.st_mtime_ns}"
    except (TriptychError, OSError):
        pass  # an image that cannot be read is rejected by the step that reads it
    else:
        try:
            boxes = _boxes(path.parent / "detection.json")
        except TriptychError as error:
            yield Reject("boxes", image_id, str(error))
    subject = image.row.get("subject")
    group = "" if subject is None or not str(subject).strip() else f"subject {subject}"
    yield Item(image_id, name, name, image.part, group=group, boxes=boxes, questions=image.questions, stamp=stamp)


def _rows(file: Path) -> list[dict]:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TriptychError(f"{file}: must be a list of records, as in SLAKE")
    return rows


def _is_asked(row: dict, language: str) -> bool:
    return language == "both" or row.get("q_lang", language) == language


def _error(row: dict, known: bool) -> str | None:
    """Why a row cannot be used; None where it can."""
    missing = [key for key in ("qid", "img_id", "img_name", *QUESTION_FIELDS) if row.get(key) is None]
    if missing:
        return f"lacks {', '.join(missing)}"
    texts = [row[key] for key in ("img_name", *QUESTION_FIELDS)]
    if not isinstance(row["img_name"], str) or "\0" in row["img_name"]:
        return "has an img_name that is not a file name"
    if not all(is_utf8(str(text)) for text in (*texts, row["qid"], row["img_id"], row.get("subject"))):
        return "is not valid UTF-8"
    if known:
        return f"repeats qid {row['qid']}"
    if not str(row["question"]).strip() or not str(row["answer"]).strip():
        return "has an empty question or answer"
    return None


def _require_counts(asked: dict[str, list], expected: Mapping[str, int], folder: Path) -> None:
    found = {split: len(rows) for split, rows in asked.items()}
    found["images"] = len({str(row.get("img_id")) for rows in asked.values() for _, row in rows})
    wrong = [f"{name}: {found[name]} instead of {number}" for name, number in expected.items() if found[name] != number]
    if wrong:
        raise TriptychError(
            f"{folder}: not the expected numbers of questions and images ({'; '.join(wrong)}). The copy is incomplete "
            "or another version: get it again, or change the key `expected` of the data set"
        )


def _english_parts(tables: dict[str, list[dict]]) -> dict[str, str]:
    return {
        str(row.get("img_id")): split for split, rows in tables.items() for row in rows if row.get("q_lang") == "en"
    }


def _boxes(file: Path) -> str | None:
    """Organ boxes as canonical JSON, [[name, [left, top, width, height]], ...]; None where there is no file.

    Raises:
        TriptychError: the file does not hold boxes.
    """
    if not file.is_file():
        return None
    try:
        found = [
            [str(name), [float(side) for side in box]]
            for entry in json.loads(file.read_text(encoding="utf-8"))
            for name, box in entry.items()
        ]
        if any(len(box) != 4 for _, box in found):
            raise ValueError("a box has four numbers")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TriptychError(f"{file.parent.name}/{file.name}: not a list of organ boxes ({error})") from None
    return canonical_json(found)
