"""What a model says of an image's modality, body part and organs, in its answers to the questions that ask for them.

Scored like the probes of its image tokens, which tell what could be read: arXiv 2402.16832 compares the two.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from triptych.data.answers import normalise
from triptych.data.schemas import PROBED_ATTRIBUTES

ANSWERS = "answers"  # stands for the probe in their rows
FEWEST = 10  # images that a value must be the right answer for

# SLAKE's phrases, which the demonstration's data repeat.
BODY_PART = {
    "which part of the body does this image belong to",
    "which part of the human body is the organ located in the image",
    "which part do the organs in this image locate from the aspect of the whole body",
    "where does the picture show",
    "where does the image represent in the body",
    "which organ system is imaged",
    "what organ system is pictured",
    "what organ system is primarily present in this image",
    "what is the organ system visualized",
}
_HERE = r"in (?:this|the) (?:image|picture)"
PRESENCE = re.compile(
    rf"do(?:es)? (?:the|this) (?:image|picture) contain (?:the )?(?P<held>[a-z -]+)"
    rf"|do(?:es)? the (?P<seen>[a-z -]+) (?:appear|exist) {_HERE}"
    rf"|(?:are/is|is|are) there (?:an? |the )?(?P<there>[a-z -]+) {_HERE}"
)
ONE_NAME = {"brian": "brain", "spine cord": "spinal cord", "kidneys": "kidney"}  # as SLAKE spells them, too


@dataclass(frozen=True)
class Said:
    """What one answer says of an image.

    Attributes:
        attribute: modality, location or organ.
        about: the organ that is asked about; of other attributes the right value.
        truth: the right value; empty where the organ is not there.
        answer: the value answered; empty where the answer is not that the organ is there.
    """

    attribute: str
    about: str
    truth: str
    answer: str


def said(record: dict) -> Said | None:
    """Give what a record says of an attribute, normalised; None where its question asks for none.

    Modality: the right answer to a question of that content type is the modality that the data name for the image.
    Location: the question is one of `BODY_PART`. Organ: it asks with yes or no whether the image shows one.
    """
    gold, answer = normalise(record["gold"]), normalise(record["prediction"])
    if record["content_type"] == "Modality" and gold and gold == normalise(record["modality"] or ""):
        return Said("modality", gold, gold, answer)
    question = " ".join(record["question"].lower().rstrip(" ?").split())
    if question in BODY_PART:
        return Said("location", gold, gold, answer) if gold else None
    if record["content_type"] == "Organ" and gold in ("yes", "no") and (match := PRESENCE.fullmatch(question)):
        named = next(filter(None, match.groups()))
        organ = ONE_NAME.get(named, named)
        return Said("organ", organ, organ if gold == "yes" else "", organ if answer == "yes" else "")
    return None


def attribute_answers(records: Sequence[dict]) -> tuple[list[dict], dict[str, int]]:
    """Give answers about attributes as rows like those of `schemas.PROBE_SCHEMA`, and what is asked about too little.

    A value counts where it is right on at least `FEWEST` images, and an organ where as many lack it, too. Other values
    are none, as a right answer and as an answer. A schedule is its own `representation`.

    Args:
        records: rows of `schemas.RECORD_SCHEMA`.

    Returns:
        The rows, and attribute -> number of questions, of attributes without two such values.
    """
    found = [(record, about) for record in records if (about := said(record))]
    shown: dict[tuple[str, str, bool], set[str]] = defaultdict(set)
    for record, what in found:
        shown[what.attribute, what.about, what.truth != ""].add(record["image_id"])
    enough = {key for key, images in shown.items() if len(images) >= FEWEST}
    kept: dict[str, set[str]] = {name: set() for name in PROBED_ATTRIBUTES}
    for attribute, value, there in enough:
        if there and (attribute != "organ" or (attribute, value, False) in enough):
            kept[attribute].add(value)
    questions: dict[str, set[str]] = {name: set() for name in PROBED_ATTRIBUTES}
    rows = []
    for record, what in found:
        questions[what.attribute].add(record["question_id"])
        values = kept[what.attribute]
        if what.attribute == "organ" and what.about not in values:
            continue
        run = {"representation": record["arm"], "split": record["split"], "seed": record["seed"], "probe_seed": 0}
        run |= {name: record[name] for name in ("question_id", "image_id", "group")}
        run |= {"attribute": what.attribute, "probe": ANSWERS, "task": "labels"}
        rows.append({**run, "truth": sorted(values & {what.truth}), "answer": sorted(values & {what.answer})})
    few = {name for name, values in kept.items() if len(values) < 2}
    return [row for row in rows if row["attribute"] not in few], {
        name: len(questions[name]) for name in kept if name in few
    }
