"""Where everything is below the results folder."""

from pathlib import Path

from triptych.config.grid import Checkpoint
from triptych.config.settings import Settings


def checkpoint_folder(results: Path, cell: Checkpoint) -> Path:
    """Where a checkpoint is."""
    return results / "checkpoints" / cell.prefix / cell.split / f"seed{cell.seed}"


def results_folder(settings: Settings) -> Path:
    """The folder of a study's results."""
    return Path(settings.pathvars.get("results", "results"))
