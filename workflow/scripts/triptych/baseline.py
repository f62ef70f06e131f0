"""Step: untrained baselines, as records of the same form as a model's predictions."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from triptych.predict import QUESTION_COLUMNS, SCHEMA
from triptych.samples import load_questions
from triptych.storage import run_step, write_table

Predictor = Callable[[dict], str]


def commonest(answers: Counter) -> str:
    """The most frequent answer; of equals, the first in the alphabet, so that a rerun says the same."""
    return min(answers, key=lambda answer: (-answers[answer], answer))


def majority(training: list[dict]) -> Predictor:
    """The commonest answer of the training part, whatever is asked."""
    answer = commonest(Counter(row["answer"] for row in training))
    return lambda row: answer


def majority_per_question(training: list[dict]) -> Predictor:
    """The commonest answer to the same question string; for a new one, to the same kind of question. It sees no image.

    The kind is content type and answer type, then answer type alone.
    """
    tables = [defaultdict(Counter) for _ in _KEYS]
    for row in training:
        for table, key in zip(tables, _KEYS, strict=True):
            table[key(row)][row["answer"]] += 1

    def predict(row: dict) -> str:
        return next(commonest(table[key(row)]) for table, key in zip(tables, _KEYS, strict=True) if table[key(row)])

    return predict


_KEYS = (
    lambda row: row["question"].lower(),
    lambda row: (row["content_type"], row["answer_type"]),
    lambda row: row["answer_type"],
    lambda row: None,
)
BASELINES: dict[str, Callable[[list[dict]], Predictor]] = {
    "majority": majority,
    "majority-per-question": majority_per_question,
}


def main() -> None:
    """Write one baseline's answers to the held-out part of one fold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--baseline", required=True, choices=sorted(BASELINES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", required=True, help="the fold")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    predict = BASELINES[arguments.baseline](load_questions(arguments.data, arguments.split, "train"))
    records = [
        {
            "arm": arguments.baseline,
            "split": arguments.split,
            "seed": None,
            **{name: row[name] for name in QUESTION_COLUMNS},
            "gold": row["answer"],
            "prediction": predict(row),
            "tokens": None,
        }
        for row in load_questions(arguments.data, arguments.split, "test")
    ]
    write_table(arguments.out, records, SCHEMA)
    print(f"{arguments.baseline}: {len(records)} answers")


if __name__ == "__main__":
    run_step(main)
