"""Step: table, figure and verdict of the probes, from the kept answers of the probes alone."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import altair
import numpy as np
import pandas

from triptych.errors import run_step
from triptych.evaluate.probe import ATTRIBUTES, PROBES
from triptych.io.atomic import write_text
from triptych.io.parquet import read_table
from triptych.tables.format import csv_text, latex, markdown
from triptych.tables.plotting import PALETTE, write_figure

DRAWS = 2000


# What arXiv 2402.16832 found in table 2: change of the probe's macro-F1 to the model before medical-like training, per
# cent: least and most over its four data sets.
PAPER = {"projection only": (-29.7, -19.6), "end to end": (-18.7, -3.0)}


COLUMNS = ["representation", "attribute", "probe", "f1", "low", "high", "sd_seeds", "shuffled_f1", "reference"]


COLUMNS += ["change", "change_low", "change_high", "values", "images", "folds", "seeds", "probe_seeds"]


Key = tuple[str, str, str, str]  # representation, attribute, probe, task


class Counts:
    """Right, given and true values of one representation's probes, by group of images.

    Attributes:
        table: (runs, 3, G, C): right answers, answers, truths; a run is a seed and a probe's seed.
    """

    def __init__(self, rows: Sequence[dict], groups: Sequence[str], values: Sequence[str]):
        """Count rows of answers, over all folds together."""
        runs = sorted({(row["seed"], row["probe_seed"]) for row in rows})
        self.table = np.zeros((len(runs), 3, len(groups), len(values)))
        run_of, group_of, value_of = ({name: place for place, name in enumerate(all)} for all in (runs, groups, values))
        for row in rows:
            cell = self.table[run_of[row["seed"], row["probe_seed"]], :, group_of[row["group"]]]
            for kind, names in enumerate((set(row["truth"]) & set(row["answer"]), row["answer"], row["truth"])):
                for name in names:
                    cell[kind, value_of[name]] += 1

    def macro_f1(self, weights: np.ndarray) -> np.ndarray:
        """Macro-F1 in per cent of each run, (B, runs), with groups counted `weights` (B, G) times.

        Values that no image of a draw has are left out of its mean.
        """
        scores = []
        for right, given, true in self.table:
            right, both, true = weights @ right, weights @ (given + true), weights @ true
            f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
            scores.append(100 * (f1 * (true > 0)).sum(1) / (true > 0).sum(1))
        return np.stack(scores, axis=1)


def summarise(records: Sequence[dict], order: Sequence[str], references: Mapping[str, str | None]) -> list[dict]:
    """One row for each representation, attribute and probe: macro-F1 in per cent, and its change, with intervals.

    Intervals are percentiles over draws of groups of images with replacement, the same draws for all rows: they
    cover the choice of images; `sd_seeds` is the spread of the runs.

    Args:
        records: rows of `probe.SCHEMA`.
        order: the representations.
        references: what each is compared with, as `grid.reference` has it.
    """
    by_key: dict[Key, list[dict]] = {}
    for row in records:
        key = (row["representation"], row["attribute"], row["probe"], row["task"])
        by_key.setdefault(key, []).append(row)
    rows = []
    for attribute in [name for name in ATTRIBUTES if any(key[1] == name for key in by_key)]:
        of = [row for row in records if row["attribute"] == attribute]
        groups = sorted({row["group"] for row in of})
        values = sorted({name for row in of for name in (*row["truth"], *row["answer"])})
        one = np.ones((1, len(groups)))
        even = np.full(len(groups), 1 / len(groups))
        draws = np.random.default_rng(0).multinomial(len(groups), even, DRAWS).astype(float)
        for kind in PROBES:
            exact, drawn, shuffled = {}, {}, {}
            for name in order:
                counts = Counts(by_key[name, attribute, kind, "labels"], groups, values)
                exact[name], drawn[name] = counts.macro_f1(one)[0], counts.macro_f1(draws).mean(1)
                dealt = Counts(by_key[name, attribute, kind, "shuffled"], groups, values)
                shuffled[name] = dealt.macro_f1(one).mean()
            for name in order:
                answers = by_key[name, attribute, kind, "labels"]
                low, high = np.quantile(drawn[name], [0.025, 0.975])
                row = {
                    "representation": name,
                    "attribute": attribute,
                    "probe": kind,
                    "f1": exact[name].mean(),
                    "low": low,
                    "high": high,
                    "sd_seeds": exact[name].std(ddof=1) if len(exact[name]) > 1 else None,
                    "shuffled_f1": shuffled[name],
                    "values": len(values),
                    "images": len({answer["image_id"] for answer in answers}),
                    "folds": len({answer["split"] for answer in answers}),
                    "seeds": len({answer["seed"] for answer in answers}),
                    "probe_seeds": len({answer["probe_seed"] for answer in answers}),
                }
                if other := references.get(name):
                    changes = 100 * (drawn[name] / drawn[other] - 1)
                    row["reference"] = other
                    row["change"] = 100 * (exact[name].mean() / exact[other].mean() - 1)
                    row["change_low"], row["change_high"] = np.quantile(changes, [0.025, 0.975])
                rows.append(row)
    return rows


def verdicts(rows: Sequence[dict], shared: Sequence[str], ways: dict[str, str]) -> list[str]:
    """In words: does what the MLP probe finds agree with arXiv 2402.16832?

    Args:
        rows: of `summarise`.
        shared: the prefixes that no fold's data were trained on.
        ways: prefix -> "projection only" or "end to end", of what was trained on from a shared checkpoint.
    """
    said = []
    for row in rows:
        if row["probe"] != "mlp" or row.get("reference") not in shared:
            continue
        way = ways[row["representation"]]
        deepest, mildest = PAPER[way]
        low, high = row["change_low"], row["change_high"]
        if high < 0:
            agrees = low <= mildest and high >= deepest
            word = "as there, it falls" if agrees else f"it falls, by {'less' if low > mildest else 'more'} than there"
        elif low > 0:
            word = "the opposite of what is there: it rises"
        elif low > mildest:
            word = "no change is shown, and none as large as there is supported"
        else:
            word = "no change is shown, and a fall as large as there is not ruled out"
        said.append(
            f"`{row['representation']}` ({way}) after `{row['reference']}`, {row['attribute']}: "
            f"{row['change']:+.1f} % ({low:+.1f} to {high:+.1f}; there {deepest:+.1f} to {mildest:+.1f}): {word}."
        )
    if not said:
        said.append(
            "The paper compares with a model that was trained on general data only; no schedule here starts with a "
            "stage on such data, so there is nothing to hold against it."
        )
    return said


def table_lines(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table."""
    header = [
        "attribute",
        "probe",
        "representation",
        "macro-F1 (95 %)",
        "± seeds",
        "shuffled",
        "change, % (95 %)",
        "to",
    ]
    lines = []
    for row in rows:
        change = "change" in row
        lines.append(
            [
                row["attribute"],
                row["probe"],
                row["representation"],
                f"{row['f1']:.1f} ({row['low']:.1f} to {row['high']:.1f})",
                "" if row["sd_seeds"] is None else f"{row['sd_seeds']:.1f}",
                f"{row['shuffled_f1']:.1f}",
                f"{row['change']:+.1f} ({row['change_low']:+.1f} to {row['change_high']:+.1f})" if change else "",
                row.get("reference", ""),
            ]
        )
    return header, lines


