"""Accuracy of arms, points lost with other images and points above look-ups, with their intervals.

All are those of the comparison of schedules (`evaluate.statistics`): clustered by fold (with one fold, by run) and by
image or subject, with the factor for training parts that overlap; of a single run, a bootstrap over images alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from triptych.evaluate.metrics import exact_match
from triptych.tables.format import NUMBER, TEXT, rows_of
from triptych.tables.pairs import correct_column
from triptych.tables.runs import Arms, Run
from triptych.tables.verdicts import by_fold, mean_with_interval
from triptych.tables.wording import interval_text, p_text

LOOKUP_COLUMNS = {"arm": TEXT, "lookup": TEXT} | dict.fromkeys(("effect", "low", "high", "p", "p_holm"), NUMBER)

LOOKUPS_ABOUT = (
    "Points of exact match of each schedule above each look-up and classifier (which have no seed), for the same folds "
    "and questions. The 95 % intervals are clustered by fold and by image, and not corrected; p values are corrected "
    "(Holm) for the number of rows."
)

Answered = Mapping[tuple[Run, str], tuple[bool, str]]  # by run and question: whether it is right, and its group


def answered(runs: Mapping[Run, Sequence[dict]]) -> Answered:
    """Tell of every answer of an arm whether it is right."""
    return {
        (run, record["question_id"]): (exact_match(record), record["group"])
        for run, records in runs.items()
        for record in records
    }


def accuracies(arms: Mapping[str, Answered]) -> dict[str, dict[str, Any]]:
    """Give exact match of each arm in per cent: `mean`, and its interval `low` and `high`, cut at 0 and 100."""
    found = {}
    for arm, answers in arms.items():
        points = [100.0 * right for right, _ in answers.values()]
        one = mean_with_interval(points, by_fold([run for run, _ in answers]), [group for _, group in answers.values()])
        known = one["low"] is not None
        found[arm] = {
            "mean": one["effect"],
            "low": max(0.0, one["low"]) if known else None,
            "high": min(100.0, one["high"]) if known else None,
        }
    return found


def lost(own: Mapping[str, Answered], views: Mapping[str, Arms], schedules: Sequence[str]) -> list[dict[str, Any]]:
    """Give the points that schedules lose with the images of each control, over the questions that it asks.

    Args:
        own: answers with each question's own image, by arm.
        views: answers by control.
        schedules: their names, in order.

    Returns:
        Rows of `arm`, `view`, `effect` (points lost), `low`, `high`, `p`, `p_holm` (for all rows).
    """
    rows = []
    for view, arms in views.items():
        for arm in schedules:
            other = answered(arms.get(arm, {}))
            keys = [key for key in other if key in own[arm]]
            if keys:
                points = [100.0 * (own[arm][key][0] - other[key][0]) for key in keys]
                found = mean_with_interval(
                    points, by_fold([run for run, _ in keys]), [own[arm][key][1] for key in keys]
                )
                rows.append({"arm": arm, "view": view, **found, "p_holm": None})
    correct_column(rows, "p")
    return rows


def above_lookups(
    own: Mapping[str, Answered], schedules: Sequence[str], lookups: Sequence[str]
) -> list[dict[str, Any]]:
    """Give the points of each schedule above each arm that is not trained, for the same folds and questions.

    Returns:
        Rows of `arm`, `lookup`, `effect`, `low`, `high`, `p`, `p_holm` (corrected for the number of all rows).
    """
    rows = []
    for arm in schedules:
        for lookup in lookups:
            there = {(split, question): right for ((split, _), question), (right, _) in own[lookup].items()}
            keys = [key for key in own[arm] if (key[0][0], key[1]) in there]
            points = [100.0 * (own[arm][run, asked][0] - there[run[0], asked]) for run, asked in keys]
            found = mean_with_interval(points, by_fold([run for run, _ in keys]), [own[arm][key][1] for key in keys])
            rows.append({"arm": arm, "lookup": lookup, **found, "p_holm": None})
    correct_column(rows, "p")
    return rows


def shown_lookups(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table of points above look-ups as text for people."""
    lines = [
        [
            row["arm"],
            row["lookup"],
            f"{row['effect']:+.1f}",
            interval_text(row["low"], row["high"]),
            p_text(row["p_holm"]),
        ]
        for row in rows_of(table)
    ]
    return pandas.DataFrame(lines, columns=["schedule", "look-up or classifier", "points", "95 % interval", "p (Holm)"])
