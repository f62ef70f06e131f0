"""What a file of answers was made from, in a record beside it: so that only what is missing or changed is asked."""

from collections.abc import Mapping
from pathlib import Path

from triptych.errors import TriptychError
from triptych.io.atomic import link_or_copy
from triptych.io.manifest import read_json, sha256_file, write_record


def record_path(answers: Path) -> Path:
    """Give the path of the record of a file of answers: seed0-swapped.json of seed0-swapped.parquet."""
    return answers.with_suffix(".json")


def write_answered(answers: Path, job: str, inputs: Mapping[str, str]) -> None:
    """Record what a complete file of answers was made from.

    Args:
        answers: the file.
        job: settings of the prediction, as text.
        inputs: SHA-256 of each input, by its name on the step's command line.
    """
    write_record(record_path(answers), {"job": job, "inputs": dict(inputs), "sha256": sha256_file(answers)})


def is_answered(answers: Path, job: str, inputs: Mapping[str, str]) -> bool:
    """Tell whether a file of answers is complete, undamaged and made from these settings and inputs."""
    if not answers.is_file() or not record_path(answers).is_file():
        return False
    try:
        record = read_json(record_path(answers))
    except TriptychError:  # damaged: asked again
        return False
    return record == {"job": job, "inputs": dict(inputs), "sha256": sha256_file(answers)}


def kept_path(answers: Path) -> Path:
    """Give the second name that a file of answers has while a job answers other views."""
    return answers.with_suffix(".kept")


def keep(answers: Path) -> None:
    """Give a file of answers a second name: of a job that fails, Snakemake may remove all results."""
    kept_path(answers).unlink(missing_ok=True)
    link_or_copy(answers, kept_path(answers))


def restore(answers: Path) -> None:
    """Put a kept file of answers back where it was removed."""
    if kept_path(answers).exists() and not answers.exists():
        link_or_copy(kept_path(answers), answers)
