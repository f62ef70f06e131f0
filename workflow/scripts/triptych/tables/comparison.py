"""Step: compare the first schedule with each of the others on the same questions and runs, from prediction records."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from triptych.config.arms import HELD_OUT, TEST
from triptych.data.schemas import ANSWER_TYPES
from triptych.errors import TriptychError, run_step
from triptych.evaluate.statistics import DRAWS, points
from triptych.io.atomic import write_text
from triptych.io.manifest import write_record
from triptych.io.parquet import read_tables
from triptych.tables import by_type
from triptych.tables.format import latex, make_table, markdown, write_csv
from triptych.tables.gold_outcome import section
from triptych.tables.pairs import OPTIONAL, READ, pair, the_view
from triptych.tables.verdicts import COLUMNS, compare, conclude, generalises_to
from triptych.tables.wording import LEVEL, interval_text, p_text

HEADINGS = ["comparison", "effect", "95 % interval", "p (Holm)", "P(equivalent)", "minimum detectable effect"]


def shown(rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Give the comparison as text for people."""
    lines = []
    for row in rows:
        line = [f"**{row['first']}** minus **{row['second']}**", f"{row['effect']:+.1f}"]
        if row["low"] is None:
            line += ["", p_text(row["p_holm"]), "", ""]
        else:
            line += [
                interval_text(row["low"], row["high"]),
                p_text(row["p_holm"]),
                f"{100 * row['probability_equal']:.0f} %",
                f"{row['detectable']:.1f}",
            ]
        lines.append(line)
    return pandas.DataFrame(lines, columns=HEADINGS)


def as_markdown(rows: Sequence[dict[str, Any]], view: str = HELD_OUT) -> str:
    """Write the comparison as a page; `view` is which questions were answered."""
    return f"# Comparison of schedules{_where(view)}\n\n{paragraphs(rows, view)}"


def paragraphs(rows: Sequence[dict[str, Any]], view: str) -> str:
    """Write the comparison, with a verdict for each row; `view` is which questions were answered."""
    said = "\n\n".join(about(rows, view))
    verdicts = "".join(f"{row['verdict']}\n\n" for row in rows)
    return f"{said}\n\n{markdown(shown(rows))}\n\n{verdicts}{section(rows)}"


def about(rows: Sequence[dict[str, Any]], view: str) -> list[str]:
    """Say what the comparison shows, and what its intervals hold for where there are some: a paragraph for each."""
    head = rows[0]
    folds = "one training part" if head["folds"] == 1 else f"{head['folds']} folds"
    text = (
        f"Difference of exact match in points, on {head['questions']} questions about {head['groups']} images or "
        f"subjects; {head['runs']} {'run' if head['runs'] == 1 else 'runs'} ({folds}). "
        f"Differences below {points(head['equivalence_margin'])} count as none. Minimum detectable effects are at "
        "80 % power."
    )
    if len(rows) > 1:
        text += (
            f" The comparison with {head['second']} is the primary one, and is not corrected; p values of the others "
            "are, for their number."
        )
    return [text] if head["low"] is None else [text, generalises_to(head["folds"], head["seeds"], view)]


def _where(view: str) -> str:
    return " on the source's test part" if view == TEST else ""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych compare`."""
    parser = argparse.ArgumentParser(
        prog="triptych compare",
        description=main.__doc__.replace("`", ""),
        epilog="example: triptych compare --predictions results/mine/predictions/*/fold*/seed?.parquet "
        "--schedules 1-2-3 2-3 --equivalence-margin 1.0 --answer-type OPEN --out open-questions",
    )
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument(
        "--schedules",
        nargs="+",
        required=True,
        help="names of schedules; the first is compared with each of the others, primarily with the second",
    )
    parser.add_argument(
        "--equivalence-margin", type=float, required=True, help="points below which a difference counts as none"
    )
    parser.add_argument(
        "--drawn-once",
        type=json.loads,
        help="JSON: schedules whose first stages all folds share, with the name of these stages, such as "
        '{"1-2-3": "1"}, or {} for none; unless given, verdicts say, where it matters, that it is not known',
    )
    parser.add_argument(
        "--answer-type", choices=("ALL", *ANSWER_TYPES), default="ALL", help="use only questions of this type"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the first schedule with the others: `comparison`, in full as JSON, and `comparison_by_type`."""
    arguments = build_parser().parse_args(arguments)
    first, *others = arguments.schedules
    if not others or len(set(arguments.schedules)) < len(arguments.schedules):
        raise TriptychError("--schedules: name at least two different schedules")
    if not (math.isfinite(arguments.equivalence_margin) and arguments.equivalence_margin > 0):
        raise TriptychError(
            f"--equivalence-margin: {arguments.equivalence_margin:g} must be a positive number of points"
        )
    records = read_tables(arguments.predictions, READ, OPTIONAL)
    view = the_view(records)
    if arguments.answer_type != "ALL":
        records = [record for record in records if record["answer_type"] == arguments.answer_type]
    paired = {other: pair(records, first, other) for other in others}
    rows = conclude(
        [
            compare(first, other, answers, arguments.equivalence_margin, arguments.seed)
            for other, answers in paired.items()
        ],
        arguments.drawn_once,
    )
    write_csv(arguments.out / "comparison.csv", make_table(rows, COLUMNS))
    write_text(arguments.out / "comparison.md", as_markdown(rows, view))
    write_text(arguments.out / "comparison.tex", latex(shown(rows), " ".join(about(rows, view)), "comparison"))
    by_type.write(arguments.out, [by_type.by_type(first, *named) for named in paired.items()], _where(view))
    bootstrap, head = {"draws": DRAWS, "seed": arguments.seed}, rows[0]
    settings = {
        "level": LEVEL,
        "view": view,
        "generalises_to": None if head["low"] is None else generalises_to(head["folds"], head["seeds"], view),
        "equivalence_margin": arguments.equivalence_margin,
        "answer_type": arguments.answer_type,
        "bootstrap": bootstrap,
    }
    write_record(arguments.out / "comparison.json", {"settings": settings, "comparisons": rows})
    print("\n".join(row["verdict"] for row in rows))


if __name__ == "__main__":
    run_step(main)
