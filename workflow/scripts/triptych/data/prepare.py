"""Step: choose among a source's checked images, and write images, questions and rejects as Parquet.

Captions and medical questions end in the same two tables, so that every later step reads one format: a caption is the
answer to one fixed question.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from math import inf
from pathlib import Path

import pyarrow as pa
from pydantic import TypeAdapter

from triptych.config.datasets import Captions, Dataset
from triptych.config.texts import cache_folder
from triptych.data.check import BLOCK, Block, Candidates, block_path, ensure_block, row_facts
from triptych.data.duplicates import SeenBefore
from triptych.data.rejects import SUMMARY, cause, causes_of, counted, forget_failed, keep_failed, say_counts
from triptych.data.schemas import IMAGE_SCHEMA, QUESTION_FIELDS, QUESTION_SCHEMA, REJECT_SCHEMA
from triptych.data.sources import source_module
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import atomic_directory, atomic_path, link_or_copy, write_text
from triptych.io.manifest import sha256_file, sha256_json, write_record
from triptych.io.parquet import IMAGE_TABLE, ROW_GROUP, TableWriter, open_table, read_table, stream_table
from triptych.utils.terminal import announce

IMAGES, QUESTIONS, REJECTS = "images", "questions.parquet", "rejects.parquet"
MOST, FEW = 0.5, 3  # a caption of more than this share of the images, and of more than a few, is pointed out
FACTS = ["id", "sha256", "phash", "thumbnail", "split", "group", "caption"]  # what the choice needs to know


def write_dataset(settings: Dataset, source: Path, cache: Path, out: Path) -> dict:
    """Write images, questions and rejects into `out`, in one pass over the checked blocks.

    A block of which every image is taken becomes a part of `images/` as it is, without being copied; of others the
    taken images are written. So the parts' bytes depend on the blocks alone.

    Returns:
        The manifest's entries. counts: images and questions per split, rejects by kind, how many images were looked
        at (seen), and how many were read in a particular way, by the way (read_as); files: hashes of the tables; parts:
        hashes of what the parts of `images/` hold.

    Raises:
        TriptychError: a caption source has fewer usable images than asked for, or a question set has none.
    """
    wanted = settings.size if settings.has_captions else None
    duplicates = SeenBefore(settings.keep_near_duplicates) if settings.has_captions else None
    parts: dict[str, str] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(atomic_directory(out / IMAGES))
        tables = stack.enter_context(_open_tables(source, out))
        read = stack.enter_context(source_module(settings).reader(settings, cache))
        candidates = Candidates(source, settings)
        for number in range(candidates.blocks):
            if number == candidates.planned:
                print("the oversample did not suffice: reading further images", flush=True)
            rows = candidates.block(number)
            block, finish = ensure_block(rows, settings, read, block_path(rows, settings, cache))
            finish()
            taken = _choose(block, rows, settings, duplicates, tables)
            if any(taken):
                name = f"{number:05d}.parquet"
                parts[name] = write_part(block, taken, folder / name)
            if tables.counts["images"].total() == wanted:
                break
        if not settings.has_captions:
            tables.require_all_asked(source)
        _require_enough(tables, settings, out)
        for line in _warnings(tables, duplicates):
            announce(f"warning: {out.name}: {line}", warning=True)
    files = {name: sha256_file(out / name) for name in (QUESTIONS, REJECTS)}
    counts = {name: dict(sorted(counter.items())) for name, counter in tables.counts.items()}
    if tables.notes:
        counts["read_as"] = dict(sorted(tables.notes.items()))
    write_record(out / SUMMARY, tables.causes)
    forget_failed(out)
    return {
        "counts": {**counts, "seen": tables.seen},
        "files": {IMAGES: sha256_json(parts), **files},
        "parts": parts,
    }


class _Tables:
    """The tables of questions and rejects while they are written.

    Attributes:
        counts: images and questions by split, rejects by kind.
        seen: how many images were looked at.
        causes: how often something was rejected, by kind and cause.
        captions: how many images have each caption.
        notes: how many of the images that are used were read in a particular way, by the way.
        rejects: the table of rejects.
    """

    def __init__(self, asked: TableWriter, rejects: TableWriter, questions: Iterator[dict]):
        self._asked, self.rejects = asked, rejects
        self._questions = groupby(questions, key=lambda row: row["image_id"])
        self._next = next(self._questions, None)
        self.counts = {"images": Counter(), "questions": Counter(), "rejects": Counter()}
        self.seen = 0
        self.causes: dict[str, Counter[str]] = defaultdict(Counter)
        self.captions: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def questions_of(self, name: str) -> list[dict]:
        """Give the source's questions about an image, which are stored in the order of its images."""
        if self._next is None or self._next[0] != name:
            return []
        questions = list(self._next[1])
        self._next = next(self._questions, None)
        return questions

    def require_all_asked(self, source: Path) -> None:
        """Refuse a source that has questions about other images, or in another order.

        Raises:
            TriptychError: it has.
        """
        if self._next is not None:
            raise TriptychError(
                f"{source}: its questions are not in the order of its images, from {self._next[0]} on; "
                "delete the folder and run again"
            )

    def accept_image(self, row: dict, questions: list[dict]) -> None:
        """Add an image's questions."""
        for question in questions:
            self._asked.add(question)
        self.counts["images"][row["split"]] += 1
        self.counts["questions"][row["split"]] += len(questions)
        self.captions[row["caption"] or ""] += 1

    def reject(self, kind: str, name: str, reason: str, why: str = "") -> None:
        """Add a reject; `why` is its cause where that is not to be told from the reason."""
        self.rejects.add({"kind": kind, "id": name, "reason": reason})
        self.counts["rejects"][kind] += 1
        self.causes[kind][why or cause(reason)] += 1

    def reject_image(self, name: str, path: str, reason: str) -> None:
        """Add an image to the rejects, with all its questions."""
        self.reject("image", name, f"{path}: {reason}", cause(reason))
        for question in self.questions_of(name):
            row = question["question_id"], f"its image {path} was rejected: {reason}"
            self.reject("question", *row, "its image was rejected")


