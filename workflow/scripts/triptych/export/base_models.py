"""Which of a study's base models belong to a checkpoint."""

from pathlib import Path
from typing import NamedTuple

from triptych import checkpoint
from triptych.shards import encoder_hashes
from triptych.storage import TriptychError, read_json


class BaseModels(NamedTuple):
    """Folders of the two base models of a checkpoint."""

    language_model: Path
    vision_encoder: Path


def base_models(models: Path, manifest: dict) -> BaseModels:
    """The models that a checkpoint's manifest names, among those of a study, which ablations may add to.

    Raises:
        TriptychError: two language models differ in their prompt only, so that it does not say which.
    """
    found = []
    for role in BaseModels._fields:
        folders = [path.parent for path in sorted(models.glob(f"{role}*/{checkpoint.MANIFEST}"))]
        fitting = [folder for folder in folders if _hashes(folder, role) == manifest[role]]
        if len(fitting) > 1:
            names = " and ".join(folder.name for folder in fitting)
            raise TriptychError(
                f"{models}: {names} differ in their prompt only; link the one you mean, as {role}, and the vision "
                "encoder into a folder of their own, and give that as --models"
            )
        found.append(fitting[0] if fitting else models / role)
    return BaseModels(*found)


def _hashes(folder: Path, role: str) -> dict[str, str]:
    return encoder_hashes(folder) if role == "vision_encoder" else read_json(folder / checkpoint.MANIFEST)["files"]


def encoder_settings(models: BaseModels) -> dict:
    """Settings of the vision encoder, as its manifest has them."""
    return read_json(models.vision_encoder / checkpoint.MANIFEST)["settings"]
