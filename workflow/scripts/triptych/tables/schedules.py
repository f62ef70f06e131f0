"""Step: the results tables, from prediction records alone: `schedules`, `above_lookups`, `by_content`, `controls`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas

from triptych.config.arms import CONTROLS
from triptych.errors import TriptychError, run_step
from triptych.evaluate.metrics import MEASURES, exact_match, lmms_eval, scores
from triptych.io.atomic import write_text
from triptych.io.parquet import read_tables
from triptych.tables import evidence
from triptych.tables.format import (
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    latex,
    make_table,
    markdown,
    rows_of,
    write_csv,
    write_table,
)
from triptych.tables.runs import SIZES, Run, accuracy, cell, group_runs, mean_sd, runs_text, sizes

COLUMNS = {"arm": TEXT, "trained": FLAG, **SIZES}
COLUMNS |= {f"{name}_{part}": NUMBER for name in MEASURES for part in ("mean", "sd")}
COLUMNS |= {"rules_differ": INTEGER}

MAIN = ("all", "open", "closed", "yes_no")
OTHER = ("token_f1", "recall", "bleu_1", "llava_med_open", "llava_med_closed", "llava_med_ceiling", "lmms_eval")
OPTIONAL = ("constrained",)  # shown where some arm has it
HEADINGS = {
    "all": "all questions", "open": "open", "closed": "closed", "yes_no": "yes/no", "token_f1": "token F1",
    "recall": "recall", "bleu_1": "BLEU-1", "llava_med_open": "LLaVA-Med open", "llava_med_closed": "LLaVA-Med closed",
    "llava_med_ceiling": "LLaVA-Med ceiling", "lmms_eval": "lmms-eval",
    "constrained": "training answers only",
}  # fmt: skip

CONSTRAINED_ABOUT = (
    "Training answers only: exact match of greedy answers out of those that the fold trains on, a closed set as "
    "classifiers have it. All other numbers, and all comparisons, are of the free answers."
)

ASPECTS = ("modality", "location", "content_type", "answer_type")
CONTENT_COLUMNS = {"arm": TEXT, "trained": FLAG, "aspect": TEXT, "value": TEXT, **SIZES, "mean": NUMBER, "sd": NUMBER}


def control_columns() -> dict[str, str]:
    """Give the columns of the table of controls, with their types: some for every entry of `CONTROLS`."""
    columns = {"arm": TEXT, **SIZES, "true_mean": NUMBER, "true_sd": NUMBER}
    each = {**dict.fromkeys(("mean", "sd", "lost_mean", "lost_sd"), NUMBER), "left_out": INTEGER}
    return columns | {f"{view}_{name}": kind for view in CONTROLS for name, kind in each.items()}


def _is_trained(runs: dict[Run, list[dict]]) -> bool:
    return any(seed is not None for _, seed in runs)


def summarise(records: Sequence[dict], arms: Sequence[str]) -> pandas.DataFrame:
    """Score arms: a row for each, in the order of `arms`, with every metric in per cent, mean and sd over runs.

    Raises:
        TriptychError: an arm has no records, or two arms did not answer the same questions, with the same gold answers.
    """
    grouped = group_runs(records)
    if missing := [arm for arm in arms if arm not in grouped]:
        raise TriptychError(f"there are no predictions of {missing[0]}; predict them")
    asked = {
        arm: {(record["question_id"], record["gold"]) for run in grouped[arm].values() for record in run}
        for arm in arms
    }
    rows = []
    for arm in arms:
        if asked[arm] != asked[arms[0]]:
            raise TriptychError(
                f"{arm} and {arms[0]} answered different questions, or have different gold answers; predict both again"
            )
        runs = grouped[arm]
        found = [scores(run) for run in runs.values()]
        row = {"arm": arm, "trained": _is_trained(runs), **sizes(runs)}
        for name in MEASURES:
            row[f"{name}_mean"], row[f"{name}_sd"] = mean_sd([score[name] for score in found])
        answers = [record for run in runs.values() for record in run]
        row["rules_differ"] = sum(exact_match(record) != lmms_eval(record) for record in answers)
        rows.append(row)
    return make_table(rows, COLUMNS)


def rules_differ(table: pandas.DataFrame) -> str:
    """Say how many answers are right by one rule alone: exact match or that of lmms-eval; nothing where none is."""
    if not (number := int(table["rules_differ"].fillna(0).sum())):
        return ""
    return (
        f"{number} of the kept answers are right by one of two rules alone: exact match tells T2+ from T2- and (A) "
        "from (B), and takes a typeset hyphen or quote for a plain one; lmms-eval's rule does neither."
    )


def controls(records: Sequence[dict], answers: dict[str, Sequence[dict]], arms: Sequence[str]) -> pandas.DataFrame:
    """Score trained arms with each question's own image, with another and with a blank one, and the paired drop.

    A drop is over the questions that the view was asked; `left_out` counts the others.

    Args:
        records: answers with each question's own image.
        answers: answers by the views of `CONTROLS`; a view without answers has no columns.
        arms: the trained arms, in order.

    Raises:
        TriptychError: a control lacks a run of an arm.
    """
    true = group_runs(records)
    other = {view: group_runs(found) for view, found in answers.items() if found}
    rows = []
    for arm in arms:
        right = {run: accuracy(found) for run, found in true[arm].items()}
        row = {"arm": arm, **sizes(true[arm])}
        row["true_mean"], row["true_sd"] = mean_sd(list(right.values()))
        for view, answered in other.items():
            runs = answered.get(arm, {})
            if runs.keys() != right.keys():
                raise TriptychError(f"{arm} has different runs with {view} images and with its own; predict both again")
            row[f"{view}_mean"], row[f"{view}_sd"] = mean_sd([accuracy(found) for found in runs.values()])
            lost = [accuracy(_same_questions(true[arm][run], runs[run])) - accuracy(runs[run]) for run in runs]
            row[f"{view}_lost_mean"], row[f"{view}_lost_sd"] = mean_sd(lost)
            row[f"{view}_left_out"] = row["questions"] - sizes(runs)["questions"]
        rows.append(row)
    absent = tuple(f"{view}_" for view in CONTROLS if view not in other)
    return make_table(rows, {name: kind for name, kind in control_columns().items() if not name.startswith(absent)})


def _same_questions(records: Sequence[dict], others: Sequence[dict]) -> list[dict]:
    """Give the records whose question one of the others answers."""
    asked = {record["question_id"] for record in others}
    return [record for record in records if record["question_id"] in asked]


def by_content(records: Sequence[dict], arms: Sequence[str]) -> pandas.DataFrame:
    """Give exact match by modality, body part, content type and answer type: a row for every value and arm."""
    grouped = group_runs(records)
    rows = []
    for aspect in ASPECTS:
        for value in sorted({record[aspect] for record in records}):
            for arm in arms:
                runs = {
                    run: chosen
                    for run, answers in grouped[arm].items()
                    if (chosen := [record for record in answers if record[aspect] == value])
                }
                mean, sd = mean_sd([accuracy(run) for run in runs.values()])
                row = {"arm": arm, "trained": _is_trained(runs), "aspect": aspect, "value": value, **sizes(runs)}
                rows.append(row | {"mean": mean, "sd": sd})
    return make_table(rows, CONTENT_COLUMNS)


def paired_differences(records: Sequence[dict], first: str, second: str) -> list[float]:
    """Give exact match of `first` minus that of `second` in points, run by run: same fold, seed and questions."""
    arms = group_runs(records)
    runs = [run for run in arms[first] if run in arms[second]]
    return [accuracy(arms[first][run]) - accuracy(arms[second][run]) for run in runs]


def shown_arms(table: pandas.DataFrame, measures: Sequence[str]) -> pandas.DataFrame:
    """Give the table of arms as text for people, with some of its measures."""
    lines = [
        [f"**{row['arm']}**" if row["trained"] else row["arm"], runs_text(row)]
        + [cell(row[f"{name}_mean"], row[f"{name}_sd"]) for name in measures]
        for row in rows_of(table)
    ]
    return pandas.DataFrame(lines, columns=["arm", "runs", *(HEADINGS[name] for name in measures)])


def schedules_markdown(table: pandas.DataFrame, records: Sequence[dict], schedules: Sequence[str]) -> str:
    """Write the table of arms as a page, with the paired difference of each schedule to the first."""
    text = [
        "# Schedules and baselines",
        "",
        f"Exact match in per cent on {table['questions'].iloc[0]} questions: mean ± standard deviation over runs.",
        "",
        markdown(shown_arms(table, MAIN)),
        "",
    ]
    for other in schedules[1:]:
        differences = paired_differences(records, schedules[0], other)
        mean, sd = mean_sd(differences)
        spread = f" ± {sd:.1f}" if sd is not None else ""
        runs = ", ".join(f"{value:+.1f}" for value in differences)
        text += [
            f"`{schedules[0]}` minus `{other}`, paired by run: {mean:+.1f}{spread} points ({runs}). "
            "The ± is the spread of the runs, not a confidence interval.",
            "",
        ]
    measures = [*OTHER, *(name for name in OPTIONAL if table[f"{name}_mean"].notna().any())]
    text += ["Other metrics in per cent:", "", markdown(shown_arms(table, measures)), ""]
    if "constrained" in measures:
        text += [CONSTRAINED_ABOUT, ""]
    if said := rules_differ(table):
        text += [said, ""]
    return "\n".join(text)


def shown_controls(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table of controls as text for people; what a view left out stands in its heading."""
    views = [view for view in CONTROLS if f"{view}_mean" in table]
    lines = [
        [f"**{row['arm']}**", runs_text(row), cell(row["true_mean"], row["true_sd"])]
        + [cell(row[f"{view}_{part}mean"], row[f"{view}_{part}sd"]) for view in views for part in ("", "lost_")]
        for row in rows_of(table)
    ]
    heading = ["arm", "runs", "own image"]
    for view in views:
        left_out = table[f"{view}_left_out"].max()
        heading += [CONTROLS[view].heading + (f" ({left_out} left out)" if left_out else ""), "drop"]
    return pandas.DataFrame(lines, columns=heading)


