"""Which questions belong to which part: train, validation or held-out test, per split of the grid."""

from pathlib import Path
from typing import Literal

from triptych.grid import SHARED
from triptych.storage import TriptychError, read_table

QuestionPart = Literal["train", "validation", "test"]


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
        table = read_table(data / "folds.parquet")
        members = {row["question_id"] for row in table if row["fold"] == split and row["part"] == part}
        chosen = [row for row in questions if row["question_id"] in members]
    if not chosen:
        raise TriptychError(f"{data}: no question in part '{part}' of split '{split}'; check `datasets` and `folds`")
    return sorted(chosen, key=lambda row: (row["image_id"], row["question_id"]))
