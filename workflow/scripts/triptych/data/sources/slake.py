"""Medical questions in SLAKE's layout: a local folder, the hub's SLAKE, or the embedded data set built like it.

The folder holds train.json, validation.json and test.json, lists of records, and the images below imgs/. A record's
`subject`, where there is one, is its group; otherwise the image is.
"""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from triptych.config.datasets import Dataset
from triptych.data.schemas import QUESTION_FIELDS, SPLITS
from triptych.data.sources.base import Item, Read, Reject, read_below
from triptych.data.sources.table_files import is_utf8
from triptych.download.huggingface import BROKEN_MEMBER, check_revision, download, open_zip
from triptych.errors import TriptychError
from triptych.io.atomic import atomic_directory, resolve_under
from triptych.io.manifest import canonical_json, read_json

SLAKE = "BoKelvin/SLAKE"


SLAKE_TABLES = ("train.json", "validation.json", "test.json")


SLAKE_KEPT = ("source.jpg", "detection.json")  # of each image's folder; masks are not used


MAX_UNPACKED_BYTES = 2_000_000_000  # of SLAKE's images, which take 0.5 GB: far below a bomb


def slake_folder(cache: Path, revision: str) -> Path:
    """The folder with SLAKE's three tables and `imgs/xmlab<ID>/source.jpg`; downloaded and unpacked once.

    Raises:
        TriptychError: the files cannot be had, or the archive holds links, names that lead out of the folder, no
            images, or more than `MAX_UNPACKED_BYTES`; nothing is left behind then.
    """
    check_revision(SLAKE, revision)
    folder = cache / f"slake-{revision[:12]}"
    if folder.is_dir():
        return folder
    tables = {name: download(SLAKE, name, revision, cache) for name in SLAKE_TABLES}
    images = download(SLAKE, "imgs.zip", revision, cache)
    with atomic_directory(folder) as temporary:
        for name, path in tables.items():
            shutil.copyfile(path, temporary / name)
        _unpack(images, temporary)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    """Write the members that are kept below `folder`, after every member's name and kind has been checked."""
    with open_zip(path) as archive:
        targets = {}
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise TriptychError(f"{path.name}: member {member.filename!r} is a link or device; refused")
            if "\\" in member.filename:
                raise TriptychError(f"{path.name}: member {member.filename!r} has a backslash in its name; refused")
            target = resolve_under(folder, member.filename)
            if PurePosixPath(member.filename).name in SLAKE_KEPT and not member.is_dir():
                targets[target] = member
        # No more than the declared size of a member is ever read out of it.
        if sum(member.file_size for member in targets.values()) > MAX_UNPACKED_BYTES:
            raise TriptychError(f"{path.name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes; refused")
        for target, member in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(archive.read(member))
            except BROKEN_MEMBER as error:
                raise TriptychError(f"{path}: {member.filename!r} cannot be read ({error}); delete the file") from None
    if not any(target.name == "source.jpg" for target in targets):
        raise TriptychError(f"{path.name}: holds no source.jpg; check the revision")


SLAKE_VARIABLE = "TRIPTYCH_SLAKE"


def source_folder(settings: Dataset, cache: Path) -> Path:
    """The folder of a data set; fetched or built where it is not in the cache yet.

    Raises:
        TriptychError: no folder is given, or it cannot be had.
    """
    if settings.source == "slake-hub":
        from triptych.sources.hub import slake_folder

        return slake_folder(cache, settings.revision)
    if settings.source == "embedded-medical":
        from triptych.data.sources.embedded.medical import built_folder

        return built_folder(cache)
    return local_folder(settings)


def local_folder(settings: Dataset) -> Path:
    """The user's folder in SLAKE's layout: TRIPTYCH_SLAKE, or else the setting `folder`.

    Raises:
        TriptychError: neither is given, or the folder lacks a part.
    """
    name = os.environ.get(SLAKE_VARIABLE) or settings.folder
    if not name:
        raise TriptychError(
            f"datasets: no folder is given for SLAKE; set {SLAKE_VARIABLE}=/path/to/slake, or the key `folder` of the "
            "data set. The folder holds train.json, validation.json, test.json and imgs/"
        )
    folder = Path(name).expanduser()
    for part in [*(f"{split}.json" for split in SPLITS), "imgs"]:
        if not (folder / part).exists():
            raise TriptychError(
                f"{folder / part}: not there; {SLAKE_VARIABLE} (or the key `folder`) must name a folder with "
                "train.json, validation.json, test.json and imgs/, as in the hub data set BoKelvin/SLAKE"
                + _hint(folder)
            )
    return folder


