"""The second outcome of a comparison: the log-probability of the gold answers. It enters no verdict on the first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas

from triptych.evaluate.statistics import tabulate, two_way_clustered_t
from triptych.tables.format import NUMBER, markdown
from triptych.tables.pairs import Paired
from triptych.tables.wording import LEVEL, p_text

COLUMNS = dict.fromkeys(
    (
        *("first_logprob", "second_logprob", "logprob_effect", "logprob_low", "logprob_high"),
        *("logprob_p", "logprob_p_holm"),
    ),
    NUMBER,
)
TITLE = "Log-probability of the gold answers"
ABOUT = (
    "A second outcome, which enters none of the verdicts above: the mean difference of the log-probability that two "
    "schedules give to the gold answer, in nats an answer (natural logarithm; the sum over its tokens and its end). "
    "Above 0, the first schedule finds gold answers more probable. Intervals and p values are those of the same "
    "clustered t test; p (Holm) is corrected for the number of pairs, in a family of its own."
)


def compare_gold(first: str, second: str, paired: Paired) -> dict[str, Any]:
    """Compare the log-probabilities that two arms give to gold answers.

    Args:
        first: name of the first arm.
        second: name of the second.
        paired: their answers.

    Returns:
        COLUMNS, but for the correction, which `pairs.correct_column` makes; what cannot be computed is None. Where a
        log-probability is not known there are none, and `logprob_left_out` says why.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"logprob_left_out": None}
    for arm, values in ((first, paired.first_logprob), (second, paired.second_logprob)):
        if lacking := int((~np.isfinite(values)).sum()):
            row["logprob_left_out"] = (
                f"{lacking} of {len(values)} stored answers of {arm} have no log-probability of the gold answer: an "
                "earlier version did not keep it, or the gold answer does not fit into the model's context. "
                "`snakemake --forcerun predict` asks all questions again"
            )
            return row
    difference = paired.first_logprob - paired.second_logprob
    means = {"first": paired.first_logprob.mean(), "second": paired.second_logprob.mean(), "effect": difference.mean()}
    row |= {"first_logprob": float(means["first"]), "second_logprob": float(means["second"])}
    row["logprob_effect"] = float(means["effect"])
    cells = tabulate(difference, paired.runs, paired.groups)
    if min(cells.counts.shape) > 1:
        estimate = two_way_clustered_t(cells, paired.folds, LEVEL)
        if estimate.standard_error:
            row |= {"logprob_low": estimate.low, "logprob_high": estimate.high, "logprob_p": estimate.p}
    return row


def left_out(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Give the reasons for which pairs are left out, with the pairs."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if reason := row.get("logprob_left_out"):
            reasons.setdefault(reason, []).append(f"{row['first']} minus {row['second']}")
    return reasons


def section(rows: Sequence[dict[str, Any]]) -> str:
    """Write the outcome as a section of the comparison's page."""
    lines = [
        [
            f"**{row['first']}** minus **{row['second']}**",
            f"{row['logprob_effect']:+.3f}",
            f"{row['logprob_low']:+.3f} to {row['logprob_high']:+.3f}" if row["logprob_low"] is not None else "",
            p_text(row["logprob_p"]),
            p_text(row["logprob_p_holm"]),
        ]
        for row in rows
        if row["logprob_effect"] is not None
    ]
    heading = ["comparison", "nats an answer", "95 % interval", "p", "p (Holm)"]
    text = [f"## {TITLE}", ABOUT] + ([markdown(pandas.DataFrame(lines, columns=heading))] if lines else [])
    for reason, pairs in left_out(rows).items():
        text.append(f"Left out: {', '.join(pairs)}. {reason}.")
    return "\n\n".join(text) + "\n"
