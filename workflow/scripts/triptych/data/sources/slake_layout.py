"""Medical questions in SLAKE's layout, in which several sources keep them.

The folder holds train.json, validation.json and test.json, lists of rows, and the images below imgs/. A row's
`subject`, where there is one, is its group; otherwise the image is.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from triptych.data.schemas import QUESTION_FIELDS, SPLITS
from triptych.data.sources.base import Item, Read, Reject, read_below
from triptych.data.sources.image_names import Respelt, locate, plain_name
from triptych.data.sources.slake_rows import Spellings, checked_row, is_asked, language_of, rows_of_part
from triptych.errors import TriptychError
from triptych.io.atomic import resolve_under
from triptych.io.manifest import canonical_json
from triptych.io.text import is_utf8, plain_text, read_json_file

KEPT = ("question_id", *QUESTION_FIELDS)  # of a question, until its image is listed


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
        TriptychError: a file is not a list of rows, no question has the language, or, where numbers are expected, they
            are others or pictures are missing.
    """
    english_parts = {} if language == "en" else _english_parts(folder)
    images: dict[str, _Image] = {}
    met = _Met()
    yield from _questions(folder, language, english_parts, images, met)
    if met.rows and not met.asked.total():
        raise TriptychError(f"{folder}: no question has q_lang {language!r}; change the key `language` of the data set")
    if expected:
        _require_counts(met, expected, folder)
    files = {image_id: locate(folder / "imgs", image.name) for image_id, image in images.items()}
    names = Respelt()
    for image_id, image in images.items():
        names.meet(image.name, files[image_id][0])
    names.say()
    if expected:
        _require_pictures([name for name, stamp in files.values() if not stamp or stamp.startswith("0-")], folder)
    for image_id, image in images.items():
        yield from _items(folder, image_id, image, *files[image_id])


@contextmanager
def folder_reader(folder: Path) -> Iterator[Read]:
    """Read images below `imgs/` of a folder by name."""

    def read(place: str) -> bytes:
        return read_below(folder / "imgs", place)

    yield read


@dataclass(frozen=True)
class _Image:
    """An image: its name in the first row that names it, the subject of any row, its part, its questions as `KEPT`."""

    name: str
    subject: str
    part: str
    questions: list[tuple[str, ...]]


@dataclass
class _Met:
    """What the tables hold: rows, questions in the language that is asked for by part, and their images as stated."""

    rows: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    images: set[str] = field(default_factory=set)


def _questions(
    folder: Path, language: str, english_parts: Mapping[str, str], images: dict[str, _Image], met: _Met
) -> Iterator[Reject]:
    """Put the questions of all parts into `images`, by image id, and count them; give those that cannot be used."""
    seen: set[str] = set()
    spellings = Spellings()
    for table in SPLITS:
        for position, row in rows_of_part(folder / f"{table}.json"):
            met.rows += 1
            if not is_asked(row, language):
                continue
            met.asked[table] += 1
            if isinstance(row, dict):
                met.images.add(_stated_id(row.get("img_id")))
            stated = row.get("qid") if isinstance(row, dict) else None
            question_id = position if stated is None else _stated_id(stated)
            try:
                fields = checked_row(row)
                if fields["qid"] in seen:
                    raise TriptychError(f"repeats the qid of another row: {fields['qid']}")
            except TriptychError as error:
                yield Reject("question", question_id, f"{position} {error}")
                continue
            question_id, image_id = fields["qid"], fields["img_id"]
            part = english_parts.get(image_id, table)
            image = images.setdefault(image_id, _Image(fields["img_name"], fields["subject"], part, []))
            if image.part != part or plain_name(image.name) != plain_name(fields["img_name"]):
                reason = f"{position} has an image that already belongs to {image.part}.json: {image_id}"
                yield Reject("question", question_id, reason)
                continue
            if (subject := fields["subject"]) and image.subject not in ("", subject):
                reason = f"{position} names another subject than an earlier row of its image: {subject}"
                yield Reject("question", question_id, f"{reason}, not {image.subject}")
                continue
            if subject and not image.subject:
                images[image_id] = image = replace(image, subject=subject)
            seen.add(question_id)
            spellings.fold(fields, row)
            image.questions.append((question_id, *(fields[name] for name in QUESTION_FIELDS)))
    for line in spellings.notes():
        print(line, flush=True)


def _stated_id(value: Any) -> str:
    """An id as a row states it, also one that no row may have."""
    try:
        return plain_text(value).strip()
    except TriptychError:
        return str(value).strip()


def _items(folder: Path, image_id: str, image: _Image, place: str, stamp: str) -> Iterator[Item | Reject]:
    """The image as an `Item`, after a reject where its organ boxes cannot be read."""
    boxes = None
    try:
        path = resolve_under(folder / "imgs", place)
    except TriptychError:
        pass  # an image that cannot be read is rejected by the step that reads it
    else:
        try:
            boxes = _boxes(path.parent / "detection.json") if stamp else None
        except TriptychError as error:
            yield Reject("boxes", image_id, str(error))
    group = f"subject {image.subject}" if image.subject else ""
    questions = [dict(zip(KEPT, question, strict=True)) for question in image.questions]
    yield Item(image_id, image.name, place, image.part, group=group, boxes=boxes, questions=questions, stamp=stamp)


def _require_counts(met: _Met, expected: Mapping[str, int], folder: Path) -> None:
    found = {split: met.asked[split] for split in SPLITS} | {"images": len(met.images)}
    wrong = [f"{name}: {found[name]} instead of {number}" for name, number in expected.items() if found[name] != number]
    if wrong:
        raise TriptychError(
            f"{folder}: not the expected numbers of questions and images ({'; '.join(wrong)}). The copy is incomplete "
            "or another version: get it again, or change the key `expected` of the data set"
        )


def _require_pictures(missing: list[str], folder: Path) -> None:
    """Refuse a copy whose tables are complete and whose pictures are not.

    Raises:
        TriptychError: pictures are missing or empty.
    """
    if missing:
        raise TriptychError(
            f"{folder / 'imgs'}: {len(missing)} pictures that the tables name are missing or empty, such as "
            f"{missing[0]!r}. The copy is incomplete: get it again, or leave out the key `expected` of the data set"
        )


def _english_parts(folder: Path) -> dict[str, str]:
    return {
        _stated_id(row.get("img_id")): split
        for split in SPLITS
        for _, row in rows_of_part(folder / f"{split}.json", say=False)
        if language_of(row) == "en"
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
            [str(name), [float(side) for side in box]] for entry in read_json_file(file) for name, box in entry.items()
        ]
        if any(len(box) != 4 or not all(map(isfinite, box)) for _, box in found):
            raise ValueError("a box has four numbers")
        if found and 0 < max(max(box) for _, box in found) <= 1:
            raise ValueError("a box is left, top, width and height in pixels, not in parts of the image")
        if not all(is_utf8(name) for name, _ in found):
            raise ValueError("a name is not valid UTF-8")
    except (TriptychError, ValueError, AttributeError, TypeError) as error:
        why = str(error).removeprefix(f"{file}: ")
        raise TriptychError(f"{file.parent.name}/{file.name}: not a list of organ boxes ({why})") from None
    return canonical_json(found)
