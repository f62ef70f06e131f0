"""Images out of single DICOM files, each of which was looked at: what it shows was read by eye."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from triptych.data.sources.embedded.medical_images import MedicalImage
from triptych.data.sources.embedded.medical_volumes import MAX_SIDE, to_bytes, window
from triptych.errors import TriptychError, message_of


@dataclass(frozen=True)
class Single:
    """One DICOM file that was looked at; `box` leaves out burned-in text and empty margins."""

    subject: str
    path: str  # below the package's test files
    modality: str
    location: str
    plane: str | None
    facts: dict[str, Any]
    box: tuple[int, int, int, int] | None = None  # top, left, bottom, right, after the turn to convention
    windows: tuple[str, ...] = ("",)
    frames: tuple[int, ...] = (0,)
    package: str = "pydicom-data"


def _has(present: str, absent: str, **facts: Any) -> dict[str, Any]:
    return facts | {"contains": dict.fromkeys(present.split(), True) | dict.fromkeys(absent.split(), False)}


_HEART = _has("heart", "brain kidney skull", part="Chest", organ="Heart")

# fmt: off
SINGLES = (
    Single("cq500-310", "693_UNCR.dcm", "CT", "Brain", "axial",
           _has("brain skull", "lung heart liver eyes cerebellum", part="Head", organ="Brain"),
           (110, 90, 500, 430), ("brain", "bone", "soft tissue")),
    Single("head-ct", "J2K_pixelrep_mismatch.dcm", "CT", "Brain", "axial",
           _has("brain skull cerebellum", "lung heart liver", part="Head"),
           windows=("brain", "bone"), package="pydicom"),
    Single("chest-ct-crop", "CT_small.dcm", "CT", "Chest_mediastinal", "axial",
           _has("lung", "brain liver", part="Chest"), windows=("soft tissue", "lung"), package="pydicom"),
    Single("spine-ct", "bad_sequence.dcm", "CT", "Abdomen", "axial",  # the header says NECK, the image does not
           _has("", "brain"), windows=("soft tissue", "bone")),
    Single("pancreas-ct", "explicit_VR-UN.dcm", "CT", "Abdomen", "axial",
           _has("liver kidney", "brain lung heart", part="Abdomen", lungs=0),
           (125, 75, 400, 450), ("soft tissue", "bone")),
    # The file's overlay rings a lesion at row 300, column 65 of 484: on the patient's right, half way down.
    Single("liver-mr", "MR-SIEMENS-DICOM-WithOverlays.dcm", "MRI", "Abdomen", "axial",
           _has("liver kidney", "brain heart skull", part="Abdomen", lesion=True, lesion_body_side="Right",
                lesion_picture_side="Left"), (100, 0, 400, 484)),
    Single("shoulder-mr", "MR2_UNCR.dcm", "MRI", "Shoulder", None,  # an oblique plane
           _has("", "brain heart liver skull", part="Shoulder")),
    Single("chest-x-ray", "RG1_UNCR.dcm", "X-Ray", "Lung", None,
           _has("lung heart", "brain skull", part="Chest", organ="Lung", lungs=2)),
    Single("leg-x-ray", "RG3_UNCR.dcm", "X-Ray", "Leg", None,
           _has("", "brain heart liver lung skull", part="Leg", lungs=0), (0, 440, 1760, 1320)),
    Single("echo-cine", "color3d_jpeg_baseline.dcm", "Ultrasound", "Chest_heart", None, _HEART,
           (40, 80, 405, 580), frames=tuple(range(0, 120, 6))),
    Single("echo-adult", "JPGLosslessP14SV1_1s_1f_8b.dcm", "Ultrasound", "Chest_heart", None, _HEART,
           (170, 140, 645, 900)),
    Single("echo-tee", "color-pl.dcm", "Ultrasound", "Chest_heart", None, _HEART),
    Single("lymph-node-us", "US1_UNCR.dcm", "Ultrasound", "Lymph_Node", None,
           _has("", "brain heart lung", organ="Lymph Node"), (114, 45, 334, 590)),
    Single("pelvis-us", "gdcm-US-ALOKA-16.dcm", "Ultrasound", "Pelvic Cavity", None,
           _has("", "brain heart lung", part="Pelvic Cavity"), (92, 31, 410, 610)),
)
# fmt: on


def turned(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Flip an image to the radiological convention, as its header's orientation demands.

    Transverse slices get the patient's right on the left and the front up; X-rays the right on the left.
    """
    directions = dataset.get("ImageOrientationPatient")
    if directions and abs(directions[0]) > 0.9 and abs(directions[4]) > 0.9:
        right, down = directions[0] < 0, directions[4] < 0
    else:
        right, down = [*(dataset.get("PatientOrientation") or "LF"), ""][0] == "R" and not directions, False
    return pixels[:: -1 if down else 1, :: -1 if right else 1]


def single_images(single: Single, path: Path) -> Iterator[MedicalImage]:
    """Make the images of one DICOM file: one for each wanted frame and CT window.

    Raises:
        TriptychError: the file is missing or cannot be decoded.
    """
    try:
        dataset = pydicom.dcmread(path)
        frames = [pixel_array(dataset, index=frame) for frame in single.frames]
    except (OSError, InvalidDicomError, RuntimeError, ValueError) as error:
        said = message_of(error)
        raise TriptychError(f"{path}: cannot be read ({said}); delete its package's folder and run again") from None
    for number, values in zip(single.frames, frames, strict=True):
        for name in single.windows:
            pixels = turned(_shown(values, dataset, name), dataset)
            if single.box:
                top, left, bottom, right = single.box
                pixels = pixels[top:bottom, left:right]
            image = Image.fromarray(np.ascontiguousarray(pixels))
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
            tail = "-".join([*name.split(), *([f"{number:03d}"] if len(single.frames) > 1 else [])])
            yield MedicalImage(
                single.subject,
                f"{single.subject}-{tail}".rstrip("-"),
                single.modality,
                single.location,
                single.plane,
                np.asarray(image),
                single.package,
                single.facts,
            )


def _shown(values: np.ndarray, dataset: pydicom.Dataset, window_name: str) -> np.ndarray:
    """Stored values as uint8 grey or RGB."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(values, dataset)
        return (coloured // 257 if coloured.dtype == np.uint16 else coloured).astype(np.uint8)
    if values.ndim == 3:
        return values
    values = apply_modality_lut(values, dataset).astype(np.float64)
    if window_name:
        return window(values, window_name)
    low, high = np.percentile(values, [0.5, 99.5])
    return to_bytes(values, *((high, low) if dataset.PhotometricInterpretation == "MONOCHROME1" else (low, high)))
