"""Made-up photographs: as large and as hard to decode as real ones, no two alike."""

from functools import lru_cache

import numpy as np
import simplejpeg
from PIL import Image


@lru_cache(maxsize=1)
def _grain(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 5, (2 * height, 2 * width, 3)).astype(np.float32)


def photograph(seed: int, width: int = 640, height: int = 480) -> bytes:
    """A JPEG of soft shapes at several scales, with grain (quality 90, 4:2:0, about 70 kB at 640 x 480)."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    for side, contrast in ((6, 0.6), (24, 0.4), (96, 0.35)):
        patches = Image.fromarray(random.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
        pixels += contrast * (np.asarray(patches.resize((width, height), Image.Resampling.BILINEAR), np.float32) - 128)
    top, left = random.integers(0, height), random.integers(0, width)
    pixels += _grain(width, height)[top : top + height, left : left + width]
    return simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=90, colorsubsampling="420")
