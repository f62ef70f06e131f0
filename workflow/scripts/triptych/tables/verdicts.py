"""What the paired answers of two arms support: effect, interval, p value and verdict, a row for each pair of arms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from triptych.config.arms import TEST
from triptych.evaluate.statistics import (
    bootstrap_interval,
    correlated_bayes_t,
    holm,
    mcnemar,
    minimum_detectable_effect,
    overlap_factor,
    tabulate,
    two_way_clustered_t,
    verdict,
)
from triptych.tables import gold_outcome
from triptych.tables.format import INTEGER, NUMBER, TEXT
from triptych.tables.gold_outcome import compare_gold
from triptych.tables.pairs import Paired, correct_column
from triptych.tables.wording import LEVEL, interval_text, p_text

COLUMNS = {"first": TEXT, "second": TEXT, **dict.fromkeys(("questions", "groups", "runs", "folds", "seeds"), INTEGER)}
COLUMNS |= dict.fromkeys(("first_accuracy", "second_accuracy", "effect", "low", "high", "standard_error"), NUMBER)
COLUMNS |= {"df": NUMBER}
COLUMNS |= dict.fromkeys(("p", "p_holm", "bootstrap_low", "bootstrap_high", "equivalence_margin"), NUMBER)
COLUMNS |= dict.fromkeys(("probability_below", "probability_equal", "probability_above"), NUMBER)
COLUMNS |= {"detectable": NUMBER, "mcnemar_p": NUMBER, **gold_outcome.COLUMNS, "verdict": TEXT}

FEWEST_DRAWS = 4  # of a stage that folds share: with three, 6.1 % of all studies on three folds err


def generalises_to(folds: int, seeds: int, view: str) -> str:
    """Say for which other runs and images a comparison of several runs holds.

    Args:
        folds: number of different training parts.
        seeds: number of seeds.
        view: which questions were answered.
    """
    if folds == 1:
        return (
            "All runs are trained on one training part, differ by seed, and answer the same questions: intervals hold "
            "for other seeds on this training part and for other images like these, not for other training data."
        )
    asked = "Every run answers the same questions" if view == TEST else "Every run answers what its fold holds out"
    others = "other seeds, and" if seeds > 1 else "and"
    alone = " How results vary with the seed is not known: there is one." if seeds == 1 else ""
    return (
        f"{asked}, trained on the training part of one of {folds} folds: intervals hold for other training parts of "
        f"this size from the same source, {others} other images like these.{alone}"
    )


def compare(first: str, second: str, paired: Paired, margin: float, seed: int) -> dict[str, Any]:
    """Compare two arms, in points of accuracy; statistics that need more than one run, or more images, are None.

    Where every run has the same difference in every group of images, nothing is tested either.

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
        "equivalence_margin": margin,
        "overlap_factor": overlap_factor(runs, paired.folds),
        "disagree": float((paired.first != paired.second).mean()),
        "run_effects": {
            f"{split}, seed {number}": float(sums / count)
            for (split, number), sums, count in zip(
                sorted(set(paired.runs)), cells.sums.sum(1), cells.counts.sum(1), strict=True
            )
        },
    }
    row |= compare_gold(first, second, paired)
    if row["groups"] == 1:
        return row
    row["bootstrap_low"], row["bootstrap_high"] = bootstrap_interval(cells, seed, level=LEVEL)
    if runs == 1:
        row["p"] = row["mcnemar_p"] = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
        return row
    row["estimate"] = estimate = two_way_clustered_t(cells, paired.folds, LEVEL)
    if not estimate.standard_error:  # nothing is known of other runs and images
        return row | {"standard_error": 0.0, "df": estimate.df}
    below, equal, above = correlated_bayes_t(estimate, margin)
    return row | asdict(estimate) | {
        "probability_below": below,
        "probability_equal": equal,
        "probability_above": above,
    }  # fmt: skip


def by_fold(runs: Sequence[tuple]) -> list[tuple]:
    """Give the units that vary, of the answers of one arm: with several folds, the fold of each run.

    The seeds of one fold answer the same questions, and a look-up answers these for all seeds alike: runs of one fold
    are far more alike than others. Differences between schedules, which both have a run of each, are not so.

    Args:
        runs: (N,) split and seed of each answer.
    """
    return [(split,) for split, *_ in runs] if len({split for split, *_ in runs}) > 1 else list(runs)


