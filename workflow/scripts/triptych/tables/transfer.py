"""Step: the table of a data set that no stage trains on, from the answers to it alone, with the schedules compared."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from triptych.config.arms import BASELINES, PARTS, TEST, in_domain_arms
from triptych.errors import run_step
from triptych.io.atomic import write_text
from triptych.io.manifest import write_record
from triptych.io.parquet import read_tables
from triptych.tables import evidence, schedules
from triptych.tables.comparison import paragraphs
from triptych.tables.format import NUMBER, latex, make_table, markdown, rows_of, write_csv
from triptych.tables.pairs import pair, the_view
from triptych.tables.runs import cell, group_runs, runs_text
from triptych.tables.verdicts import compare, conclude
from triptych.tables.wording import LEVEL

COLUMNS = {**schedules.COLUMNS, "low": NUMBER, "high": NUMBER}
HEADINGS = ["arm", "runs", "all questions", "95 % interval", "open", "closed", "yes/no"]
SEED = 0  # of the bootstrap


def summarise(records: Sequence[dict], arms: Sequence[str]) -> pandas.DataFrame:
    """Score arms as `schedules.summarise` does, with the interval of exact match on all questions.

    Raises:
        TriptychError: an arm has no records, or two arms did not answer the same questions.
    """
    rows, grouped = rows_of(schedules.summarise(records, arms)), group_runs(records)
    found = evidence.accuracies({arm: evidence.answered(grouped[arm]) for arm in arms})
    for row in rows:
        row |= {end: found[row["arm"]][end] for end in ("low", "high")}
    return make_table(rows, COLUMNS)


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    lines = [
        [
            f"**{row['arm']}**" if row["trained"] else row["arm"],
            runs_text(row),
            cell(row["all_mean"], row["all_sd"]),
            "" if row["low"] is None else f"{row['low']:.1f} to {row['high']:.1f}",
            *(cell(row[f"{name}_mean"], row[f"{name}_sd"]) for name in ("open", "closed", "yes_no")),
        ]
        for row in rows_of(table)
    ]
    return pandas.DataFrame(lines, columns=HEADINGS)


def compared(
    records: Sequence[dict], names: Sequence[str], margin: float, drawn: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Compare the first schedule with each of the others, as `comparison` does; nothing where it stands alone.

    Args:
        records: answers.
        names: schedules, that of the primary comparison second.
        margin: half width of the region of practical equivalence, in points.
        drawn: schedule -> the prefix that it begins with and that all folds share, for those that have one.
    """
    first, *others = names
    rows = [compare(first, other, pair(records, first, other), margin, SEED) for other in others]
    return conclude(rows, drawn) if rows else []


def about(dataset: str, part: str, table: pandas.DataFrame) -> str:
    """Say what the table shows."""
    baselines = "Baselines answer from the training part of each of the study's folds"
    if any(arm in in_domain_arms().values() for arm in table["arm"]):
        baselines += f"; those in-domain, from the training part of {dataset} itself, which no model has seen"
    return (
        f"Exact match in per cent on {table['questions'].iloc[0]} questions, the part `{part}` of {dataset}, on which "
        "nothing was trained: mean ± standard deviation over runs, and the interval of the mean for other runs and "
        f"other images like these (of one run, for other images alone). {baselines}."
    )


def main() -> None:
    """Write the table of one data set as CSV, Markdown and LaTeX, and the comparison in full as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="all answers to the data set")
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument("--part", choices=PARTS, required=True, help="its part that was asked")
    parser.add_argument("--schedules", nargs="+", required=True, help="names of the schedules, as they are compared")
    parser.add_argument("--drawn-once", type=json.loads, required=True, help="JSON: as `triptych compare` takes it")
    parser.add_argument("--equivalence-margin", type=float, required=True, help="points that count as none")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    records = read_tables(arguments.predictions)
    view = the_view(records)
    known = {record["arm"] for record in records}
    in_domain = [arm for arm in in_domain_arms().values() if arm in known]  # where it has a training part
    table = summarise(records, [*arguments.schedules, *BASELINES, *in_domain])
    rows = compared(records, arguments.schedules, arguments.equivalence_margin, arguments.drawn_once)
    text, stem = about(arguments.dataset, arguments.part, table), arguments.out / arguments.dataset
    page = f"# Transfer to {arguments.dataset}\n\n{text}\n\n{markdown(shown(table))}\n"
    if rows:
        page += f"\n## The schedules compared\n\n{paragraphs(rows, TEST)}"  # as on a test part, all answer all of it
    # No `with_suffix`: the name of a data set may hold dots.
    write_csv(Path(f"{stem}.csv"), table)
    write_text(Path(f"{stem}.md"), page)
    write_text(Path(f"{stem}.tex"), latex(shown(table), text.replace("`", ""), f"transfer-{stem.name}"))
    settings = {"dataset": arguments.dataset, "part": arguments.part, "view": view, "level": LEVEL}
    settings["equivalence_margin"] = arguments.equivalence_margin
    write_record(Path(f"{stem}.json"), {"settings": settings, "comparisons": rows})
    print(page)


if __name__ == "__main__":
    run_step(main)
