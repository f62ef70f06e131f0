"""The page's pictures of data: what was kept and rejected, how folds are balanced, what parts have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from triptych.report.svg import bar, key


def kept(counts: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """Draw for images and questions of every data set the shares of kept and rejected."""
    rows = []
    for name, found in counts.items():
        for kind in ("image", "question"):
            accepted, rejected = sum(found[f"{kind}s"].values()), found["rejects"].get(kind, 0)
            if not accepted:
                continue
            share = 100 * accepted / (accepted + rejected)
            rows.append(
                {
                    "name": f"{name}: {kind}s",
                    "track": bar([("kept", share), ("rejected", 100 - share)]),
                    "text": f"{accepted:,} kept, {rejected:,} rejected",
                }
            )
    return rows


def balance(parts: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Draw the shares of modalities and of types of answers in all held-out parts, and in each.

    Returns:
        A chart for each aspect: `what`, `legend`, and `rows` of name, track and text.
    """
    charts = []
    for aspect in ("modality", "answer_type"):
        values = sorted({label for part in parts for label in part["labels"] if label.startswith(f"{aspect} ")})
        names = [value.removeprefix(f"{aspect} ") for value in values]
        rows = []
        for part in parts:
            shares = [(name, part["labels"].get(value, 0.0)) for name, value in zip(names, values, strict=True)]
            most = sorted(shares, key=lambda one: -one[1])[:3]
            text = ", ".join(f"{name} {share:.0f} %" for name, share in most if share >= 0.5)
            rows.append({"name": f"{part['part']} ({part['questions']})", "track": bar(shares), "text": text})
        legend = [(key(index), name) for index, name in enumerate(names)]
        if rows and names:
            charts.append({"what": f"Held-out questions by {aspect.replace('_', ' ')}", "legend": legend, "rows": rows})
    return charts


def overlaps(rows: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Draw which share of an evaluated part's images is in the training part, or looks like one there."""
    found = []
    for row in rows:
        images = max(1, row["images"])
        identical, alike = 100 * row["identical_images"] / images, 100 * row["similar_images"] / images
        shares = [("new", max(0.0, 100 - identical - alike)), ("look alike", alike), ("identical", identical)]
        found.append({**row, "track": bar(shares)})
    return found


OVERLAP_LEGEND: list[tuple[Markup, str]] = [(key(0), "new"), (key(1), "look alike"), (key(2), "identical")]
