"""Step: compare the first schedule with each of the others on the same questions and runs, from prediction records."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from triptych.data.schemas import ANSWER_TYPES
from triptych.errors import TriptychError, run_step
from triptych.evaluate.metrics import exact_match
from triptych.evaluate.statistics import (
    DRAWS,
    bootstrap_interval,
    correlated_bayes_t,
    holm,
    mcnemar,
    minimum_detectable_effect,
    overlap_factor,
    points,
    tabulate,
    two_way_clustered_t,
    verdict,
)
from triptych.io.atomic import write_text
from triptych.io.manifest import write_record
from triptych.io.parquet import read_table
from triptych.tables.format import INTEGER, NUMBER, TEXT, make_table, markdown, write_csv

LEVEL = 0.95  # of intervals

READ = ["arm", "split", "seed", "question_id", "group", "answer_type", "gold", "prediction"]

COLUMNS = {"first": TEXT, "second": TEXT, **dict.fromkeys(("questions", "groups", "runs", "folds", "seeds"), INTEGER)}
COLUMNS |= dict.fromkeys(("first_accuracy", "second_accuracy", "effect", "low", "high", "standard_error"), NUMBER)
COLUMNS |= {"df": NUMBER}
COLUMNS |= dict.fromkeys(("p", "p_holm", "bootstrap_low", "bootstrap_high", "equivalence_margin"), NUMBER)
COLUMNS |= dict.fromkeys(("probability_below", "probability_equal", "probability_above"), NUMBER)
COLUMNS |= {"detectable": NUMBER, "mcnemar_p": NUMBER, "verdict": TEXT}

HEADINGS = ["comparison", "effect", "95 % interval", "p (Holm)", "P(equivalent)", "minimum detectable effect"]

Run = tuple[str, int]  # split and seed


@dataclass(frozen=True)
class Paired:
    """Answers of two arms to the same questions, an entry in each list for every question of every run.

    Attributes:
        runs: split and seed.
        questions: question id.
        groups: image or subject that the question is about.
        first: 1 where the first arm's answer is right, 0 where it is not.
        second: the same of the second arm.
    """

    runs: list[Run]
    questions: list[str]
    groups: list[str]
    first: np.ndarray
    second: np.ndarray

    @property
    def folds(self) -> int:
        """Number of different training parts."""
        return len({split for split, _ in self.runs})


def pair(records: Sequence[dict], first: str, second: str) -> Paired:
    """Pair the answers of two arms, sorted by split, seed and question.

    Raises:
        TriptychError: an arm has no records, answered a question twice in one run, lacks a run or question of the
            other arm, or has another gold answer to a question.
    """
    one, two = _by_question(records, first), _by_question(records, second)
    for arm, other, there, here in ((first, second, one, two), (second, first, two, one)):
        missing = sorted({(split, seed) for split, seed, _ in here} - {(split, seed) for split, seed, _ in there})
        if missing:
            split, seed = missing[0]
            raise TriptychError(f"{other} has predictions of {split}, seed {seed}, but {arm} has none; predict them")
    if one.keys() != two.keys():
        split, seed, question = min(one.keys() ^ two.keys())
        raise TriptychError(
            f"{first} and {second} answered different questions in {split}, seed {seed} (such as {question}); "
            "predict both again"
        )
    keys = sorted(one)
    if changed := [key[2] for key in keys if one[key]["gold"] != two[key]["gold"]]:
        raise TriptychError(f"{first} and {second} have different gold answers to {changed[0]}; predict both again")
    return Paired(
        [(split, seed) for split, seed, _ in keys],
        [question for _, _, question in keys],
        [one[key]["group"] for key in keys],
        np.array([exact_match(one[key]) for key in keys], int),
        np.array([exact_match(two[key]) for key in keys], int),
    )


def _by_question(records: Sequence[dict], arm: str) -> dict[tuple[str, int, str], dict]:
    """Index an arm's records by split, seed and question."""
    found: dict[tuple[str, int, str], dict] = {}
    for record in records:
        if record["arm"] != arm:
            continue
        if record["seed"] is None:
            raise TriptychError(f"{arm} is a baseline without seeds; only trained schedules can be compared")
        key = (record["split"], record["seed"], record["question_id"])
        if key in found:
            raise TriptychError(f"{arm} answered question {key[2]} twice in {key[0]}, seed {key[1]}; predict it again")
        found[key] = record
    if not found:
        raise TriptychError(f"there are no predictions of schedule {arm}; check `--schedules` and `--predictions`")
    return found


