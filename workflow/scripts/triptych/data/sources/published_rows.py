"""Rows of VQA-RAD and PathVQA as they are published: Parquet files of the hub, or VQA-RAD's JSON file and images."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.data.sources.image_names import locate
from triptych.errors import TriptychError, message_of
from triptych.io.atomic import resolve_under
from triptych.io.json_list import read_json_list
from triptych.io.manifest import sha256_bytes
from triptych.io.text import Unreadable, kind_of

PARTS = ("train", "validation", "test")

# Published on the hub, with these parts.
HUB = {"vqa-rad": "flaviagiammarino/vqa-rad", "path-vqa": "flaviagiammarino/path-vqa"}
HUB_PARTS = {"vqa-rad": ("train", "test"), "path-vqa": PARTS}
BATCH = 32  # Parquet rows held at a time

# VQA-RAD as published at OSF. Its read-me writes "paraphrase" where its file has "para"; copies that others prepared
# hold the framed questions as rows of their own.
OSF_JSON = "VQA_RAD Dataset Public.json"
OSF_IMAGES = "VQA_RAD Image Folder"
PHRASE_PARTS = dict.fromkeys(("freeform", "para", "paraphrase", "frame"), "train")
PHRASE_PARTS |= {f"test_{phrase}": "test" for phrase in PHRASE_PARTS}

# The question types that VQA-RAD's paper describes; its file has slips of the pen, and several types in one cell.
QUESTION_TYPES = ("ABN", "ATTRIB", "COLOR", "COUNT", "MODALITY", "ORGAN", "OTHER", "PLANE", "POS", "PRES", "SIZE")
SLIPS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}


@dataclass(frozen=True)
class Published:
    """One row of a published data set, unchecked.

    Attributes:
        shown: what `rejects.json` has of the row, so that it can be found again.
        fields: question, answer and, where the source has them, qid, answer_type, question_type, image_organ.
        part: its official part.
        error: why the row cannot be used; empty where nothing is wrong so far.
        read: gives the image's bytes.
    """

    shown: Any
    fields: dict
    part: str
    error: str
    read: Callable[[], bytes]


class UnusableRowError(Exception):
    """One row cannot be used; the message is its reason in `rejects.json`."""


def published(name: str, source: Path) -> tuple[str, Iterator[Published]]:
    """Find the layout of a published folder, and read its rows.

    Raises:
        TriptychError: the folder has no known layout, or only pickles; also while the rows are read.
    """
    if name == "vqa-rad" and (source / OSF_JSON).is_file():
        return "osf", vqa_rad_rows(source)
    shards = hub_shards(source, HUB_PARTS[name])
    if shards:
        return "hub", hub_rows(shards)
    pickled = next((path for kind in ("*.pkl", "*.pickle") for path in sorted(source.rglob(kind))), None)
    if pickled:
        raise TriptychError(
            f"{pickled}: is a pickle, and loading one may run any code, so Triptych never does; use the Parquet layout "
            f"of the hub data set {HUB[name]} (data/train-*.parquet and so on) instead"
        )
    known = f"the hub data set {HUB[name]} with its data/train-*.parquet"
    if name == "vqa-rad":
        known = f"the OSF layout ('{OSF_JSON}' beside '{OSF_IMAGES}') or {known}"
    raise TriptychError(f"{source}: --from must name a folder with {known}")


def vqa_rad_rows(source: Path) -> Iterator[Published]:
    """Read VQA-RAD's OSF layout: one JSON list and a folder of images.

    Raises:
        TriptychError: the JSON is not a list, or the folder of images is missing.
    """
    file = source / OSF_JSON
    rows = read_json_list(file, "a list of records, as VQA-RAD publishes it", "download it again")
    images = source / OSF_IMAGES
    if not images.is_dir():
        raise TriptychError(f"{images}: no such folder; it holds the images that {OSF_JSON} names")
    for row in rows:
        fields = row if isinstance(row, dict) else {}
        needed = ("qid", "phrase_type", "image_name", "question", "answer")
        missing = [key for key in needed if fields.get(key) is None]
        phrase = str(fields.get("phrase_type")).strip().lower()
        error = f"lacks {', '.join(missing)}" if missing else ""
        if not isinstance(row, dict):
            error = f"is {kind_of(row)}, not a record"
        elif not error and phrase not in PHRASE_PARTS:
            error = f"phrase_type is none of {', '.join(PHRASE_PARTS)}: {fields['phrase_type']!r}"
        read = partial(_read_named, images, fields.get("image_name"))
        shown = kind_of(row) if isinstance(row, Unreadable) else row
        yield Published(shown, fields, PHRASE_PARTS.get(phrase, ""), error, read)


def question_type(stated: str) -> str:
    """Give the published question type of a cell, the first that it names; empty where it names none."""
    words = (SLIPS.get(word, word) for word in re.findall(r"[A-Z]+", stated.upper()))
    return next((word for word in words if word in QUESTION_TYPES), "")


def _read_named(images: Path, name: Any) -> bytes:
    if not isinstance(name, str) or not name.strip():
        raise UnusableRowError(f"image_name is not a name: {str(name)[:60]!r}")
    try:
        return resolve_under(images, locate(images, name)[0]).read_bytes()
    except TriptychError:
        raise UnusableRowError(f"image_name {name!r} leads out of '{OSF_IMAGES}'") from None
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a ring of links
        why = getattr(error, "strerror", None) or "not a usable name"
        raise UnusableRowError(f"its image cannot be read: {name!r}, {why}") from None


def hub_shards(source: Path, parts: Iterable[str]) -> dict[str, list[Path]]:
    """Find the Parquet files of every part of a hub data set, in its folder or below `data/`; empty without any.

    Raises:
        TriptychError: some part, or a shard of one, is missing.
    """
    for folder in (source / "data", source):
        shards = {part: sorted(folder.glob(f"{part}-*.parquet")) for part in parts}
        if any(shards.values()):
            break
    else:
        return {}
    for part, files in shards.items():
        if not files:
            raise TriptychError(f"{folder}: has no {part}-*.parquet; download all parts of the data set")
        numbers = [re.match(rf"{part}-(\d+)-of-(\d+)", file.name) for file in files]
        if all(numbers):
            found = sorted((int(number[1]), int(number[2])) for number in numbers if number)
            if found != [(index, len(found)) for index in range(len(found))]:
                raise TriptychError(
                    f"{folder}: the shards of part '{part}' are not complete and of one kind: "
                    f"{', '.join(file.name for file in files)}; download all of them into an empty folder"
                )
    return shards


def hub_rows(shards: dict[str, list[Path]]) -> Iterator[Published]:
    """Read Parquet files with the columns image {bytes, path}, question and answer, some rows at a time.

    Raises:
        TriptychError: a file is not Parquet or lacks a column.
    """
    for part, files in shards.items():
        for file in files:
            for row in _parquet_rows(file):
                image = row["image"] or {}
                data = image.get("bytes")
                shown = {"part": part, "image": image.get("path"), "question": row["question"], "answer": row["answer"]}
                if data:
                    shown["sha256"] = sha256_bytes(data)
                missing = [key for key in ("question", "answer") if row[key] is None] + ["image"] * (not data)
                error = f"lacks {', '.join(missing)}" if missing else ""
                yield Published(shown, row, part, error, lambda data=data: data)


def _parquet_rows(file: Path) -> Iterator[dict]:
    columns = ["image", "question", "answer"]
    try:
        # Without a buffer, or with pre_buffer, Arrow would hold whole row groups of images, or all of them.
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
            schema = table.schema_arrow
            for column in columns:
                if column not in schema.names:
                    raise TriptychError(f"{file}: has no column '{column}', only {', '.join(schema.names)}")
            image = schema.field("image").type
            if not pa.types.is_struct(image) or "bytes" not in [field.name for field in image]:
                raise TriptychError(f"{file}: column 'image' is {image}, not a struct with the field 'bytes'")
            for batch in table.iter_batches(batch_size=BATCH, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TriptychError(f"{file}: cannot be read as Parquet ({message_of(error)}); download it again") from None
