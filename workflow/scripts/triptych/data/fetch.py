"""Step: bring a data set's raw files into the cache and list its images; the data step that may need a network."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pydantic import TypeAdapter

from triptych.config.datasets import Dataset
from triptych.config.texts import cache_folder
from triptych.data.check import BLOCK, planned_blocks
from triptych.data.rejects import cause, forget_failed, keep_failed
from triptych.data.schemas import CANDIDATE_SCHEMA, QUESTION_SCHEMA, REJECT_SCHEMA
from triptych.data.sources import source_module
from triptych.data.sources.base import Item, Reject, clean_caption, hashed_split
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import atomic_path
from triptych.io.manifest import sha256_file, write_record
from triptych.io.parquet import TableWriter, stream_table
from triptych.io.text import as_utf8

TABLES = {"candidates": CANDIDATE_SCHEMA, "questions": QUESTION_SCHEMA, "rejects": REJECT_SCHEMA}


def tabulate(found: Iterable[Item | Reject], settings: Dataset) -> Iterator[tuple[str, dict]]:
    """Give what a source lists as rows of `TABLES`, each with the table's name, in its order; captions are cleaned.

    The questions of an image come after it, before the next image.
    """
    seen: set[str] = set()
    for item in found:
        if isinstance(item, Reject):
            # Either may hold what UTF-8 cannot: it may be here for that.
            yield "rejects", {"kind": item.kind, "id": as_utf8(item.id), "reason": as_utf8(item.reason)}
            continue
        caption = item.caption
        try:
            if item.id in seen:
                raise TriptychError(f"its id stands in the source twice: {item.id}")
            if settings.has_captions:
                caption = clean_caption(item.caption, *settings.caption_length)
        except TriptychError as error:
            yield "rejects", {"kind": "image", "id": item.id, "reason": str(error)}
            continue
        seen.add(item.id)
        split = item.split or hashed_split(settings.seed, item.path, settings.validation_fraction)
        row = {"id": item.id, "path": item.path, "place": item.place, "split": split, "caption": caption}
        row |= {"group": item.group or item.id, "boxes": item.boxes, "stamp": item.stamp}
        yield "candidates", row
        shared = {"image_id": item.id, "group": row["group"], "split": split}
        for question in item.questions:
            yield "questions", {**shared, **question}


def fetch(settings: Dataset, cache: Path, out: Path) -> dict:
    """List a data set into `out`, and bring what is read of it at first into the cache; the manifest is written last.

    Raises:
        TriptychError: the source is unavailable, cannot be read, or gave no image.
    """
    source = source_module(settings)
    counts = dict.fromkeys(TABLES, 0)
    causes: Counter[str] = Counter()
    with ExitStack() as stack:
        tables = {
            name: stack.enter_context(TableWriter(stack.enter_context(atomic_path(out / f"{name}.parquet")), schema))
            for name, schema in TABLES.items()
        }
        for name, row in tabulate(source.listing(settings, cache), settings):
            tables[name].add(row)
            counts[name] += 1
            if name == "rejects":
                causes[cause(row["reason"])] += 1
        for name, number in counts.items():
            if not number:  # an empty group, as earlier versions wrote it: equal tables have equal hashes
                tables[name].add_batch(pa.RecordBatch.from_pylist([], schema=TABLES[name]))
        if not counts["candidates"]:
            why = keep_failed(out, tables["rejects"], {"": causes})
            raise TriptychError(f"the source gave no usable image; {counts['rejects']} rows were rejected: {why}")
    forget_failed(out)
    if bring := getattr(source, "bring", None):
        first = islice(stream_table(out / "candidates.parquet"), planned_blocks(counts["candidates"], settings) * BLOCK)
        bring(settings, cache, [row["place"] for row in first])
    manifest = {
        "source": settings.source,
        "counts": counts,
        "files": {f"{name}.parquet": sha256_file(out / f"{name}.parquet") for name in TABLES},
    }
    if settings.location:
        manifest["folder"] = str(settings.location.resolve())
    write_record(out / "manifest.json", manifest)
    return manifest


def main() -> None:
    """Fetch one data set's raw files and list what they hold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="the data set's settings as JSON")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    settings = TypeAdapter(Dataset).validate_json(arguments.settings)
    manifest = fetch(settings, arguments.cache, arguments.out)
    print(", ".join(f"{number} {name}" for name, number in manifest["counts"].items()))


if __name__ == "__main__":
    run_step(main)
