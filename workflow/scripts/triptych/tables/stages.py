"""Step: the table of loss and accuracy of every stage."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas

from triptych.errors import run_step
from triptych.tables.format import INTEGER, NUMBER, TEXT, Columns, make_table, write_table
from triptych.train.history import read_training

RUN = {"schedule": TEXT, "stage": TEXT, "prefix": TEXT, "split": TEXT, "seed": INTEGER}
MEASURES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
COLUMNS = {**RUN, "kept_epoch": INTEGER, "epoch": INTEGER, **dict.fromkeys(MEASURES, NUMBER)}

ABOUT = (
    "Loss in nats per token and teacher-forced accuracy in per cent after the last epoch of every stage, mean over "
    "folds and seeds. Where the best epoch by validation is kept, the kept one may be an earlier one."
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
        run["kept_epoch"] = manifest["epoch"] if training.finished else None
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
        epochs = sorted(set(part["kept_epoch"].dropna()))
        kept = " to ".join(map(str, dict.fromkeys([*epochs[:1], *epochs[-1:]])))
        lines.append([schedule, stage, runs, str(part["epoch"].iloc[0]), kept, *values])
    heading = ["schedule", "stage", "folds x seeds", "epochs", "kept epoch"]
    heading += [name.replace("_", " ") for name in MEASURES]
    return pandas.DataFrame(lines, columns=heading)


def main() -> None:
    """Write `stages` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="manifests of the checkpoints")
    parser.add_argument("--schedules", required=True, help="schedule -> the prefixes of its checkpoints, as JSON")
    parser.add_argument("--csv", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    table = collect(arguments.checkpoints, json.loads(arguments.schedules))
    write_table(arguments.csv.with_suffix(""), table, shown(table), "Stages", ABOUT, decimals=6)


if __name__ == "__main__":
    run_step(main)
