"""Real medical images with known facts, cut out of volumes with lesion masks and out of brain templates."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from triptych.data.sources.embedded.medical_volumes import (
    AXES,
    Volume,
    cut,
    largest_part_box,
    pixel_size,
    read_nrrd,
    to_bytes,
    to_isotropic,
    window,
)
from triptych.errors import TriptychError

# The part of each subject; all others are for training.
PARTS = ("train", "validation", "test")
VALIDATION = ("brain2", "head-ct", "pelvis-us")
TEST = ("cq500-310", "pancreas-ct", "liver-mr", "echo-cine", "leg-x-ray", "shoulder-mr")

# What makes a clear "yes" or "no"; nothing is asked about what lies between.
MIN_LESION_MM2 = 40.0  # a smaller cut of the mask is neither "yes" nor "no"
LESION_MARGIN_MM = 13.0  # so far from every labelled slice the answer is "no"
CLEAR_SIDE = 0.06  # of the image's side: a centroid nearer to the middle has no clear side
LUNG_YES_CM2, LUNG_NO_CM2 = 15.0, 0.5
REGION_MARGIN_MM = 4  # a structure this near to a slice is not clearly absent from it

# Structure: (cm2 that make a clear "yes", its masks on one grid, one for each atlas that knows it).
Regions = dict[str, tuple[float, list[np.ndarray]]]


@dataclass(frozen=True)
class MedicalImage:
    """One image and what is known about it; `facts` are named in `medical_questions`."""

    subject: str
    name: str  # folder-safe, unique
    modality: str  # CT, MRI, X-Ray or Ultrasound, as in SLAKE
    location: str
    plane: str | None  # axial, coronal, sagittal, or None where the view is none of them
    pixels: np.ndarray  # uint8, HxW or HxWx3
    source: str  # package
    facts: dict[str, Any] = field(default_factory=dict)


def part_of(subject: str) -> str:
    """Name the part (train, validation or test) that a whole subject belongs to."""
    return "test" if subject in TEST else "validation" if subject in VALIDATION else "train"


def lung_mask(hounsfield: np.ndarray, voxel_mm3: float) -> np.ndarray:
    """Find the lungs (with the windpipe) in a chest CT in RAS+ order: air inside the body, in large connected parts.

    Air that reaches the edge of its transverse slice is outside the body; small parts and the nearly pure
    gas of stomach and bowel are left out.
    """
    air = hounsfield < -500
    inside = np.zeros_like(air)
    for index in range(air.shape[2]):
        labels, _ = ndimage.label(air[..., index])
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        inside[..., index] = (labels > 0) & ~np.isin(labels, edge)
    labels, _ = ndimage.label(inside)
    large = np.flatnonzero(np.bincount(labels.ravel()) * voxel_mm3 > 2e5)[1:]  # the first is the background
    return np.isin(labels, [part for part in large if np.median(hounsfield[labels == part]) > -950])


def lung_facts(section: np.ndarray, body: np.ndarray, size: tuple[float, float], plane: str) -> dict[str, Any]:
    """Tell what a slice's lung mask says: lung present, how many lungs, the main organ.

    `section` and `body` are masks as `cut` gives them: the patient's right is on the left.
    """
    cm2 = size[0] * size[1] / 100
    total = section.sum() * cm2
    facts: dict[str, Any] = {"contains": {}}
    if total > 2 * LUNG_YES_CM2:
        facts["contains"]["lung"] = True
    elif total < LUNG_NO_CM2:
        facts["contains"]["lung"] = False
    if section.sum() > 0.3 * body.sum():
        facts["organ"] = "Lung"
    if plane == "sagittal":
        return facts
    middle = section.shape[1] // 2
    right, left = section[:, :middle].sum() * cm2, section[:, middle:].sum() * cm2
    if all(area > LUNG_YES_CM2 or area < LUNG_NO_CM2 for area in (right, left)):
        facts["lungs"] = int(right > LUNG_YES_CM2) + int(left > LUNG_YES_CM2)
    return facts


def lesion_facts(mask: np.ndarray, plane: str, index: int, spacing: np.ndarray, doubtful: bool) -> dict[str, Any]:
    """Tell what a lesion mask (RAS+, cropped to the body) says about one slice; empty where it is not clear.

    `doubtful` slices never get a "no": something unlabelled there could be taken for the lesion.
    """
    size = pixel_size(spacing, plane)
    section = cut(mask, plane, index)
    if section.sum() * size[0] * size[1] < MIN_LESION_MM2:
        axis = AXES[plane]
        others = tuple(other for other in range(3) if other != axis)
        labelled = np.flatnonzero(mask.any(axis=others))
        gap = np.abs(labelled - index).min() * spacing[axis] if len(labelled) else np.inf
        return {"lesion": False} if gap >= LESION_MARGIN_MM and not doubtful else {}
    facts: dict[str, Any] = {"lesion": True}
    row, column = (np.array(np.nonzero(section)).mean(axis=1) + 0.5) / section.shape - 0.5
    vertical = "" if abs(row) < CLEAR_SIDE else "Upper" if row < 0 else "Lower"
    horizontal = "" if abs(column) < CLEAR_SIDE else "Left" if column < 0 else "Right"
    if vertical:
        facts["lesion_half"] = vertical
    if horizontal:
        facts["lesion_picture_side"] = horizontal
        if plane != "sagittal":
            facts["lesion_body_side"] = {"Left": "Right", "Right": "Left"}[horizontal]
    if vertical and horizontal:
        facts["lesion_quadrant"] = f"{vertical} {horizontal}"
    return facts


def spread(first: int, last: int, count: int) -> list[int]:
    """Give `count` slice numbers evenly spread from `first` to `last`, both included."""
    return sorted({round(value) for value in np.linspace(first, last, count)})


@dataclass(frozen=True)
class Scan:
    """A volume with a lesion mask; slice numbers count from the feet, as in the file."""

    subject: str
    kind: str  # "brain" or "chest"
    axial: tuple[int, ...]
    # Read by eye on contact sheets: transverse slices in which a structure is clearly there or clearly absent.
    present: dict[str, range]
    absent: dict[str, tuple[range, ...]]
    doubtful: range = range(0)  # transverse slices without a trustworthy "no lesion"


def scan_images(scan: Scan, folder: Path) -> Iterator[MedicalImage]:
    """Cut images of one pyradiomics volume in three planes, with facts from its mask and its intensities.

    Raises:
        TriptychError: a file cannot be read, or the mask is not on the grid of the image.
    """
    image = read_nrrd(folder / f"{scan.subject}_image.nrrd")
    mask = read_nrrd(folder / f"{scan.subject}_label.nrrd")
    if image.data.shape != mask.data.shape or not np.allclose(image.affine, mask.affine):
        raise TriptychError(f"{folder / scan.subject}_label.nrrd: not on the grid of its image; fetch it again")
    values, chest = image.data.astype(np.float32), scan.kind == "chest"
    threshold = -300 if chest else 0.08 * np.percentile(values, 99)
    solid = ndimage.binary_opening(values > threshold, np.ones((3, 3, 1)))
    box = (*largest_part_box(solid)[:2], slice(0, values.shape[2]))  # slice numbers stay those of the file
    spacing = image.spacing
    lungs = lung_mask(values, float(spacing.prod()))[box] if chest else None
    values, lesion, solid = values[box], mask.data[box] > 0, solid[box]
    body = solid | lungs if chest else solid
    high = float(np.percentile(values, 99.5))
    for plane, indices in _slices(scan, lesion).items():
        for order, index in enumerate(indices):
            size = pixel_size(spacing, plane)
            section = cut(values, plane, index)
            facts: dict[str, Any] = {"contains": {}, "part": "Chest" if chest else "Head"}
            if chest:
                name = ("lung", "soft tissue")[order % 2]
                pixels = window(section, name)
                lung = cut(lungs, plane, index)
                facts |= lung_facts(lung, cut(body, plane, index), size, plane) | {"window": name}
                facts["contains"]["brain"] = False
                if lung.sum() * size[0] * size[1] > 3000:
                    facts["lung_colour"] = "Black" if np.median(pixels[lung]) < 30 else "Gray"
                elif plane == "axial":
                    # Little lung: below it is the abdomen, above it the shoulders, which no single word names.
                    facts["part"] = "Abdomen" if index < values.shape[2] // 2 else None
                if plane == "sagittal":
                    facts |= _lung_side(lung, index, values.shape[0])
            else:
                pixels = to_bytes(section, 0, high)
                facts["contains"] |= {"lung": False, "heart": False, "liver": False, "skull": True}
                if plane == "sagittal":
                    facts |= _midline((index + 0.5 - values.shape[0] / 2) * spacing[0])
            facts |= lesion_facts(
                lesion, plane, index, spacing, bool(scan.doubtful) if plane != "axial" else index in scan.doubtful
            )
            if plane == "axial":
                facts["contains"] |= _seen(scan, index)
                if not chest and index > 9:
                    facts["organ"], facts["contains"]["brain"] = "Brain", True
            yield MedicalImage(
                scan.subject,
                f"{scan.subject}-{plane}-{index:03d}",
                "CT" if chest else "MRI",
                "Lung" if chest else "Brain",
                plane,
                to_isotropic(pixels, size),
                "pyradiomics",
                facts,
            )


def _slices(scan: Scan, lesion: np.ndarray) -> dict[str, list[int]]:
    """Slice numbers per plane; the reformatted ones are spread over the body, some through the lesion."""
    chosen = {"axial": list(scan.axial)}
    for plane, (first, last) in {"coronal": (0.16, 0.76), "sagittal": (0.16, 0.84)}.items():
        axis = AXES[plane]
        length = lesion.shape[axis]
        found = spread(round(first * length), round(last * length), 9)
        labelled = np.flatnonzero(lesion.any(axis=tuple(other for other in range(3) if other != axis)))
        for index in np.percentile(labelled, [25, 75, 50]).round().astype(int):
            if min(abs(index - other) for other in found) >= 4:  # nearer ones look alike
                found.append(int(index))
        chosen[plane] = sorted(found)
    return chosen


def _seen(scan: Scan, index: int) -> dict[str, bool]:
    there = {name: True for name, where in scan.present.items() if index in where}
    return there | {name: False for name, parts in scan.absent.items() if any(index in part for part in parts)}


def _lung_side(lung: np.ndarray, index: int, length: int) -> dict[str, Any]:
    """Which lung a sagittal chest slice cuts; nothing near the middle, where both or none may be cut."""
    offset = (index + 0.5) / length - 0.5
    if abs(offset) < 0.1 or lung.mean() < 0.1:
        return {}
    return {"lung_side": "Right Lung" if offset > 0 else "Left Lung"}


def _midline(millimetres: float) -> dict[str, Any]:
    """Whether a sagittal head slice is near the midline, from its distance to it."""
    return {"midline": True} if abs(millimetres) < 7 else {"midline": False} if abs(millimetres) > 22 else {}


@dataclass(frozen=True)
class Template:
    """An averaged brain: its file's stem, its package, and the world coordinates (mm) of its slices per plane."""

    tag: str
    package: str
    path: str
    slices: dict[str, tuple[int, ...]]


