"""Lines, bars and durations in plain ASCII, for terminals and logs."""

import os
import sys
from typing import TextIO

SCREEN = "TRIPTYCH_SCREEN"  # number of the descriptor of the screen, for steps whose output is a log
YELLOW, RED, PLAIN = "\x1b[1;33m", "\x1b[1;31m", "\x1b[0m"


def announce(text: str, warning: bool = False) -> None:
    """Print a line to the output, and to the screen where the output is a log; warnings in colour on a terminal."""
    _print(text, warning, sys.stdout)
    number = os.environ.get(SCREEN, "")
    if number.isdecimal():
        try:
            with open(int(number), "w", closefd=False, encoding="utf-8") as screen:
                _print(text, warning, screen)
        except OSError:
            pass  # nobody looks


def _print(text: str, warning: bool, stream: TextIO) -> None:
    print(coloured(text, YELLOW if warning else "", stream), file=stream, flush=True)


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Give a text in a colour where it goes to a terminal (default: the output's) that shows colours; "" for none."""
    shown = (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{colour}{text}{PLAIN}" if colour and shown else text


def bar(fraction: float, width: int = 24) -> str:
    """Draw a bar that is full at 1: `[######------]`."""
    full = int(min(max(fraction, 0.0), 1.0) * width)
    return f"[{'#' * full}{'-' * (width - full)}]"


def duration(seconds: float) -> str:
    """Format a time in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    total = round(seconds)
    units = (("d", total // 86400), ("h", total // 3600 % 24), ("min", total // 60 % 60), ("s", total % 60))
    first = next((index for index, (_, value) in enumerate(units) if value), len(units) - 1)
    return " ".join(f"{value} {unit}" for unit, value in units[first : first + 2] if value or first == len(units) - 1)
