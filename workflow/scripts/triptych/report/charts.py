"""The report's charts, in Vega-Lite, made with Altair. Colours are Okabe and Ito's; the page sets light or dark."""

from collections.abc import Mapping, Sequence

import altair
import pandas

from triptych.tables.plotting import PALETTE
from triptych.tables.probes import chart as probe_chart
from triptych.tables.stages import shown as shown_stages

WIDTH = 300
PANELS = 3  # side by side; the page takes fewer where it is narrow
# Beside colours, because there may be more schedules than colours that everybody tells apart.
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]


def _shape(field: str, order: Sequence[str], title: str) -> altair.Shape:
    scale = altair.Scale(domain=list(order), range=(SHAPES * len(order))[: len(order)])
    return altair.Shape(f"{field}:N", scale=scale, title=title)


def _color(field: str, order: Sequence[str], title: str) -> altair.Color:
    scale = altair.Scale(domain=list(order), range=(PALETTE * len(order))[: len(order)])
    legend = altair.Legend(title=title, orient="top", columns=4, symbolOpacity=1)
    return altair.Color(f"{field}:N", scale=scale, legend=legend)


def paired(runs: pandas.DataFrame, arms: Sequence[str]) -> altair.LayerChart:
    """Draw exact match of every run: a line for each fold and seed, from schedule to schedule."""
    many = len(arms) > 8 or max(map(len, arms)) > 12  # ablations, with names that would meet each other
    axis = altair.Axis(labelAngle=0 if len(arms) <= 4 and not many else -40, labelLimit=240)
    base = altair.Chart(runs).encode(
        x=altair.X("arm:N", sort=list(arms), title=None, axis=axis),
        y=altair.Y("accuracy:Q", title="exact match, %", scale=altair.Scale(zero=False)),
        detail="run:N",
        color=_color("fold", sorted(set(runs["fold"])), "fold"),
    )
    points = base.mark_point(filled=True, size=60).encode(
        tooltip=["run", "arm", altair.Tooltip("accuracy", format=".1f")]
    )
    width = max(WIDTH, 45 * len(arms)) if many else max(260, 50 * len(arms))
    return (base.mark_line(opacity=0.6) + points).properties(width=width, height=240)


def effects(comparison: Sequence[Mapping]) -> altair.LayerChart:
    """Draw the difference of each pair of schedules with its 95 % interval, over the region that counts as none."""
    rows = [
        {"pair": f"{row['first']} minus {row['second']}", **{name: row.get(name) for name in ("effect", "low", "high")}}
        for row in comparison
    ]
    margin = comparison[0]["equivalence_margin"]
    region = altair.Chart(pandas.DataFrame([{"low": -margin, "high": margin}]))
    band = region.mark_rect(opacity=0.25, color="#999999").encode(altair.X("low:Q"), altair.X2("high:Q"))
    base = altair.Chart(pandas.DataFrame(rows)).encode(
        y=altair.Y("pair:N", title=None, sort=None, axis=altair.Axis(labelLimit=240))
    )
    tips = [altair.Tooltip(name, format="+.1f") for name in ("effect", "low", "high")]
    rule = base.mark_rule(strokeWidth=2, color=PALETTE[0]).encode(
        altair.X("low:Q", title="points"), altair.X2("high:Q")
    )
    point = base.mark_point(filled=True, size=80, color=PALETTE[0], opacity=1).encode(
        altair.X("effect:Q"), tooltip=["pair", *tips]
    )
    return (band + rule + point).properties(width=WIDTH + 60, height=altair.Step(34))