def chart(rows: Sequence[dict], order: Sequence[str]) -> altair.HConcatChart:
    """Macro-F1 of every representation with its interval, an attribute a panel; ticks: shuffled labels."""
    frame = pandas.DataFrame(rows)
    panels = []
    for attribute in frame["attribute"].unique():
        base = altair.Chart(frame[frame["attribute"] == attribute]).encode(
            y=altair.Y("representation:N", sort=list(order), title=None),
            yOffset=altair.YOffset("probe:N", sort=list(PROBES)),
            color=altair.Color("probe:N", sort=list(PROBES), scale=altair.Scale(range=PALETTE), title="probe"),
        )
        scale = altair.Scale(domain=[0, 100])
        points = base.mark_point(filled=True, size=45).encode(altair.X("f1:Q", scale=scale, title="macro-F1, %"))
        ranges = base.mark_rule().encode(altair.X("low:Q", scale=scale), altair.X2("high:Q"))
        chance = base.mark_tick(thickness=2, opacity=0.5).encode(altair.X("shuffled_f1:Q", scale=scale))
        height = altair.Step(14)
        panels.append((ranges + points + chance).properties(width=210, height=height, title=attribute))
    title = altair.Title(
        "What image tokens hold", subtitle="points: held-out images, with 95 % interval; ticks: shuffled labels"
    )
    return altair.hconcat(*panels).properties(title=title).configure(background="white", font="sans-serif")


def main() -> None:
    """Write `probe` as CSV, Markdown and LaTeX, and its figure as SVG and PNG."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--probes", type=Path, nargs="+", required=True, help="answers of the probes")
    parser.add_argument("--order", nargs="+", required=True, help="the representations, in order")
    parser.add_argument("--shared", nargs="*", default=[], help="prefixes that no fold's data were trained on")
    parser.add_argument("--references", required=True, help="what each representation is compared with, as JSON")
    parser.add_argument("--ways", required=True, help="prefix -> projection only, or end to end, as JSON")
    parser.add_argument("--csv", type=Path, required=True, help="file to write; .md and .tex beside it")
    parser.add_argument("--svg", type=Path, required=True, help="file to write; .png beside it")
    arguments = parser.parse_args()
    records = [row for path in sorted(arguments.probes) for row in read_table(path)]
    rows = summarise(records, arguments.order, json.loads(arguments.references))
    write_text(arguments.csv, csv_text(rows, COLUMNS, decimals=4))
    first = rows[0]
    about = (
        f"Macro-F1 in per cent of probes on held-out images: {first['images']} images, {first['folds']} folds, "
        f"{max(row['seeds'] for row in rows)} seeds (before projection there is one), {first['probe_seeds']} probes "
        "each. Intervals cover the choice of images; sd is over seeds and probes; shuffled labels show chance."
    )
    text = f"# Probes of image tokens\n\n{about}\n\n{markdown(*table_lines(rows))}\n\n## Against the paper\n\n"
    text += "Change of the MLP probe's macro-F1, beside that of arXiv 2402.16832 (range over its four data sets):\n\n"
    said = verdicts(rows, arguments.shared, json.loads(arguments.ways))
    write_text(arguments.csv.with_suffix(".md"), text + "".join(f"- {line}\n" for line in said))
    write_text(arguments.csv.with_suffix(".tex"), latex(*table_lines(rows), about))
    write_figure(chart(rows, arguments.order), arguments.svg)


if __name__ == "__main__":
    run_step(main)
