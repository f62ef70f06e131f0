"""Images that are changed a little at random before they are encoded; left stays left."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance

from triptych.config.stages import Vision
from triptych.features.store import Pixels
from triptych.utils.seeds import derive_seed

ReadImages = Callable[[Sequence[str]], torch.Tensor]


def augmented(features: ReadImages | Pixels, settings: Vision, seed: int, key: Sequence[str]) -> ReadImages:
    """Give what the images of an epoch are read by: as before, or as pixels of changed images.

    What is done to an image depends on seed, key and its id alone, so that a training that resumes sees the same.

    Args:
        features: from image ids to features, or pixels where anything is to be changed.
        settings: what is done.
        seed: the run's seed.
        key: names of the training and its epoch.
    """
    if not (settings.crop or settings.brightness):
        return features
    return features.changed(partial(change, settings=settings, seed=seed, key=key))


def change(image_id: str, image: Image.Image, settings: Vision, seed: int, key: Sequence[str]) -> Image.Image:
    """Cut up to `crop` of width and height off, wherever, and change the brightness by a factor of 1 ± `brightness`."""
    random = np.random.default_rng(derive_seed(seed, "augmentation", *key, image_id))
    lost, before, light = random.uniform(0, settings.crop, 2), random.uniform(size=2), random.uniform(-1, 1)
    if settings.crop:
        sides = np.array(image.size)
        kept = np.maximum(1, np.round(sides * (1 - lost))).astype(int)
        start = np.round((sides - kept) * before).astype(int)
        image = image.crop((*start.tolist(), *(start + kept).tolist()))
    return ImageEnhance.Brightness(image).enhance(1 + settings.brightness * light) if settings.brightness else image
