"""Charts whose rows are rows of a table: a name, intervals and marks, and the numbers in words.

The page draws them as tracks, `report.drawing` as figures for papers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas

from triptych.config.arms import CONTROLS
from triptych.report.svg import Axis, key, track
from triptych.tables.format import rows_of
from triptych.tables.wording import narrowed, p_text

# `what` in words, `label` of its axis, `title` beside others of its kind, `axis`, `scale`, `zero`, `margin`, `names` of
# its marks, `legend`, `rows` of name, points (as `svg.track` takes them), track, text, and by choice `strong`.
Chart = dict[str, Any]
Write = Callable[[float | None], str]  # of a number

EXACT = "exact match, %"
AND_P = " and corrected p"


def percent(value: float | None) -> str:
    """Write a share: '52.2', nothing where it is unknown."""
    return "" if value is None else f"{value:.1f}"


def signed(value: float | None) -> str:
    """Write a difference: '+1.2', nothing where it is unknown."""
    return "" if value is None else f"{value:+.1f}"


def with_interval(value: float | None, low: float | None, high: float | None, write: Write = percent) -> str:
    """Write a value with its interval: '52.2 (48.0 to 56.3)'."""
    return write(value) if low is None else f"{write(value)} ({write(low)} to {write(high)})"


def _row(
    name: str,
    value: float,
    low: float | None,
    high: float | None,
    write: Write = percent,
    tip: str = "",
    **mark: Any,
) -> dict:
    """Make a row of one value with its interval; `tip` names it where the row's name does not, `mark` is its look."""
    text = with_interval(value, low, high, write)
    point = {"value": value, "low": low, "high": high, "tip": f"{tip or name}: {text}", **mark}
    return {"name": name, "points": [point], "text": text}


def _tested(name: str, row: Mapping[str, Any], with_p: bool) -> dict:
    """Make a row of a difference in points with its interval, which is not corrected, and p, which is."""
    drawn = _row(name, row["effect"], row["low"], row["high"], signed)
    if with_p and row["p_holm"] is not None:
        p = p_text(row["p_holm"])
        drawn["text"] += f", p {p if p.startswith('<') else f'= {p}'}"
    return drawn


def _chart(
    what: str,
    label: str,
    axis: Axis,
    rows: list[dict],
    names: Sequence[str] = (),
    title: str = "",
    zero: bool = False,
    margin: float | None = None,
) -> Chart:
    for row in rows:
        row["track"] = track(axis, row["points"], zero, margin)
    legend = [(key(index), name) for index, name in enumerate(names)]
    drawn = {"axis": axis, "scale": axis.scale(), "zero": zero, "margin": margin, "names": list(names)}
    return {"what": what, "label": label, "title": title, "rows": rows, "legend": legend, **drawn}


def ranked(arms: Sequence[Mapping], accuracies: Mapping[str, Mapping]) -> Chart:
    """Draw exact match of all arms, the highest first; trained ones stand out."""
    known = [
        {**accuracies.get(row["arm"], {"mean": row["all_mean"], "low": None, "high": None}), **row} for row in arms
    ]
    known.sort(key=lambda row: -row["mean"])
    axis = Axis([row[name] for row in known for name in ("mean", "low", "high")], most=100)
    rows = []
    for row in known:
        mark = {"index": 0, "kind": ""} if row["trained"] else {"index": 3, "kind": "quiet"}
        drawn = _row(row["arm"], row["mean"], row["low"], row["high"], **mark)
        rows.append(drawn | {"strong": row["trained"]})
    return _chart("Exact match of all arms, in per cent, with 95 % intervals", EXACT, axis, rows)


def scaled(sweeps: Mapping[str, Sequence[Mapping]]) -> list[Chart]:
    """Draw exact match of every value of every sweep, the smallest first."""
    found = []
    for name, values in sweeps.items():
        axis = Axis([row[part] for row in values for part in ("mean", "low", "high")], most=100)
        rows = [_row(f"{row['value']:.10g}", row["mean"], row["low"], row["high"], tip=row["arm"]) for row in values]
        what = f"{name}: exact match in per cent by {values[0]['setting']}, 95 % intervals"
        found.append(_chart(what, EXACT, axis, rows, title=name))
    return found


