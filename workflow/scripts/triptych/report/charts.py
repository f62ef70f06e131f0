"""The report's charts, as Vega-Lite by way of Altair. Colours are Okabe and Ito's; the page sets light or dark."""

from collections.abc import Sequence

import altair
import pandas

from triptych.figures import PALETTE
from triptych.probe_table import chart as probe_chart

WIDTH = 300


def _color(field: str, order: Sequence[str], title: str) -> altair.Color:
    scale = altair.Scale(domain=list(order), range=(PALETTE * 3)[: len(order)])
    return altair.Color(f"{field}:N", scale=scale, legend=altair.Legend(title=title, orient="top"))


def paired(runs: Sequence[dict], arms: Sequence[str]) -> altair.LayerChart:
    """Exact match of every run, a line for each fold and seed from schedule to schedule."""
    many = len(arms) > 8 or max(map(len, arms)) > 12  # ablations, with names that would meet each other
    axis = altair.Axis(labelAngle=-40 if many else 0, labelLimit=240)
    base = altair.Chart(pandas.DataFrame(runs)).encode(
        x=altair.X("arm:N", sort=list(arms), title=None, axis=axis),
        y=altair.Y("accuracy:Q", title="exact match, %", scale=altair.Scale(zero=False)),
        detail="run:N",
        color=_color("fold", sorted({run["fold"] for run in runs}), "fold"),
    )
    points = base.mark_point(filled=True, size=60).encode(
        tooltip=["run", "arm", altair.Tooltip("accuracy", format=".1f")]
    )
    return (base.mark_line(opacity=0.6) + points).properties(
        width=max(WIDTH, (45 if many else 90) * len(arms)), height=240
    )


def effects(comparison: Sequence[dict]) -> altair.LayerChart:
    """The difference of each pair of schedules with its 95 % interval, over the region that counts as none."""
    rows = [
        {"pair": f"{row['first']} less {row['second']}", "effect": row["effect"], "low": low, "high": high}
        for row in comparison
        for low, high in [(row.get("low"), row.get("high"))]
    ]
    rope = comparison[0]["rope"]
    region = altair.Chart(pandas.DataFrame([{"low": -rope, "high": rope}]))
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


def curves(rows: Sequence[dict], stages: Sequence[str], kind: str, title: str) -> altair.HConcatChart:
    """Training and validation of one quantity, a panel for each stage: means over runs, bands over folds and seeds."""
    frame = pandas.DataFrame(rows)
    long = frame.melt(
        id_vars=["schedule", "stage", "split", "seed", "epoch"],
        value_vars=[f"train_{kind}", f"validation_{kind}"],
        var_name="part",
    ).dropna(subset=["value"])
    long["part"] = long["part"].str.removesuffix(f"_{kind}")
    order = list(dict.fromkeys(frame["schedule"]))
    panels = []
    for stage in stages:
        base = altair.Chart(long[long["stage"] == stage]).encode(
            x=altair.X("epoch:Q", axis=altair.Axis(tickMinStep=1, format="d")),
            color=_color("schedule", order, "schedule"),
        )
        dash = altair.StrokeDash(
            "part:N",
            scale=altair.Scale(domain=["validation", "train"], range=[[1, 0], [5, 4]]),
            legend=altair.Legend(title="part", orient="top"),
        )
        scale = altair.Scale(domain=[0, 1]) if kind == "accuracy" else altair.Scale(zero=False)
        line = base.mark_line(point=True).encode(
            altair.Y("mean(value):Q", scale=scale, title=title if stage == stages[0] else None),
            strokeDash=dash,
            tooltip=["schedule", "part", "epoch", altair.Tooltip("mean(value):Q", format=".3f")],
        )
        band = base.mark_area(opacity=0.15).encode(
            altair.Y("min(value):Q", scale=scale, title=None), altair.Y2("max(value):Q"), detail="part:N"
        )
        panels.append((band + line).properties(width=200, height=180, title=f"stage {stage}"))
    return altair.hconcat(*panels)


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
            shape=altair.Shape("arm:N", scale=altair.Scale(domain=list(arms)), title="arm"),
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


def health(rows: Sequence[dict], stages: Sequence[str]) -> altair.VConcatChart:
    """Gradient norms, the length of image tokens over that of text embeddings, and loss spikes, epoch by epoch."""
    frame = pandas.DataFrame(rows)
    order = list(dict.fromkeys(frame["schedule"]))
    names = {
        "gradient_norm_max": "largest gradient norm",
        "token_norm_ratio": "image over text norm",
        "loss_spikes": "loss spikes",
    }
    bands = []
    for field, title in names.items():
        part = frame.dropna(subset=[field])
        panels = [
            altair.Chart(part[part["stage"] == stage])
            .mark_line(point=True)
            .encode(
                x=altair.X("epoch:Q", axis=altair.Axis(tickMinStep=1, format="d")),
                y=altair.Y(f"max({field}):Q", title=title if stage == stages[0] else None),
                color=_color("schedule", order, "schedule"),
                tooltip=["schedule", "epoch", altair.Tooltip(f"max({field}):Q", format=".3g")],
            )
            .properties(width=200, height=110, title=f"stage {stage}")
            for stage in stages
        ]
        bands.append(altair.hconcat(*panels))
    return altair.vconcat(*bands)


def all_charts(gathered: dict, stages: Sequence[str], arms: Sequence[str], lookups: Sequence[str]) -> dict:
    """Name -> (chart, what it shows in words), in the order of the page; what there is nothing for is left out."""
    several = len(arms) > 1
    found = {}
    if several:
        found["paired"] = (paired(gathered["runs"], arms), "Exact match of every run, fold by fold")
    if gathered["comparison"] and any(row.get("low") is not None for row in gathered["comparison"]):
        found["effects"] = (effects(gathered["comparison"]), "Differences of schedules with 95 % intervals")
    if gathered["curves"]:
        found["loss"] = (curves(gathered["curves"], stages, "loss", "loss, nats a token"), "Loss per stage")
        found["accuracy"] = (curves(gathered["curves"], stages, "accuracy", "exact match"), "Accuracy per stage")
    for aspect in ("modality", "content_type"):
        if any(row["aspect"] == aspect for row in gathered["by_content"]):
            chart = content(gathered["by_content"], aspect, [*arms, *lookups])
            found[aspect] = (chart, f"Exact match by {aspect.replace('_', ' ')}")
    if gathered["probe"]:
        order = list(dict.fromkeys(row["representation"] for row in gathered["probe"]))
        found["probe"] = (probe_chart(gathered["probe"], order), "What image tokens hold: macro-F1 of probes")
    if any(row["inflation"] is not None for row in gathered["leak"]):
        found["leak"] = (leak(gathered["leak"]), "Points that leaking folds add")
    if gathered["curves"]:
        found["health"] = (health(gathered["curves"], stages), "Gradient norms, token norms and loss spikes")
    return found
