"""Step: table and verdict of the probes and of what models say themselves, from stored answers alone."""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas

from triptych.config.arms import RANDOM_CONNECTOR
from triptych.data.schemas import PROBED_ATTRIBUTES, PROBES
from triptych.errors import run_step
from triptych.evaluate.attributes import ANSWERS, FEWEST, attribute_answers
from triptych.io.parquet import read_tables
from triptych.tables.format import INTEGER, NUMBER, TEXT, make_table, rows_of, write_table

DRAWS = 2000  # of the bootstrap

# Table 2 of arXiv 2402.16832: change of the probe's macro-F1 against the model before training on a domain, in per
# cent: least and most over its four data sets.
PAPER = {"projection only": (-29.7, -19.6), "end to end": (-18.7, -3.0)}
CEILING = 98  # per cent of macro-F1: above it, a rise tells nothing

COLUMNS = {"representation": TEXT, "attribute": TEXT, "probe": TEXT}
COLUMNS |= dict.fromkeys(("f1", "low", "high", "sd_seeds", "shuffled_f1"), NUMBER)
COLUMNS |= {"reference": TEXT, **dict.fromkeys(("change", "change_low", "change_high"), NUMBER)}
COLUMNS |= dict.fromkeys(("values", "images", "folds", "seeds", "probe_seeds", "questions"), INTEGER)

SEEN = {
    "mean": "A probe sees the mean of an image's tokens.",
    "all": "A probe sees all tokens of an image, in their order, by random projection to one width.",
}

Key = tuple[str, str, str, str]  # representation, attribute, probe, task


class Counts:
    """Counts of correct, answered and true values of one representation's probes, by group of images.

    Attributes:
        table: (runs, 3, G, C): correct answers, answers, truths; a run is a seed and a probe's seed.
    """

    def __init__(self, rows: Sequence[dict], groups: Sequence[str], values: Sequence[str]):
        """Count answers over all folds together.

        Args:
            rows: rows of `schemas.PROBE_SCHEMA`.
            groups: (G,) the groups of images.
            values: (C,) the values of the attribute.
        """
        runs = sorted({(row["seed"], row["probe_seed"]) for row in rows})
        self.table = np.zeros((len(runs), 3, len(groups), len(values)))
        run_of, group_of, value_of = ({name: place for place, name in enumerate(all)} for all in (runs, groups, values))
        for row in rows:
            cell = self.table[run_of[row["seed"], row["probe_seed"]], :, group_of[row["group"]]]
            for kind, names in enumerate((set(row["truth"]) & set(row["answer"]), row["answer"], row["truth"])):
                for name in names:
                    cell[kind, value_of[name]] += 1

    def macro_f1(self, weights: np.ndarray) -> np.ndarray:
        """Give macro-F1 in per cent of each run, (B, runs), with groups counted `weights` (B, G) times.

        A value that no image of a draw has is left out of the mean of that draw; a draw without any value is NaN.
        """
        scores = []
        for right, given, true in self.table:
            right, both, true = weights @ right, weights @ (given + true), weights @ true
            f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
            number = (true > 0).sum(1)
            mean = np.divide((f1 * (true > 0)).sum(1), number, out=np.full(len(number), np.nan), where=number > 0)
            scores.append(100 * mean)
        return np.stack(scores, axis=1)


def summarise_answers(rows: Sequence[dict], order: Sequence[str]) -> pandas.DataFrame:
    """Score what schedules answer about attributes: rows as those of `summarise`, for the probe `answers`.

    Args:
        rows: of `evaluate.attributes.attribute_answers`.
        order: the schedules.
    """
    by_key: dict[Key, list[dict]] = defaultdict(list)
    for row in rows:
        by_key[row["representation"], row["attribute"], row["probe"], row["task"]].append(row)
    found = []
    for attribute, name in product(PROBED_ATTRIBUTES, order):
        answers = by_key[name, attribute, ANSWERS, "labels"]
        groups = sorted({row["group"] for row in answers})
        values = sorted({value for row in answers for value in row["truth"]})
        if answers:
            row = {"representation": name, "attribute": attribute, "probe": ANSWERS, "values": len(values)}
            row |= Score(by_key, (name, attribute, ANSWERS), groups, values).row()
            found.append(row | {"probe_seeds": None, "questions": len({answer["question_id"] for answer in answers})})
    return make_table(found, COLUMNS)


