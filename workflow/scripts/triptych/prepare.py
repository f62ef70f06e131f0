"""Step: choose among a source's checked pictures, and write pictures, questions and rejects as Parquet.

Captions and medical questions end in the same two tables, so that every later step reads one format: a caption is the
answer to one fixed question.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from triptych.blocks import BLOCK, block_keys, block_path, ensure_block, planned_blocks, read_candidates
from triptych.blocks import SCHEMA as BLOCK_SCHEMA
from triptych.pictures import normalised
from triptych.settings import Captions, Dataset
from triptych.sources import source_module
from triptych.sources.fetch import QUESTION_SCHEMA, REJECT_SCHEMA
from triptych.sources.packages import default_cache
from triptych.sources.slake import QUESTION_FIELDS
from triptych.storage import (
    PICTURE_TABLE,
    ROW_GROUP,
    TableWriter,
    TriptychError,
    atomic_path,
    read_table,
    run_step,
    sha256_file,
    write_json,
    write_text,
)

TABLES = ("images.parquet", "questions.parquet", "rejects.parquet")
PHASH_BITS = 10  # near-duplicates differ in at most this many of 64
CORRELATION = 0.98  # and their thumbnails correlate more than this
IMAGE_SCHEMA = pa.schema(
    [field for field in BLOCK_SCHEMA if field.name != "reason"] + [pa.field("source", pa.string())],
    # Makes `datasets.load_dataset("parquet", ...)` show the column as pictures.
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)


class SeenBefore:
    """Finds pictures that were taken already, or nearly: the first of them is kept.

    A near-duplicate has a pHash within `PHASH_BITS` bits and a thumbnail that correlates above `CORRELATION`.
    """

    def __init__(self, keep_near: bool):
        self.keep_near = keep_near
        self.captions: dict[str, set[str]] = defaultdict(set)  # by sha256: of one picture and its exact copies
        self.ids: list[str] = []
        self.by_hash: dict[str, str] = {}
        self.hashes = np.zeros(1024, np.uint64)
        self.thumbnails = np.zeros((1024, BLOCK_SCHEMA.field("thumbnail").type.byte_width), np.uint8)

    def reason(self, row: dict) -> str | None:
        """Why `row` is a duplicate; None where it is new, and it is remembered then."""
        self.captions[row["sha256"]].add(row["caption"] or "")
        if first := self.by_hash.get(row["sha256"]):
            return f"the same picture as {first}"
        number, phash = len(self.ids), np.uint64(int(row["phash"], 16))
        thumbnail = np.frombuffer(row["thumbnail"], np.uint8)
        if not self.keep_near:
            near = np.flatnonzero(np.bitwise_count(self.hashes[:number] ^ phash) <= PHASH_BITS)
            if len(near):
                rows = normalised(np.concatenate([thumbnail[None], self.thumbnails[near]]))
                likeness = rows[1:] @ rows[0]
                if likeness.max() > CORRELATION:
                    return f"nearly the same picture as {self.ids[near[int(likeness.argmax())]]}"
        if number == len(self.hashes):
            self.hashes = np.concatenate([self.hashes, np.zeros_like(self.hashes)])
            self.thumbnails = np.concatenate([self.thumbnails, np.zeros_like(self.thumbnails)])
        self.hashes[number], self.thumbnails[number] = phash, thumbnail
        self.ids.append(row["id"])
        self.by_hash[row["sha256"]] = row["id"]
        return None

    def suspects(self) -> Iterator[str]:
        """Lines about pictures that stand under three captions or more: they often mean "not available"."""
        for sha256, captions in self.captions.items():
            if len(captions) > 2:
                yield (
                    f"picture {self.by_hash[sha256]} stands under {len(captions)} captions: is it a placeholder? "
                    f"Then add {sha256} to `placeholders`"
                )


def checked_batches(settings: Dataset, source: Path, cache: Path) -> Iterator[pa.RecordBatch]:
    """Rows of all checked candidates in order, a row group at a time; blocks that no shard made are made here."""
    candidates = read_candidates(source)
    keys = block_keys(candidates, settings)
    planned = planned_blocks(candidates, settings)
    with source_module(settings).reader(settings, cache) as read:
        for number, key in enumerate(keys):
            rows = candidates[number * BLOCK : (number + 1) * BLOCK]
            if number == planned:
                print("the spares did not suffice: reading further pictures", flush=True)
            ensure_block(rows, settings, read, block_path(cache, key))
            # Without these two, the whole file would stay in memory.
            table = pq.ParquetFile(block_path(cache, key), buffer_size=1 << 20, pre_buffer=False)
            yield from table.iter_batches(ROW_GROUP)


def write_dataset(settings: Dataset, source: Path, cache: Path, out: Path) -> dict:
    """Write the three tables into `out`, in one pass over the checked pictures.

    Returns:
        Counts: pictures and questions per split, rejects by kind, and how many pictures were looked at.

    Raises:
        TriptychError: a caption source has fewer usable pictures than asked for, or a question set has none.
    """
    is_captions = isinstance(settings, Captions)
    wanted = settings.size if is_captions else None
    questions = defaultdict(list)
    for row in read_table(source / "questions.parquet"):
        questions[row["image_id"]].append(row)
    before = SeenBefore(settings.keep_near_duplicates) if is_captions else None
    counts = {"images": Counter(), "questions": Counter(), "rejects": Counter()}
    reasons: Counter[str] = Counter()
    seen = 0
    with ExitStack() as stack:
        paths = [stack.enter_context(atomic_path(out / table)) for table in TABLES]
        options = (PICTURE_TABLE, {"compression": "zstd"}, {"compression": "zstd"})
        images, asked, rejects = (
            stack.enter_context(TableWriter(path, schema, **how))
            for path, schema, how in zip(paths, (IMAGE_SCHEMA, QUESTION_SCHEMA, REJECT_SCHEMA), options, strict=True)
        )

        def reject(kind: str, name: str, reason: str) -> None:
            rejects.add({"kind": kind, "id": name, "reason": reason})
            counts["rejects"][kind] += 1

        for row in read_table(source / "rejects.parquet"):
            reject(row["kind"], row["id"], row["reason"])
        for batch in checked_batches(settings, source, cache):
            taken = []
            facts = batch.drop_columns(["image"]).to_pylist()
            names = pc.struct_field(batch.column("image"), "path").to_pylist()
            for position, (row, name) in enumerate(zip(facts, names, strict=True)):
                if counts["images"].total() == wanted:
                    break
                seen += 1
                reason = row["reason"] or (before and before.reason(row))
                if reason:
                    reject("image", row["id"], f"{name}: {reason}")
                    reasons[reason.split(":")[0].split(" as ")[0]] += 1
                    for question in questions[row["id"]]:
                        told = f"its image {name} was rejected: {reason}"
                        reject("question", question["question_id"], told)
                    continue
                taken.append(position)
                rows = [_caption_question(row, settings)] if is_captions else questions[row["id"]]
                for question in rows:
                    asked.add(question)
                counts["images"][row["split"]] += 1
                counts["questions"][row["split"]] += len(rows)
            chosen = batch.drop_columns(["reason"]).take(pa.array(taken, pa.int64()))
            images.add_batch(chosen.append_column("source", pa.array([settings.source] * len(taken), pa.string())))
            if counts["images"].total() == wanted:
                break
        if wanted is not None and counts["images"].total() < wanted:
            told = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common(4))
            raise TriptychError(
                f"{wanted} pictures were asked for, but only {counts['images'].total()} of {seen} could be used. "
                f"Rejected: {told or 'none'}. Lower `sizes`, or give the source more pictures"
                + (" (raise `spares`, so that more are downloaded)" if settings.source == "url-list" else "")
            )
        if not counts["questions"]:
            raise TriptychError(f"{out}: the source gave no usable question; {counts['rejects'].total()} were rejected")
        for line in before.suspects() if before else ():
            print(f"warning: {line}", flush=True)
    return {**{name: dict(sorted(counter.items())) for name, counter in counts.items()}, "seen": seen}


def _caption_question(row: dict, settings: Captions) -> dict:
    """The one question that a caption answers, as a row of QUESTION_SCHEMA."""
    question = {"question_id": row["id"], "image_id": row["id"], "group": row["group"], "split": row["split"]}
    said = {
        "question": settings.question,
        "answer": row["caption"],
        "answer_type": "CAPTION",
        "content_type": "Caption",
    }
    return {**question, **dict.fromkeys(QUESTION_FIELDS, ""), **said}


def main() -> None:
    """Prepare one data set; its manifest is written last."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="the data set's settings as JSON")
    parser.add_argument("--source", type=Path, required=True, help="folder that sources.fetch wrote")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of downloads and blocks")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    settings = TypeAdapter(Dataset).validate_json(arguments.settings)
    counts = write_dataset(settings, arguments.source, arguments.cache, arguments.out)
    card = getattr(source_module(settings), "card", None)
    if card and (text := card(settings, arguments.cache, counts)):
        write_text(arguments.out / "card.md", text)
    manifest = {
        "settings": settings.model_dump(mode="json"),
        "counts": counts,
        "files": {table: sha256_file(arguments.out / table) for table in TABLES},
    }
    write_json(arguments.out / "manifest.json", manifest)
    print(json.dumps(counts))


if __name__ == "__main__":
    run_step(main)
