"""The audit of the data as a page for people, `data/audit.md`."""

from triptych.utils.markdown import plain


def markdown(result: dict) -> str:
    """Write the audit as a page of tables."""
    lines = ["# Data audit", "", "## What was read", ""]
    lines += _table(
        ["data set", "images", "questions", "rejected images", "rejected questions"],
        [
            [
                name,
                sum(counts["images"].values()),
                sum(counts["questions"].values()),
                counts["rejects"].get("image", 0),
                counts["rejects"].get("question", 0),
            ]
            for name, counts in result["data"].items()
        ],
    )
    read_as = [[name, *row] for name, counts in result["data"].items() for row in counts.get("read_as", {}).items()]
    if read_as:
        lines += ["", *_table(["data set", "read as", "images"], read_as)]
    lines += [
        "",
        "An encoder whose processor crops images to a square (CLIP, DINOv2) sees nothing of their border; with",
    ]
    lines += ["`models.vision_encoder.fit: pad` it sees all. Of the area, such a crop loses:", ""]
    lines += _table(
        ["data set", "per cent of all images", "of the image that loses most"],
        [[name, f"{lost['mean']:.1f}", f"{lost['most']:.1f}"] for name, lost in result["cropped_share"].items()],
    )
    lines += ["", "## Leaks into stages that all folds share", ""]
    lines += [f"- {plain(line)}" for line in result["leaks"]] or ["None."]
    for name, lines_of in result.get("transfer", {}).items():
        lines += ["", f"## Training images in {name}, which nothing trains on", ""]
        lines += [f"- {plain(line)}" for line in lines_of["same"] + lines_of["alike"]] or ["None."]
    counts = ["seen", "part", "images", "identical", "look alike", "question strings", "seen before"]
    counts += ["of a subject seen"]
    for heading, key in (("Overlap of parts", "overlaps"), ("Overlap within folds", "fold_overlaps")):
        lines += ["", f"## {heading}", ""]
        lines += [f"Look alike: thumbnails correlate above {result['threshold']}.", ""]
        rows = [["not named" if count is None else count for count in row.values()] for row in result[key]]
        lines += _table(counts, rows)
    labels = sorted({label for row in result["balance"] for label in row["labels"]})
    lines += ["", "## Balance of the held-out parts, per cent of questions", ""]
    lines += _table(
        ["part", "questions", *labels],
        [
            [row["part"], row["questions"], *(f"{row['labels'].get(label, 0):.1f}" for label in labels)]
            for row in result["balance"]
        ],
    )
    lines += ["", "## Untrained baselines, exact match in per cent", ""]
    lines += _table(
        ["part", "baseline", "all", "open", "closed"],
        [
            [
                row["part"],
                row["baseline"],
                *("-" if row[kind] is None else f"{row[kind]:.1f}" for kind in ("all", "open", "closed")),
            ]
            for row in result["baselines"]
        ],
    )
    return "\n".join(lines) + "\n"


def _table(headings: list[str], rows: list[list]) -> list[str]:
    return ["| " + " | ".join(map(plain, row)) + " |" for row in (headings, ["---"] * len(headings), *rows)]
