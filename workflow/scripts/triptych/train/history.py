"""The trainings of a study as they are on disk, finished or under way, with their metrics; reads small files only."""

import json
from dataclasses import dataclass
from pathlib import Path

from triptych.config.grid import Checkpoint
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, require_files, sha256_json

METRICS = "metrics.jsonl"

# Keys of a manifest that identify a training; known at its start, and unchanged when it is resumed.
IDENTITY = (
    *("prefix", "split", "seed", "stages", "connector", "lora", "blind", "precision", "samples"),
    *("parent", "data", "features", "language_model", "prompt", "vision_encoder"),
)


@dataclass(frozen=True)
class Training:
    """One training, and the metrics of its epochs; epoch 0 is the state at its start."""

    folder: Path
    manifest: dict  # of the checkpoint; of a training under way, what is known so far
    rows: list[dict]
    finished: bool

    @property
    def cell(self) -> Checkpoint:
        """The training's cell of the grid."""
        return Checkpoint(*(self.manifest[name] for name in ("prefix", "split", "seed")))

    @property
    def identity(self) -> str:
        """A name that stays when the training is resumed, and changes with its settings, data or parent."""
        return sha256_json({name: self.manifest.get(name) for name in IDENTITY})[:16]


def read_training(folder: Path) -> Training | None:
    """Read the training of one checkpoint's folder; None where nothing has been measured yet.

    Raises:
        TriptychError: a finished training's metrics are missing or damaged.
    """
    if (folder / "manifest.json").exists():
        manifest = read_json(folder / "manifest.json")
        rows = read_metrics(folder / METRICS)
        if METRICS in manifest.get("files", {}):
            require_files(folder, {METRICS: manifest["files"][METRICS]}, "delete the folder and run again")
        return Training(folder, manifest, rows, True)
    # The training replaces its states meanwhile: one that is gone, or incomplete, is skipped.
    for state in sorted(folder.glob("last/state-*"), reverse=True):
        try:
            record = read_json(state / "record.json")
        except TriptychError:
            continue
        if rows := record["progress"]["rows"]:
            return Training(folder, record["about"], rows, False)
    return None


def read_metrics(path: Path) -> list[dict]:
    """Read the rows of a `metrics.jsonl`.

    Raises:
        TriptychError: the file is missing, or one of its lines is not the metrics of an epoch.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise TriptychError(f"{path}: no such file; delete the checkpoint's folder and run again") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            rows[-1]["epoch"]
        except (ValueError, KeyError, TypeError):
            text = f"{path}: line {number} is not the metrics of an epoch"
            raise TriptychError(f"{text}; delete the checkpoint's folder and run again") from None
    return rows
