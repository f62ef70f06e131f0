"""Step: the results tables, from the prediction records alone: `schedules`, `controls` and `by_content`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import TriptychError, run_step
from triptych.evaluate.metrics import MEASURES, scores
from triptych.io.atomic import write_text
from triptych.io.parquet import read_table
from triptych.tables.format import csv_text, latex, markdown
from triptych.tables.runs import SIZES, Run, accuracy, cell, group_runs, mean_sd, runs_text, sizes

COLUMNS = ["arm", "trained", *SIZES, *(f"{name}_{part}" for name in MEASURES for part in ("mean", "sd"))]


HEADINGS = {
    "all": "all questions", "open": "open", "closed": "closed", "yes_no": "yes/no", "token_f1": "token F1",
    "recall": "recall", "bleu_1": "BLEU-1", "llava_med_open": "LLaVA-Med open", "llava_med_closed": "LLaVA-Med closed",
    "llava_med_ceiling": "its ceiling",
}  # fmt: skip


MAIN = ("all", "open", "closed", "yes_no")


OTHER = ("token_f1", "recall", "bleu_1", "llava_med_open", "llava_med_closed", "llava_med_ceiling")


CONTROLS = ("swapped", "blank")


CONTROL_COLUMNS = ["arm", *SIZES, "true_mean", "true_sd"] + [
    f"{view}_{name}" for view in CONTROLS for name in ("mean", "sd", "lost_mean", "lost_sd")
]


ASPECTS = ("modality", "location", "content_type", "answer_type")


CONTENT_COLUMNS = ["arm", "trained", "aspect", "value", *SIZES, "mean", "sd"]


def _is_trained(runs: dict[Run, list[dict]]) -> bool:
    return any(seed is not None for _, seed in runs)


def summarise(records: Sequence[dict], arms: Sequence[str]) -> list[dict]:
    """One row per arm, in the order of `arms`: every measure in per cent, mean and sd over runs (folds x seeds).

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
                f"{arm} and {arms[0]} answered different questions, or know other gold answers; predict both again"
            )
        runs = grouped[arm]
        found = [scores(run) for run in runs.values()]
        row = {"arm": arm, "trained": _is_trained(runs), **sizes(runs)}
        for name in MEASURES:
            row[f"{name}_mean"], row[f"{name}_sd"] = mean_sd([score[name] for score in found])
        rows.append(row)
    return rows


def controls(records: Sequence[dict], shown: dict[str, Sequence[dict]], arms: Sequence[str]) -> list[dict]:
    """One row per trained arm: exact match with the true image, with another's, and with none; what is lost, paired.

    Args:
        records: answers with the true images.
        shown: answers with other images, by `CONTROLS`.
        arms: the trained arms, in order.

    Raises:
        TriptychError: a control lacks a run of an arm.
    """
    true = group_runs(records)
    other = {view: group_runs(answers) for view, answers in shown.items() if answers}
    rows = []
    for arm in arms:
        right = {run: accuracy(answers) for run, answers in true[arm].items()}
        row = {"arm": arm, **sizes(true[arm])}
        row["true_mean"], row["true_sd"] = mean_sd(list(right.values()))
        for view, answered in other.items():
            runs = {run: accuracy(answers) for run, answers in answered.get(arm, {}).items()}
            if runs.keys() != right.keys():
                raise TriptychError(f"{arm} has other runs with {view} images than with its own; predict them again")
            row[f"{view}_mean"], row[f"{view}_sd"] = mean_sd(list(runs.values()))
            lost = [right[run] - runs[run] for run in right]
            row[f"{view}_lost_mean"], row[f"{view}_lost_sd"] = mean_sd(lost)
        rows.append(row)
    return rows


def by_content(records: Sequence[dict], arms: Sequence[str]) -> list[dict]:
    """Exact match by modality, body part, content and answer type: a row for every arm and value."""
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
    return rows


def paired_differences(records: Sequence[dict], first: str, second: str) -> list[float]:
    """Exact match of `first` less that of `second`, in points, run by run (same fold, same seed, same questions)."""
    arms = group_runs(records)
    runs = [run for run in arms[first] if run in arms[second]]
    return [accuracy(arms[first][run]) - accuracy(arms[second][run]) for run in runs]


def _named(row: dict) -> str:
    return f"**{row['arm']}**" if row["trained"] else row["arm"]


