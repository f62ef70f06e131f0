"""Views: what a model is shown with a question: its own image, or that of a control, which `config/arms.py` lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from triptych.errors import TriptychError
from triptych.evaluate.generate import ReadFeatures
from triptych.features.shards import encoder_hashes
from triptych.features.store import Features, compute_tokens
from triptych.model import vision
from triptych.utils.seeds import stable_order

GREY = Image.new("RGB", (256, 256), (128, 128, 128))


@dataclass(frozen=True)
class Shown:
    """What is shown for every image.

    Attributes:
        of: by image id, the name of what is shown.
        read: from R names to vision features (R, N, D); prefixes are shared between views of the same `read`.
    """

    of: Mapping[str, str]
    read: ReadFeatures


def own(image_ids: Sequence[str], features: ReadFeatures) -> Shown:
    """Show every image itself."""
    return Shown({image: image for image in image_ids}, features)


def swapped(image_ids: Sequence[str], features: Features, encoder: Path, device: torch.device) -> Shown:
    """Show another image for every image.

    Args:
        image_ids: the images that are asked about.
        features: features of the data set.
        encoder: folder of the vision encoder.
        device: where to encode images.

    Raises:
        TriptychError: there is one image only.
    """
    return Shown(other_images(image_ids), features)


def blank(image_ids: Sequence[str], features: Features, encoder: Path, device: torch.device) -> Shown:
    """Show a grey image for every image.

    Args:
        image_ids: the images that are asked about.
        features: features of the data set.
        encoder: folder of the vision encoder.
        device: where to encode the grey image.

    Raises:
        TriptychError: the encoder is not the one that made the features.
    """
    if encoder_hashes(encoder) != features.encoder:
        raise TriptychError(f"{encoder}: is not the encoder that made the vision features; encode them again")
    model = vision.load(encoder, device)
    grey = compute_tokens(model, model.preprocess([GREY]), features.manifest["dtype"], device).float()
    return Shown(dict.fromkeys(image_ids, "blank"), lambda names: grey.expand(len(names), -1, -1))


def other_images(image_ids: Sequence[str]) -> dict[str, str]:
    """Another image for every image: in an order that depends on the names alone, each stands for the one before.

    Raises:
        TriptychError: there is one image only.
    """
    order = sorted(set(image_ids), key=lambda image: stable_order(0, "swapped", image))
    if len(order) < 2:
        raise TriptychError("evaluation.controls: images cannot be swapped where there is only one; drop `swapped`")
    return dict(zip(order, order[1:] + order[:1], strict=True))
