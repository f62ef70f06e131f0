"""Marks of the page's pictures, as SVG without scripts, fonts or styles of its own; `page.css` colours its classes.

Tracks are as wide as their place: positions are per cent of the width. Panels and graphs have a fixed shape.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

COLOURS = 7  # classes c0 to c6
MARKS = (
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0-5 0Z",  # circle
    "M-4.5-4.5H4.5V4.5H-4.5Z",  # square
    "M0-6L5.5 4.5H-5.5Z",  # triangle
    "M0-6L6 0L0 6L-6 0Z",  # diamond
    "M0 6L5.5-4.5H-5.5Z",  # triangle, downward
    "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",  # plus
    "M-6-2H6V2H-6Z",  # bar
)


def colour(index: int) -> str:
    """Name the class of a colour."""
    return f"c{index % COLOURS}"


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Choose round numbers between two, at most about `most`."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


class Axis:
    """A horizontal axis whose length is its place's: values become per cent."""

    def __init__(
        self,
        values: Sequence[float | None],
        include: Sequence[float] = (),
        least: float = -math.inf,
        most: float = math.inf,
    ):
        """Span the values that are known; `include` are shown, too, and nothing below `least` or beyond `most`."""
        known = [value for value in (*values, *include) if value is not None and math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        room = (high - low or 1.0) * 0.05
        self.low = max(least, low if low in include and low == 0 else low - room)
        self.high = min(most, high + room)

    def at(self, value: float) -> float:
        """Give the place of a value in per cent, within the track."""
        share = (value - self.low) / (self.high - self.low)
        return round(2 + 96 * min(1.0, max(0.0, share)), 2)

    def scale(self) -> Markup:
        """Draw the numbers below tracks."""
        ticks = nice_ticks(self.low, self.high)
        texts = [f'<text x="{self.at(tick)}%" y="13">{tick:,g}</text>' for tick in ticks]
        return Markup(f'<svg class="scale" aria-hidden="true" focusable="false">{"".join(texts)}</svg>')


def mark(x: float, index: int, tip: str = "", kind: str = "") -> str:
    """Draw a mark at `x` per cent, in the middle of a track, with the text that pointing at it shows."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    shape = MARKS[index % len(MARKS)]
    return f'<svg x="{x}%" y="50%" class="m"><path class="f {colour(index)} {kind}" d="{shape}">{title}</path></svg>'


def track(
    axis: Axis,
    points: Sequence[Mapping[str, Any]],
    zero: bool = False,
    margin: float | None = None,
) -> Markup:
    """Draw a row of a chart: intervals and marks on an axis.

    Args:
        axis: the axis of all rows.
        points: marks with `value`, and by choice `low`, `high`, `index` (colour and shape), `tip`, `kind` (a class),
            `small` (values of single runs).
        zero: with a line at 0.
        margin: with a band from -margin to +margin.
    """
    parts = []
    if margin is not None:
        low, high = axis.at(-margin), axis.at(margin)
        parts.append(f'<rect class="band" x="{low}%" y="0" width="{round(high - low, 2)}%" height="100%"/>')
    parts += [
        f'<line class="grid" x1="{axis.at(tick)}%" x2="{axis.at(tick)}%" y1="0" y2="100%"/>'
        for tick in nice_ticks(axis.low, axis.high)
    ]
    if zero:
        parts.append(f'<line class="zero" x1="{axis.at(0)}%" x2="{axis.at(0)}%" y1="0" y2="100%"/>')
    for point in points:
        index, kind = point.get("index", 0), point.get("kind", "")
        if point.get("low") is not None:
            ends = f'x1="{axis.at(point["low"])}%" x2="{axis.at(point["high"])}%"'
            parts.append(f'<line class="l {colour(index)} {kind}" {ends} y1="50%" y2="50%"/>')
        for value in point.get("small", ()):
            parts.append(f'<circle class="run" cx="{axis.at(value)}%" cy="50%" r="3"/>')
        if point.get("value") is not None:
            parts.append(mark(axis.at(point["value"]), index, point.get("tip", ""), kind))
    return Markup(f'<svg class="track" aria-hidden="true" focusable="false">{"".join(parts)}</svg>')


def bar(shares: Sequence[tuple[str, float]]) -> Markup:
    """Draw shares of a whole, (name, per cent), side by side."""
    parts, start = [], 0.0
    for index, (name, share) in enumerate(shares):
        if share > 0:
            tip = f"<title>{escape(name)}: {share:.1f} %</title>"
            place = f'x="{start:.2f}%" width="{share:.2f}%"'
            parts.append(f'<rect class="f {colour(index)}" {place} y="3" height="18">{tip}</rect>')
        start += share
    return Markup(f'<svg class="track bar" aria-hidden="true" focusable="false">{"".join(parts)}</svg>')


WIDE, HIGH = 360, 230  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 32


def panel(
    series: Sequence[Mapping[str, Any]],
    limits: tuple[float, float],
    text: Callable[[float], str],
    over_runs: str = "mean",
    whole: bool = False,
    wide: int = WIDE,
) -> Markup:
    """Draw one metric by epoch: the mean of all runs in the band of their range, or their maximum alone.

    Args:
        series: entries of `name`, `index` (colour and shape), and `points`: (epoch, value, least, most, runs).
        limits: lower and upper end of the axis.
        text: writes a value.
        over_runs: what the values are, `mean` or `max`.
        whole: values are whole numbers.
        wide: width of the picture; of a narrower one, letters are larger beside it.
    """
    epochs = sorted({point[0] for one in series for point in one["points"]})
    first, last = (epochs[0], epochs[-1]) if epochs else (0, 1)
    low, high = limits

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(LEFT + 8 + share * (wide - LEFT - RIGHT - 16), 1)

    def y(value: float) -> float:
        return round(HIGH - BOTTOM - (value - low) / ((high - low) or 1) * (HIGH - TOP - BOTTOM), 1)

    parts = []
    for tick in nice_ticks(low, high, 4):
        if whole and tick % 1:
            continue
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{wide - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y(tick) + 4}">{escape(text(tick))}</text>')
    for epoch in epochs[:: max(1, math.ceil(len(epochs) / 7))]:
        parts.append(f'<text class="mid" x="{x(epoch)}" y="{HIGH - BOTTOM + 18}">{epoch:g}</text>')
    parts.append(f'<text class="mid" x="{(wide + LEFT) / 2}" y="{HIGH - 2}">epoch</text>')
    for one in series:
        kind, points = colour(one["index"]), one["points"]
        if over_runs == "mean" and len(points) > 1 and any(point[4] > 1 for point in points):
            upper = [f"{x(point[0])} {y(point[3])}" for point in points]
            lower = [f"{x(point[0])} {y(point[2])}" for point in reversed(points)]
            parts.append(f'<path class="range {kind}" d="M{"L".join(upper + lower)}Z"/>')
        line = "L".join(f"{x(point[0])} {y(point[1])}" for point in points)
        parts.append(f'<path class="l {kind}" d="M{line}"/>')
    for one in series:
        shape = MARKS[one["index"] % len(MARKS)]
        for epoch, value, least, most, runs in one["points"]:
            tip = f"{one['name']}, epoch {epoch:g}: {text(value)}"
            tip += f" ({over_runs} of {runs} runs, {text(least)} to {text(most)})" if runs > 1 else ""
            place = f"translate({x(epoch)} {y(value)}) scale(.8)"
            title = f"<title>{escape(tip)}</title>"
            parts.append(f'<path class="f {colour(one["index"])}" transform="{place}" d="{shape}">{title}</path>')
    return Markup(f'<svg class="panel" viewBox="0 0 {wide} {HIGH}" aria-hidden="true">{"".join(parts)}</svg>')


def key(index: int) -> Markup:
    """Draw the mark of a legend's entry."""
    shape = MARKS[index % len(MARKS)]
    path = f'<path class="f {colour(index)}" d="{shape}"/>'
    return Markup(f'<svg class="key" viewBox="-8 -8 16 16" width="16" height="16" aria-hidden="true">{path}</svg>')


NODE_WIDE, NODE_HIGH, GAP_X, GAP_Y = 218, 84, 54, 18


def graph(nodes: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw what came from what, from left to right.

    Args:
        nodes: parents before children; entries of `name`, `parent` (a name or None) and `lines` of text.
    """
    depth: dict[str, int] = {}
    row: dict[str, int] = {}
    taken: dict[int, int] = {}
    for node in nodes:
        parent = node["parent"]
        depth[node["name"]] = level = depth[parent] + 1 if parent in depth else 0
        row[node["name"]] = max(taken.get(level, 0), row.get(parent, 0))
        taken[level] = row[node["name"]] + 1
    wide = (max(depth.values()) + 1) * (NODE_WIDE + GAP_X) - GAP_X
    high = (max(row.values()) + 1) * (NODE_HIGH + GAP_Y) - GAP_Y

    def corner(name: str) -> tuple[int, int]:
        return depth[name] * (NODE_WIDE + GAP_X), row[name] * (NODE_HIGH + GAP_Y)

    parts = []
    for node in nodes:
        x, y = corner(node["name"])
        if node["parent"] in depth:
            from_x, from_y = corner(node["parent"])
            start, end = (from_x + NODE_WIDE, from_y + NODE_HIGH / 2), (x, y + NODE_HIGH / 2)
            middle = (start[0] + end[0]) / 2
            bend = f"C{middle} {start[1]} {middle} {end[1]} {end[0]} {end[1]}"
            parts.append(f'<path class="edge" d="M{start[0]} {start[1]}{bend}"/>')
    for node in nodes:
        x, y = corner(node["name"])
        size = f'width="{NODE_WIDE - 2}" height="{NODE_HIGH - 2}"'
        parts.append(f'<rect class="node" x="{x + 1}" y="{y + 1}" {size} rx="6"/>')
        for number, line in enumerate((node["name"], *node["lines"])):
            short = line if len(line) <= 32 else line[:31] + "…"
            weight = ' class="name"' if not number else ""
            parts.append(f'<text{weight} x="{x + 10}" y="{y + 20 + 18 * number}">{escape(short)}</text>')
    return Markup(
        f'<svg class="graph" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )
