"""Step: the table of calibration: whether schedules are sure where they are right, from the prediction records."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import pandas

from triptych.errors import TriptychError, run_step
from triptych.evaluate.calibration import (
    BINS,
    accepted_errors,
    accuracy_at,
    area_under_risk_coverage,
    expected_calibration_error,
)
from triptych.evaluate.metrics import exact_match
from triptych.io.parquet import read_tables
from triptych.tables.format import NUMBER, TEXT, make_table, rows_of, write_table
from triptych.tables.runs import SIZES, cell, group_runs, mean_sd, runs_text, sizes

NAME = "calibration"
COVERAGES = (50, 80, 90)  # per cent of the questions that are answered
READ = ["arm", "split", "seed", "question_id", "gold", "prediction", "logprob"]

HEADINGS = {
    "confidence": "confidence",
    "accuracy": "exact match",
    "ece": "calibration error",
    **{f"accuracy_{coverage}": f"exact match at {coverage} %" for coverage in COVERAGES},
    "aurc": "AURC",
}
COLUMNS = {"arm": TEXT, **SIZES, **{f"{name}_{part}": NUMBER for name in HEADINGS for part in ("mean", "sd")}}

ABOUT = (
    "Confidence is the probability that a model gives to the whole of its own answer. All in per cent, mean ± standard "
    "deviation over runs, which is no confidence interval (none are computed, also none clustered by image). "
    f"Calibration error: expected calibration error with {BINS} bins of equal width (Guo et al., ICML 2017), which is "
    "too large where a run has few questions. Exact match at 50 %: on the half of the questions whose answers are most "
    "confident (risk-coverage curve: El-Yaniv and Wiener, JMLR 2010). AURC: share of wrong answers, averaged over all "
    "coverages (Geifman et al., ICLR 2019); the exact match's complement where confidence says nothing, and less is "
    "better."
)


def of_run(records: Sequence[dict]) -> dict[str, float]:
    """Score one run's answers, in per cent, under the names of HEADINGS.

    Raises:
        TriptychError: an answer has no log-probability.
    """
    for record in records:
        if record["logprob"] is None:
            raise TriptychError(
                f"{record['arm']} has no log-probability of its answer to question {record['question_id']} "
                f"({record['split']}, seed {record['seed']}); only answers of trained schedules have one: predict it "
                "again"
            )
    confidence = [math.exp(min(record["logprob"], 0.0)) for record in records]  # rounding may end above 0
    right = [exact_match(record) for record in records]
    errors = accepted_errors(confidence, right)
    found = {
        "confidence": sum(confidence) / len(records),
        "accuracy": sum(right) / len(records),
        "ece": expected_calibration_error(confidence, right),
        **{f"accuracy_{coverage}": accuracy_at(coverage / 100, errors) for coverage in COVERAGES},
        "aurc": area_under_risk_coverage(errors),
    }
    return {name: 100 * value for name, value in found.items()}


def summarise(records: Sequence[dict], arms: Sequence[str]) -> pandas.DataFrame:
    """Score arms: a row for each, in the order of `arms`, mean and sd over runs.

    Raises:
        TriptychError: an arm has no records, or an answer no log-probability.
    """
    grouped = group_runs(records)
    rows = []
    for arm in arms:
        if arm not in grouped:
            raise TriptychError(f"there are no predictions of {arm}; predict them")
        runs = [of_run(run) for run in grouped[arm].values()]
        row = {"arm": arm, **sizes(grouped[arm])}
        for name in HEADINGS:
            row[f"{name}_mean"], row[f"{name}_sd"] = mean_sd([run[name] for run in runs])
        rows.append(row)
    return make_table(rows, COLUMNS)


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    lines = [
        [f"**{row['arm']}**", runs_text(row)] + [cell(row[f"{name}_mean"], row[f"{name}_sd"]) for name in HEADINGS]
        for row in rows_of(table)
    ]
    return pandas.DataFrame(lines, columns=["arm", "runs", *HEADINGS.values()])


def main() -> None:
    """Write `calibration` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--schedules", nargs="+", required=True, help="names of the schedules, in order")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    records = read_tables(arguments.predictions, READ)
    table = summarise(records, arguments.schedules)
    write_table(arguments.out / NAME, table, shown(table), "Calibration", ABOUT)


if __name__ == "__main__":
    run_step(main)
