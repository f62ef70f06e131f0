"""What was rejected of each data set: by cause, with some examples, and the image that an example is about."""

from collections.abc import Mapping
from typing import Any

from triptych.config import paths
from triptych.config.study import Study
from triptych.data.image_table import ImageTable
from triptych.data.rejects import cause
from triptych.io.parquet import read_table
from triptych.report.gallery import thumbnails

EXAMPLES = 12  # shown of a cause


def rejected(study: Study, name: str) -> list[dict[str, Any]]:
    """List why rows of a data set are not used, the commonest cause first; nothing without its table of rejects.

    A rejected image is in no table of ours; where its question or its copy is about an image that is kept, that one is
    shown.

    Returns:
        Entries of `kind`, `cause`, `number`, and `examples` of `id`, `reason` and `thumbnail`, "" where there is none.
    """
    path = study.path(paths.REJECTS, dataset=name)
    rows = read_table(path) if path.exists() else []
    if not rows:
        return []
    by_cause: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        by_cause.setdefault((row["kind"], cause(row["reason"])), []).append(row)
    shown = {key: found[:EXAMPLES] for key, found in by_cause.items()}
    folder = path.parent
    kept = set(ImageTable(folder / "images").image_ids)
    asked = _images_of_questions(study, name)
    about = {id(row): _image(row, kept, asked) for found in shown.values() for row in found}
    small = thumbnails(folder, [image for image in about.values() if image])
    return [
        {
            "kind": kind,
            "cause": why,
            "number": len(found),
            "examples": [
                {"id": row["id"], "reason": row["reason"], "thumbnail": small.get(about[id(row)], "")}
                for row in shown[kind, why]
            ],
        }
        for (kind, why), found in sorted(by_cause.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _images_of_questions(study: Study, name: str) -> dict[str, str]:
    """Give the image of every question that the source names; nothing where its table is gone."""
    path = study.path(paths.SOURCE_FOLDER, dataset=name) / "questions.parquet"
    if not path.exists():
        return {}
    return {row["question_id"]: row["image_id"] for row in read_table(path, ["question_id", "image_id"])}


def _image(row: Mapping[str, str], kept: set[str], asked: Mapping[str, str]) -> str:
    """Name the kept image that a rejected row is about: its own, its question's, or one that its reason names."""
    named = [row["id"], asked.get(row["id"], ""), *reversed(row["reason"].split())]
    return next((image for image in named if image in kept), "")