def _hint(folder: Path) -> str:
    """What is there instead of the folder's parts, where that is a likely slip."""
    if (folder / "validate.json").exists() and not (folder / "validation.json").exists():
        return "; older copies call it validate.json: rename it"
    if (folder / "imgs.zip").exists() and not (folder / "imgs").exists():
        return "; unpack imgs.zip"
    if below := sorted(folder.glob("*/train.json")):
        return f"; did you mean {below[0].parent}?"
    return ""


def listing(settings: Dataset, cache: Path) -> Iterator[Item | Reject]:
    """Images and questions, in the order of the files; rows that cannot be used, with the reason.

    With Chinese questions an image belongs to the part of its English ones: the two languages' official parts overlap.

    Raises:
        TriptychError: a file is not a list of records, or the counts are not the expected ones.
    """
    folder = source_folder(settings, cache)
    language = getattr(settings, "language", "en")
    tables = {split: _records(folder / f"{split}.json") for split in SPLITS}
    asked = {
        split: [(position, row) for position, row in enumerate(rows) if _is_asked(row, language)]
        for split, rows in tables.items()
    }
    if any(tables.values()) and not any(asked.values()):
        raise TriptychError(f"{folder}: no question has q_lang {language!r}; change the key `language` of the data set")
    if expected := getattr(settings, "expected", None):
        _require_counts(asked, expected, folder)
    home = {} if language == "en" else _english_parts(tables)
    pictures: dict[str, tuple[dict, str, list[dict]]] = {}
    seen: set[str] = set()
    for split, rows in asked.items():
        for position, record in rows:
            question_id = str(record.get("qid", f"{split}.json[{position}]"))
            if reason := _fault(record, question_id in seen):
                yield Reject("question", question_id, f"{split}.json[{position}] {reason}")
                continue
            image_id = str(record["img_id"])
            part = home.get(image_id, split)
            first, owner, questions = pictures.setdefault(image_id, (record, part, []))
            if owner != part or first["img_name"] != record["img_name"]:
                reason = f"{split}.json[{position}]: image {image_id} already belongs to {owner}.json"
                yield Reject("question", question_id, reason)
                continue
            seen.add(question_id)
            row = {name: str(record[name]).strip() for name in QUESTION_FIELDS}
            questions.append({"question_id": question_id, **row})
    for image_id, (record, part, questions) in pictures.items():
        boxes, stamp, name = None, "", record["img_name"]
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
        subject = record.get("subject")
        group = "" if subject is None or not str(subject).strip() else f"subject {subject}"
        yield Item(image_id, name, name, part, group=group, boxes=boxes, questions=questions, stamp=stamp)


@contextmanager
def reader(settings: Dataset, cache: Path) -> Iterator[Read]:
    """Read images below imgs/ by name."""
    root = source_folder(settings, cache) / "imgs"

    def read(place: str) -> bytes:
        return read_below(root, place)

    yield read


def _records(file: Path) -> list[dict]:
    records = read_json(file)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise TriptychError(f"{file}: must be a list of records, as in SLAKE")
    return records


def _is_asked(record: dict, language: str) -> bool:
    return language == "both" or record.get("q_lang", language) == language


def _fault(record: dict, known: bool) -> str | None:
    """Why a record cannot be used; None where it can."""
    missing = [key for key in ("qid", "img_id", "img_name", *QUESTION_FIELDS) if record.get(key) is None]
    if missing:
        return f"lacks {', '.join(missing)}"
    texts = [record[key] for key in ("img_name", *QUESTION_FIELDS)]
    if not isinstance(record["img_name"], str) or "\0" in record["img_name"]:
        return "has an img_name that is not a file name"
    if not all(is_utf8(str(text)) for text in (*texts, record["qid"], record["img_id"], record.get("subject"))):
        return "is not valid UTF-8"
    if known:
        return f"repeats qid {record['qid']}"
    if not str(record["question"]).strip() or not str(record["answer"]).strip():
        return "has an empty question or answer"
    return None


def _require_counts(asked: dict[str, list], expected: dict[str, int], folder: Path) -> None:
    found = {split: len(rows) for split, rows in asked.items()}
    found["images"] = len({str(record.get("img_id")) for rows in asked.values() for _, record in rows})
    wrong = [f"{name}: {found[name]} instead of {number}" for name, number in expected.items() if found[name] != number]
    if wrong:
        raise TriptychError(
            f"{folder}: not the expected numbers of questions and images ({'; '.join(wrong)}). The copy is incomplete "
            "or another version: get it again, or change the key `expected` of the data set"
        )


def _english_parts(tables: dict[str, list[dict]]) -> dict[str, str]:
    return {
        str(record.get("img_id")): split
        for split, rows in tables.items()
        for record in rows
        if record.get("q_lang") == "en"
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


def card(settings: Dataset, cache: Path, counts: dict) -> str | None:
    """The data card of the embedded data set; other folders have none."""
    if settings.source != "embedded-medical":
        return None
    return (source_folder(settings, cache) / "card.md").read_text(encoding="utf-8")
