"""Bars and durations in plain ASCII, for terminals and logs."""


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