def differences(comparison: Sequence[Mapping]) -> Chart | None:
    """Draw the difference of each pair over the margin of equivalence; small marks are single runs."""
    if not comparison:
        return None
    margin = comparison[0]["equivalence_margin"]
    single = [list((row.get("run_effects") or {}).values()) for row in comparison]
    values = [row.get(name) for row in comparison for name in ("effect", "low", "high")]
    axis = Axis([*values, *(value for runs in single for value in runs)], include=(-margin, 0, margin))
    rows = []
    for row, runs in zip(comparison, single, strict=True):
        low, high = row.get("low"), row.get("high")
        if low is None:
            low, high = row.get("bootstrap_low"), row.get("bootstrap_high")
        name, small = f"{row['first']} minus {row['second']}", runs if len(runs) > 1 else ()
        rows.append(_row(name, row["effect"], low, high, signed, small=small))
    what = "Differences between schedules in points, with 95 % intervals"
    return _chart(what, "points", axis, rows, zero=True, margin=margin)


def power(comparison: Sequence[Mapping]) -> Chart | None:
    """Draw the differences that the primary comparison may miss, over the margin of equivalence."""
    size = comparison[0].get("detectable") if comparison else None
    if size is None:
        return None
    margin = comparison[0]["equivalence_margin"]
    axis = Axis([-size, size], include=(-margin, 0, margin))
    row = {"name": "missed", "points": [{"low": -size, "high": size, "index": 3}], "text": f"up to {size:.1f}"}
    what = "Differences that would be missed more than one time in five, in points"
    return _chart(what, "points", axis, [row], zero=True, margin=margin)


def lost(
    found: Sequence[Mapping], schedules: Sequence[str], name_arms: bool = True, with_p: bool = True
) -> Chart | None:
    """Draw the points that schedules lose with other images."""
    axis = Axis([row[name] for row in found for name in ("effect", "low", "high")], include=(0,))
    rows = []
    for arm in schedules:
        for row in found:
            if row["arm"] != arm:
                continue
            heading = CONTROLS[row["view"]].heading
            rows.append(_tested(f"{arm}: {heading}" if name_arms else heading, row, with_p))
    what = f"Points lost with another image, with 95 % intervals{AND_P if with_p else ''}"
    return _chart(what, "points lost", axis, rows, zero=True) if rows else None


def above(found: Sequence[Mapping], with_p: bool = True) -> Chart | None:
    """Draw the points of schedules above arms that are not trained."""
    axis = Axis([row[name] for row in found for name in ("effect", "low", "high")], include=(0,))
    rows = []
    for row in found:
        rows.append(_tested(f"{row['arm']} minus {row['lookup']}", row, with_p))
    what = f"Points above look-ups and classifiers, with 95 % intervals{AND_P if with_p else ''}"
    return _chart(what, "points", axis, rows, zero=True) if rows else None


def types(found: Sequence[Mapping]) -> Chart | None:
    """Draw the first pair's difference for each type of question, the commonest of each aspect first."""
    pair = [(row["first"], row["second"]) for row in found[:1]]
    own = [row for row in found if (row["first"], row["second"]) in pair and row["effect"] is not None]
    aspects = list(dict.fromkeys(row["aspect"] for row in own))
    own.sort(key=lambda row: (aspects.index(row["aspect"]), -row["questions"], row["value"] or ""))
    axis = Axis([row[name] for row in own for name in ("effect", "low", "high")], include=(0,), least=-100, most=100)
    rows = []
    for row in own:
        low, high = (row["low"], row["high"]) if narrowed(row["low"], row["high"]) else (None, None)
        name = f"{row['value'] or '(none)'} ({row['questions']})"
        drawn = _row(name, row["effect"], low, high, signed, index=aspects.index(row["aspect"]))
        if low is None:
            drawn["text"] += " (interval not known)" if row["low"] is None else " (nothing ruled out)"
        rows.append(drawn)
    what = " ".join(f"{first} minus {second} by type of question" for first, second in pair)
    names = [aspect.replace("_", " ") for aspect in aspects]
    return _chart(f"{what}, in points, with 95 % intervals", "points", axis, rows, names, zero=True) if rows else None