def compare(first: str, second: str, paired: Paired, margin: float, seed: int) -> dict[str, Any]:
    """Compare two arms, in points of accuracy; statistics that need more than one run of each are None.

    `p_holm`, `detectable` and `verdict` depend on all rows: see `conclude`.

    Args:
        first: name of the first arm.
        second: name of the second.
        paired: their answers.
        margin: half width of the region of practical equivalence, in points.
        seed: of the bootstrap.
    """
    difference = 100.0 * (paired.first - paired.second)
    cells = tabulate(difference, paired.runs, paired.groups)
    runs = len(cells.counts)
    low, high = bootstrap_interval(cells, seed, level=LEVEL)
    row = dict.fromkeys(COLUMNS) | {
        "first": first,
        "second": second,
        "questions": len(set(paired.questions)),
        "groups": cells.counts.shape[1],
        "runs": runs,
        "folds": paired.folds,
        "seeds": len({number for _, number in paired.runs}),
        "first_accuracy": float(100 * paired.first.mean()),
        "second_accuracy": float(100 * paired.second.mean()),
        "effect": float(difference.mean()),
        "bootstrap_low": low,
        "bootstrap_high": high,
        "equivalence_margin": margin,
        "overlap_factor": overlap_factor(runs, paired.folds),
        "run_effects": {
            f"{split}, seed {number}": float(sums / count)
            for (split, number), sums, count in zip(
                sorted(set(paired.runs)), cells.sums.sum(1), cells.counts.sum(1), strict=True
            )
        },
    }
    if runs == 1:
        row["p"] = row["mcnemar_p"] = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
        return row
    row["estimate"] = estimate = two_way_clustered_t(cells, paired.folds, LEVEL)
    below, equal, above = correlated_bayes_t(estimate, margin)
    return row | asdict(estimate) | {
        "probability_below": below,
        "probability_equal": equal,
        "probability_above": above,
    }  # fmt: skip


