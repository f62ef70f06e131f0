"""Which charts of training and content there are, and the numbers of charts as tables."""

from collections.abc import Sequence

import pandas

from triptych.tables.stages import shown as shown_stages

FORCED = "teacher-forced exact match"

# Name, what it is, title of its axis, field of `metrics.jsonl`, which value of all runs.
CURVES = (
    ("training_loss", "Training loss per stage", "nats per token", "train_loss", "mean"),
    ("validation_loss", "Validation loss per stage", "nats per token", "validation_loss", "mean"),
    ("training_accuracy", "Training accuracy per stage", FORCED, "train_accuracy", "mean"),
    ("validation_accuracy", "Validation accuracy per stage", FORCED, "validation_accuracy", "mean"),
)
HEALTH = (
    ("gradient_norms", "Maximum gradient norm per epoch", "gradient norm", "gradient_norm_max", "max"),
    ("token_norms", "Norm of image tokens relative to text embeddings", "ratio", "token_norm_ratio", "mean"),
    ("loss_spikes", "Maximum number of loss spikes per epoch", "spikes", "loss_spikes", "max"),
)
CONTENT = ("modality", "content_type")  # the aspects that are drawn


def numbers(gathered: dict, arms: Sequence[str], lookups: Sequence[str]) -> dict[str, pandas.DataFrame]:
    """Give the numbers of charts as tables of text, by name of the chart, for readers that cannot see it."""
    found = {"paired": pivot(gathered["runs"], "run", "arm", "accuracy", arms)}
    if len(gathered["curves"]):
        found["training"] = shown_stages(gathered["curves"])
    for aspect in CONTENT:
        part = gathered["by_content"][gathered["by_content"]["aspect"] == aspect]
        found[aspect] = pivot(part.fillna({"value": "(none)"}), "value", "arm", "mean", [*arms, *lookups])
    probe = gathered["probe"]
    probe = probe.assign(of=probe["attribute"] + ", " + probe["probe"])
    found["probe"] = pivot(probe, "representation", "of", "f1", list(probe["of"].unique()))
    return found


def pivot(table: pandas.DataFrame, line: str, column: str, value: str, columns: Sequence[str]) -> pandas.DataFrame:
    """Give a table of text with a line for each value of `line` and a column for each of `columns`."""
    cells = table.pivot(index=line, columns=column, values=value).reindex(table[line].unique(), columns=list(columns))
    shown = cells.astype(object).map(lambda number: "" if pandas.isna(number) else f"{number:.1f}")
    return shown.rename_axis(index=line, columns=None).reset_index()
