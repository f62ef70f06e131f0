"""Views: what a model is shown with a question: its own image, or that of a control, which `config/arms.py` lists."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from triptych.data.questions import named_of_images
from triptych.data.schemas import UNKNOWN
from triptych.errors import TriptychError
from triptych.evaluate.generate import ReadFeatures
from triptych.features.occluded import GREY
from triptych.features.store import Features, Pixels, image_encoder
from triptych.utils.seeds import stable_order

BLANK = Image.new("RGB", (256, 256), GREY)
KIND = ("modality", "location")  # what `swapped-alike` keeps


@dataclass(frozen=True)
class Shown:
    """What is shown for every image.

    Attributes:
        of: by image id, the name of what is shown.
        read: from R names to vision features (R, N, D), or to pixels where the model encodes them; prefixes are shared
            between views of the same `read`.
        left_out: images whose questions are not asked; `of` has them, too, so that prefixes stay shared.
    """

    of: Mapping[str, str]
    read: ReadFeatures
    left_out: frozenset[str] = frozenset()


def own(questions: Sequence[dict], features: ReadFeatures) -> Shown:
    """Show every image itself."""
    return Shown({row["image_id"]: row["image_id"] for row in questions}, features)


def swapped(questions: Sequence[dict], features: Features | Pixels, encoder: Path, device: torch.device) -> Shown:
    """Show another image for every image, of another subject where there is one.

    Args:
        questions: rows of the question table that are asked.
        features: features of the data set, or its pixels.
        encoder: folder of the vision encoder.
        device: where to encode images.

    Raises:
        TriptychError: there is one image only.
    """
    return Shown(other_images(questions), features)


def swapped_alike(questions: Sequence[dict], features: Features | Pixels, encoder: Path, device: torch.device) -> Shown:
    """Show another image of the same modality and body part, and of another subject; leave out images without one.

    Args:
        questions: rows of the question table that are asked.
        features: features of the data set, or its pixels.
        encoder: folder of the vision encoder.
        device: where to encode images.

    Raises:
        TriptychError: no image has such another one.
    """
    other = alike_images(questions)
    images = {row["image_id"] for row in questions}
    return Shown({image: other.get(image, image) for image in images}, features, frozenset(images - other.keys()))


def blank(questions: Sequence[dict], features: Features | Pixels, encoder: Path, device: torch.device) -> Shown:
    """Show a grey image for every image.

    Args:
        questions: rows of the question table that are asked.
        features: features of the data set, or its pixels.
        encoder: folder of the vision encoder.
        device: where to encode the grey image.

    Raises:
        TriptychError: the encoder is not the one that made the features.
    """
    grey = image_encoder(features, encoder, device)([BLANK]).float()
    return Shown(
        dict.fromkeys([row["image_id"] for row in questions], "blank"),
        lambda names: grey.expand(len(names), *grey.shape[1:]),
    )


def other_images(questions: Sequence[dict]) -> dict[str, str]:
    """Another image for every image: of another subject, or of the same where all images are of one subject.

    In an order that depends on the names alone, the next such image stands for each. Images of the same subject, such
    as two slices, would differ too little: the right answer is often the same.

    Args:
        questions: rows with image_id and group (the subject, or the image itself).

    Raises:
        TriptychError: there is one image only.
    """
    subject = {row["image_id"]: row["group"] for row in questions}
    if len(subject) < 2:
        raise TriptychError("evaluation.controls: images cannot be swapped where there is only one; drop `swapped`")
    every_one = {image: image for image in subject}  # each a subject of its own
    return of_other_subjects(subject, every_one) | of_other_subjects(subject, subject)


def of_other_subjects(images: Iterable[str], subject: Mapping[str, str]) -> dict[str, str]:
    """Give for every image the next one of another subject, in an order that depends on the names alone, if any."""
    order = sorted(images, key=lambda image: stable_order(0, "swapped", image))
    other = {}
    for place, image in enumerate(order):
        following = (name for name in order[place + 1 :] + order[:place] if subject[name] != subject[image])
        if (found := next(following, None)) is not None:
            other[image] = found
    return other


def alike_images(questions: Sequence[dict]) -> dict[str, str]:
    """Another image of the same modality and body part for every image that has one of another subject.

    The next such image stands for each, as in `other_images`. An image is of the kind that most of its questions name.

    Args:
        questions: rows with question_id, image_id, group (the subject, or the image itself), modality and location.

    Raises:
        TriptychError: no question names both, or no two images of one kind are of different subjects.
    """
    subject = {row["image_id"]: row["group"] for row in questions}
    named = [named_of_images(questions, column) for column in KIND]
    kinds = defaultdict(set)
    for image in subject:
        kind = tuple(values.get(image, UNKNOWN) for values in named)
        if UNKNOWN not in kind:
            kinds[kind].add(image)
    if not kinds:
        raise TriptychError(
            "evaluation.controls: no held-out question names both modality and body part (columns modality and "
            "location), so no images are of one kind; drop `swapped-alike`"
        )
    other = {}
    for images in kinds.values():
        other |= of_other_subjects(images, subject)
    if not other:
        raise TriptychError(
            "evaluation.controls: of the held-out images, no two of different subjects have the same modality and body "
            "part; drop `swapped-alike`, or hold out more images"
        )
    return other
