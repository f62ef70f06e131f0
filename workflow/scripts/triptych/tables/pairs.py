"""Answers of two arms to the same questions, paired by run and question, from prediction records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from triptych.errors import TriptychError
from triptych.evaluate.metrics import exact_match
from triptych.evaluate.statistics import holm

ASPECTS = ("content_type", "answer_type")  # types of questions
READ = ["arm", "view", "split", "seed", "question_id", "group", *ASPECTS, "gold", "prediction"]
OPTIONAL = ["gold_logprob"]  # which an earlier version did not keep

Run = tuple[str, int]  # split and seed


@dataclass(frozen=True)
class Paired:
    """Answers of two arms to the same questions, an entry in each list for every question of every run.

    Attributes:
        runs: split and seed.
        questions: question id.
        groups: image or subject that the question is about.
        first: 1 where the first arm's answer is right, 0 where it is not.
        second: the same of the second arm.
        first_logprob: log-probability (nats) that the first arm gives to the gold answer; NaN where it is not known.
        second_logprob: the same of the second arm.
        types: by name of ASPECTS, the question's type.
    """

    runs: list[Run]
    questions: list[str]
    groups: list[str]
    first: np.ndarray
    second: np.ndarray
    first_logprob: np.ndarray
    second_logprob: np.ndarray
    types: dict[str, list[str]]

    @property
    def folds(self) -> int:
        """Number of different training parts."""
        return len({split for split, _ in self.runs})

    def of_type(self, aspect: str, value: str) -> "Paired":
        """Choose the answers to questions of one type."""
        chosen = [place for place, found in enumerate(self.types[aspect]) if found == value]
        lists = {name: [getattr(self, name)[place] for place in chosen] for name in ("runs", "questions", "groups")}
        arrays = ("first", "second", "first_logprob", "second_logprob")
        types = {name: [found[place] for place in chosen] for name, found in self.types.items()}
        return Paired(**lists, **{name: getattr(self, name)[chosen] for name in arrays}, types=types)


def the_view(records: Sequence[dict]) -> str:
    """Name the view that all records answer.

    Raises:
        TriptychError: there is none, or they answer several, which must not be counted as one.
    """
    views = sorted({record["view"] for record in records})
    if not views:
        raise TriptychError("--predictions: the files hold no answers; predict them")
    if len(views) > 1:
        raise TriptychError(
            f"--predictions: has answers of several views ({', '.join(views)}); name the files of one, such as "
            "seed?.parquet for held-out questions or seed?-test.parquet for the test part"
        )
    return views[0]


def pair(records: Sequence[dict], first: str, second: str) -> Paired:
    """Pair the answers of two arms, sorted by split, seed and question.

    Raises:
        TriptychError: an arm has no records, answered a question twice in one run, lacks a run or question of the
            other arm, or has another gold answer to a question.
    """
    one, two = _by_question(records, first), _by_question(records, second)
    for arm, other, there, here in ((first, second, one, two), (second, first, two, one)):
        missing = sorted({(split, seed) for split, seed, _ in here} - {(split, seed) for split, seed, _ in there})
        if missing:
            split, seed = missing[0]
            raise TriptychError(f"{other} has predictions of {split}, seed {seed}, but {arm} has none; predict them")
    if one.keys() != two.keys():
        split, seed, question = min(one.keys() ^ two.keys())
        raise TriptychError(
            f"{first} and {second} answered different questions in {split}, seed {seed} (such as {question}); "
            "predict both again"
        )
    keys = sorted(one)
    if changed := [key[2] for key in keys if one[key]["gold"] != two[key]["gold"]]:
        raise TriptychError(f"{first} and {second} have different gold answers to {changed[0]}; predict both again")
    return Paired(
        runs=[(split, seed) for split, seed, _ in keys],
        questions=[question for _, _, question in keys],
        groups=[one[key]["group"] for key in keys],
        first=np.array([exact_match(one[key]) for key in keys], int),
        second=np.array([exact_match(two[key]) for key in keys], int),
        first_logprob=np.array([one[key].get("gold_logprob") for key in keys], float),
        second_logprob=np.array([two[key].get("gold_logprob") for key in keys], float),
        types={aspect: [one[key][aspect] for key in keys] for aspect in ASPECTS},
    )


def correct_column(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Correct the p values in a column of rows for their number (Holm), into the column `<name>_holm`.

    Rows without a p value are no tests, and are left as they are.
    """
    tested = [row for row in rows if row[name] is not None]
    for row, p_holm in zip(tested, holm([row[name] for row in tested]), strict=True):
        row[f"{name}_holm"] = p_holm


def _by_question(records: Sequence[dict], arm: str) -> dict[tuple[str, int, str], dict]:
    """Index an arm's records by split, seed and question."""
    found: dict[tuple[str, int, str], dict] = {}
    for record in records:
        if record["arm"] != arm:
            continue
        if record["seed"] is None:
            raise TriptychError(f"{arm} is a baseline without seeds; only trained schedules can be compared")
        key = (record["split"], record["seed"], record["question_id"])
        if key in found:
            raise TriptychError(f"{arm} answered question {key[2]} twice in {key[0]}, seed {key[1]}; predict it again")
        found[key] = record
    if not found:
        raise TriptychError(f"there are no predictions of schedule {arm}; check `--schedules` and `--predictions`")
    return found
