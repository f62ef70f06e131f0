"""Step: bring a data set's raw files into the cache and list its images; the data step that may need a network."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from triptych.config.datasets import Dataset
from triptych.config.texts import cache_folder
from triptych.data.check import BLOCK, planned_blocks
from triptych.data.rejects import by_cause, forget_failed, keep_failed
from triptych.data.schemas import CANDIDATE_SCHEMA, QUESTION_SCHEMA, REJECT_SCHEMA
from triptych.data.sources import source_module
from triptych.data.sources.base import Item, Reject, clean_caption, hashed_split
from triptych.errors import TriptychError, run_step
from triptych.io.manifest import sha256_file, write_record
from triptych.io.parquet import write_table
from triptych.io.text import as_utf8


def tabulate(found: Iterable[Item | Reject], settings: Dataset) -> tuple[list[dict], list[dict], list[dict]]:
    """Sort what a source lists into rows of candidates, questions and rejects, in its order; captions are cleaned."""
    candidates, questions, rejects = [], [], []
    seen: set[str] = set()
    for item in found:
        if isinstance(item, Reject):
            # Either may hold what UTF-8 cannot: it may be here for that.
            rejects.append({"kind": item.kind, "id": as_utf8(item.id), "reason": as_utf8(item.reason)})
            continue
        caption = item.caption
        try:
            if item.id in seen:
                raise TriptychError(f"its id stands in the source twice: {item.id}")
            if settings.has_captions:
                caption = clean_caption(item.caption, *settings.caption_length)
        except TriptychError as error:
            rejects.append({"kind": "image", "id": item.id, "reason": str(error)})
            continue
        seen.add(item.id)
        split = item.split or hashed_split(settings.seed, item.path, settings.validation_fraction)
        row = {"id": item.id, "path": item.path, "place": item.place, "split": split, "caption": caption}
        row |= {"group": item.group or item.id, "boxes": item.boxes, "stamp": item.stamp}
        candidates.append(row)
        shared = {"image_id": item.id, "group": row["group"], "split": split}
        questions += [{**shared, **question} for question in item.questions]
    return candidates, questions, rejects


def fetch(settings: Dataset, cache: Path, out: Path) -> dict:
    """List a data set into `out`, and bring what is read of it at first into the cache; the manifest is written last.

    Raises:
        TriptychError: the source is unavailable, cannot be read, or gave no image.
    """
    source = source_module(settings)
    candidates, questions, rejects = tabulate(source.listing(settings, cache), settings)
    if not candidates:
        why = keep_failed(out, rejects, by_cause(rejects))
        raise TriptychError(f"the source gave no usable image; {len(rejects)} rows were rejected: {why}")
    forget_failed(out)
    if bring := getattr(source, "bring", None):
        first = candidates[: planned_blocks(len(candidates), settings) * BLOCK]
        bring(settings, cache, [row["place"] for row in first])
    tables = {
        "candidates.parquet": (candidates, CANDIDATE_SCHEMA),
        "questions.parquet": (questions, QUESTION_SCHEMA),
        "rejects.parquet": (rejects, REJECT_SCHEMA),
    }
    for name, (rows, schema) in tables.items():
        write_table(out / name, rows, schema)
    manifest = {
        "source": settings.source,
        "counts": {"candidates": len(candidates), "questions": len(questions), "rejects": len(rejects)},
        "files": {name: sha256_file(out / name) for name in tables},
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
