"""What the trainings of a study have left on disk: metrics of each, finished or under way. Reads small files only."""

import json
from dataclasses import dataclass
from pathlib import Path

from triptych.config.grid import Checkpoint
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, require_files, sha256_json

METRICS = "metrics.jsonl"


# What makes a training this one and no other; known when it begins, and kept when it is resumed.
IDENTITY = (
    *("prefix", "split", "seed", "stages", "connector", "lora", "blind", "precision", "samples"),
    *("parent", "data", "features", "language_model", "prompt", "vision_encoder"),
)


@dataclass(frozen=True)
class Training:
    """One training: what it is, and the metrics of its epochs, epoch 0 being the state at its start."""

    folder: Path
    manifest: dict  # the checkpoint's, or, while it is under way, what is known of it so far
    rows: list[dict]
    finished: bool

    @property
    def cell(self) -> Checkpoint:
        """Its place in the grid."""
        return Checkpoint(*(self.manifest[name] for name in ("prefix", "split", "seed")))

    @property
    def identity(self) -> str:
        """Names the training: the same when it is resumed, another when its settings, data or parent change."""
        return sha256_json({name: self.manifest.get(name) for name in IDENTITY})[:16]


def read_training(folder: Path) -> Training | None:
    """The training of one checkpoint's folder; None where none has measured anything yet.

    Raises:
        TriptychError: a finished training's metrics are missing or damaged.
    """
    if (folder / "manifest.json").exists():
        manifest = read_json(folder / "manifest.json")
        rows = read_metrics(folder / METRICS)
        if METRICS in manifest.get("files", {}):
            require_files(folder, {METRICS: manifest["files"][METRICS]}, "delete the folder and run again")
        return Training(folder, manifest, rows, True)
    # States come and go while we look: one that is gone, or not whole, is passed over.
    for state in sorted(folder.glob("last/state-*"), reverse=True):
        try:
            record = read_json(state / "record.json")
        except TriptychError:
            continue
        if rows := record["progress"]["rows"]:
            return Training(folder, record["about"], rows, False)
    return None


def read_metrics(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`.

    Raises:
        TriptychError: it is missing, or a line of it is no record.
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
            text = f"{path}: line {number} is no record of an epoch"
            raise TriptychError(f"{text}; delete the checkpoint's folder and run again") from None
    return rows
