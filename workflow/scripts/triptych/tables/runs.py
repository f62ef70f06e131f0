"""Records of answers by arm and run, and what tables say of them."""

import statistics
from collections.abc import Sequence

from triptych.evaluate.metrics import scores
from triptych.tables.format import INTEGER

SIZES = dict.fromkeys(("questions", "runs", "folds", "seeds"), INTEGER)  # columns of `sizes`

Run = tuple[str, int | None]  # split and seed; a baseline has no seed
Arms = dict[str, dict[Run, list[dict]]]


def group_runs(records: Sequence[dict]) -> Arms:
    """Group records by arm, in order of appearance, then by run, sorted."""
    arms: Arms = {}
    for record in records:
        arms.setdefault(record["arm"], {}).setdefault((record["split"], record["seed"]), []).append(record)
    return {arm: dict(sorted(runs.items(), key=str)) for arm, runs in arms.items()}


def mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Give mean and standard deviation (n - 1) over runs; None where no run, or one run alone, has a value."""
    known = [value for value in values if value is not None]
    return (
        statistics.mean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
    )


def sizes(runs: dict[Run, list[dict]]) -> dict[str, int]:
    """Count the different questions, runs, folds and seeds behind a number."""
    return {
        "questions": len({record["question_id"] for run in runs.values() for record in run}),
        "runs": len(runs),
        "folds": len({split for split, _ in runs}),
        "seeds": len({seed for _, seed in runs if seed is not None}),
    }


def accuracy(records: Sequence[dict]) -> float | None:
    """Give the exact match of records in per cent."""
    return scores(records, ["all"])["all"]


def cell(mean: float | None, sd: float | None) -> str:
    """Write mean and standard deviation, '53.5 ± 2.3', or the mean alone."""
    if mean is None:
        return ""
    return f"{mean:.1f} ± {sd:.1f}" if sd is not None else f"{mean:.1f}"


def runs_text(row: dict) -> str:
    """Write the sizes of a row: '3 folds x 2 seeds'."""
    folds = f"{row['folds']} fold{'s' if row['folds'] > 1 else ''}"
    return folds + (f" x {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}" if row["seeds"] else "")
