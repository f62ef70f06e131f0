"""The report's charts, as Vega-Lite by way of Altair. Colours are Okabe and Ito's; the page sets light or dark."""

from collections.abc import Sequence

import altair
import pandas

from triptych.tables.plotting import PALETTE
from triptych.tables.probes import chart as probe_chart
from triptych.tables.stages import stage_lines

WIDTH = 300


PANELS = 3  # side by side; the page takes fewer where it is narrow


# Beside colours, because there may be more schedules than colours that everybody tells apart.
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]


Table = tuple[list[str], list[list[str]]]  # header and lines


def _shape(field: str, order: Sequence[str], title: str) -> altair.Shape:
    scale = altair.Scale(domain=list(order), range=(SHAPES * len(order))[: len(order)])
    return altair.Shape(f"{field}:N", scale=scale, title=title)


def _color(field: str, order: Sequence[str], title: str) -> altair.Color:
    scale = altair.Scale(domain=list(order), range=(PALETTE * len(order))[: len(order)])
    legend = altair.Legend(title=title, orient="top", columns=4, symbolOpacity=1)
    return altair.Color(f"{field}:N", scale=scale, legend=legend)


def paired(runs: Sequence[dict], arms: Sequence[str]) -> altair.LayerChart:
    """Exact match of every run, a line for each fold and seed from schedule to schedule."""
    many = len(arms) > 8 or max(map(len, arms)) > 12  # ablations, with names that would meet each other
    axis = altair.Axis(labelAngle=0 if len(arms) <= 4 and not many else -40, labelLimit=240)
    base = altair.Chart(pandas.DataFrame(runs)).encode(
        x=altair.X("arm:N", sort=list(arms), title=None, axis=axis),
        y=altair.Y("accuracy:Q", title="exact match, %", scale=altair.Scale(zero=False)),
        detail="run:N",
        color=_color("fold", sorted({run["fold"] for run in runs}), "fold"),
    )
    points = base.mark_point(filled=True, size=60).encode(
        tooltip=["run", "arm", altair.Tooltip("accuracy", format=".1f")]
    )
    width = max(WIDTH, 45 * len(arms)) if many else max(260, 50 * len(arms))
    return (base.mark_line(opacity=0.6) + points).properties(width=width, height=240)


def effects(comparison: Sequence[dict]) -> altair.LayerChart:
    """The difference of each pair of schedules with its 95 % interval, over the region that counts as none."""
    rows = [
        {"pair": f"{row['first']} less {row['second']}", "effect": row["effect"], "low": low, "high": high}
        for row in comparison
        for low, high in [(row.get("low"), row.get("high"))]
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
    rows: Sequence[dict], stages: Sequence[str], arms: Sequence[str], field: str, title: str, over_runs: str = "mean"
) -> altair.ConcatChart:
    """One metric epoch by epoch, a panel for each stage, on one scale: `over_runs` of all runs; means in a band of all.

    A stage that schedules share is drawn once, as the first one's.
    """
    frame = pandas.DataFrame(rows).dropna(subset=[field])
    frame["order"] = frame["schedule"].map(list(arms).index)
    frame = frame.sort_values("order", kind="stable").drop_duplicates(["prefix", "split", "seed", "epoch"])
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


def content(rows: Sequence[dict], aspect: str, arms: Sequence[str]) -> altair.Chart:
    """Exact match by the values of one aspect, a point for each arm; values by number of questions."""
    chosen = [row for row in rows if row["aspect"] == aspect and row["arm"] in arms]
    frame = pandas.DataFrame(chosen)
    frame["value"] = frame["value"].fillna("(none)").astype(str)
    sizes = frame.groupby("value")["questions"].max()
    frame["label"] = [f"{value} ({int(sizes[value])})" for value in frame["value"]]
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


def leak(rows: Sequence[dict]) -> altair.LayerChart:
    """Points that folds of each kind add, with their interval."""
    frame = pandas.DataFrame([row for row in rows if row["inflation"] is not None])
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
    ("training_loss", "Training loss per stage", "nats a token", "train_loss", "mean"),
    ("validation_loss", "Validation loss per stage", "nats a token", "validation_loss", "mean"),
    ("training_accuracy", "Training accuracy per stage", "exact match", "train_accuracy", "mean"),
    ("validation_accuracy", "Validation accuracy per stage", "exact match", "validation_accuracy", "mean"),
)


HEALTH = (
    ("gradient_norms", "Largest gradient norm of an epoch", "gradient norm", "gradient_norm_max", "max"),
    ("token_norms", "Length of image tokens over that of words", "ratio", "token_norm_ratio", "mean"),
    ("loss_spikes", "Most loss spikes in an epoch", "spikes", "loss_spikes", "max"),
)


def all_charts(gathered: dict, stages: Sequence[str], arms: Sequence[str], lookups: Sequence[str]) -> dict:
    """Name -> (chart, what it shows in words), in the order of the page; what there is nothing for is left out."""
    found = {}
    if len(arms) > 1:
        found["paired"] = (paired(gathered["runs"], arms), "Exact match of every run, fold by fold")
    if gathered["comparison"] and any(row.get("low") is not None for row in gathered["comparison"]):
        found["effects"] = (effects(gathered["comparison"]), "Differences of schedules with 95 % intervals")
    for name, what, title, field, over_runs in (*CURVES, *HEALTH):
        if any(row[field] is not None for row in gathered["curves"]):
            found[name] = (per_stage(gathered["curves"], stages, arms, field, title, over_runs), what)
    for aspect in ("modality", "content_type"):
        if any(row["aspect"] == aspect for row in gathered["by_content"]):
            chart = content(gathered["by_content"], aspect, [*arms, *lookups])
            found[aspect] = (chart, f"Exact match by {aspect.replace('_', ' ')}")
    if gathered["probe"]:
        order = list(dict.fromkeys(row["representation"] for row in gathered["probe"]))
        found["probe"] = (probe_chart(gathered["probe"], order), "What image tokens hold: macro-F1 of probes")
    if any(row["inflation"] is not None for row in gathered["leak"]):
        found["leak"] = (leak(gathered["leak"]), "Points that leaking folds add")
    return found


def numbers(gathered: dict, arms: Sequence[str], lookups: Sequence[str]) -> dict[str, Table]:
    """Name of a chart -> header and lines of a table that says what it shows, for those that cannot see it."""
    found = {"paired": pivot(gathered["runs"], "run", "arm", "accuracy", arms)}
    if gathered["curves"]:
        found["training"] = stage_lines(gathered["curves"])
    for aspect in ("modality", "content_type"):
        rows = [row for row in gathered["by_content"] if row["aspect"] == aspect]
        found[aspect] = pivot(rows, "value", "arm", "mean", [*arms, *lookups])
    rows = [{**row, "of": f"{row['attribute']}, {row['probe']}"} for row in gathered["probe"]]
    found["probe"] = pivot(rows, "representation", "of", "f1", list(dict.fromkeys(row["of"] for row in rows)))
    return found


def pivot(rows: Sequence[dict], line: str, column: str, value: str, columns: Sequence[str]) -> Table:
    """Header and lines of a table with a line for each value of `line` and a column for each of `columns`."""
    cells = {(row[line], row[column]): row[value] for row in rows}
    shown = [
        [str(name or "(none)"), *("" if cells.get((name, of)) is None else f"{cells[name, of]:.1f}" for of in columns)]
        for name in dict.fromkeys(row[line] for row in rows)
    ]
    return [line, *columns], shown