def per_stage(
    curves: pandas.DataFrame,
    stages: Sequence[str],
    arms: Sequence[str],
    field: str,
    title: str,
    over_runs: str = "mean",
) -> altair.ConcatChart:
    """Draw one metric by epoch, a panel for each stage, on one scale: the mean of all runs in a band, or their maximum.

    A stage that schedules share is drawn once, under the first of them.

    Args:
        curves: rows of `stages.collect`.
        stages: in order.
        arms: the schedules, in order.
        field: column of `curves`.
        title: of the axis.
        over_runs: `mean` or `max`.
    """
    frame = curves.dropna(subset=[field])
    order = frame["schedule"].map(list(arms).index).sort_values(kind="stable").index
    frame = frame.loc[order].drop_duplicates(["prefix", "split", "seed", "epoch"])
    drawn = [arm for arm in arms if arm in set(frame["schedule"])]
    y = f"{over_runs}({field}):Q"
    scale = altair.Scale(zero=not field.endswith("loss"))
    axis = altair.Axis(format="%" if field.endswith("accuracy") else ",~f")  # "~g" would write 10 as 1e+1
    if field == "loss_spikes":
        axis.tickMinStep = 1
    panels = []
    for stage in stages:
        part = frame[frame["stage"] == stage][["schedule", "epoch", field]]
        epochs = sorted(map(int, set(part["epoch"])))
        ticks = altair.Axis(values=epochs[:: max(1, len(epochs) // 6)], format="d")
        base = altair.Chart(part).encode(
            x=altair.X("epoch:Q", axis=ticks, scale=altair.Scale(nice=False, padding=8)),
            color=_color("schedule", drawn, "schedule"),
        )
        band = base.mark_area(opacity=0.15).encode(
            altair.Y(f"min({field}):Q", scale=scale, axis=axis, title=title), altair.Y2(f"max({field}):Q")
        )
        line = base.mark_line().encode(altair.Y(y, scale=scale, axis=axis, title=title))
        points = base.mark_point(filled=True, size=45, opacity=1).encode(
            altair.Y(y, scale=scale, axis=axis, title=title),
            shape=_shape("schedule", drawn, "schedule"),
            tooltip=["schedule", "epoch", altair.Tooltip(y, format=".3g")],
        )
        layers = [band, line, points] if over_runs == "mean" else [line, points]
        panels.append(altair.layer(*layers).properties(width=220, height=150, title=f"stage {stage}"))
    return altair.concat(*panels, columns=PANELS).resolve_scale(y="shared")


def content(table: pandas.DataFrame, aspect: str, arms: Sequence[str]) -> altair.Chart:
    """Draw exact match by the values of one aspect, most questions first, a point for each arm."""
    frame = table[(table["aspect"] == aspect) & table["arm"].isin(list(arms))].fillna({"value": "(none)"})
    sizes = frame.groupby("value")["questions"].max()
    frame = frame.assign(label=[f"{value} ({sizes[value]})" for value in frame["value"]])
    order = list(dict.fromkeys(frame.sort_values("questions", ascending=False)["label"]))
    return (
        altair.Chart(frame)
        .mark_point(filled=True, size=55, opacity=0.85)
        .encode(
            x=altair.X("mean:Q", title="exact match, %", scale=altair.Scale(domain=[0, 100])),
            y=altair.Y("label:N", sort=order, title=None, axis=altair.Axis(labelLimit=200)),
            color=_color("arm", arms, "arm"),
            shape=_shape("arm", arms, "arm"),
            tooltip=["arm", "label", altair.Tooltip("mean", format=".1f"), altair.Tooltip("sd", format=".1f")],
        )
        .properties(width=WIDTH, height=altair.Step(20), title=aspect.replace("_", " "))
    )


def leak(table: pandas.DataFrame) -> altair.LayerChart:
    """Draw the points that folds of each kind add, with their interval."""
    frame = table.dropna(subset=["inflation"])
    base = altair.Chart(frame).encode(
        y=altair.Y("arm:N", title=None, axis=altair.Axis(labelLimit=200)),
        yOffset="folds_by:N",
        color=_color("folds_by", list(dict.fromkeys(frame["folds_by"])), "folds by"),
    )
    tips = [altair.Tooltip(name, format="+.1f") for name in ("inflation", "low", "high")]
    rule = base.mark_rule(strokeWidth=2).encode(altair.X("low:Q", title="points added"), altair.X2("high:Q"))
    point = base.mark_point(filled=True, size=60).encode(altair.X("inflation:Q"), tooltip=["arm", "folds_by", *tips])
    zero = altair.Chart(pandas.DataFrame([{"x": 0}])).mark_rule(color="#999999").encode(altair.X("x:Q"))
    return (zero + rule + point).properties(width=WIDTH + 60, height=altair.Step(18))


# Name, what it is, title of its axis, field of `metrics.jsonl`, which value of all runs.
CURVES = (
    ("training_loss", "Training loss per stage", "nats per token", "train_loss", "mean"),
    ("validation_loss", "Validation loss per stage", "nats per token", "validation_loss", "mean"),
    ("training_accuracy", "Training accuracy per stage", "exact match", "train_accuracy", "mean"),
    ("validation_accuracy", "Validation accuracy per stage", "exact match", "validation_accuracy", "mean"),
)
HEALTH = (
    ("gradient_norms", "Maximum gradient norm per epoch", "gradient norm", "gradient_norm_max", "max"),
    ("token_norms", "Norm of image tokens relative to text embeddings", "ratio", "token_norm_ratio", "mean"),
    ("loss_spikes", "Maximum number of loss spikes per epoch", "spikes", "loss_spikes", "max"),
)
CONTENT = ("modality", "content_type")  # the aspects that are drawn


def all_charts(gathered: dict, stages: Sequence[str], arms: Sequence[str], lookups: Sequence[str]) -> dict:
    """Draw the charts that there are data for, in the order of the page: name -> (chart, what it shows in words)."""
    found = {}
    if len(arms) > 1:
        found["paired"] = (paired(gathered["runs"], arms), "Exact match of every run")
    if any(row.get("low") is not None for row in gathered["comparison"]):
        found["effects"] = (effects(gathered["comparison"]), "Differences between schedules with 95 % intervals")
    curves, by_content, probe = gathered["curves"], gathered["by_content"], gathered["probe"]
    for name, what, title, field, over_runs in (*CURVES, *HEALTH):
        if curves[field].notna().any():
            found[name] = (per_stage(curves, stages, arms, field, title, over_runs), what)
    for aspect in CONTENT:
        if (by_content["aspect"] == aspect).any():
            chart = content(by_content, aspect, [*arms, *lookups])
            found[aspect] = (chart, f"Exact match by {aspect.replace('_', ' ')}")
    if len(probe):
        chart = probe_chart(probe, list(probe["representation"].unique()))
        found["probe"] = (chart, "Macro-F1 of probes of image tokens")
    if gathered["leak"]["inflation"].notna().any():
        found["leak"] = (leak(gathered["leak"]), "Points added by leaking folds")
    return found


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
