"""Step: the table of occlusion: do schedules look at the organ that a question asks for?"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from triptych.errors import TriptychError, run_step
from triptych.evaluate.statistics import bootstrap_interval, tabulate
from triptych.io.parquet import read_tables
from triptych.tables.format import INTEGER, NUMBER, TEXT, make_table, rows_of, write_table
from triptych.tables.runs import SIZES, group_runs, runs_text, sizes

NAME = "occlusion"
MEASURES = ("pointing", "mass")
BASELINES = ("random", "centre")
PARTS = ("", "_low", "_high", *(f"_{name}" for name in BASELINES))
PARTS += tuple(f"_above_{name}{part}" for name in BASELINES for part in ("", "_low", "_high"))
COLUMNS = {"arm": TEXT, **SIZES, "groups": INTEGER, "without_drop": INTEGER}
COLUMNS |= {f"{measure}{part}": NUMBER for measure in MEASURES for part in PARTS}

ABOUT = (
    "Squares of held-out images are made grey, one after the other. Pointing: how often the square whose loss lowers "
    "the log-probability of the gold answer most points at the box of what the question asks for (its centre lies in a "
    "box, or the centre of a box in it). Mass: the share of all that squares lower it by that lies within the boxes. "
    "In per cent, and in points above a random square and above the square in the middle of the image; 95 % intervals "
    "are from resampling runs and images or subjects 10,000 times, and ignore that folds share training data."
)


def of_record(record: dict) -> dict[str, dict[str, float]]:
    """Score one question in one run: measure -> own value and those of both baselines, in per cent.

    Of squares that matter equally, each counts in part. Where no square matters, there is no mass.
    """
    drops, inside, hits = (np.array(record[name], float) for name in ("drops", "inside", "hits"))
    grid = round(len(drops) ** 0.5)
    middle = [number for number in range(grid) if abs(2 * number + 1 - grid) <= 1]  # two where the grid is even
    centre = [row * grid + column for row in middle for column in middle]
    found = {"pointing": {"": hits[drops == drops.max()].mean(), "random": hits.mean(), "centre": hits[centre].mean()}}
    falls = np.maximum(drops, 0)
    if falls.any():
        mass = falls @ inside / falls.sum()
        found["mass"] = {"": mass, "random": inside.mean(), "centre": inside[centre].mean()}
    return {measure: {name: 100 * float(value) for name, value in of.items()} for measure, of in found.items()}


def summarise(records: Sequence[dict], arms: Sequence[str]) -> pandas.DataFrame:
    """Score arms: a row for each, in the order of `arms`.

    Raises:
        TriptychError: an arm has no records.
    """
    grouped = group_runs(records)
    rows = []
    for arm in arms:
        if arm not in grouped:
            raise TriptychError(f"there is no occlusion of {arm}; delete the folder occlusion/{arm} and run again")
        own = [(record, of_record(record)) for run in grouped[arm].values() for record in run]
        row = {"arm": arm, **sizes(grouped[arm]), "groups": len({record["group"] for record, _ in own})}
        row["without_drop"] = sum("mass" not in scores for _, scores in own)
        for measure in MEASURES:
            known = [(record, scores[measure]) for record, scores in own if measure in scores]
            row |= _columns(measure, [record for record, _ in known], [scores for _, scores in known])
        rows.append(row)
    return make_table(rows, COLUMNS)


def _columns(measure: str, records: Sequence[dict], scores: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """The columns of a measure; no intervals where all questions are about one image or subject, or score alike."""
    runs = [(record["split"], record["seed"]) for record in records]
    groups = [record["group"] for record in records]
    wanted = {"": [score[""] for score in scores]}
    wanted |= {f"_above_{name}": [score[""] - score[name] for score in scores] for name in BASELINES}
    found: dict[str, float | None] = {}
    for name, values in wanted.items():
        found[f"{measure}{name}"] = float(np.mean(values)) if values else None
        if len(set(groups)) > 1:
            low, high = bootstrap_interval(tabulate(values, runs, groups), seed=0)
            found |= {f"{measure}{name}_low": low, f"{measure}{name}_high": high}
    for name in BASELINES:
        found[f"{measure}_{name}"] = float(np.mean([score[name] for score in scores])) if scores else None
    return found


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    lines = []
    for row in rows_of(table):
        line = [f"**{row['arm']}**", runs_text(row), f"{row['questions']} ({row['groups']})"]
        for measure in MEASURES:
            line.append(_cell(row, measure, ".1f"))
            line += [f"{_cell(row, f'{measure}_above_{name}', '+.1f')}" for name in BASELINES]
        lines.append(line)
    heading = ["arm", "runs", "questions (images or subjects)"]
    for measure in MEASURES:
        heading += [f"{measure} (95 % interval)", *(f"{measure} above {name} square" for name in BASELINES)]
    return pandas.DataFrame(lines, columns=heading)


def _cell(row: dict, name: str, form: str) -> str:
    if row[name] is None:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:{form}}" + (f" ({low:{form}} to {high:{form}})" if low is not None else "")


def main() -> None:
    """Write `occlusion` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--occlusions", type=Path, nargs="+", required=True, help="records of `occlude`")
    parser.add_argument("--schedules", nargs="+", required=True, help="names of the schedules, in order")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    records = read_tables(arguments.occlusions)
    table = summarise(records, arguments.schedules)
    write_table(arguments.out / NAME, table, shown(table), "Occlusion: where schedules look", ABOUT)


if __name__ == "__main__":
    run_step(main)