def arm_lines(rows: Sequence[dict], measures: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of arms."""
    header = ["arm", "runs", *(HEADINGS[name] for name in measures)]
    lines = [
        [_named(row), runs_text(row), *(cell(row[f"{name}_mean"], row[f"{name}_sd"]) for name in measures)]
        for row in rows
    ]  # fmt: skip
    return header, lines


def schedules_markdown(rows: Sequence[dict], records: Sequence[dict], schedules: Sequence[str]) -> str:
    """The table of arms for people, with the paired difference of each schedule to the first."""
    text = [
        "# Schedules and baselines",
        "",
        f"Exact match in per cent on {rows[0]['questions']} questions: mean ± standard deviation over runs.",
        "",
        markdown(*arm_lines(rows, MAIN)),
        "",
    ]
    for other in schedules[1:]:
        differences = paired_differences(records, schedules[0], other)
        mean, sd = mean_sd(differences)
        spread = f" ± {sd:.1f}" if sd is not None else ""
        runs = ", ".join(f"{value:+.1f}" for value in differences)
        text += [
            f"`{schedules[0]}` less `{other}`, paired by run: {mean:+.1f}{spread} points ({runs}). "
            "The ± is the spread of the runs, not a confidence interval.",
            "",
        ]
    text += ["Other measures in per cent, each by its own rule:", "", markdown(*arm_lines(rows, OTHER)), ""]
    return "\n".join(text)


def control_lines(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of controls."""
    views = [view for view in CONTROLS if f"{view}_mean" in rows[0]]
    header = ["arm", "runs", "own image"]
    for view in views:
        header += [{"swapped": "another image", "blank": "blank image"}[view], "lost"]
    lines = []
    for row in rows:
        cells = [f"**{row['arm']}**", runs_text(row), cell(row["true_mean"], row["true_sd"])]
        for view in views:
            cells += [cell(row[f"{view}_{part}mean"], row[f"{view}_{part}sd"]) for part in ("", "lost_")]
        lines.append(cells)
    return header, lines


def content_lines(rows: Sequence[dict], arms: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table by content: a line for every value, a column for every arm."""
    cells = {(row["aspect"], row["value"], row["arm"]): row for row in rows}
    values = list(dict.fromkeys((row["aspect"], row["value"]) for row in rows))
    lines = []
    for aspect, value in values:
        chosen = [cells[aspect, value, arm] for arm in arms]
        lines.append(
            [aspect.replace("_", " "), value or "(none)", str(chosen[0]["questions"])]
            + [cell(row["mean"], row["sd"]) for row in chosen]
        )
    return ["aspect", "value", "questions", *arms], lines


def main() -> None:
    """Write `schedules`, `by_content` and, where controls were predicted, `controls`, as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--view", choices=("held-out", "test"), default="held-out", help="which questions count")
    parser.add_argument("--schedules", nargs="+", required=True, help="names of the schedules, in order")
    parser.add_argument("--baselines", nargs="*", default=[], help="names of the baselines, in order")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    by_view: dict[str, list[dict]] = {view: [] for view in (arguments.view, *CONTROLS)}
    for path in sorted(arguments.predictions):
        for record in read_table(path):
            by_view[record["view"]].append(record)
    records, out = by_view[arguments.view], arguments.out
    arms = [*arguments.schedules, *arguments.baselines]
    of = f"{arguments.view} questions, mean ± standard deviation over runs (folds x seeds)"

    rows = summarise(records, arms)
    write_text(out / "schedules.csv", csv_text(rows, COLUMNS, decimals=4))
    write_text(out / "schedules.md", schedules_markdown(rows, records, arguments.schedules))
    text = f"Exact match in per cent on {rows[0]['questions']} {of}."
    write_text(out / "schedules.tex", latex(*arm_lines(rows, MAIN), text))

    rows = by_content(records, arms)
    about = f"Exact match in per cent by what is asked about; {of}: {runs_text(summarise(records, arms[:1])[0])}."
    write_text(out / "by_content.csv", csv_text(rows, CONTENT_COLUMNS, decimals=4))
    write_text(out / "by_content.md", f"# By content\n\n{about}\n\n{markdown(*content_lines(rows, arms))}\n")
    write_text(out / "by_content.tex", latex(*content_lines(rows, arms), about))

    if any(by_view[view] for view in CONTROLS):
        rows = controls(records, {view: by_view[view] for view in CONTROLS}, arguments.schedules)
        about = (
            "Does the model look? Exact match in per cent with each question's own image, with another one, and with "
            f"a grey one; what is lost is paired by run. {rows[0]['questions']} {of}."
        )
        columns = [name for name in CONTROL_COLUMNS if name in rows[0]]
        write_text(out / "controls.csv", csv_text(rows, columns, decimals=4))
        write_text(out / "controls.md", f"# Controls\n\n{about}\n\n{markdown(*control_lines(rows))}\n")
        write_text(out / "controls.tex", latex(*control_lines(rows), about))


if __name__ == "__main__":
    run_step(main)