@contextmanager
def _open_tables(source: Path, out: Path) -> Iterator[_Tables]:
    """Open the tables in `out`, with what the fetch step rejected; they are put in place where the block ends well."""
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                TableWriter(stack.enter_context(atomic_path(out / table)), schema, BLOCK, compression="zstd")
            )
            for table, schema in ((QUESTIONS, QUESTION_SCHEMA), (REJECTS, REJECT_SCHEMA))
        ]
        tables = _Tables(*writers, stream_table(source / "questions.parquet"))
        for row in stream_table(source / "rejects.parquet"):
            tables.reject(row["kind"], row["id"], row["reason"])
            tables.seen += row["kind"] == "image"
        yield tables


def _choose(
    block: Block, candidates: list[dict], settings: Dataset, duplicates: SeenBefore | None, tables: _Tables
) -> list[bool]:
    """Choose among a block's images until there are as many as wanted; tell for each accepted one if it is taken."""
    wanted = settings.size if settings.has_captions else None
    accepted = iter(read_table(block.path, FACTS))
    taken = []
    for position, candidate in enumerate(candidates):
        if tables.counts["images"].total() == wanted:
            break
        tables.seen += 1
        if position in block.rejects:
            tables.reject_image(candidate["id"], *block.rejects[position])
            continue
        row = next(accepted)
        if duplicates and (reason := duplicates.reason(row, candidate["path"])):
            tables.reject_image(row["id"], candidate["path"], reason)
            taken.append(False)
            continue
        tables.accept_image(
            row, [_caption_question(row, settings)] if settings.has_captions else tables.questions_of(row["id"])
        )
        tables.notes.update(block.notes.get(position, ()))
        taken.append(True)
    return taken + [False for _ in accepted]


