"""Rewrite a published data set (VQA-RAD, PathVQA) in SLAKE's layout, with every image in one part only.

docs/other-datasets.md says which field becomes which. Everything of the source ends in a part or in `rejects.json`.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triptych.data.formats.recognise import FORMATS, SUFFIXES_OF, describe_unusable, format_of
from triptych.data.images import inspect
from triptych.data.rejects import LOUD, cause, top_causes
from triptych.data.schemas import ANSWER_TYPES, STRICTEST, UNKNOWN
from triptych.data.sources.conversations import closed_or_open
from triptych.data.sources.published_rows import (
    HUB,
    HUB_PARTS,
    PARTS,
    Published,
    UnusableRowError,
    published,
    question_type,
)  # fmt: skip
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import atomic_directory, write_text
from triptych.io.manifest import sha256_bytes, write_json
from triptych.io.text import plain_text
from triptych.utils.seeds import stable_order
from triptych.utils.terminal import announce

MODALITY = {"vqa-rad": "Radiology", "path-vqa": "Pathology"}
MANIFEST = "conversion.json"


@dataclass(frozen=True)
class Split:
    """How images are put into parts.

    Attributes:
        mode: `image` ignores the official parts and hashes every image; `official` keeps them.
        validation: share of the images for validation; with `official` only used where the source has no such part.
        test: share of the images for test; not used with `official`.
        seed: another seed gives other parts.
    """

    mode: Literal["image", "official"]
    validation: float = 0.1
    test: float = 0.15
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A checked row.

    Attributes:
        shown: as `Published.shown`.
        slake: the row in SLAKE's layout.
        image: name of its image, which is written already.
        part: its official part.
        folded: what was made of its question type where the published types have no such: `PRSE -> PRES`.
    """

    shown: Any
    slake: dict
    image: str
    part: str
    folded: str = ""


def convert(name: str, source: Path, out: Path, split: Split) -> dict:
    """Write a published data set into `out` in SLAKE's layout.

    The files depend on the rows alone, not on their order, nor on how they are cut into shards.

    Args:
        name: `vqa-rad` or `path-vqa`.
        source: folder of the published files.
        out: folder to write; an earlier conversion in it is replaced, anything else is left alone.
        split: how images are put into parts.

    Returns:
        The counts that are also in `conversion.json`.

    Raises:
        TriptychError: the folder has no known layout, a file cannot be read, a share makes no sense, `out` holds other
            files, or a part would be empty.
    """
    _check_shares(split)
    _check_folders(source, out)
    layout, rows = published(name, source)
    with atomic_directory(out) as folder:
        (folder / "imgs").mkdir()
        questions: list[Question] = []
        rejects: list[dict] = []
        for row in rows:
            try:
                questions.append(_checked(row, name, folder / "imgs"))
            except UnusableRowError as reason:
                rejects.append({"row": row.shown, "reason": str(reason)})
        seen = len(questions) + len(rejects)
        questions, repeats = without_repeats(questions)
        rejects += repeats
        parts = assign_parts(questions, split, has_validation="validation" in HUB_PARTS[name])
        tables: dict[str, list[dict]] = {part: [] for part in PARTS}
        for question in questions:
            tables[parts[question.image]].append(question.slake)
        for part, members in tables.items():
            if not members:
                raise TriptychError(
                    f"{source}: part '{part}' would be empty ({seen} rows, {len(rejects)} rejected"
                    + (f": {_causes(rejects)}" if rejects else "")
                    + "); check the folder, or change --validation, --test or --seed"
                )
            write_json(folder / f"{part}.json", sorted(members, key=lambda row: (row["img_id"], row["qid"])))
        for path in (folder / "imgs").iterdir():
            if path.name not in parts:  # all its questions repeat others
                path.unlink()
        # Escaped, since a row may be here for what UTF-8 cannot hold.
        text = json.dumps(sorted(rejects, key=_sortable), indent=2, sort_keys=True)
        write_text(folder / "rejects.json", text + "\n")
        counts = _counts(questions, parts)
        summary = {"dataset": name, "layout": layout, "split": vars(split), "seen": seen, "accepted": len(questions)}
        summary |= {"rejected": len(rejects), "causes": _causes(rejects), **counts}
        write_json(folder / MANIFEST, summary)
    return summary


