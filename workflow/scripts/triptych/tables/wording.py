"""How comparisons are written, in every table alike."""

LEVEL = 0.95  # of intervals


def p_text(p: float | None) -> str:
    """Write a p value: '0.031', '< 0.001'; nothing where there is none."""
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def interval_text(low: float | None, high: float | None) -> str:
    """Write the interval of a difference: '-1.2 to +3.4'; nothing where there is none."""
    return "" if low is None else f"{low:+.1f} to {high:+.1f}"


def points_text(effect: float | None, low: float | None, high: float | None) -> str:
    """Write a difference with its interval: '+1.1 (-1.2 to +3.4)'; without the interval, or nothing, where none is."""
    if effect is None:
        return ""
    interval = interval_text(low, high)
    return f"{effect:+.1f} ({interval})" if interval else f"{effect:+.1f}"


def narrowed(low: float | None, high: float | None) -> bool:
    """Tell whether an interval leaves out any possible difference of two accuracies in points."""
    return low is not None and high is not None and (low > -100 or high < 100)
