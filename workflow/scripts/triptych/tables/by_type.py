"""Comparisons by type of question: the same differences, for each content type and answer type alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from triptych.evaluate.statistics import tabulate, two_way_clustered_t
from triptych.tables.format import INTEGER, NUMBER, TEXT, make_table, rows_of, write_table
from triptych.tables.pairs import ASPECTS, Paired, correct_column
from triptych.tables.wording import LEVEL, interval_text, narrowed, p_text

NAME = "comparison_by_type"

COLUMNS = {"first": TEXT, "second": TEXT, "aspect": TEXT, "value": TEXT}
COLUMNS |= dict.fromkeys(("questions", "groups", "runs", "folds"), INTEGER)
COLUMNS |= dict.fromkeys(("first_accuracy", "second_accuracy", "effect", "low", "high", "df", "p", "p_holm"), NUMBER)

ABOUT = (
    "Difference of exact match in points by type of question, first schedule minus second, with 95 % intervals from "
    "the clustered t test of the main comparison. These are explorations beside the main comparison: p values are "
    "corrected (Holm) in families of their own, one of all types of the primary comparison and one of all types of all "
    "the others; the intervals are not corrected, and one that holds every possible difference is left out. What the "
    "verdicts of the main comparison warn of holds here, too. A type with a single run, a single image or without any "
    "spread has no test."
)


def by_type(first: str, second: str, paired: Paired) -> list[dict[str, Any]]:
    """Compare two arms on each type of question, aspects with a single value left out.

    Args:
        first: name of the first arm.
        second: name of the second.
        paired: their answers to all questions.

    Returns:
        Rows of COLUMNS without the correction: see `correct`.
    """
    rows = []
    for aspect in ASPECTS:
        values = sorted(set(paired.types[aspect]))
        for value in values if len(values) > 1 else ():
            chosen = paired.of_type(aspect, value)
            cells = tabulate(100.0 * (chosen.first - chosen.second), chosen.runs, chosen.groups)
            row = dict.fromkeys(COLUMNS) | {
                "first": first,
                "second": second,
                "aspect": aspect,
                "value": value,
                "questions": len(set(chosen.questions)),
                "groups": cells.counts.shape[1],
                "runs": len(cells.counts),
                "folds": chosen.folds,
                "first_accuracy": float(100 * chosen.first.mean()),
                "second_accuracy": float(100 * chosen.second.mean()),
                "effect": float(100 * (chosen.first - chosen.second).mean()),
            }
            if min(cells.counts.shape) > 1:
                # Training parts overlap as those of the whole study do, also where some folds have none of this type.
                estimate = two_way_clustered_t(cells, paired.folds, LEVEL)
                if estimate.standard_error > 0:
                    row |= {name: getattr(estimate, name) for name in ("low", "high", "df", "p")}
            rows.append(row)
    return rows


def correct(pairs: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Add corrected p values, and give all rows; `pairs` has the rows of each pair of arms, the primary one first."""
    primary, others = pairs[0], [row for rows in pairs[1:] for row in rows]
    for family in (primary, others):
        correct_column(family, "p")
    return [*primary, *others]


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    lines = [
        [
            f"{row['first']} minus {row['second']}",
            row["aspect"].replace("_", " "),
            row["value"] or "(none)",
            f"{row['questions']} on {row['groups']}",
            f"{row['effect']:+.1f}",
            interval_text(row["low"], row["high"]) if narrowed(row["low"], row["high"]) else "",
            p_text(row["p_holm"]),
        ]
        for row in rows_of(table)
    ]
    heading = [
        "comparison",
        "aspect",
        "value",
        "questions on images or subjects",
        "effect",
        "95 % interval",
        "p (Holm)",
    ]
    return pandas.DataFrame(lines, columns=heading)


def write(folder: Path, pairs: Sequence[list[dict[str, Any]]], where: str = "") -> None:
    """Write the table in its three forms; `where` is added to its title."""
    table = make_table(correct(pairs), COLUMNS)
    write_table(folder / NAME, table, shown(table), f"Comparison by type of question{where}", ABOUT)
