"""Step: the figure of validation loss and accuracy per stage, and the table of the numbers behind it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import altair
import pandas

from triptych.errors import run_step
from triptych.io.atomic import write_text
from triptych.tables.format import csv_text, latex, markdown
from triptych.tables.plotting import PALETTE, write_figure
from triptych.train.history import read_training

COLUMNS = [
    "schedule",
    "stage",
    "prefix",
    "split",
    "seed",
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
]


ABOUT = "Loss, and accuracy in per cent, after the last epoch of every stage: means over runs (folds x seeds)."


def collect(
    manifests: Sequence[Path], schedules: Mapping[str, Sequence[str]], fields: Sequence[str] = tuple(COLUMNS[5:])
) -> list[dict]:
    """Metrics of every checkpoint, an entry for each schedule that passes through it.

    Args:
        manifests: of the checkpoints.
        schedules: the prefixes that each passes through, as `grid.ways` has them.
        fields: of `metrics.jsonl`.
    """
    rows = []
    for path in sorted(manifests):
        training = read_training(path.parent)
        manifest = training.manifest
        [stage] = manifest["stages"][-1]
        for schedule, prefixes in schedules.items():
            if manifest["prefix"] not in prefixes:
                continue
            for metrics in training.rows:
                rows.append(
                    {
                        "schedule": schedule,
                        "stage": stage,
                        "prefix": manifest["prefix"],
                        "split": manifest["split"],
                        "seed": manifest["seed"],
                        **{name: metrics[name] for name in fields},
                    }
                )
    return rows


def stage_lines(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of stages: a line for every stage of every schedule, after its last epoch."""
    frame = pandas.DataFrame(rows)
    last = frame[frame["epoch"] == frame.groupby(["schedule", "prefix"])["epoch"].transform("max")]
    lines = []
    for (schedule, stage), part in last.groupby(["schedule", "stage"], sort=False):
        means = [part[name].mean() for name in COLUMNS[6:]]
        runs = f"{part['split'].nunique()} x {part['seed'].nunique()}"
        values = [
            f"{mean * (100 if name.endswith('accuracy') else 1):.2f}"
            for name, mean in zip(COLUMNS[6:], means, strict=True)
        ]
        lines.append(
            [
                schedule,
                stage,
                runs,
                str(int(part["epoch"].iloc[0])),
                *("" if "nan" in cell else cell for cell in values),
            ]
        )
    heads = ["schedule", "stage", "folds x seeds", "epochs"]
    return [*heads, *(name.replace("_", " ") for name in COLUMNS[6:])], lines


def chart(rows: Sequence[dict], stages: Sequence[str]) -> altair.VConcatChart:
    """Loss above, accuracy below, a column for each stage: the mean over runs as a line, their range as a band."""
    frame = pandas.DataFrame(rows)
    color = altair.Color(
        "schedule:N",
        sort=list(dict.fromkeys(frame["schedule"])),
        scale=altair.Scale(range=PALETTE),
        legend=altair.Legend(title="schedule", orient="top", symbolOpacity=1, symbolType="circle"),
    )
    last = int(frame["epoch"].max())
    epochs = altair.Axis(values=list(range(0, last + 1, max(1, last // 6))), format="d")
    names = {"validation_loss": "validation loss (nats a token)", "validation_accuracy": "validation exact match"}
    bands = []
    for field, title in names.items():
        columns = []
        for stage in stages:
            part = frame[frame["stage"] == stage]
            base = altair.Chart(part).encode(x=altair.X("epoch:Q", axis=epochs), color=color)
            scale = altair.Scale(domain=[0, 1]) if field == "validation_accuracy" else altair.Scale(zero=False)
            band = base.mark_area(opacity=0.2).encode(
                altair.Y(f"min({field}):Q", scale=scale, title=title), altair.Y2(f"max({field}):Q")
            )
            line = base.mark_line(point=True).encode(altair.Y(f"mean({field}):Q", scale=scale, title=title))
            columns.append((band + line).properties(width=230, height=190, title=f"stage {stage}"))
        bands.append(altair.hconcat(*columns))
    title = altair.Title(
        "Validation per stage", subtitle="line: mean over folds and seeds; band: their range; epoch 0: before training"
    )
    return altair.vconcat(*bands).properties(title=title).configure(background="white", font="sans-serif")


def main() -> None:
    """Write the figure as SVG and PNG, and its numbers as CSV."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="manifests of the checkpoints")
    parser.add_argument("--schedules", required=True, help="the prefixes that each schedule passes through, as JSON")
    parser.add_argument("--stages", nargs="+", required=True, help="names of the stages, in order")
    parser.add_argument("--csv", type=Path, required=True, help="file to write")
    parser.add_argument("--svg", type=Path, required=True, help="file to write; .png beside it")
    arguments = parser.parse_args()
    rows = collect(arguments.checkpoints, json.loads(arguments.schedules))
    write_text(arguments.csv, csv_text(rows, COLUMNS, decimals=6))
    write_text(arguments.csv.with_suffix(".md"), f"# Stages\n\n{ABOUT}\n\n{markdown(*stage_lines(rows))}\n")
    write_text(arguments.csv.with_suffix(".tex"), latex(*stage_lines(rows), ABOUT))
    write_figure(chart(rows, arguments.stages), arguments.svg)


if __name__ == "__main__":
    run_step(main)