def _checked(row: Published, name: str, images: Path) -> Question:
    """Check a row and bring it into SLAKE's layout; its image is written unless it is there already.

    Raises:
        UnusableRowError: the row cannot be used.
    """
    if row.error:
        raise UnusableRowError(row.error)
    question, answer = (_text(row.fields, key) for key in ("question", "answer"))
    for key, text in (("question", question), ("answer", answer)):
        if not text:
            raise UnusableRowError(f"{key} is empty")
    answer_type = _text(row.fields, "answer_type").upper()
    if answer_type not in ("", *ANSWER_TYPES):
        raise UnusableRowError(f"answer_type is neither OPEN nor CLOSED: {answer_type[:60]!r}")
    stated, location = (_text(row.fields, key).upper() for key in ("question_type", "image_organ"))
    content_type = question_type(stated) or UNKNOWN
    qid = _text(row.fields, "qid")
    data, suffix = _image(row.read())
    image_id = sha256_bytes(data)[:16]
    path = images / f"{image_id}.{suffix}"
    if not path.exists():
        path.write_bytes(data)
    slake = {
        "qid": qid or sha256_bytes("\x1f".join([image_id, question, answer]).encode())[:16],
        "img_id": image_id,
        "img_name": path.name,
        "question": question,
        "answer": answer,
        "q_lang": "en",
        "location": location or UNKNOWN,
        "modality": MODALITY[name],
        "answer_type": answer_type or closed_or_open(answer),
        "base_type": "vqa",
        "content_type": content_type,
        "triple": ["vhead", "_", "_"],
    }
    folded = f"{stated} -> {content_type}" if stated not in ("", content_type) else ""
    return Question(row.shown, slake, path.name, row.part, folded)


def _image(data: bytes) -> tuple[bytes, str]:
    """The file to write and its suffix: the image as it is, of DICOM the displayed values, without its header.

    Raises:
        UnusableRowError: it is of no format that is read.
    """
    kind = format_of(data)
    if kind not in FORMATS:
        raise UnusableRowError(f"the image {describe_unusable(data)}")
    if kind != "DICOM":
        return data, SUFFIXES_OF[kind][0]
    try:
        return inspect(data).data, SUFFIXES_OF["PNG"][0]
    except TriptychError as error:
        raise UnusableRowError(f"the image: {error}") from None


def _text(fields: dict, key: str) -> str:
    """A field as text on one line; numbers are answers too (how many lesions: 3)."""
    value = fields.get(key)
    try:
        return "" if value is None else " ".join(plain_text(value).split())
    except TriptychError as error:
        raise UnusableRowError(f"{key} {error}") from None


def without_repeats(questions: list[Question]) -> tuple[list[Question], list[dict]]:
    """Questions with one row for each image, question and answer, and for each qid; and the rejects that this makes.

    Of equal rows, the one of the strictest official part stays.
    """

    def triplet(question: Question) -> tuple[str, str, str]:
        return question.image, question.slake["question"], question.slake["answer"]

    def order(question: Question) -> tuple:
        qid = question.slake["qid"]
        return *triplet(question), STRICTEST.index(question.part), len(qid), qid, _sortable(question.shown)

    kept: list[Question] = []
    rejects: list[dict] = []
    triplets: set[tuple] = set()
    qids: set[str] = set()
    for question in sorted(questions, key=order):
        qid = question.slake["qid"]
        if triplet(question) in triplets:
            rejects.append({"row": question.shown, "reason": "repeats image, question and answer of another row"})
        elif qid in qids:
            rejects.append({"row": question.shown, "reason": f"repeats the qid of another row: {qid}"})
        else:
            kept.append(question)
            triplets.add(triplet(question))
            qids.add(qid)
    return kept, rejects


def assign_parts(questions: list[Question], split: Split, has_validation: bool) -> dict[str, str]:
    """The part of every image: one only, whatever the official parts of its questions are.

    Args:
        questions: checked rows.
        split: how to choose.
        has_validation: whether the source has an official validation part.
    """
    official = _official_parts(questions)
    if split.mode == "image":
        return {image: hashed_part(image, split.seed, split.validation, split.test) for image in official}
    parts = {image: next(part for part in STRICTEST if part in stood) for image, stood in official.items()}
    if has_validation:
        return parts
    return {
        image: hashed_part(image, split.seed, split.validation, test=0.0) if part == "train" else part
        for image, part in parts.items()
    }


