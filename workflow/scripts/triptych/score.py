"""Scores: pure functions over records of questions, gold answers and predictions."""

import re
import string
from collections.abc import Iterable

ANSWER_TYPES = ("ALL", "OPEN", "CLOSED")


def normalise(answer: str) -> str:
    """Lower case, punctuation to nothing, runs of white space to one blank."""
    return re.sub(r"\s+", " ", answer.lower().translate(str.maketrans("", "", string.punctuation))).strip()


def exact_match(record: dict) -> bool:
    """True when the normalised prediction equals the normalised gold answer."""
    return normalise(record["prediction"]) == normalise(record["gold"])


def accuracies(records: Iterable[dict]) -> dict[str, float | None]:
    """Exact match in per cent over all records and per answer type; None where there is no such question."""
    hits: dict[str, list[bool]] = {kind: [] for kind in ANSWER_TYPES}
    for record in records:
        hit = exact_match(record)
        hits["ALL"].append(hit)
        if record["answer_type"] in hits:
            hits[record["answer_type"]].append(hit)
    return {kind: 100 * sum(values) / len(values) if values else None for kind, values in hits.items()}
