"""Conversations as LLaVA writes them: `[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]`.

Or with `role` (user, assistant) and `content`, as chat programs write them.
"""

from collections.abc import Iterator
from typing import Any

from triptych.data.schemas import UNKNOWN

ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")
IMAGE_MARK = "<image>"  # where LLaVA puts the image into a question; the prompt of Triptych says where it goes


def is_conversation(cell: Any) -> bool:
    """Tell whether a value is a list of turns, each with a speaker and what is said."""
    return isinstance(cell, list) and bool(cell) and all(isinstance(turn, dict) and _speaker(turn) for turn in cell)


def first_answer(turns: list[dict]) -> Any:
    """Give what is first answered in a conversation; None where nothing is."""
    return next((_said(turn) for turn in turns if _speaker(turn) in ANSWERING), None)


def question_rows(entry: dict, position: str) -> Iterator[dict]:
    """Give the questions of an entry `{id, image, conversations}` as rows in SLAKE's layout, unchecked.

    What the entry does not say is filled in: the entry's id or position for `qid`, the image's name for `img_id`,
    CLOSED for answers of yes and no and OPEN for others, `Unknown` for the rest.
    """
    found = list(_exchanges(entry["conversations"]))
    name = entry.get("id", position)
    if isinstance(name, float) and name.is_integer():
        name = int(name)  # as `plain_text` writes it where the entry has one question
    for number, (question, answer) in enumerate(found, start=1):
        if isinstance(question, str):
            question = question.replace(IMAGE_MARK, " ").strip()
        row = dict.fromkeys(("content_type", "modality", "location"), UNKNOWN)
        row |= {"answer_type": closed_or_open(answer), "img_id": entry.get("image"), "img_name": entry.get("image")}
        row |= {key: value for key, value in entry.items() if key != "conversations" and value is not None}
        yield row | {"qid": name if len(found) == 1 else f"{name}-{number}", "question": question, "answer": answer}


def closed_or_open(answer: Any) -> str:
    """Name the answer type of an answer whose source states none: CLOSED for yes and no, else OPEN."""
    return "CLOSED" if isinstance(answer, str) and answer.strip(" .").lower() in ("yes", "no") else "OPEN"


def _exchanges(turns: list[dict]) -> Iterator[tuple[Any, Any]]:
    """Each question with the turn that follows it; None for an answer that is not there."""
    for turn, after in zip(turns, [*turns[1:], {}], strict=True):
        if _speaker(turn) in ASKING:
            yield _said(turn), _said(after) if _speaker(after) in ANSWERING else None


def _speaker(turn: dict) -> str:
    speaker = turn.get("from", turn.get("role"))
    return speaker.strip().lower() if isinstance(speaker, str) else ""


def _said(turn: dict) -> Any:
    return turn.get("value", turn.get("content"))