def occlusion(table: pandas.DataFrame) -> Chart | None:
    """Draw how often schedules look at what is asked for, beside the square in the middle and a random one."""
    found = [row for row in rows_of(table) if row["pointing"] is not None]
    if not found:
        return None
    axis = Axis([row[f"pointing{part}"] for row in found for part in ("", "_low", "_high", "_centre", "_random")])
    rows = []
    for row in found:
        drawn = _row(row["arm"], row["pointing"], row["pointing_low"], row["pointing_high"])
        others = [{"value": row[f"pointing_{name}"], "index": place} for place, name in ((1, "centre"), (2, "random"))]
        rows.append(drawn | {"points": [*drawn["points"], *others]})
    names = ["square that matters most", "square in the middle", "random square"]
    return _chart("Squares that point at what is asked for, in per cent", "pointing, %", axis, rows, names)


def contents(table: pandas.DataFrame, aspect: str, arms: Sequence[str]) -> Chart | None:
    """Draw exact match by the values of an aspect, most questions first, a mark for each arm."""
    found = [row for row in rows_of(table) if row["aspect"] == aspect and row["arm"] in arms]
    if not found:
        return None
    sizes: dict[str, int] = {}
    for row in found:
        sizes[row["value"] or ""] = max(sizes.get(row["value"] or "", 0), row["questions"])
    axis = Axis([0, 100])
    rows = []
    for value in sorted(sizes, key=lambda value: (-sizes[value], value)):
        own = {row["arm"]: row["mean"] for row in found if (row["value"] or "") == value and row["mean"] is not None}
        points = [
            {"value": own[arm], "index": index, "tip": f"{arm}, {value or '(none)'}: {own[arm]:.1f} %"}
            for index, arm in enumerate(arms)
            if arm in own
        ]
        rows.append({"name": f"{value or '(none)'} ({sizes[value]})", "points": points, "text": ""})
    what = f"Exact match by {aspect.replace('_', ' ')}, in per cent (number of questions)"
    return _chart(what, EXACT, axis, rows, arms)


def probes(table: pandas.DataFrame) -> list[Chart]:
    """Draw macro-F1 of probes, a chart for each attribute, a mark for each kind of probe."""
    charts = []
    rows_all = rows_of(table)
    kinds = list(dict.fromkeys(row["probe"] for row in rows_all))
    for attribute in dict.fromkeys(row["attribute"] for row in rows_all):
        own = [row for row in rows_all if row["attribute"] == attribute]
        axis = Axis([row[name] for row in own for name in ("f1", "low", "high", "shuffled_f1")], most=100)
        rows = []
        for name in dict.fromkeys(row["representation"] for row in own):
            for row in (row for row in own if row["representation"] == name):
                mark = {"index": kinds.index(row["probe"])}
                mark["small"] = [] if row["shuffled_f1"] is None else [row["shuffled_f1"]]
                drawn = _row(f"{name}, {row['probe']}", row["f1"], row["low"], row["high"], **mark)
                drawn["points"][0]["tip"] += f"; shuffled labels {percent(row['shuffled_f1'])}"
                rows.append(drawn)
        what = f"Macro-F1 of probes: {attribute}, in per cent, with 95 % intervals"
        charts.append(_chart(what, "macro-F1, %", axis, rows, kinds, title=attribute))
    return charts


def leaks(table: pandas.DataFrame) -> Chart | None:
    """Draw the points that folds of each kind add, with their interval."""
    found = [row for row in rows_of(table) if row["inflation"] is not None]
    if not found:
        return None
    kinds = list(dict.fromkeys(row["folds_by"] for row in found))
    axis = Axis([row[name] for row in found for name in ("inflation", "low", "high")], include=(0,))
    rows = []
    for row in found:
        name, index = f"{row['arm']}, folds by {row['folds_by']}", kinds.index(row["folds_by"])
        rows.append(_row(name, row["inflation"], row["low"], row["high"], signed, index=index))
    return _chart("Points added by leaking folds, with 95 % intervals", "points added", axis, rows, zero=True)