def region_facts(regions: Regions, plane: str, index: int, spacing: np.ndarray) -> dict[str, bool]:
    """Find the structures that all atlases show clearly in a slice (True) or nowhere near it (False)."""
    height, width = pixel_size(spacing, plane)
    near = round(REGION_MARGIN_MM / spacing[AXES[plane]])
    slab = (slice(None),) * AXES[plane] + (slice(max(0, index - near), index + near + 1),)
    facts = {}
    for name, (least, volumes) in regions.items():
        if all(cut(mask, plane, index).sum() * height * width / 100 >= least for mask in volumes):
            facts[name] = True
        elif not any(mask[slab].any() for mask in volumes):
            facts[name] = False
    return facts


def template_images(
    template: Template, image: Volume, regions: Regions, gray: np.ndarray, white: np.ndarray
) -> Iterator[MedicalImage]:
    """Cut images of an averaged, skull-stripped brain; all masks lie on the grid of `image`."""
    box = largest_part_box(image.data > 0)
    spacing, inner = image.spacing, image.cropped(box)
    regions = {name: (least, [mask[box] for mask in masks]) for name, (least, masks) in regions.items()}
    high = float(np.percentile(image.data[image.data > 0], 99.7))
    for plane, places in template.slices.items():
        for place in places:
            index = inner.index_of(plane, place)
            facts: dict[str, Any] = {"part": "Head", "organ": "Brain"}
            facts["contains"] = region_facts(regions, plane, index, spacing)
            facts["contains"] |= {"brain": True, "skull": False, "lung": False, "heart": False, "liver": False}
            ratio = cut(gray[box], plane, index).sum() / max(1.0, cut(white[box], plane, index).sum())
            if ratio > 1.4 or ratio < 0.87:
                facts["tissue"] = "Gray Matter" if ratio > 1 else "White Matter"
            if plane == "sagittal":
                facts |= _midline(place)
            pixels = to_isotropic(to_bytes(cut(inner.data, plane, index), 0, high), pixel_size(spacing, plane))
            name = f"mni152-{template.tag}-{plane}-{index:03d}"
            yield MedicalImage("mni152", name, "MRI", "Brain", plane, pixels, template.package, facts)