def summarise(records: Sequence[dict], order: Sequence[str], references: Mapping[str, str | None]) -> pandas.DataFrame:
    """Score probes: macro-F1 in per cent, and its change against a reference, with intervals.

    Intervals are percentiles over draws of groups of images with replacement, the same draws for all rows: they
    cover the choice of images; `sd_seeds` is the spread of the runs.

    Args:
        records: rows of `schemas.PROBE_SCHEMA`.
        order: the representations.
        references: what each is compared with, as `grid.reference` has it.

    Returns:
        A row for each attribute, probe and representation.
    """
    by_key: dict[Key, list[dict]] = defaultdict(list)
    for row in records:
        by_key[row["representation"], row["attribute"], row["probe"], row["task"]].append(row)
    rows = []
    for attribute in [name for name in PROBED_ATTRIBUTES if any(key[1] == name for key in by_key)]:
        answers = [row for row in records if row["attribute"] == attribute]
        groups = sorted({row["group"] for row in answers})
        values = sorted({name for row in answers for name in (*row["truth"], *row["answer"])})
        for kind in PROBES:
            scores = {name: Score(by_key, (name, attribute, kind), groups, values) for name in order}
            for name in order:
                row = {"representation": name, "attribute": attribute, "probe": kind, "values": len(values)}
                rows.append(row | scores[name].row() | scores[name].change(references.get(name), scores))
    return make_table(rows, COLUMNS)


class Score:
    """Macro-F1 of one representation, attribute and probe.

    Attributes:
        exact: (runs,) macro-F1 of each run.
        drawn: (DRAWS,) mean over runs for each draw of groups of images.
    """

    def __init__(
        self, by_key: Mapping[Key, list[dict]], key: tuple[str, str, str], groups: list[str], values: list[str]
    ):
        self.answers = by_key[*key, "labels"]
        once = np.ones((1, len(groups)))
        even = np.full(len(groups), 1 / len(groups))
        draws = np.random.default_rng(0).multinomial(len(groups), even, DRAWS).astype(float)
        counts = Counts(self.answers, groups, values)
        self.exact, self.drawn = counts.macro_f1(once)[0], counts.macro_f1(draws).mean(1)
        shuffled = by_key[*key, "shuffled"]
        self.shuffled = Counts(shuffled, groups, values).macro_f1(once).mean() if shuffled else None

    def row(self) -> dict:
        """Give the columns that need this score alone."""
        low, high = np.nanquantile(self.drawn, [0.025, 0.975])
        return {
            "f1": self.exact.mean(),
            "low": low,
            "high": high,
            "sd_seeds": self.exact.std(ddof=1) if len(self.exact) > 1 else None,
            "shuffled_f1": self.shuffled,
            "images": len({answer["image_id"] for answer in self.answers}),
            "folds": len({answer["split"] for answer in self.answers}),
            "seeds": len({answer["seed"] for answer in self.answers}),
            "probe_seeds": len({answer["probe_seed"] for answer in self.answers}),
        }

    def change(self, reference: str | None, scores: Mapping[str, "Score"]) -> dict:
        """Give the change against a reference in per cent, with its interval; nothing without a reference.

        Of a reference that reads nothing there is no change in per cent; draws in which it reads nothing are left out.
        """
        if not reference:
            return {}
        other = scores[reference]
        if not other.exact.mean() > 0:
            return {"reference": reference}
        reads = other.drawn > 0
        low, high = np.nanquantile(100 * (self.drawn[reads] / other.drawn[reads] - 1), [0.025, 0.975])
        change = 100 * (self.exact.mean() / other.exact.mean() - 1)
        return {"reference": reference, "change": change, "change_low": low, "change_high": high}


def verdicts(table: pandas.DataFrame, shared: Sequence[str], trained_parts: Mapping[str, str]) -> list[str]:
    """Say whether the MLP probe's changes agree with those of arXiv 2402.16832, a sentence for each.

    Args:
        table: of `summarise`.
        shared: prefixes trained on general data alone, which all folds share.
        trained_parts: prefix -> "projection only" or "end to end", the training that followed a shared checkpoint.
    """
    said = []
    mlp = [row for row in rows_of(table) if row["probe"] == "mlp"]
    read = {(row["representation"], row["attribute"]): row["f1"] for row in mlp}
    level = {
        (row["representation"], row["attribute"])
        for row in mlp
        if row["reference"] == RANDOM_CONNECTOR and row["change_low"] is not None and row["change_low"] <= 0
    }
    for row in mlp:
        if row["reference"] not in shared:
            continue
        if row["change"] is None:
            said.append(f"`{row['reference']}`, {row['attribute']}: its probe is never right: there is no change.")
            continue
        trained = trained_parts[row["representation"]]
        deepest, mildest = PAPER[trained]
        low, high, before = row["change_low"], row["change_high"], read[row["reference"], row["attribute"]]
        if high < 0:
            agrees = low <= mildest and high >= deepest
            less = "smaller" if low > mildest else "larger"
            word = "a fall, as in the paper" if agrees else f"a fall, {less} than in the paper"
        elif low > 0 and before > CEILING:
            word = "no fall, of what was read almost without error before"
        elif low > 0:
            word = "a rise in these models, where the paper has a fall"
        elif low > mildest:
            word = "no change is shown, and a fall as large as the paper's lies outside the interval"
        else:
            word = "no change is shown, and a fall as large as the paper's lies within the interval"
        if high >= 0 and (row["reference"], row["attribute"]) in level:
            word += f"; no more is shown to be read after `{row['reference']}` than after a random connector"
            word += ", so there may have been little to lose"
        said.append(
            f"`{row['representation']}` ({trained}) after `{row['reference']}`, {row['attribute']}: "
            f"{row['change']:+.1f} % ({low:+.1f} to {high:+.1f}; paper {deepest:+.1f} to {mildest:+.1f}): {word}."
        )
    if not said:
        said.append(
            "The paper's reference is a model trained on general data only; no schedule here starts with a stage on "
            "such data, so this study cannot be compared with the paper."
        )
    return said