def hashed_part(image: str, seed: int, validation: float, test: float) -> str:
    """Part of an image by a hash of its bytes (its name is one) and the seed; the other images do not matter."""
    share = int.from_bytes(stable_order(seed, "part", Path(image).stem)[:8], "big") / 2**64
    return "test" if share < test else "validation" if share < test + validation else "train"


def _official_parts(questions: Iterable[Question]) -> dict[str, set[str]]:
    official: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        official[question.image].add(question.part)
    return official


def _counts(questions: list[Question], parts: dict[str, str]) -> dict:
    moves = Counter(
        f"{question.part} -> {parts[question.image]}"
        for question in questions
        if question.part != parts[question.image]
    )
    images, rows = Counter(parts.values()), Counter(parts[question.image] for question in questions)
    return {
        "images": {part: images[part] for part in PARTS},
        "questions": {part: rows[part] for part in PARTS},
        "images_in_several_official_parts": sum(len(stood) > 1 for stood in _official_parts(questions).values()),
        "questions_moved": dict(sorted(moves.items())),
        "content_types_folded": dict(sorted(Counter(row.folded for row in questions if row.folded).items())),
    }


def _causes(rejects: list[dict]) -> str:
    return top_causes(Counter(cause(row["reason"]) for row in rejects))


def _sortable(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _check_shares(split: Split) -> None:
    for name, share in (("validation", split.validation), ("test", split.test)):
        if not 0 < share < 1:
            raise TriptychError(f"--{name}: {share} is not a share between 0 and 1")
    if split.validation + split.test >= 1:
        raise TriptychError(f"--validation {split.validation} and --test {split.test} leave nothing to train on")


def _check_folders(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise TriptychError(f"{source}: no such folder; --from names the folder of the published files")
    # `out` is replaced whole, so it must hold nothing that was not made here.
    if source.resolve().is_relative_to(out.resolve()):
        raise TriptychError(f"{out}: holds the published files themselves; --out must name another folder")
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise TriptychError(f"{out}: is there already and is no earlier conversion; name a new or empty folder")


def _report(summary: dict) -> str:
    lines = [
        f"{summary['dataset']}, {summary['layout']} layout: {summary['seen']} rows, {summary['accepted']} accepted, "
        f"{summary['rejected']} rejected (rejects.json says why)",
        f"images with questions in several official parts: {summary['images_in_several_official_parts']}",
    ]
    moved = summary["questions_moved"]
    lines.append(f"questions that moved part: {sum(moved.values())} of {summary['accepted']}")
    lines += [f"  {move}: {number}" for move, number in moved.items()]
    if folded := summary["content_types_folded"]:
        lines.append(f"question types brought to the published ones: {sum(folded.values())} of {summary['accepted']}")
        lines += [f"  {change}: {number}" for change, number in folded.items()]
    lines += [f"{part}: {summary['images'][part]} images, {summary['questions'][part]} questions" for part in PARTS]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych convert`."""
    parser = argparse.ArgumentParser(
        prog="triptych convert",
        description=main.__doc__,
        epilog="example: triptych convert vqa-rad --from /data/VQA_RAD --out /data/vqa-rad-slake",
    )
    parser.add_argument("dataset", choices=sorted(HUB))
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--split",
        choices=("image", "official"),
        help="image: hash every image into a part (default for vqa-rad, whose official parts share images); "
        "official: keep the official parts, an image of several goes to the first of test, validation, train "
        "(default for path-vqa)",
    )
    parser.add_argument("--validation", type=float, default=Split.validation, help="share of images (%(default)s)")
    parser.add_argument("--test", type=float, default=Split.test, help="share of images (%(default)s)")
    parser.add_argument("--seed", type=int, default=Split.seed, help="another seed gives other parts (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite a published data set in SLAKE's layout; every image ends in one part only."""
    arguments = build_parser().parse_args(arguments)
    mode = arguments.split or {"vqa-rad": "image", "path-vqa": "official"}[arguments.dataset]
    split = Split(mode, arguments.validation, arguments.test, arguments.seed)
    summary = convert(arguments.dataset, arguments.source.expanduser(), arguments.out.expanduser(), split)
    print(_report(summary))
    if (share := summary["rejected"] / summary["seen"]) > LOUD:
        announce(f"warning: {100 * share:.1f} % of the rows were rejected. {summary['causes']}", warning=True)


if __name__ == "__main__":
    run_step(main)
