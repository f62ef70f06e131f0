"""Which questions belong to which part of a split."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from triptych.config.arms import PARTS
from triptych.config.datasets import QuestionPart
from triptych.config.grid import SHARED, folds_name, is_shared
from triptych.config.jobs import View
from triptych.data.schemas import UNKNOWN
from triptych.errors import TriptychError
from triptych.io.parquet import read_table
from triptych.utils.seeds import stable_order


def questions_by_part(data: Path, split: str) -> dict[str, list[dict]]:
    """Rows of a data set by their part of a split; "" stands for what is in no part of a fold.

    The parts of a shared stage are those of the source.
    """
    if not is_shared(split):
        table = read_table(data / f"{folds_name(split)}.parquet")
        member = {row["question_id"]: row["part"] for row in table if row["fold"] == split}
    found: dict[str, list[dict]] = {}
    for row in read_table(data / "questions.parquet"):
        part = row["split"] if is_shared(split) else member.get(row["question_id"], "")
        found.setdefault(part, []).append(row)
    return found


def load_questions(data: Path, split: str, part: QuestionPart) -> list[dict]:
    """Rows of one part of a data set, ordered by image, then question.

    For splits of shared stages the parts are those of the source; for `fold<k>` they are the fold's, where `test` is
    the fold's held-out part. The source's own test part is in no fold.

    Raises:
        TriptychError: the data set has no such fold, or the part is empty.
    """
    chosen = questions_by_part(data, split).get(part)
    if not chosen:
        raise TriptychError(f"{data}: no question in part '{part}' of split '{split}'; check `datasets` and `folds`")
    return sorted(chosen, key=lambda row: (row["image_id"], row["question_id"]))


def named_of_images(questions: Sequence[dict], column: str) -> dict[str, str]:
    """What most questions about an image name in a column, modality or location, by image id.

    Images of which no question names any, or only UNKNOWN, are left out.
    """
    named: dict[str, Counter] = {}
    for row in sorted(questions, key=lambda row: (row["image_id"], row["question_id"])):
        if row[column] and row[column].casefold() != UNKNOWN.casefold():
            named.setdefault(row["image_id"], Counter())[row[column]] += 1
    return {image: counts.most_common(1)[0][0] for image, counts in named.items()}


def limited(rows: list[dict], limit: int | None, seed: int) -> list[dict]:
    """At most `limit` rows, all of some images (the last one's may be cut), chosen by a seeded hash; order is kept."""
    if limit is None or len(rows) <= limit:
        return rows
    chosen = sorted(rows, key=lambda row: (stable_order(seed, "limit", row["image_id"]), row["question_id"]))[:limit]
    kept = {row["question_id"] for row in chosen}
    return [row for row in rows if row["question_id"] in kept]


def asked_questions(data: Path, split: str, view: View, limit: int | None = None) -> list[dict]:
    """The questions of a view: of a part of the source, or what `split` holds out.

    Args:
        data: folder of the data set.
        split: the fold, or that of a shared stage.
        view: which questions.
        limit: most questions of the source's part, or of all folds of one kind together; the same questions are asked
            on folds of every kind.

    Raises:
        TriptychError: as `load_questions`, or the limit leaves none in the fold.
    """
    if view == "captions":
        return limited(load_questions(data, SHARED, "validation"), limit, seed=0)
    if view in PARTS:
        return limited(load_questions(data, SHARED, view), limit, seed=0)
    held_out = load_questions(data, split, "test")
    if limit is None:
        return held_out
    folds = read_table(data / f"{folds_name(split)}.parquet")
    members = {row["question_id"] for row in folds if row["part"] == "test"}
    pool = [row for row in read_table(data / "questions.parquet") if row["question_id"] in members]
    kept = {row["question_id"] for row in limited(pool, limit, seed=0)}
    chosen = [row for row in held_out if row["question_id"] in kept]
    if not chosen:
        raise TriptychError(f"evaluation.max_questions: {limit} leaves no question in {split}; set a larger number")
    return chosen
