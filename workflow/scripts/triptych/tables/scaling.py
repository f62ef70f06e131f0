"""Step: curves of scale, a row for each value of a sweep, with the slope over all values."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from triptych.errors import TriptychError, run_step
from triptych.io.parquet import read_tables
from triptych.tables import evidence
from triptych.tables.format import NUMBER, TEXT, make_table, rows_of, write_table
from triptych.tables.pairs import OPTIONAL, READ, pair, the_view
from triptych.tables.runs import SIZES, Run, accuracy, cell, group_runs, mean_sd, runs_text, sizes
from triptych.tables.verdicts import draws_warning, mean_with_interval
from triptych.tables.wording import points_text

COMPARED_TO, ENDS = ("smaller", "smallest"), ("effect", "low", "high")
COLUMNS = {"sweep": TEXT, "setting": TEXT, "value": NUMBER, "arm": TEXT, **SIZES}
COLUMNS |= dict.fromkeys(("mean", "sd", "low", "high"), NUMBER)
COLUMNS |= {f"{to}_{part}": NUMBER for to in COMPARED_TO for part in ENDS}
COLUMNS |= {"slope_per": TEXT, **dict.fromkeys(("slope", "slope_low", "slope_high"), NUMBER)}
HEADINGS = ["sweep", "value", "arm", "runs", "exact match", "95 % interval", "minus next smaller", "minus smallest"]

DOUBLINGS = 4  # from this factor between the values (without 0) on, the slope is that of a doubling
LOGARITHMIC = 20  # above this one, the figure's axis is logarithmic

ABOUT = (
    "Exact match in per cent on held-out questions by the value of a setting: mean ± standard deviation over runs, "
    "with the interval of the mean for other runs and other images like these, and differences in points, paired by "
    "run and question. Intervals (95 %) are not corrected for their number; the comparison of schedules leaves out "
    "values that are no schedules of the study."
)

Sweeps = Mapping[str, Mapping[str, Any]]  # name -> `setting`, and `arms`: pairs of a value and its schedule, ascending


def spread(values: Sequence[float]) -> float:
    """Give the factor between the largest and the smallest value that is not 0."""
    positive = [value for value in values if value > 0]
    return max(positive) / min(positive)


def places(values: Sequence[float]) -> tuple[str, list[float | None]]:
    """Place values where the slope is a straight line: what one unit is, and the places; None for 0 with doublings."""
    if spread(values) >= DOUBLINGS:
        return "doubling", [math.log2(value) if value > 0 else None for value in values]
    return "unit", list(values)


def slope(records: Sequence[dict], arms: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """Fit a straight line to the curve, and give its slope in points with its interval.

    The slope by least squares is a weighted sum of the means, and so the mean of the same sum of each question's
    answers in each run, whose interval is clustered by run and by image as that of a difference is.

    Args:
        records: answers.
        arms: values and their schedules.
    """
    per, found = places([value for value, _ in arms])
    at = {arm: place for (_, arm), place in zip(arms, found, strict=True) if place is not None}
    centre = np.array(list(at.values())) - np.mean(list(at.values()))
    first = next(iter(at))
    paired = {arm: pair(records, first, arm) for arm in at if arm != first}
    known = next(iter(paired.values()))
    answers = [known.first, *(one.second for one in paired.values())]
    weights = 100 * centre / np.square(centre).sum()
    values = sum(weight * answer for weight, answer in zip(weights, answers, strict=True))
    values = np.round(values, 9)  # equal answers of all values give 0, which weights that are rounded miss
    found = mean_with_interval(values, known.runs, known.groups)
    return {"slope_per": per, "slope": found["effect"], "slope_low": found["low"], "slope_high": found["high"]}


def difference(records: Sequence[dict], arm: str, other: str, name: str) -> dict[str, float | None]:
    """Give the paired difference of an arm to another in points, with its interval; columns begin with `name`."""
    paired = pair(records, arm, other)
    points = 100.0 * (paired.first - paired.second)
    found = mean_with_interval(points, paired.runs, paired.groups)
    return {f"{name}_{part}": found[part] for part in ENDS}


def require_different(
    grouped: Mapping[str, Mapping], name: str, setting: str, arms: Sequence[tuple[float, str]]
) -> None:
    """Refuse a curve over numbers of samples of which two gave the same models: there are no more samples than that.

    Of other settings, values may well give the same models: a limit on gradients that none reaches.

    Raises:
        TriptychError: two numbers next to each other have the same answers with the same probabilities.
    """
    if not setting.endswith("max_samples"):
        return
    said = [_answers(grouped.get(arm, {})) for _, arm in arms]
    for (small, _), (large, _), one, other in zip(arms, arms[1:], said, said[1:], strict=False):
        if one and one == other:
            raise TriptychError(
                f"sweeps.{name}: {small:.10g} and {large:.10g} of {setting} gave the same models: every answer and its "
                f"probability are equal. There are no more samples than {small:.10g}: take out {large:.10g}"
            )


def _answers(runs: Mapping[Run, Sequence[Mapping]]) -> dict[tuple, tuple]:
    """Give what an arm said, with the probability of the gold answer; nothing where that was not kept."""
    records = [(run, record) for run, of_run in runs.items() for record in of_run]
    if any(record.get("gold_logprob") is None for _, record in records):
        return {}
    return {(run, one["question_id"]): (one["prediction"], one["gold_logprob"]) for run, one in records}


def summarise(records: Sequence[dict], sweeps: Sweeps) -> pandas.DataFrame:
    """Make the table: a row for each sweep and value, ascending.

    Raises:
        TriptychError: a schedule has no answers, or two were asked different questions, or shown different things.
    """
    the_view(records)
    grouped, rows = group_runs(records), []
    for name, sweep in sweeps.items():
        arms = sweep["arms"]
        require_different(grouped, name, sweep["setting"], arms)
        fitted = slope(records, arms)
        reached = evidence.accuracies({arm: evidence.answered(grouped[arm]) for _, arm in arms})
        for place, (value, arm) in enumerate(arms):
            row = {"sweep": name, "setting": sweep["setting"], "value": value, "arm": arm, **sizes(grouped[arm])}
            row["mean"], row["sd"] = mean_sd([accuracy(run) for run in grouped[arm].values()])
            row |= {end: reached[arm][end] for end in ("low", "high")}
            if place:
                row |= difference(records, arm, arms[place - 1][1], "smaller")
                row |= difference(records, arm, arms[0][1], "smallest")
            rows.append(row | fitted)
    return make_table(rows, COLUMNS)


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in a sentence what the curve of one sweep shows; its rows."""
    row = rows[0]
    each = f"doubling of {row['setting']}" if row["slope_per"] == "doubling" else f"unit of {row['setting']}"
    left_out = " (0 has no doubling and is left out)" if row["slope_per"] == "doubling" and row["value"] == 0 else ""
    text = f"{row['sweep']}: each {each} adds {row['slope']:+.2f} points of exact match"
    if row["slope_low"] is None:
        return f"{text}{left_out}; its answers show no spread by which to judge other images and runs."
    over = " over images" if row["runs"] == 1 else ""
    text += f" (95 % interval{over} {row['slope_low']:+.2f} to {row['slope_high']:+.2f}){left_out}"
    if row["slope_low"] <= 0 <= row["slope_high"]:
        return f"{text}: no slope is shown."
    return f"{text}."