def shown_content(table: pandas.DataFrame, arms: Sequence[str]) -> pandas.DataFrame:
    """Give the table by content as text for people: a line for every value, a column for every arm."""
    cells = {(row["aspect"], row["value"], row["arm"]): row for row in rows_of(table)}
    lines = []
    for aspect, value in dict.fromkeys((aspect, value) for aspect, value, _ in cells):
        chosen = [cells[aspect, value, arm] for arm in arms]
        lines.append(
            [aspect.replace("_", " "), value or "(none)", str(chosen[0]["questions"])]
            + [cell(row["mean"], row["sd"]) for row in chosen]
        )
    return pandas.DataFrame(lines, columns=["aspect", "value", "questions", *arms])


def main() -> None:
    """Write `schedules`, `above_lookups`, `by_content` and, where controls were predicted, `controls`.

    Each as CSV, Markdown and LaTeX.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--view", choices=("held-out", "test"), default="held-out", help="which questions count")
    parser.add_argument("--schedules", nargs="+", required=True, help="names of the schedules, in order")
    parser.add_argument("--baselines", nargs="*", default=[], help="names of the baselines, in order")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    by_view: dict[str, list[dict]] = {view: [] for view in (arguments.view, *CONTROLS)}
    for record in read_tables(arguments.predictions):
        by_view[record["view"]].append(record)
    records, out = by_view[arguments.view], arguments.out
    arms = [*arguments.schedules, *arguments.baselines]
    of = f"{arguments.view} questions, mean ± standard deviation over runs (folds x seeds)"

    table = summarise(records, arms)
    questions = table["questions"].iloc[0]
    write_csv(out / "schedules.csv", table)
    write_text(out / "schedules.md", schedules_markdown(table, records, arguments.schedules))
    about = f"Exact match in per cent on {questions} {of}."
    write_text(out / "schedules.tex", latex(shown_arms(table, MAIN), about, "schedules"))

    answers = {arm: evidence.answered(runs) for arm, runs in group_runs(records).items()}
    rows = evidence.above_lookups(answers, arguments.schedules, arguments.baselines)
    above = make_table(rows, evidence.LOOKUP_COLUMNS)
    about = f"{evidence.LOOKUPS_ABOUT} {questions} {arguments.view} questions."
    write_table(out / "above_lookups", above, evidence.shown_lookups(above), "Points above look-ups", about)

    about = (
        f"Exact match in per cent by modality, body part, content and answer type; {of}: {runs_text(table.iloc[0])}."
    )
    table = by_content(records, arms)
    write_table(out / "by_content", table, shown_content(table, arms), "By content", about)

    if any(by_view[view] for view in CONTROLS):
        table = controls(records, {view: by_view[view] for view in CONTROLS}, arguments.schedules)
        others = ", and with ".join(control.note for view, control in CONTROLS.items() if by_view[view])
        about = (
            f"Does the model use the image? Exact match in per cent with each question's own image, with {others}; "
            f"drops are paired by run, over the questions that were asked. {questions} {of}."
        )
        write_table(out / "controls", table, shown_controls(table), "Controls", about)


if __name__ == "__main__":
    run_step(main)
