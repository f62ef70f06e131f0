"""Step: the figure of validation loss and accuracy per stage, and the table of the numbers behind it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import altair
import pandas

from triptych.errors import run_step
from triptych.tables.format import INTEGER, NUMBER, TEXT, Columns, make_table, write_table
from triptych.tables.plotting import PALETTE, write_figure
from triptych.train.history import read_training

RUN = {"schedule": TEXT, "stage": TEXT, "prefix": TEXT, "split": TEXT, "seed": INTEGER}
MEASURES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
COLUMNS = {**RUN, "epoch": INTEGER, **dict.fromkeys(MEASURES, NUMBER)}

ABOUT = (
    "Loss in nats per token and accuracy in per cent after the last epoch of every stage, mean over folds and seeds."
)


def collect(
    manifests: Sequence[Path], schedules: Mapping[str, Sequence[str]], columns: Columns = COLUMNS
) -> pandas.DataFrame:
    """Collect the metrics of checkpoints: a row for each epoch, and for each schedule that the checkpoint belongs to.

    Args:
        manifests: of the checkpoints.
        schedules: schedule -> its lineage, the prefixes of all its checkpoints.
        columns: those of `RUN`, then fields of `metrics.jsonl`.
    """
    rows = []
    for path in sorted(manifests):
        training = read_training(path.parent)
        manifest = training.manifest
        [stage] = manifest["stages"][-1]
        run = {"stage": stage, **{name: manifest[name] for name in ("prefix", "split", "seed")}}
        for schedule, lineage in schedules.items():
            if manifest["prefix"] in lineage:
                rows += [{**metrics, **run, "schedule": schedule} for metrics in training.rows]
    return make_table(rows, columns)


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people: a line for every stage of every schedule, after its last epoch."""
    last = table[table["epoch"] == table.groupby(["schedule", "prefix"])["epoch"].transform("max")]
    lines = []
    for (schedule, stage), part in last.groupby(["schedule", "stage"], sort=False):
        means = {name: part[name].mean() * (100 if name.endswith("accuracy") else 1) for name in MEASURES}
        runs = f"{part['split'].nunique()} x {part['seed'].nunique()}"
        values = ["" if pandas.isna(mean) else f"{mean:.2f}" for mean in means.values()]
        lines.append([schedule, stage, runs, str(part["epoch"].iloc[0]), *values])
    heading = ["schedule", "stage", "folds x seeds", "epochs", *(name.replace("_", " ") for name in MEASURES)]
    return pandas.DataFrame(lines, columns=heading)


def chart(table: pandas.DataFrame, stages: Sequence[str]) -> altair.VConcatChart:
    """Draw loss above accuracy, a column for each stage: the mean over runs as a line, their range as a band."""
    color = altair.Color(
        "schedule:N",
        sort=list(dict.fromkeys(table["schedule"])),
        scale=altair.Scale(range=PALETTE),
        legend=altair.Legend(title="schedule", orient="top", symbolOpacity=1, symbolType="circle"),
    )
    last = int(table["epoch"].max())
    epochs = altair.Axis(values=list(range(0, last + 1, max(1, last // 6))), format="d")
    names = {"validation_loss": "validation loss (nats per token)", "validation_accuracy": "validation exact match"}
    bands = []
    for field, title in names.items():
        columns = []
        for stage in stages:
            part = table[table["stage"] == stage]
            base = altair.Chart(part).encode(x=altair.X("epoch:Q", axis=epochs), color=color)
            scale = altair.Scale(domain=[0, 1]) if field == "validation_accuracy" else altair.Scale(zero=False)
            band = base.mark_area(opacity=0.2).encode(
                altair.Y(f"min({field}):Q", scale=scale, title=title), altair.Y2(f"max({field}):Q")
            )
            line = base.mark_line(point=True).encode(altair.Y(f"mean({field}):Q", scale=scale, title=title))
            columns.append((band + line).properties(width=230, height=190, title=f"stage {stage}"))
        bands.append(altair.hconcat(*columns))
    title = altair.Title(
        "Validation per stage", subtitle="line: mean over folds and seeds; band: range; epoch 0: before training"
    )
    return altair.vconcat(*bands).properties(title=title).configure(background="white", font="sans-serif")


def main() -> None:
    """Write the figure as SVG and PNG, and its numbers as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="manifests of the checkpoints")
    parser.add_argument("--schedules", required=True, help="schedule -> the prefixes of its checkpoints, as JSON")
    parser.add_argument("--stages", nargs="+", required=True, help="names of the stages, in order")
    parser.add_argument("--csv", type=Path, required=True, help="file to write")
    parser.add_argument("--svg", type=Path, required=True, help="file to write; .png beside it")
    arguments = parser.parse_args()
    table = collect(arguments.checkpoints, json.loads(arguments.schedules))
    write_table(arguments.csv.with_suffix(""), table, shown(table), "Stages", ABOUT, decimals=6)
    write_figure(chart(table, arguments.stages), arguments.svg)


if __name__ == "__main__":
    run_step(main)
