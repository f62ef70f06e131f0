"""Find the base models of a checkpoint among those of a study."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from triptych.features.shards import encoder_hashes
from triptych.io.manifest import read_json
from triptych.model import checkpoint
from triptych.model.language_model import load_prompt


class BaseModels(NamedTuple):
    """Folders of the two base models of a checkpoint."""

    language_model: Path
    vision_encoder: Path


def base_models(models: Path, manifest: dict) -> BaseModels:
    """Return the models that a checkpoint's manifest names, among those of a study and its ablations."""

    def one(role: str, fits: Callable[[Path], bool]) -> Path:
        folders = [path.parent for path in sorted(models.glob(f"{role}*/{checkpoint.MANIFEST}"))]
        return next(filter(fits, folders), models / role)

    def is_language_model(folder: Path) -> bool:
        same_files = read_json(folder / checkpoint.MANIFEST)["files"] == manifest["language_model"]
        return same_files and manifest.get("prompt") in (None, load_prompt(folder))

    def is_encoder(folder: Path) -> bool:
        return encoder_hashes(folder) == manifest["vision_encoder"]

    return BaseModels(one("language_model", is_language_model), one("vision_encoder", is_encoder))


def encoder_settings(models: BaseModels) -> dict:
    """Return the settings of the vision encoder from its manifest."""
    return read_json(models.vision_encoder / checkpoint.MANIFEST)["settings"]
