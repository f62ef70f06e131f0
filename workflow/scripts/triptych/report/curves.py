"""The page's pictures of training: small multiples by stage, and a stage with and without those before it."""

import math
from collections.abc import Sequence
from typing import Any

import pandas

from triptych.report.charts import CURVES, HEALTH
from triptych.report.svg import panel

NARROW = 270  # of the pictures side by side


def _writer(field: str):
    if field.endswith("accuracy"):
        return lambda value: f"{100 * value:.3g} %"
    return lambda value: f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def once(curves: pandas.DataFrame, arms: Sequence[str]) -> pandas.DataFrame:
    """Keep each training once, under the first schedule that passes through it."""
    order = curves["schedule"].map(list(arms).index).sort_values(kind="stable").index
    return curves.loc[order].drop_duplicates(["prefix", "split", "seed", "epoch"])


def _series(frame: pandas.DataFrame, field: str, names: Sequence[str], by: str, over_runs: str) -> list[dict[str, Any]]:
    found = []
    for index, name in enumerate(names):
        part = frame[frame[by] == name].dropna(subset=[field])
        points = [
            (int(epoch), float(getattr(values, over_runs)()), float(values.min()), float(values.max()), len(values))
            for epoch, values in part.groupby("epoch")[field]
        ]
        if points:
            found.append({"name": name, "index": index, "points": points})
    return found


def _limits(series: Sequence[dict], over_runs: str, zero: bool) -> tuple[float, float]:
    values = [
        value
        for one in series
        for point in one["points"]
        for value in ((point[1],) if over_runs == "max" else point[1:4])
        if math.isfinite(value)
    ]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.06 * (high - low or abs(high) or 1.0)
    return (0.0 if zero else low - room), high + room


def charts(curves: pandas.DataFrame, stages: Sequence[str], arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Draw every metric that was measured: by name `what` it is, `unit`, and `panels` of (stage, picture).

    The data of the panels stand beside them, for figures: `series` by stage, and what else `svg.panel` takes. Lines
    have the colour of the first schedule that passes through the training.
    """
    frame = once(curves, arms) if len(curves) else curves
    found = {}
    for name, what, unit, field, over_runs in (*CURVES, *HEALTH):
        if not len(frame) or not frame[field].notna().any():
            continue
        by_stage = {
            stage: _series(frame[frame["stage"] == stage], field, arms, "schedule", over_runs) for stage in stages
        }
        every = [one for series in by_stage.values() for one in series]
        limits = _limits(every, over_runs, zero=not field.endswith("loss"))
        whole = field == "loss_spikes"
        if whole:
            limits = (0.0, max(1.0, limits[1]))
        drawn = {stage: series for stage, series in by_stage.items() if series}
        write = _writer(field)
        panels = [(f"stage {stage}", panel(series, limits, write, over_runs, whole)) for stage, series in drawn.items()]
        data = {"series": drawn, "limits": limits, "write": write, "over_runs": over_runs, "whole": whole}
        found[name] = {"what": what, "unit": unit, "panels": panels, **data}
    return found


def has_lines(chart: dict[str, Any]) -> bool:
    """Tell whether a chart has more than single points, which trainings of one epoch give."""
    return any(len(one["points"]) > 1 for series in chart["series"].values() for one in series)


def named(curves: pandas.DataFrame, arms: Sequence[str]) -> dict[int, str]:
    """Give the schedules that a line of `charts` is drawn under, by the index of its look."""
    found = set(once(curves, arms)["schedule"]) if len(curves) else set()
    return {index: arm for index, arm in enumerate(arms) if arm in found}


def with_and_without(curves: pandas.DataFrame, lineages: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """Draw the first stage that two schedules train from different parents, side by side on one scale.

    Args:
        curves: metrics of every epoch.
        lineages: the prefixes of the first schedule, and those of the one that it is compared with.

    Returns:
        `stage`, `panels`: by metric, (what, [(prefix, picture), ...]); None where there is no such stage.
    """
    if len(lineages) < 2 or not len(curves):
        return None
    stage_of = dict(zip(curves["prefix"], curves["stage"], strict=True))
    first = {stage_of.get(prefix): prefix for prefix in lineages[0]}
    pair = next(
        (
            (first[stage_of[prefix]], prefix)
            for prefix in lineages[1]
            if prefix in stage_of and first.get(stage_of[prefix], prefix) != prefix
        ),
        None,
    )
    if pair is None:
        return None
    starts = {}
    for prefix, lineage in zip(pair, lineages, strict=False):
        before = lineage[: list(lineage).index(prefix)]
        starts[prefix] = f"{prefix} (after {before[-1]})" if before else f"{prefix} (on the frozen models)"
    frame = curves.drop_duplicates(["prefix", "split", "seed", "epoch"])
    found = []
    for _, what, unit, field, over_runs in CURVES:
        series = _series(frame, field, pair, "prefix", over_runs)
        if len(series) < 2:
            continue
        limits = _limits(series, over_runs, zero=False)
        pictures = [(starts[one["name"]], panel([one], limits, _writer(field), wide=NARROW)) for one in series]
        found.append((what.replace(" per stage", ""), unit, pictures))
    return {"stage": stage_of[pair[0]], "pair": pair, "charts": found} if found else None