def conclude(rows: Sequence[dict[str, Any]], drawn: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Add to the rows their corrected p values, minimum detectable effects and verdicts.

    The first row is the primary comparison, which is not corrected. The others are, for their number. Their minimum
    detectable effect is at the strictest size that Holm's correction can ask for.

    Args:
        rows: from `compare`.
        drawn: schedule -> the prefix that it begins with and that all folds share, for those that have one.
    """
    concluded = []
    others = rows[1:]
    corrected = [row["p"] for row in rows[:1]] + holm([row["p"] for row in others])
    for number, (row, p_holm) in enumerate(zip(rows, corrected, strict=True)):
        plain = {name: value for name, value in row.items() if name != "estimate"}
        if row["runs"] == 1:
            text = (
                f"One run of each: {row['first']} minus {row['second']} is {row['effect']:+.1f} points "
                f"({100 * LEVEL:g} % interval over images {row['bootstrap_low']:+.1f} to "
                f"{row['bootstrap_high']:+.1f}; McNemar's p {p_text(p_holm)}). This compares the two models, and says "
                "nothing about the schedules: more seeds or folds are needed."
            )
        else:
            estimate, size = row["estimate"], (1 - LEVEL) / (len(others) if number else 1)
            plain["detectable"] = found = minimum_detectable_effect(estimate.standard_error, estimate.df, size)
            text = verdict(row["first"], row["second"], estimate, p_holm, row["equivalence_margin"], found, LEVEL)
            text += _warning(row, drawn or {})
        concluded.append(plain | {"p_holm": p_holm, "verdict": text})
    return concluded


def few_draws(folds: int, seeds: int) -> bool:
    """Tell whether a stage that all folds share is drawn too seldom: false positives may exceed 6 %.

    As simulated in `benchmarks/simulate_comparison.py`.
    """
    return folds > 1 and seeds < folds


def _warning(row: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    """Warn where folds share fewer trainings of a first stage than there are folds: intervals are then too narrow."""
    prefixes = list(dict.fromkeys(drawn[row[arm]] for arm in ("first", "second") if row[arm] in drawn))
    if not few_draws(row["folds"], row["seeds"]) or not prefixes:
        return ""
    named = " and ".join(f"stage {prefix}" for prefix in prefixes)
    draws = "one draw" if row["seeds"] == 1 else f"{row['seeds']} draws"
    return f" All folds share {draws} of {named} (trained once per seed); how other draws differ is not known."


def shown(rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Give the comparison as text for people."""
    lines = []
    for row in rows:
        line = [f"**{row['first']}** minus **{row['second']}**", f"{row['effect']:+.1f}"]
        if row["runs"] == 1:
            line += ["", p_text(row["p_holm"]), "", ""]
        else:
            line += [
                f"{row['low']:+.1f} to {row['high']:+.1f}",
                p_text(row["p_holm"]),
                f"{100 * row['probability_equal']:.0f} %",
                f"{row['detectable']:.1f}",
            ]
        lines.append(line)
    return pandas.DataFrame(lines, columns=HEADINGS)


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Write the comparison as a page, with a verdict for each row."""
    head = rows[0]
    folds = "one training part" if head["folds"] == 1 else f"{head['folds']} folds"
    about = (
        f"Difference of exact match in points, on {head['questions']} questions about {head['groups']} images or "
        f"subjects; {head['runs']} {'run' if head['runs'] == 1 else 'runs'} ({folds}). "
        f"Differences below {points(head['equivalence_margin'])} count as none. Minimum detectable effects are at "
        "80 % power."
    )
    if len(rows) > 1:
        about += (
            f" The comparison with {head['second']} is the primary one, and is not corrected; p values of the others "
            "are, for their number."
        )
    verdicts = "".join(f"{row['verdict']}\n\n" for row in rows)
    return f"# Comparison of schedules\n\n{about}\n\n{markdown(shown(rows))}\n\n{verdicts[:-1]}"


def p_text(p: float) -> str:
    """Write a p value: '0.031', '< 0.001'."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


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
        default={},
        help="JSON: schedules whose first stages all folds share, with the name of these stages",
    )
    parser.add_argument(
        "--answer-type", choices=("ALL", *ANSWER_TYPES), default="ALL", help="use only questions of this type"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the first schedule with the others: `comparison.csv`, `comparison.md`, and `comparison.json` in full."""
    arguments = build_parser().parse_args(arguments)
    first, *others = arguments.schedules
    if not others or len(set(arguments.schedules)) < len(arguments.schedules):
        raise TriptychError("--schedules: name at least two different schedules")
    if not (math.isfinite(arguments.equivalence_margin) and arguments.equivalence_margin > 0):
        raise TriptychError(
            f"--equivalence-margin: {arguments.equivalence_margin:g} must be a positive number of points"
        )
    records = [record for path in sorted(arguments.predictions) for record in read_table(path, READ)]
    if arguments.answer_type != "ALL":
        records = [record for record in records if record["answer_type"] == arguments.answer_type]
    rows = conclude(
        [
            compare(first, other, pair(records, first, other), arguments.equivalence_margin, arguments.seed)
            for other in others
        ],
        arguments.drawn_once,
    )
    write_csv(arguments.out / "comparison.csv", make_table(rows, COLUMNS))
    write_text(arguments.out / "comparison.md", as_markdown(rows))
    bootstrap = {"draws": DRAWS, "seed": arguments.seed}
    settings = {
        "level": LEVEL,
        "equivalence_margin": arguments.equivalence_margin,
        "answer_type": arguments.answer_type,
        "bootstrap": bootstrap,
    }
    write_record(arguments.out / "comparison.json", {"settings": settings, "comparisons": rows})
    print("\n".join(row["verdict"] for row in rows))


if __name__ == "__main__":
    run_step(main)
