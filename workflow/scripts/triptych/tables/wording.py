"""How comparisons are written, in every table alike."""

LEVEL = 0.95  # of intervals


def p_text(p: float | None) -> str:
    """Write a p value: '0.031', '< 0.001'; nothing where there is none."""
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
