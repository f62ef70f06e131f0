"""Step: untrained baselines, as records of the same form as a model's predictions."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from triptych.samples import RECORD_SCHEMA, answer_record, load_questions
from triptych.storage import run_step, write_table

Predictor = Callable[[dict], str]


def commonest(rows: list[dict]) -> str:
    """The most frequent answer; of equals, the one with the lowest question id, whatever the order of the rows."""
    ordered = sorted(rows, key=lambda row: (len(row["question_id"]), row["question_id"]))
    return Counter(row["answer"] for row in ordered).most_common(1)[0][0]


def majority(training: list[dict]) -> Predictor:
    """The commonest answer of the training part, whatever is asked."""
    answer = commonest(training)
    return lambda row: answer


def majority_per_question(training: list[dict]) -> Predictor:
    """The commonest answer to the same question string; for a new string, the commonest of all. It sees no image."""
    asked = defaultdict(list)
    for row in training:
        asked[row["question"]].append(row)
    answers = {question: commonest(rows) for question, rows in asked.items()}
    fallback = commonest(training)
    return lambda row: answers.get(row["question"], fallback)


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
        answer_record(row, arguments.baseline, arguments.split, None, predict(row))
        for row in load_questions(arguments.data, arguments.split, "test")
    ]
    write_table(arguments.out, records, RECORD_SCHEMA)
    print(f"{arguments.baseline}: {len(records)} answers")


if __name__ == "__main__":
    run_step(main)
