"""Sizes of vision encoders, for the estimates of what it costs to train one or to encode images by one that trained.

Every Snakemake reads this, so it imports little.
"""

import re
from dataclasses import dataclass
from typing import Any

from triptych.config import paths
from triptych.config.models import PackageEncoder
from triptych.config.study import Study
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

NUMBERS = 4  # bytes of one
# Of EfficientNet-Lite0 at 224 pixels: what its tokens depend on, and what it keeps of an image for the backward pass.
LITE0_WEIGHTS, LITE0_FLOPS, LITE0_BLOCKS, LITE0_KEPT = 3.4e6, 2 * 0.407e9, 16, 82e6
KEPT = 17  # numbers that a layer of a transformer keeps of a token, in hidden sizes; SigLIP's, measured
# Weights and layers of an encoder that is not prepared, by what its name says.
NAMED = {"so400m": (4.1e8, 27), "giant": (1.1e9, 40), "huge": (6.3e8, 32), "large": (3.0e8, 24), "small": (2.2e7, 12)}
BASE = (8.5e7, 12)


@dataclass(frozen=True)
class EncoderSize:
    """What the estimates need of a vision encoder.

    Attributes:
        weights: parameters.
        blocks: number of its blocks.
        flops: of the forward pass of one image.
        kept: bytes that the forward pass of one image keeps for the backward pass.
    """

    weights: float
    blocks: int
    flops: float
    kept: float

    def share(self, blocks: int | None) -> float:
        """Give the share of it that trains with a stage's `vision.blocks`."""
        return min(1.0, (blocks or self.blocks) / self.blocks)


def encoder_size(study: Study, prefix: str, tokens: int) -> EncoderSize:
    """Sizes of a prefix's vision encoder: of the one that is prepared, else as its name says.

    Args:
        study: the study.
        prefix: of the grid.
        tokens: of an image.
    """
    behind = study.grid.prefixes[prefix]
    settings = behind.settings.models.vision_encoder
    if isinstance(settings, PackageEncoder):
        larger = (settings.image_size / 224) ** 2
        return EncoderSize(LITE0_WEIGHTS, LITE0_BLOCKS, LITE0_FLOPS * larger, LITE0_KEPT * larger)
    try:
        config = read_json(study.path(paths.MODEL_CONFIG, model=behind.vision_encoder))
        weights, layers, hidden = _of_config(config.get("vision_config", config))
    except (TriptychError, KeyError):
        name = getattr(settings, "repo", None) or str(settings.folder)
        found = re.search("|".join(NAMED), name.lower())
        weights, layers = NAMED[found[0]] if found else BASE
        hidden = (weights / layers / 12) ** 0.5
    return EncoderSize(weights, layers, 2 * weights * tokens, tokens * layers * KEPT * hidden * NUMBERS)


def _of_config(config: dict[str, Any]) -> tuple[float, int, float]:
    """Give weights of the layers, their number and their hidden size."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    inner = config.get("intermediate_size") or config.get("mlp_ratio", 4) * hidden
    return layers * (4 * hidden**2 + 2 * hidden * inner), layers, hidden