def _require_enough(tables: _Tables, settings: Dataset, out: Path) -> None:
    """Refuse a data set of too few captioned images, or without questions.

    Raises:
        TriptychError: it is one, or has not all the images of a whole copy where `expected` asks for one.
    """
    rejected = tables.counts["rejects"].total()
    found = tables.counts["images"].total()
    if settings.has_captions and (found < settings.size < inf or not found):
        why = f"Rejected: {keep_failed(out, tables.rejects, tables.causes)}. " if rejected else "None was rejected. "
        raise TriptychError(
            f"{settings.sizes[-1]} images were asked for, but only {found} of {tables.seen} could be used. {why}"
            f"Lower `sizes`, or {settings.more_images}"
        )
    if not tables.counts["questions"]:
        why = keep_failed(out, tables.rejects, tables.causes)
        raise TriptychError(f"{out}: the source gave no usable question; {rejected} were rejected: {why}")
    if getattr(settings, "expected", None) and tables.counts["rejects"]["image"]:
        why = keep_failed(out, tables.rejects, tables.causes)
        lost = tables.counts["rejects"]["image"]
        raise TriptychError(
            f"{out}: {lost} of {tables.seen} images cannot be used, though `expected` asks for a whole copy: {why}. "
            "Get the copy again, or leave out the key `expected` of the data set"
        )


def _warnings(tables: _Tables, duplicates: SeenBefore | None) -> Iterator[str]:
    """Say how images were read, and what is odd about captions: one image under many, or one under many images."""
    for note, number in sorted(tables.notes.items()):
        yield f"{number} images were read as {note}"
    if duplicates is None:
        return
    yield from duplicates.suspects()
    if tables.captions:
        caption, number = tables.captions.most_common(1)[0]
        if number > max(FEW, MOST * tables.captions.total()):
            yield (
                f"{number} of {tables.captions.total()} images have the caption {caption[:60]!r}: "
                "does the key or column of captions name what is said of each image?"
            )


def write_part(block: Block, taken: list[bool], path: Path) -> str:
    """Write the taken images of a block to `path`, and give the hash of its rows.

    Args:
        block: the block.
        taken: which of its accepted images are taken.
        path: file to write; a link to the block where all are taken.
    """
    if all(taken):
        link_or_copy(block.path, path)
        return block.sha256
    start, facts = 0, []
    with open_table(block.path) as table, TableWriter(path, IMAGE_SCHEMA, **IMAGE_TABLE) as part:
        for batch in table.iter_batches(ROW_GROUP):
            chosen = batch.filter(pa.array(taken[start : start + len(batch)]))
            part.add_batch(chosen)
            facts += [row_facts(row) for row in chosen.to_pylist()]
            start += len(batch)
    return sha256_json(facts)


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


def _read_as(notes: dict[str, int]) -> str:
    """The part of the data card on how images were read that could have been read otherwise; empty where none was."""
    if not notes:
        return ""
    lines = ["", "## How images were read", "", "| images | read as |", "|---|---|"]
    return "\n".join([*lines, *(f"| {number} | {note} |" for note, number in notes.items())]) + "\n"


def main() -> None:
    """Prepare one data set; its manifest is written last."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="the data set's settings as JSON")
    parser.add_argument("--source", type=Path, required=True, help="folder that the fetch step wrote")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of downloads and blocks")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    settings = TypeAdapter(Dataset).validate_json(arguments.settings)
    written = write_dataset(settings, arguments.source, arguments.cache, arguments.out)
    card = getattr(source_module(settings), "card", None)
    text = card(settings, arguments.cache, written["counts"]) if card else ""
    if text := text + _read_as(written["counts"].get("read_as", {})):
        write_text(arguments.out / "card.md", text)
    write_record(
        arguments.out / "manifest.json", {"settings": settings.model_dump(mode="json", by_alias=True), **written}
    )
    say_counts(arguments.out.name, counted(written["counts"], causes_of(arguments.out)))


if __name__ == "__main__":
    run_step(main)