def beside(table: pandas.DataFrame, left_out: Mapping[str, int]) -> list[str]:
    """Say what each schedule answers of an attribute beside what the MLP probe reads, a sentence for each.

    Args:
        table: of `summarise` and `summarise_answers`.
        left_out: attributes that too few questions ask for -> their number.
    """
    by_key = {(row["representation"], row["attribute"], row["probe"]): row for row in rows_of(table)}
    said = []
    for (name, attribute, kind), row in by_key.items():
        if kind == ANSWERS:
            read = by_key.get((name, attribute, "mlp"))
            said.append(
                f"`{name}`, {attribute}: {row['f1']:.1f} ({row['low']:.1f} to {row['high']:.1f}) in its own answers to "
                f"{row['questions']} questions about {row['images']} images"
                + (f"; {read['f1']:.1f} read by the MLP probe." if read else ".")
            )
    few = f"too few, which need {FEWEST} images for each of two values (and of each organ as many without it)"
    return said + [f"{name}: left out; {number} questions ask for it: {few}." for name, number in left_out.items()]


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    heading = ["attribute", "probe", "representation", "macro-F1 (95 % interval)", "SD over seeds"]
    heading += ["shuffled labels", "change, % (95 % interval)", "reference"]
    lines = []
    for row in rows_of(table):
        change = ""
        if row["change"] is not None:
            change = f"{row['change']:+.1f} ({row['change_low']:+.1f} to {row['change_high']:+.1f})"
        lines.append(
            [
                row["attribute"],
                row["probe"],
                row["representation"],
                f"{row['f1']:.1f} ({row['low']:.1f} to {row['high']:.1f})",
                "" if row["sd_seeds"] is None else f"{row['sd_seeds']:.1f}",
                "" if row["shuffled_f1"] is None else f"{row['shuffled_f1']:.1f}",
                change,
                row["reference"] or "",
            ]
        )
    return pandas.DataFrame(lines, columns=heading)


def main() -> None:
    """Write `probe` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--probes", type=Path, nargs="+", required=True, help="answers of the probes")
    parser.add_argument("--answers", type=Path, nargs="+", required=True, help="answers of the schedules")
    parser.add_argument("--tokens", choices=("mean", "all"), default="mean", help="what probes saw of an image")
    parser.add_argument("--order", nargs="+", required=True, help="the representations, in order")
    parser.add_argument("--shared", nargs="*", default=[], help="prefixes that no fold's data were trained on")
    parser.add_argument("--references", required=True, help="what each representation is compared with, as JSON")
    parser.add_argument(
        "--ways",
        dest="trained_parts",
        required=True,
        help="prefix -> projection only, or end to end, as JSON",
    )
    parser.add_argument("--csv", type=Path, required=True, help="file to write; .md and .tex beside it")
    arguments = parser.parse_args()
    records = read_tables(arguments.probes)
    table = summarise(records, arguments.order, json.loads(arguments.references))
    answers, left_out = attribute_answers(read_tables(arguments.answers))
    both = pandas.concat([table, summarise_answers(answers, arguments.order)], ignore_index=True)
    first = table.iloc[0]
    about = (
        f"Macro-F1 in per cent of probes on held-out images ({first['images']} images in {first['folds']} folds; "
        f"seeds: {table['seeds'].max()}, before projection 1; seeds of each probe: {first['probe_seeds']}). "
        f"{SEEN[arguments.tokens]} Intervals cover the choice of images or subjects, not other runs; SD is over seeds "
        "and seeds of the probes; shuffled labels give chance level."
    )
    said = verdicts(table, arguments.shared, json.loads(arguments.trained_parts))
    against = "\n## Comparison with the paper\n\n"
    against += (
        "Change of the MLP probe's macro-F1, and the change in arXiv 2402.16832 (range over its four data sets). "
        "Intervals are not corrected for their number. Where there was little to lose, nothing here speaks against the "
        "paper.\n\n"
    )
    against += "".join(f"- {line}\n" for line in said)
    against += "\n## What the models say\n\nMacro-F1 of answers to the questions that ask for an attribute "
    against += f"(`{ANSWERS}` in the table), in which the paper's models improve while probes read less. "
    against += "Answers and probes are scored on other questions, images and values: compare how they change, not "
    against += "their levels.\n\n"
    against += "".join(f"- {line}\n" for line in beside(both, left_out))
    write_table(arguments.csv.with_suffix(""), both, shown(both), "Probes of image tokens", about, against)


if __name__ == "__main__":
    run_step(main)
