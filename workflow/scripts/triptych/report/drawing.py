"""Drawing of the report's charts for papers, in millimetres, by Matplotlib.

Series differ in colour (Okabe and Ito's, told apart with any kind of colour vision), in mark and in dashes, so that
they survive grey print. Texts are drawn as they are: no name is taken for a formula.
"""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from triptych.io.atomic import atomic_path
from triptych.report.svg import nice_ticks
from triptych.tables.scaling import axis_places

MM = 25.4  # in an inch
POINT = MM / 72
SIZE, SMALL = 8.0, 7.0  # points: names and titles; numbers and keys
LINE = 3.3  # mm from one line of text to the next
LINES = 3  # of a name, at most; what is longer is cut
FONT = "DejaVu Sans"  # comes with Matplotlib: the same on every machine
STYLE = {
    "font.family": FONT,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "pdf.fonttype": 42,  # TrueType, embedded
    "svg.fonttype": "path",
    "svg.hashsalt": "triptych",
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
}
# Neither dates nor versions: equal numbers give equal files.
FORMATS: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
DOTS = 300  # an inch, of the PNG
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#56B4E9", "#E69F00")
# One more than colours, and than dashes, so that no two of many series have all three in common.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (2, 1)))
GREY, BAND = "#666666", "#DDDDDD"


def look(index: int) -> dict[str, Any]:
    """Give colour and mark of a series."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def text_width(text: str, size: float = SIZE, weight: str = "normal") -> float:
    """Measure a text, in mm."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] * POINT


def wrapped(text: str, width: float, size: float = SIZE, weight: str = "normal") -> list[str]:
    """Break a text into at most LINES lines of at most `width` mm, between words or after - _ / if possible."""

    def fitting(part: str, end: str = "") -> int:
        longest = range(1, min(len(part), 300) + 1)
        return max(1, bisect(longest, width, key=lambda fits: text_width(part[:fits] + end, size, weight)))

    lines, rest = [], " ".join(text.split()) or " "
    while rest:
        fits = fitting(rest)
        if fits < len(rest):
            breaks = [place for place in range(fits, 0, -1) if rest[place] == " " or rest[place - 1] in "-_/ "]
            fits = breaks[0] if breaks and breaks[0] > fits // 3 else fits
        if len(lines) == LINES - 1 and fits < len(rest):
            return [*lines, rest[: fitting(rest, "…")] + "…"]
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    return lines


