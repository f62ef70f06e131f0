"""Tables as benchmarks print them."""

import statistics
from collections.abc import Sequence
from typing import Any


def cell(values: Sequence[float], decimals: int) -> str:
    """Median, and the range."""
    middle, least, most = (f"{part(values):.{decimals}f}" for part in (statistics.median, min, max))
    return middle if least == most else f"{middle} ({least} to {most})"


def print_table(*rows: Sequence[Any]) -> None:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    print("", lines[0], "|---" * len(rows[0]) + "|", *lines[1:], sep="\n", flush=True)