def mean_with_interval(values: Sequence[float], runs: Sequence[tuple], groups: Sequence[str]) -> dict[str, Any]:
    """Give the mean of values with its interval, for other runs and other images of the same kind; of one run, for
    other images alone.

    Args:
        values: (N,) one for each answered question.
        runs: (N,) split and seed of each, or what `by_fold` makes of them.
        groups: (N,) image or subject of each.

    Returns:
        `effect`, `low`, `high` and `p`. The last three are None where they cannot be known: all answers are about one
        image or subject, or all values are equal, so that they have no spread to judge others by.
    """
    cells = tabulate(values, runs, groups)
    found: dict[str, Any] = {"effect": float(sum(values) / len(values)), "low": None, "high": None, "p": None}
    if cells.counts.shape[1] < 2:
        return found
    if len(cells.counts) == 1:
        low, high = bootstrap_interval(cells, seed=0, level=LEVEL)
        p = mcnemar(sum(bool(value > 0) for value in values), sum(bool(value < 0) for value in values))
        return found if low is None else found | {"low": low, "high": high, "p": p}
    estimate = two_way_clustered_t(cells, len({split for split, *_ in runs}), LEVEL)
    if not estimate.standard_error:
        return found
    return found | {"low": float(estimate.low), "high": float(estimate.high), "p": estimate.p}


def conclude(
    rows: Sequence[dict[str, Any]], drawn: Mapping[str, str] | None = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Add to the rows, of the same questions and runs, corrected p values, minimum detectable effects and verdicts.

    The first row is the primary comparison, which is not corrected. The others are, for their number. Their minimum
    detectable effect is at the strictest size that Holm's correction can ask for.

    Args:
        rows: from `compare`.
        drawn: schedule -> the prefix that it begins with and that all folds share, for those that have one. None where
            this is not known.
    """
    concluded = []
    others = [row["p"] for row in rows[1:] if row["p"] is not None]
    corrected = iter(holm(others))
    for number, row in enumerate(rows):
        p_holm = next(corrected) if number and row["p"] is not None else row["p"]
        plain = {name: value for name, value in row.items() if name != "estimate"}
        if row["groups"] == 1:
            text = (
                f"All questions are about one image or subject: {row['first']} minus {row['second']} is "
                f"{row['effect']:+.1f} points, and nothing can be said about other images."
            )
        elif row["runs"] == 1:
            interval = interval_text(row["bootstrap_low"], row["bootstrap_high"])
            over = f"{100 * LEVEL:g} % interval over images {interval}" if interval else "the same for every image"
            text = (
                f"One run of each: {row['first']} minus {row['second']} is {row['effect']:+.1f} points "
                f"({over}; McNemar's p {p_text(p_holm)}). This compares the two models, and says nothing about the "
                "schedules: more seeds or folds are needed."
            )
        else:
            estimate, size = row["estimate"], (1 - LEVEL) / (max(len(others), 1) if number else 1)
            found = minimum_detectable_effect(estimate.standard_error, estimate.df, size)
            plain["detectable"] = found or None
            said = verdict(row["first"], row["second"], estimate, p_holm, row["equivalence_margin"], found, LEVEL)
            text = " ".join(filter(None, [said, warning_of_pair(row, drawn)]))
        concluded.append(plain | {"p_holm": p_holm, "verdict": text})
    correct_column(concluded, "logprob_p")
    return concluded


def few_draws(folds: int, seeds: int) -> bool:
    """Tell whether a stage that all folds share is drawn too seldom: false positives may exceed 6 %.

    As simulated in `benchmarks/simulate_draws.py`.
    """
    return folds > 1 and seeds < max(folds, FEWEST_DRAWS)


def warning_of_pair(row: Mapping[str, Any], drawn: Mapping[str, str] | None) -> str:
    """Warn where the runs of a compared pair share too few trainings of a first stage, else "".

    Args:
        row: of the comparison, with `first`, `second`, `folds` and `seeds`.
        drawn: `Grid.drawn_once`; None where it is not known.
    """
    if drawn is None:
        if not few_draws(row["folds"], row["seeds"]):
            return ""
        return "If all folds share the training of a first stage (not stated here), intervals may be too narrow."
    prefixes = list(dict.fromkeys(drawn[row[arm]] for arm in ("first", "second") if row[arm] in drawn))
    return draws_warning(row, prefixes)


def draws_warning(row: Mapping[str, Any], prefixes: Sequence[str]) -> str:
    """Warn that intervals may be too narrow where folds share too few trainings of a first stage; else "".

    Args:
        row: with the numbers of folds and seeds.
        prefixes: those that all folds share.
    """
    if not few_draws(row["folds"], row["seeds"]) or not prefixes:
        return ""
    named = " and ".join(f"stage {prefix}" for prefix in prefixes)
    few = "one training" if row["seeds"] == 1 else f"{row['seeds']} trainings"
    return (
        f"All folds share {few} of {named} (one per seed): how others would differ is not known, and intervals may be "
        "too narrow."
    )
