"""The answers of a finished study, for its page in docs: whether each is right, without the data set's words."""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from triptych.data.schemas import CONSTRAINED
from triptych.errors import TriptychError, run_step
from triptych.evaluate.metrics import constrained, exact_match, is_yes_no
from triptych.io.atomic import atomic_path
from triptych.io.parquet import read_table

# `right` is exact match, and `yes_no` whether the question counts for that column: scores need no answers in words.
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("arm", "view", "split")),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in ("question_id", "group", "answer_type")),
        ("right", pa.bool_()),
        ("right_constrained", pa.bool_()),
        ("yes_no", pa.bool_()),
        ("logprob", pa.float32()),
        ("gold_logprob", pa.float32()),
    ]
)
ORDER = ("arm", "view", "split", "seed", "question_id")


def main() -> None:
    """Write the answers under a study's `predictions/` into one Parquet file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="the study's results folder")
    parser.add_argument("out", type=Path, help="Parquet file to write")
    arguments = parser.parse_args()
    files = sorted((arguments.results / "predictions").glob("*/fold*/*.parquet"))  # no captions, no leak study
    if not files:
        raise TriptychError(f"{arguments.results}: has no predictions; run the study first")
    rows = [
        {
            **record,
            "right": exact_match(record),
            "right_constrained": constrained(record) if record[CONSTRAINED] is not None else None,
            "yes_no": is_yes_no(record),
        }
        for file in files
        for record in read_table(file)
    ]
    rows.sort(key=lambda row: tuple(str(row[name]) for name in ORDER))
    table = pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in rows], SCHEMA)
    with atomic_path(arguments.out) as path:  # in few large groups, a sixth of what `io.parquet.write_table` takes
        pq.write_table(table, path, compression="zstd", compression_level=19)
    print(f"{arguments.out}: {len(rows)} answers of {len(files)} files")


if __name__ == "__main__":
    run_step(main)
