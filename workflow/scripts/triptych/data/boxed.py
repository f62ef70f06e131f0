"""Which held-out questions ask for something that has a box in their image, by names alone."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import TriptychError
from triptych.io.parquet import read_table
from triptych.utils.seeds import stable_order

Box = tuple[float, float, float, float]  # left, top, width and height in pixels


def named(text: str, boxes: Sequence[tuple[str, Box]]) -> list[Box]:
    """Give the boxes whose names stand in a text.

    Case does not matter, a plural in -s or -es is the same word, and a text without a side means both: "lung" is
    `Left Lung` and `Right Lung`, "left lung" the former alone. The longest name counts: "liver cancer" is no liver.
    """
    left = " ".join(text.lower().split())
    by_word: dict[str, list[tuple[str, Box]]] = defaultdict(list)
    for name, box in boxes:
        side, word = re.fullmatch(r"(left |right |)(.*)", " ".join(name.lower().split())).groups()
        by_word[word].append((side, box))
    found = []
    for word in sorted(filter(None, by_word), key=lambda word: (-len(word), word)):
        pattern = re.compile(rf"\b(left |right |){re.escape(word)}(?:e?s)?\b")
        sides = set(pattern.findall(left))
        found += [box for side, box in by_word[word] if sides and ("" in sides or side in sides or not side)]
        left = pattern.sub("#", left)
    return found


def asked_for(row: dict, boxes: Sequence[tuple[str, Box]]) -> list[Box]:
    """Give the boxes of what a question names, or, where it names none, of what its gold answer names."""
    return named(row["question"], boxes) or named(row["answer"], boxes)


def boxed_questions(data: Path, images: int, questions: int) -> list[dict]:
    """Choose held-out questions about boxes, the same for every fold, seed and schedule.

    Images and the questions of each are taken in a seeded order that depends on their ids alone.

    Args:
        data: folder of the data set with folds.
        images: most images, of all folds together.
        questions: most questions about each.

    Returns:
        Rows of the question table with `fold`, which holds them out, `boxes` (of what is asked for, in pixels),
        `width` and `height`; the questions of an image follow each other.

    Raises:
        TriptychError: there is none.
    """
    fold_of = {row["question_id"]: row["fold"] for row in read_table(data / "folds.parquet") if row["part"] == "test"}
    sizes = {row["id"]: row for row in read_table(data / "images", ["id", "width", "height", "boxes"]) if row["boxes"]}
    found: dict[str, list[dict]] = defaultdict(list)
    for row in read_table(data / "questions.parquet"):
        if row["question_id"] in fold_of and (image := sizes.get(row["image_id"])):
            boxes = [box for box in asked_for(row, json.loads(image["boxes"])) if _within(box, image)]
            if boxes:
                about = {"fold": fold_of[row["question_id"]], "boxes": boxes}
                found[row["image_id"]].append({**row, **about, "width": image["width"], "height": image["height"]})
    if not found:
        raise TriptychError(
            f"{data}: no held-out question names something that has a box in its image (organ boxes, as SLAKE's "
            "detection.json has them); set evaluation.occlusion: null"
        )
    order = sorted(found, key=lambda image: stable_order(0, "occlusion", image))[:images]
    return [row for image in order for row in sorted(found[image], key=_order)[:questions]]


def _order(row: dict) -> bytes:
    return stable_order(0, "occlusion", row["question_id"])


def _within(box: Box, image: dict) -> bool:
    left, top, width, height = box
    across = min(left + width, image["width"]) - max(left, 0)
    return across > 0 and min(top + height, image["height"]) - max(top, 0) > 0
