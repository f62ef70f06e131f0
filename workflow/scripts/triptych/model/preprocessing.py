"""From an image of any shape to the pixels that a vision encoder asks for, and how much of the image that loses."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from triptych.config.models import Fit
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

PROCESSOR = "preprocessor_config.json"
LONGEST = 4096  # pixels: a padded image has no longer side, whatever its shape
Sides = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image.

    Attributes:
        pixels: an image (RGB) -> pixels (1, 3, H, W), float32.
        visible: width and height of an image -> the share of its area that the encoder sees, 0 to 1.
    """

    pixels: Callable[[Image.Image], torch.Tensor]
    visible: Callable[[int, int], float]


def fitted(image: Image.Image, fit: Fit, sides: Sides, colour: tuple[int, ...]) -> Image.Image:
    """Bring an image to the shape of `sides`; its resolution stays, but for padded images of huge sides.

    Args:
        image: in RGB.
        fit: `pad` with `colour` on both sides, `crop` the border of the longer side, or `squash`, which is left to
            the resizing that follows.
        sides: what the encoder asks for.
        colour: of the padding.
    """
    if fit == "squash":
        return image
    if fit == "pad" and max(image.size) > LONGEST:
        scale = LONGEST / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    width, height = image.size
    enlarge = math.ceil if fit == "pad" else math.floor
    across, down = enlarge(height * sides[0] / sides[1]), enlarge(width * sides[1] / sides[0])
    wider = width * sides[1] > height * sides[0]
    new = (width, down) if wider == (fit == "pad") else (across, height)
    new = max(1, new[0]), max(1, new[1])
    if fit == "pad":
        padded = Image.new("RGB", new, colour)
        padded.paste(image, ((new[0] - width) // 2, (new[1] - height) // 2))
        return padded
    left, top = (width - new[0]) // 2, (height - new[1]) // 2
    return image.crop((left, top, left + new[0], top + new[1]))


def visible_share(fit: Fit | None, sides: Sides, width: int, height: int) -> float:
    """Compute the share of an image's area that `fitted` leaves."""
    if fit != "crop":
        return 1.0
    shape, asked = width / height, sides[0] / sides[1]
    return min(shape, asked) / max(shape, asked)


def load_image_processor(folder: Path) -> Any:
    """Load a folder's image processor: that of Pillow, whatever is installed, because torchvision rounds otherwise."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def load_preprocessing(folder: Path, fit: Fit | None) -> Preprocessing:
    """Load what a folder's image processor does, with another way to fit images where `fit` names one.

    Raises:
        TriptychError: the processor does not make all images one size.
    """
    facts = read_json(folder / PROCESSOR)
    if str(facts.get("image_processor_type", "")).startswith("DINOv3ViT"):
        return _dinov3(facts, fit)
    processor = load_image_processor(folder)
    crops = bool(getattr(processor, "do_center_crop", False))
    resized = processor.size if getattr(processor, "do_resize", False) else None
    target = processor.crop_size if crops else resized
    if target is None or not target.height or not target.width:
        raise TriptychError(f"{folder / PROCESSOR}: does not make all images one size; give it `size` or `crop_size`")
    sides = (target.width, target.height)
    colour = tuple(int(255 * share) for share in processor.image_mean)
    options: dict[str, Any] = {}
    own = fit is None or (fit == "crop" and crops)
    if not own:
        options = {"do_resize": True, "do_center_crop": False, "size": {"height": sides[1], "width": sides[0]}}

    def pixels(image: Image.Image) -> torch.Tensor:
        image = image if own else fitted(image, fit, sides, colour)
        return processor(images=image, return_tensors="pt", **options)["pixel_values"]

    def visible(width: int, height: int) -> float:
        if own and crops:
            return _seen_by_centre_crop(resized, sides, width, height)
        return visible_share(None if own else fit, sides, width, height)

    return Preprocessing(pixels, visible)


def _seen_by_centre_crop(resized: Any, sides: Sides, width: int, height: int) -> float:
    """The share of an image that a crop of `sides` from its middle shows, after `resized` (None: as it is)."""
    if resized is None:
        across, down = width, height
    elif resized.shortest_edge:
        scale = resized.shortest_edge / min(width, height)
        across, down = width * scale, height * scale
    else:
        across, down = resized.width, resized.height
    return min(1.0, sides[0] / across) * min(1.0, sides[1] / down)


def _dinov3(facts: dict, fit: Fit | None) -> Preprocessing:
    """What DINOv3's processor does, which is published for torchvision alone: scale, resize, normalise, in floats."""
    size = facts.get("size", {"height": 224, "width": 224})
    sides = (size["width"], size["height"])
    mean = torch.tensor(facts.get("image_mean", [0.485, 0.456, 0.406])).view(1, 3, 1, 1)
    deviation = torch.tensor(facts.get("image_std", [0.229, 0.224, 0.225])).view(1, 3, 1, 1)
    colour = tuple(int(255 * share) for share in mean.flatten().tolist())

    def pixels(image: Image.Image) -> torch.Tensor:
        image = image if fit is None else fitted(image, fit, sides, colour)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        values = functional.interpolate(values, size=sides[::-1], mode="bilinear", antialias=True, align_corners=False)
        return (values - mean) / deviation

    return Preprocessing(pixels, lambda width, height: visible_share(fit, sides, width, height))
