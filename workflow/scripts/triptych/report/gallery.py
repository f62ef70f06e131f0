"""The gallery of questions: every held-out question with each arm's answer, small images, and commonest confusions."""

import base64
import io
import math
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from triptych.data.answers import answer_key, spellings
from triptych.data.image_table import ImageTable
from triptych.evaluate.metrics import exact_match
from triptych.tables.runs import group_runs

THUMBNAIL = 96  # side in pixels of the images in the gallery
MOST_IMAGES = 1500  # shown as thumbnails: about 4 MB


def _by_number(name: str) -> list[str | int]:
    """Give a key that sorts q2 before q10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split("([0-9]+)", name))]


def questions_and_answers(records: Sequence[dict], arms: Sequence[str]) -> dict:
    """List every held-out question once, by its number, with each arm's answer (of several seeds, the first's).

    Returns:
        `arms`, and `rows` of `id`, `question`, `gold`, `image`, `modality`, `content`, `fold`, and for each arm
        `answers`, `right` (1 or 0) and `sure`: the probability in per cent of the whole answer, or None.
    """
    answers: dict[str, dict[str, dict]] = {}
    for arm, runs in group_runs(records).items():
        for run in runs.values():  # in the order of the seeds
            for record in run:
                answers.setdefault(record["question_id"], {}).setdefault(arm, record)
    rows = []
    for name, by_arm in sorted(answers.items(), key=lambda item: _by_number(item[0])):
        asked = next(iter(by_arm.values()))
        said = [by_arm.get(arm) for arm in arms]
        rows.append(
            {
                "id": name,
                "question": asked["question"],
                "gold": asked["gold"],
                "image": asked["image_id"],
                "modality": asked["modality"],
                "content": asked["content_type"],
                "fold": asked["split"],
                "answers": [record["prediction"] if record else "" for record in said],
                "right": [int(bool(record and exact_match(record))) for record in said],
                "sure": [_sure(record) for record in said],
            }
        )
    return {"arms": list(arms), "rows": rows}


def _sure(record: dict | None) -> int | None:
    logprob = record.get("logprob") if record else None
    return None if logprob is None else round(100 * math.exp(min(logprob, 0.0)))


def packed(browser: dict) -> dict:
    """Write the list of questions shortly: every text stands once, in `texts`, and rows name its place there.

    Returns:
        `arms`, `texts`, and `rows` of id, six places (question, gold answer, image, modality, content, fold), and then
        for each arm three numbers: place of its answer, 1 where it is right, its probability or -1.
    """
    places: dict[str, int] = {}

    def place(text: str) -> int:
        return places.setdefault(text, len(places))

    fields = ("question", "gold", "image", "modality", "content", "fold")
    rows = []
    for row in browser["rows"]:
        line: list = [row["id"], *(place(row[name] or "") for name in fields)]
        for answer, right, sure in zip(row["answers"], row["right"], row["sure"], strict=True):
            line += [place(answer), right, -1 if sure is None else sure]
        rows.append(line)
    return {"arms": browser["arms"], "texts": list(places), "rows": rows}


def first_shown(browser: dict, schedules: int, most: int = 12) -> list[dict]:
    """Choose questions for readers without scripts: those that the first schedules disagree about, else the first."""
    rows = browser["rows"]
    apart = [row for row in rows if len(set(row["right"][:schedules])) > 1]
    return (apart + [row for row in rows if row not in apart[:most]])[:most] if len(apart) < most else apart[:most]


def confusions(records: Sequence[dict], arms: Sequence[str], most: int = 7) -> dict[str, dict]:
    """Count what is answered where the commonest answers are right, over all runs.

    Args:
        records: answers.
        arms: the schedules.
        most: answers that have a row and a column of their own; all others are one column.

    Returns:
        By arm: `answers`, and `rows` of the gold answer, its number, and the shares of `answers` and of all others.
    """
    found = {}
    for arm, runs in group_runs(records).items():
        if arm not in arms:
            continue
        records = [record for run in runs.values() for record in run]
        common = dict(islice(spellings(sorted(record["gold"] for record in records)).items(), most))
        place = {key: number for number, key in enumerate(common)}
        counts = {key: [0] * (len(common) + 1) for key in common}
        for record in records:
            if (row := counts.get(answer_key(record["gold"]))) is not None:
                row[place.get(answer_key(record["prediction"]), -1)] += 1
        rows = [
            {"gold": common[key], "number": sum(row), "shares": [100 * number / sum(row) for number in row]}
            for key, row in counts.items()
        ]
        found[arm] = {"answers": list(common.values()), "rows": rows}
    return found


def thumbnails(data: Path, images: Sequence[str]) -> dict[str, str]:
    """Make small JPEGs of the first MOST_IMAGES images by id, as data URLs by id."""
    table = ImageTable(data / "images")
    place = {image: row for row, image in enumerate(table.image_ids)}
    wanted = [image for image in sorted(set(images)) if image in place][:MOST_IMAGES]
    found = {}
    for start in range(0, len(wanted), 100):
        part = wanted[start : start + 100]
        for name, image in zip(part, table.images([place[name] for name in part]), strict=True):
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=60)
            found[name] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return found
