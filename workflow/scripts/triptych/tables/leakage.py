"""Step: the table of the leak study: how far do folds inflate scores that separate what belongs together?

The same questions are answered by the same arm, trained on folds of several kinds. Folds by row let an arm train on
the image of a held-out question, with other questions; folds by image let it train on near-duplicates. The points that
it gains do not generalise to new images.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas

from triptych.errors import TriptychError, run_step
from triptych.evaluate.statistics import bootstrap_interval, tabulate
from triptych.io.parquet import read_tables
from triptych.tables.format import NUMBER, TEXT, make_table, rows_of, write_table
from triptych.tables.runs import SIZES, accuracy, cell, group_runs, mean_sd, runs_text, sizes
from triptych.tables.wording import points_text

COLUMNS = {"arm": TEXT, "folds_by": TEXT, **SIZES}
COLUMNS |= dict.fromkeys(("mean", "sd", "inflation", "low", "high"), NUMBER)


def summarise(records: Sequence[dict], splits: dict[str, Sequence[str]]) -> pandas.DataFrame:
    """Score each arm on each kind of folds: exact match in per cent, and points above the last, strictest, kind.

    Differences are paired by question. The interval is that of a bootstrap over groups of images (`group` of the
    questions): it covers the choice of images, not the chance in a training.

    Args:
        records: answers; rows of `schemas.RECORD_SCHEMA`.
        splits: kind of folds -> its folds, the strictest kind last.

    Returns:
        A row for each arm and kind of folds.

    Raises:
        TriptychError: an arm did not answer the same questions on folds of all kinds.
    """
    kind_of = {split: kind for kind, names in splits.items() for split in names}
    strictest = list(splits)[-1]
    group = {record["question_id"]: record["group"] for record in records}
    frame = pandas.DataFrame(records)
    frame["kind"] = frame["split"].map(kind_of)
    frame["hit"] = [accuracy([record]) for record in records]
    rows = []
    for arm, answered in frame.groupby("arm", sort=False):
        hits = answered.pivot_table(index="question_id", columns="kind", values="hit", aggfunc="mean")
        if hits.isna().any(axis=None) or set(hits.columns) != set(splits):
            raise TriptychError(f"{arm} answered different questions on folds of different kinds; predict again")
        for kind in splits:
            runs = group_runs([row for row in records if row["arm"] == arm and kind_of[row["split"]] == kind])[arm]
            mean, sd = mean_sd([accuracy(run) for run in runs.values()])
            row = {"arm": arm, "folds_by": kind, **sizes(runs), "mean": mean, "sd": sd}
            if kind != strictest:
                differences = hits[kind] - hits[strictest]
                cells = tabulate(differences, [0] * len(hits), [group[question] for question in hits.index])
                row["inflation"] = differences.mean()
                row["low"], row["high"] = bootstrap_interval(cells, seed=0)
            rows.append(row)
    return make_table(rows, COLUMNS)


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    lines = []
    for row in rows_of(table):
        inflation = points_text(row["inflation"], row["low"], row["high"])
        lines.append([row["arm"], row["folds_by"], runs_text(row), cell(row["mean"], row["sd"]), inflation])
    strictest = table["folds_by"].iloc[-1]
    heading = ["arm", "folds by", "runs", "exact match", f"above {strictest} (95 % interval)"]
    return pandas.DataFrame(lines, columns=heading)


def main() -> None:
    """Write `leak` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--splits", required=True, help="[kind of folds, its folds], the strictest last, as JSON")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    splits = dict(json.loads(arguments.splits))
    records = read_tables(arguments.predictions)
    table = summarise(records, splits)
    about = (
        f"Inflation by leaking folds: exact match in per cent on the same {table['questions'].iloc[0]} held-out "
        "questions, mean ± standard deviation over runs (folds x seeds), and points above folds by "
        f"{table['folds_by'].iloc[-1]}, paired by question, with a bootstrap interval over groups of "
        "images; other trainings and other cuts into folds are not in it."
    )
    write_table(arguments.out / "leak", table, shown(table), "Leak study", about)


if __name__ == "__main__":
    run_step(main)
