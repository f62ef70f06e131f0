"""What is not used: causes without their place, counts that a person reads, and where failed data sets leave them.

A reason is `place: cause: details`, `place cause (details)`, or parts of it. Rows of one cause differ in place and
details alone.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from triptych.io.manifest import read_json
from triptych.io.parquet import TableWriter
from triptych.utils.terminal import announce

LOUD = 0.05  # a larger share of rejects is warned of on the screen
SHOWN = 3  # causes named in a line
# What a set that failed rejected: no output of a rule, because Snakemake deletes those of a failed job.
FAILED = "failed-rejects.parquet"
SUMMARY = "rejected.json"  # causes and their numbers, by kind

Causes = Mapping[str, Mapping[str, int]]  # numbers of rejects by kind (image, question, boxes) and cause

_PLACE = re.compile(r"^\S+\[\d+\]:? |^\S+/detection\.json: ")
_DETAILS = re.compile(r": | \(| as (?=\S+$)|; ")


def cause(reason: str) -> str:
    """Give the cause that a reason names, without the row that it is about and without details."""
    rest = _PLACE.sub("", reason)
    if " leads out of " in rest:
        return "its name leads out of the folder"
    rest = re.sub(r"^\d+ x \d+ pixels", "width x height in pixels", rest)
    return _DETAILS.split(rest, maxsplit=1)[0].strip()


def top_causes(causes: Mapping[str, int]) -> str:
    """List the commonest causes with their numbers: `lacks modality: 12; is empty: 3; 2 other causes: 4`."""
    ordered = sorted(causes.items(), key=lambda found: (-found[1], found[0]))
    shown, rest = ordered[:SHOWN], ordered[SHOWN:]
    if len(rest) == 1:
        shown, rest = ordered, []
    listed = [f"{name}: {number}" for name, number in shown]
    listed += [f"{len(rest)} other causes: {sum(number for _, number in rest)}"] if rest else []
    return "; ".join(listed)


def counted(counts: Mapping[str, Mapping[str, int]], causes: Causes) -> dict[str, dict]:
    """Count what was seen, accepted and rejected of a prepared data set.

    Args:
        counts: as in its manifest: images and questions by part, rejects by kind.
        causes: rejects by kind and cause; may be empty where they are not known.

    Returns:
        By `images`, and `questions` where it has others than one caption an image: `seen`, `accepted`, `rejected`,
        `share` of rejected, and `causes` as text.
    """
    found = {}
    for kind in ("image", "question"):
        accepted, rejected = sum(counts[f"{kind}s"].values()), counts["rejects"].get(kind, 0)
        if kind == "question" and not rejected and accepted == sum(counts["images"].values()):
            continue  # captions
        found[f"{kind}s"] = {
            "seen": accepted + rejected,
            "accepted": accepted,
            "rejected": rejected,
            "share": rejected / max(1, accepted + rejected),
            "causes": top_causes(causes.get(kind, {})),
        }
    return found


def summary(name: str, found: Mapping[str, Mapping]) -> tuple[str, bool]:
    """Write the counts of a data set as one line, and tell whether so much was rejected that it is a warning."""
    parts = [
        f"{row['seen']} {kind} seen, {row['accepted']} accepted, {row['rejected']} rejected"
        + (f" ({row['causes']})" if row["causes"] else "")
        for kind, row in found.items()
    ]
    loud = [f"{100 * row['share']:.1f} % of the {kind}" for kind, row in found.items() if row["share"] > LOUD]
    warning = f"warning: {' and '.join(loud)} of {name} were rejected. " if loud else f"{name}: "
    return warning + "; ".join(parts), bool(loud)


def say_counts(name: str, found: Mapping[str, Mapping]) -> None:
    """Show the counts of a data set on the screen."""
    announce(*summary(name, found))


def keep_failed(folder: Path, rejects: TableWriter, causes: Causes) -> str:
    """Keep what a data set that failed rejected, and say why and where; `forget_failed` removes it after a success.

    Args:
        folder: of the data set.
        rejects: the table as far as it is written; it ends here, and its file is taken.
        causes: of its rows.
    """
    if not any(causes.values()):
        return "no rows"
    rejects.close()
    rejects.path.replace(folder / FAILED)
    every: Counter[str] = Counter()
    for numbers in causes.values():
        every.update(numbers)
    return f"{top_causes(every)}; each with its reason in {folder / FAILED}"


def forget_failed(folder: Path) -> None:
    """Remove what an earlier failure left."""
    (folder / FAILED).unlink(missing_ok=True)


def causes_of(folder: Path) -> dict:
    """Read the causes that a prepared data set was left with; none of a set that an earlier version prepared."""
    path = folder / SUMMARY
    return read_json(path) if path.exists() else {}