def by_sweep(table: pandas.DataFrame) -> dict[str, list[dict]]:
    """Give the rows of each sweep."""
    found: dict[str, list[dict]] = {}
    for row in rows_of(table):
        found.setdefault(row["sweep"], []).append(row)
    return found


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    lines = [
        [
            row["sweep"],
            f"{row['value']:.10g}",
            row["arm"],
            runs_text(row),
            cell(row["mean"], row["sd"]),
            "" if row["low"] is None else f"{row['low']:.1f} to {row['high']:.1f}",
            *(points_text(*(row[f"{to}_{part}"] for part in ENDS)) for to in COMPARED_TO),
        ]
        for row in rows_of(table)
    ]
    return pandas.DataFrame(lines, columns=HEADINGS)


def axis_places(values: Sequence[float]) -> list[float]:
    """Place values on the figure's axis: by logarithm where they span much, with 0 one step before the smallest."""
    if spread(values) <= LOGARITHMIC:
        return list(values)
    logs = [math.log10(value) for value in values if value > 0]
    step = (max(logs) - min(logs)) / (len(logs) - 1)
    return [math.log10(value) if value > 0 else min(logs) - step for value in values]


def said(table: pandas.DataFrame, drawn: Mapping[str, str]) -> list[str]:
    """Say what every sweep shows, with a warning where all folds share too few trainings of a stage.

    Args:
        table: from `summarise`.
        drawn: schedule -> the prefix that it begins with and that all folds share, for those that have one.
    """
    found = []
    for rows in by_sweep(table).values():
        prefixes = list(dict.fromkeys(drawn[row["arm"]] for row in rows if row["arm"] in drawn))
        found.append(" ".join(filter(None, [sentence(rows), draws_warning(rows[0], prefixes)])))
    return found


def main() -> None:
    """Write `scaling` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--sweeps", type=json.loads, required=True, help="JSON: pairs of a sweep's name and its arms")
    parser.add_argument("--drawn-once", type=json.loads, required=True, help="JSON: as `triptych compare` takes it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    records = read_tables(arguments.predictions, READ, OPTIONAL)
    table = summarise(records, dict(arguments.sweeps))
    after = "".join(f"\n{line}\n" for line in said(table, arguments.drawn_once))
    write_table(arguments.out / "scaling", table, shown(table), "Curves of scale", ABOUT, after)


if __name__ == "__main__":
    run_step(main)