class Sheet:
    """A figure, laid out in mm from its upper left corner; `page` spans all of it, for names and keys."""

    def __init__(self, wide: float, high: float):
        """Make an empty one."""
        self.wide, self.high = wide, high
        self.figure = Figure(figsize=(wide / MM, high / MM))
        self.page = self.figure.add_axes((0, 0, 1, 1))
        self.page.set(xlim=(0, wide), ylim=(high, 0))
        self.page.axis("off")

    def axes(self, left: float, top: float, wide: float, high: float) -> Axes:
        """Add axes at a place."""
        place = (left / self.wide, 1 - (top + high) / self.high, wide / self.wide, high / self.high)
        found = self.figure.add_axes(place)
        found.spines[["top", "right"]].set_visible(False)
        return found

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write a text, its middle at the height `y`."""
        self.page.text(x, y, text, **{"fontsize": SIZE, "va": "center_baseline", **style})


KEY = 7.0  # mm of a mark with its line


def _flow(names: Sequence[str], wide: float) -> list[list[int]]:
    """Put the keys of a legend into lines."""
    lines: list[list[int]] = [[]]
    taken = 0.0
    for index, name in enumerate(names):
        need = KEY + text_width(_short(name, wide), SMALL) + 3
        if lines[-1] and taken + need > wide:
            lines.append([])
            taken = 0.0
        lines[-1].append(index)
        taken += need
    return lines


def _short(name: str, wide: float) -> str:
    first, *more = wrapped(name, wide - KEY - 4, SMALL)
    return first + ("…" if more and not first.endswith("…") else "")


def _legend(sheet: Sheet, keys: Mapping[int, str], top: float, lined: bool) -> None:
    """Draw keys: index of the look -> name."""
    looks, names = list(keys), list(keys.values())
    for number, line in enumerate(_flow(names, sheet.wide)):
        x, y = 0.5, top + LINE * (number + 0.5)
        for place in line:
            index, name = looks[place], _short(names[place], sheet.wide)
            dashes = {"linestyle": DASHES[index % len(DASHES)] if lined else "none"}
            xs = [x, x + KEY / 2 - 0.5, x + KEY - 1] if lined else [x + KEY / 2]
            sheet.page.plot(xs, [y] * len(xs), **look(index), **dashes, markevery=[len(xs) // 2], ms=3.6, lw=1)
            sheet.text(x + KEY, y, name, fontsize=SMALL)
            x += KEY + text_width(name, SMALL) + 3


def _legend_height(keys: Mapping[int, str], wide: float) -> float:
    return LINE * len(_flow(list(keys.values()), wide)) + 1.5 if len(keys) > 1 else 0.0


AXIS = 8.0  # mm below an axis: its numbers and its label
TITLE = 4.5
GAP = 2.0  # mm between a name and its track, and between a track and its numbers


class _Block:
    """A chart of rows within a figure: its names in lines, and the heights that they need."""

    def __init__(self, chart: Mapping[str, Any], wide: float, numbers: bool, titled: bool):
        rows = chart["rows"]
        self.chart, self.wide, self.titled = chart, wide, titled
        self.numbers = numbers and any(row["text"] for row in rows)
        self.right = max(text_width(row["text"], SMALL) for row in rows) + GAP if self.numbers else 2.5
        self.weights = ["bold" if row.get("strong") else "normal" for row in rows]
        names = [(" ".join(row["name"].split()), weight) for row, weight in zip(rows, self.weights, strict=True)]
        longest = max(text_width(name, weight=weight) for name, weight in names)
        self.left = min(longest + 0.5, 0.42 * wide) + GAP
        self.names = [wrapped(name, self.left - GAP, weight=weight) for name, weight in names]
        marks = max(len(row["points"]) for row in rows)
        self.rows = [max(4.4, LINE * len(name) + 1.2, 1.6 * marks + 2.4 if marks > 1 else 0) for name in self.names]
        self.high = (TITLE if titled else 0) + sum(self.rows) + AXIS

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        chart, axis = self.chart, self.chart["axis"]
        if self.titled:
            sheet.text(x + self.left, y + TITLE / 2, _short(chart["title"], self.wide - self.left), weight="bold")
            y += TITLE
        track = sheet.axes(x + self.left, y, self.wide - self.left - self.right, sum(self.rows))
        room = 0.02 * (axis.high - axis.low)
        track.set(xlim=(axis.low - room, axis.high + room), ylim=(sum(self.rows), 0))
        track.set_yticks([])
        track.spines["left"].set_visible(False)
        # As many numbers as stand beside each other.
        wide = max(text_width(f"{tick:,g}", SMALL) for tick in (axis.low, axis.high) for tick in (round(tick),)) + 3
        most = max(2, min(6, int((self.wide - self.left - self.right) / wide)))
        ticks = nice_ticks(axis.low, axis.high, most)
        track.set_xticks(ticks, [f"{tick:,g}".replace("-", "−") for tick in ticks])
        track.set_xlabel(chart["label"], fontsize=SIZE, labelpad=1.5)
        track.grid(axis="x", color="#E6E6E6", lw=0.5)
        track.set_axisbelow(True)
        if chart["margin"] is not None:
            track.axvspan(-chart["margin"], chart["margin"], color=BAND, lw=0, zorder=0.6)
        if chart["zero"]:
            track.axvline(0, color="black", lw=0.7, zorder=0.8)
        top = 0.0
        for row, lines, weight, high in zip(chart["rows"], self.names, self.weights, self.rows, strict=True):
            middle = top + high / 2
            for number, line in enumerate(lines):
                at = y + middle + LINE * (number - (len(lines) - 1) / 2)
                sheet.text(x + self.left - GAP, at, line, ha="right", weight=weight)
            if self.numbers:
                text = row["text"].replace("-", "−")
                sheet.text(x + self.wide, y + middle, text, ha="right", fontsize=SMALL)
            _marks(track, row["points"], middle, high)
            top += high
            if len(row["points"]) > 1:
                track.axhline(top, color="#E6E6E6", lw=0.5, zorder=0.5)


def _marks(track: Axes, points: Sequence[Mapping[str, Any]], middle: float, high: float) -> None:
    """Draw the intervals and marks of a row, several below each other."""
    step = (high - 2.4) / len(points)
    for number, point in enumerate(points):
        y = middle + step * (number - (len(points) - 1) / 2)
        kind = look(point.get("index", 0))
        if point.get("kind") == "quiet":
            kind = {"color": GREY, "marker": "o", "markerfacecolor": "white"}
        if point.get("low") is not None:
            ends = [point["low"], point["high"]]
            track.plot(ends, [y, y], color=kind["color"], lw=1.2, marker="|", ms=3.5, mew=1, zorder=2)
        small = list(point.get("small", ()))
        track.plot(small, [y] * len(small), "o", color=GREY, mfc="white", ms=2.4, mew=0.6, ls="none", zorder=2.5)
        if point.get("value") is not None:
            track.plot([point["value"]], [y], **kind, ms=4, mew=0.8, ls="none", zorder=3, clip_on=False)


def draw_rows(charts: Sequence[Mapping[str, Any]], wide: float, columns: int = 1) -> Figure:
    """Draw charts of rows, `columns` beside each other, under one legend; numbers in words where there is room."""
    titled = len(charts) > 1
    columns = min(columns, len(charts))
    each = (wide - 5 * (columns - 1)) / columns
    blocks = [_Block(chart, each, each > 120, titled) for chart in charts]
    lines = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    heights = [max(block.high for block in line) for line in lines]
    keys = dict(enumerate(charts[0]["names"]))
    top = _legend_height(keys, wide) or 0.5
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(wide, top + sum(heights) + 2 * (len(lines) - 1) + 0.5)
        if len(keys) > 1:
            _legend(sheet, keys, 0.3, lined=False)
        for line, high in zip(lines, heights, strict=True):
            for place, block in enumerate(line):
                block.draw(sheet, place * (each + 5), top)
            top += high + 2
        return sheet.figure


PANEL = 30.0  # mm high
LEFT = 13.0  # mm left of panels: label and numbers


def _label(metric: Mapping[str, Any]) -> list[str]:
    what = metric["what"].removesuffix(" per stage").removesuffix(" per epoch")
    texts = [what] if metric["unit"] in what else [what, metric["unit"]]
    return [line for text in texts for line in wrapped(text, PANEL + TITLE, SMALL)]


def _ticks(metric: Mapping[str, Any]) -> list[float]:
    return [tick for tick in nice_ticks(*metric["limits"], 5) if not metric["whole"] or tick % 1 == 0]


def _panel(axes: Axes, series: Sequence[Mapping[str, Any]], over_runs: str) -> list[int]:
    """Draw the series of a panel; returns their epochs."""
    for one in series:
        kind, points = look(one["index"]), one["points"]
        epochs = [point[0] for point in points]
        if over_runs == "mean" and any(point[4] > 1 for point in points):
            least, most = ([point[place] for point in points] for place in (2, 3))
            axes.fill_between(epochs, least, most, color=kind["color"], alpha=0.18, lw=0)
        dashes = DASHES[one["index"] % len(DASHES)]
        axes.plot(epochs, [point[1] for point in points], **kind, ls=dashes, lw=1.1, ms=3.4, mew=0, clip_on=False)
    return sorted({point[0] for one in series for point in one["points"]})


def draw_curves(metrics: Sequence[Mapping[str, Any]], keys: Mapping[int, str], wide: float, columns: int) -> Figure:
    """Draw metrics below each other, a panel for each stage, `columns` beside each other; stages share an axis.

    Args:
        metrics: entries of `curves.charts`.
        keys: index of the look -> schedule, for the legend.
        wide: mm.
        columns: panels beside each other.
    """
    columns = min(columns, max(len(metric["series"]) for metric in metrics))
    lines = [
        (metric, stages[start : start + columns])
        for metric in metrics
        for stages in [list(metric["series"])]
        for start in range(0, len(stages), columns)
    ]
    numbers = max(text_width(metric["write"](tick), SMALL) for metric in metrics for tick in _ticks(metric))
    left = LINE * max(len(_label(metric)) for metric in metrics) + numbers + 2.5
    each = (wide - left - 1 - 2.5 * (columns - 1)) / columns
    top, high = _legend_height(keys, wide) + 0.5, TITLE + PANEL + AXIS
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(wide, top + high * len(lines) + 0.5)
        if len(keys) > 1:
            _legend(sheet, keys, 0.3, lined=True)
        for metric, stages in lines:
            ticks = _ticks(metric)
            for place, stage in enumerate(stages):
                axes = sheet.axes(left + place * (each + 2.5), top + TITLE, each, PANEL)
                epochs = _panel(axes, metric["series"][stage], metric["over_runs"])
                room = 0.12 * ((epochs[-1] - epochs[0]) or 1)
                axes.set(xlim=(epochs[0] - room, epochs[-1] + room), ylim=metric["limits"])
                axes.set_xticks(epochs[:: max(1, math.ceil(len(epochs) * 5 / each))])
                axes.set_yticks(ticks, [metric["write"](tick) if not place else "" for tick in ticks])
                axes.grid(axis="y", color="#E6E6E6", lw=0.5)
                axes.set_axisbelow(True)
                axes.set_xlabel("epoch", fontsize=SIZE, labelpad=1)
                title = _short(f"stage {stage}", each + KEY)
                sheet.text(left + place * (each + 2.5) + each / 2, top + TITLE / 2, title, ha="center")
            for number, line in enumerate(_label(metric)):
                middle = top + TITLE + PANEL / 2
                sheet.text(LINE * (number + 0.5), middle, line, rotation=90, fontsize=SMALL, ha="center", va="center")
            top += high
        return sheet.figure


def _apart(at: Sequence[float], labels: Sequence[str], wide: float) -> list[str]:
    """Leave out the labels of ascending places, over `wide` mm, that would meet one before them."""
    per, end, found = wide / ((at[-1] - at[0]) or 1), -math.inf, []
    for place, label in zip(at, labels, strict=True):
        middle, half = place * per, text_width(label, SMALL) / 2
        fits = middle - half > end + 1
        found.append(label if fits else "")
        end = middle + half if fits else end
    return found


def draw_scaling(sweeps: Mapping[str, Sequence[Mapping[str, Any]]], wide: float, columns: int) -> Figure:
    """Draw a panel for each sweep: means with intervals, joined by a line; a 0 beside a logarithmic axis is apart."""
    columns = min(columns, len(sweeps))
    each = (wide - (LEFT + 2) * columns) / columns
    high = TITLE + 40 + AXIS + 1
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(wide, high * math.ceil(len(sweeps) / columns) + 0.5)
        for number, (name, rows) in enumerate(sweeps.items()):
            left, top = (number % columns) * (each + LEFT + 2) + LEFT, (number // columns) * high
            axes = sheet.axes(left, top + TITLE, each, 40)
            values, means = ([row[part] for row in rows] for part in ("value", "mean"))
            at = axis_places(values)
            joined = [place for place, value in enumerate(values) if at == values or value > 0]
            axes.plot([at[place] for place in joined], [means[place] for place in joined], color=COLOURS[0], lw=1)
            for place, row in zip(at, rows, strict=True):
                if row["low"] is not None:
                    ends = [row["low"], row["high"]]
                    axes.plot([place] * 2, ends, color=COLOURS[0], lw=1.2, marker="_", ms=3.5, mew=1)
            axes.plot(at, means, **look(0), ls="none", ms=4)
            axes.margins(x=0.08)
            axes.set_xticks(at, _apart(at, [f"{value:.10g}" for value in values], 0.86 * each))
            axes.set_ylabel("exact match, %", fontsize=SIZE, labelpad=2)
            axes.grid(axis="y", color="#E6E6E6", lw=0.5)
            label = rows[0]["setting"] + ("" if at == values else " (logarithmic)")
            axes.set_xlabel(_short(label, each + LEFT), fontsize=SIZE, labelpad=1.5)
            sheet.text(left, top + TITLE / 2, _short(name, each), weight="bold")
        return sheet.figure


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as `stem` with .svg, .pdf and .png: the same bytes each time."""
    for kind, metadata in FORMATS.items():
        with matplotlib.rc_context(STYLE), atomic_path(stem.with_name(f"{stem.name}.{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=DOTS, metadata=metadata)
