"""Step: the results table of schedules and baselines, from the prediction records alone."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from triptych.score import ANSWER_TYPES, accuracies
from triptych.storage import TriptychError, csv_text, read_table, run_step, write_text

COLUMNS = ["arm", "trained", "questions", "runs", "folds", "seeds"] + [
    f"{kind.lower()}_{statistic}" for kind in ANSWER_TYPES for statistic in ("mean", "sd")
]
HEADINGS = {"ALL": "all questions", "OPEN": "open", "CLOSED": "closed"}


def group_runs(records: Sequence[dict]) -> dict[str, dict[tuple[str, int | None], list[dict]]]:
    """Records by arm, then by run (split, seed)."""
    arms: dict[str, dict[tuple[str, int | None], list[dict]]] = {}
    for record in records:
        arms.setdefault(record["arm"], {}).setdefault((record["split"], record["seed"]), []).append(record)
    return arms


def mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) over runs; None where there is nothing to take it of."""
    known = [value for value in values if value is not None]
    return (
        statistics.mean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
    )


def summarise(records: Sequence[dict], arms: Sequence[str]) -> list[dict]:
    """One row per arm, in the order of `arms`: exact match in per cent, mean and sd over runs (folds x seeds).

    Raises:
        TriptychError: two arms did not answer the same questions.
    """
    grouped = group_runs(records)
    asked = {arm: {record["question_id"] for run in grouped[arm].values() for record in run} for arm in arms}
    rows = []
    for arm in arms:
        if asked[arm] != asked[arms[0]]:
            raise TriptychError(f"{arm} and {arms[0]} answered different questions; predict both again")
        runs = grouped[arm]
        scores = [accuracies(runs[run]) for run in sorted(runs, key=str)]
        row = {
            "arm": arm,
            "trained": any(seed is not None for _, seed in runs),
            "questions": len(asked[arm]),
            "runs": len(runs),
            "folds": len({split for split, _ in runs}),
            "seeds": len({seed for _, seed in runs if seed is not None}),
        }
        for kind in ANSWER_TYPES:
            row[f"{kind.lower()}_mean"], row[f"{kind.lower()}_sd"] = mean_sd([score[kind] for score in scores])
        rows.append(row)
    return rows


def paired_differences(records: Sequence[dict], first: str, second: str) -> list[float]:
    """Exact match of `first` less that of `second`, in points, run by run (same fold, same seed, same questions)."""
    arms = group_runs(records)
    runs = sorted(set(arms[first]) & set(arms[second]), key=str)
    return [accuracies(arms[first][run])["ALL"] - accuracies(arms[second][run])["ALL"] for run in runs]


def as_markdown(rows: Sequence[dict], records: Sequence[dict], schedules: Sequence[str]) -> str:
    """The table for people, with the paired difference of each schedule to the first."""
    header = ["arm", "runs", *(HEADINGS[kind] for kind in ANSWER_TYPES)]
    lines = [header]
    for row in rows:
        cells = [f"**{row['arm']}**" if row["trained"] else row["arm"], f"{row['folds']} folds"]
        if row["trained"]:
            cells[1] += f" x {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
        lines.append(cells + [_cell(row[f"{kind.lower()}_mean"], row[f"{kind.lower()}_sd"]) for kind in ANSWER_TYPES])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [_row(lines[0], widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    text += [_row(line, widths) for line in lines[1:]]
    questions = rows[0]["questions"]
    text = [
        "# Schedules and baselines",
        "",
        f"Exact match in per cent on {questions} held-out questions: mean ± standard deviation over runs.",
        "",
        *text,
        "",
    ]
    for other in schedules[1:]:
        differences = paired_differences(records, schedules[0], other)
        mean, sd = mean_sd(differences)
        spread = f" ± {sd:.1f}" if sd is not None else ""
        runs = ", ".join(f"{value:+.1f}" for value in differences)
        text += [
            f"`{schedules[0]}` less `{other}`, paired by run: {mean:+.1f}{spread} points ({runs}). "
            "The ± is the spread of the runs, not a confidence interval.",
            "",
        ]
    return "\n".join(text)


def _cell(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.1f} ± {sd:.1f}" if sd is not None else f"{mean:.1f}"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def main() -> None:
    """Write `schedules.csv` and `schedules.md`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--schedules", nargs="+", required=True, help="names of the schedules, in order")
    parser.add_argument("--baselines", nargs="*", default=[], help="names of the baselines, in order")
    parser.add_argument("--csv", type=Path, required=True, help="file to write")
    parser.add_argument("--markdown", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    records = [record for path in sorted(arguments.predictions) for record in read_table(path)]
    rows = summarise(records, [*arguments.schedules, *arguments.baselines])
    write_text(arguments.csv, csv_text(rows, COLUMNS, decimals=4))
    write_text(arguments.markdown, as_markdown(rows, records, arguments.schedules))


if __name__ == "__main__":
    run_step(main)
