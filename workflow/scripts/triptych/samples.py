"""Which questions belong to which part, per split of the grid, and the records that answers to them are kept in."""

from pathlib import Path
from typing import Literal

import pyarrow as pa

from triptych.grid import SHARED, folds_name
from triptych.storage import TriptychError, read_table, stable_order

QUESTION_COLUMNS = (
    "question_id",
    "image_id",
    "group",
    "question",
    "answer_type",
    "content_type",
    "modality",
    "location",
)
RECORD_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("arm", "view", "split")]
    + [("seed", pa.int64())]
    + [(name, pa.string()) for name in (*QUESTION_COLUMNS, "gold", "prediction")]
    + [("tokens", pa.int32()), ("logprob", pa.float32())]
)
QuestionPart = Literal["train", "validation", "test"]
# Which questions are asked, and with which picture: a fold's held-out questions with their own picture, with another
# one, or with a blank one; the source's own test part; or captions, of the validation part of a stage's own data.
View = Literal["held-out", "swapped", "blank", "test", "captions"]


def load_questions(data: Path, split: str, part: QuestionPart) -> list[dict]:
    """Rows of one part of a data set, ordered by image, then question.

    For split `shared` the parts are those of the source; for `fold<k>` they are the fold's, where `test` is the fold's
    held-out part. The source's own test part is in no fold.

    Raises:
        TriptychError: the data set has no such fold, or the part is empty.
    """
    questions = read_table(data / "questions.parquet")
    if split == SHARED:
        chosen = [row for row in questions if row["split"] == part]
    else:
        table = read_table(data / f"{folds_name(split)}.parquet")
        members = {row["question_id"] for row in table if row["fold"] == split and row["part"] == part}
        chosen = [row for row in questions if row["question_id"] in members]
    if not chosen:
        raise TriptychError(f"{data}: no question in part '{part}' of split '{split}'; check `datasets` and `folds`")
    return sorted(chosen, key=lambda row: (row["image_id"], row["question_id"]))


def limited(rows: list[dict], limit: int | None, seed: int) -> list[dict]:
    """At most `limit` rows, all of some images (the last one's may be cut), chosen by a seeded hash; order is kept."""
    if limit is None or len(rows) <= limit:
        return rows
    chosen = sorted(rows, key=lambda row: (stable_order(seed, "limit", row["image_id"]), row["question_id"]))[:limit]
    kept = {row["question_id"] for row in chosen}
    return [row for row in rows if row["question_id"] in kept]


def answer_record(
    question: dict,
    arm: str,
    split: str,
    seed: int | None,
    prediction: str,
    tokens: int | None = None,
    logprob: float | None = None,
    view: View = "held-out",
) -> dict:
    """A row of RECORD_SCHEMA: one arm's answer to one question, kept so that scores can be computed again.

    Args:
        question: row of the question table.
        arm: name of the schedule or baseline.
        split: the fold.
        seed: the run's seed; None for what is not trained.
        prediction: the answer.
        tokens: its length in tokens, where it was generated.
        logprob: natural logarithm of its probability, where it was generated.
        view: which picture was shown.
    """
    asked = {name: question[name] for name in QUESTION_COLUMNS}
    run = {"arm": arm, "view": view, "split": split, "seed": seed}
    said = {"gold": question["answer"], "prediction": prediction, "tokens": tokens, "logprob": logprob}
    return {**run, **asked, **said}


def asked_questions(data: Path, split: str, view: View) -> list[dict]:
    """The questions of a view: of a part of the source, or what `split` holds out.

    Raises:
        TriptychError: as `load_questions`.
    """
    if view == "captions":
        return load_questions(data, SHARED, "validation")
    return load_questions(data, SHARED if view == "test" else split, "test")
