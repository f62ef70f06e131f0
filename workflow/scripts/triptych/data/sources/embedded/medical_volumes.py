"""Volumes along the body's axes, and two-dimensional sections of them.

Volumes are held in RAS+ order: the first index grows towards the patient's right, the second towards the front
(anterior), the third towards the head (superior). Sections follow the radiological convention: the patient's right is
on the image's left, the front of the body is up in transverse sections and on the left in sagittal ones, the head is up
in the others.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
from PIL import Image
from scipy import ndimage

from triptych.errors import TriptychError, message_of

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
MAX_SIDE = 256  # pixels; the images' longest side
WINDOWS = {  # name: (centre, width) in Hounsfield units
    "lung": (-600, 1500),
    "soft tissue": (40, 400),
    "brain": (40, 100),
    "bone": (500, 2500),
}


@dataclass(frozen=True)
class Volume:
    """A 3-D array in RAS+ order with its voxel-to-world matrix (4x4, mm, RAS)."""

    data: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along the three axes."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    def cropped(self, box: tuple[slice, slice, slice]) -> "Volume":
        """Crop to `box`, at the same place in the world."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        return Volume(self.data[box], affine)

    def index_of(self, plane: str, millimetres: float) -> int:
        """Find the slice of `plane` that lies at a world coordinate along its axis."""
        axis = AXES[plane]
        return round((millimetres - self.affine[axis, 3]) / self.affine[axis, axis])


def to_ras(data: np.ndarray, affine: np.ndarray) -> Volume:
    """Reorder a volume with an RAS-world `affine` into RAS+ order.

    Raises:
        TriptychError: the volume's axes are oblique, so its planes are not anatomical ones.
    """
    image = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    turned = np.asarray(image.affine)
    if np.abs(turned[:3, :3] - np.diag(np.diag(turned[:3, :3]))).max() > 1e-3:
        raise TriptychError("a volume's axes are oblique; only volumes along the body's axes can be used")
    return Volume(np.asarray(image.dataobj), turned)


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD volume of the space left-posterior-superior into RAS+ order.

    Raises:
        TriptychError: the file is missing, or its space is another.
    """
    try:
        data, header = nrrd.read(str(path))
    except (OSError, nrrd.NRRDError) as error:
        said = message_of(error)
        raise TriptychError(f"{path}: cannot be read ({said}); delete its package's folder and run again") from None
    if header.get("space") != "left-posterior-superior":
        raise TriptychError(f"{path}: space is {header.get('space')!r}, expected left-posterior-superior")
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(header["space directions"]).T
    affine[:3, 3] = header["space origin"]
    return to_ras(data, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI volume into RAS+ order.

    Raises:
        TriptychError: the file is missing or damaged.
    """
    try:
        image = nib.load(path)
        return to_ras(np.asarray(image.dataobj), image.affine)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        said = message_of(error)
        raise TriptychError(f"{path}: cannot be read ({said}); delete its package's folder and run again") from None


def cut(data: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Cut slice `index` out of an RAS+ array (any dtype), as rows and columns in radiological convention."""
    return data[(slice(None),) * AXES[plane] + (index,)][::-1, ::-1].T


def pixel_size(spacing: np.ndarray, plane: str) -> tuple[float, float]:
    """Compute height and width in mm of one pixel of `cut`."""
    columns, rows = np.delete(spacing, AXES[plane])
    return float(rows), float(columns)


def to_isotropic(section: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Resample a uint8 section (pixels of `size` mm) to square pixels, the longest side at most `MAX_SIDE`."""
    extent = np.array(section.shape) * size
    step = max(min(size), extent.max() / MAX_SIDE)
    height, width = (max(1, round(side / step)) for side in extent)
    return np.asarray(Image.fromarray(section).resize((width, height), Image.Resampling.BICUBIC))


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` to 0..255, clipped."""
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def window(values: np.ndarray, name: str) -> np.ndarray:
    """Apply a CT window of `WINDOWS`, to uint8."""
    centre, width = WINDOWS[name]
    return to_bytes(values, centre - width / 2, centre + width / 2)


def largest_part_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Find the bounding box of the largest connected part of a 3-D mask."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return ndimage.find_objects((labels == sizes.argmax()).astype(np.int8))[0]


def on_grid(volume: Volume, grid: Volume) -> np.ndarray:
    """Resample `volume` to the voxels of `grid` (both RAS+) by nearest values; zero outside `volume`."""
    picks = []
    for axis, (length, limit) in enumerate(zip(grid.data.shape, volume.data.shape, strict=True)):
        world = np.arange(length) * grid.affine[axis, axis] + grid.affine[axis, 3]
        index = np.round((world - volume.affine[axis, 3]) / volume.affine[axis, axis]).astype(int)
        picks.append(np.where((index >= 0) & (index < limit), index, limit))
    return np.pad(volume.data, [(0, 1)] * 3)[np.ix_(*picks)]
