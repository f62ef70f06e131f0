"""The embedded medical questions: geometry, answers, balance, and the whole build from the real packages."""

import json
from collections import Counter, defaultdict

import nrrd
import numpy as np
import pydicom
import pytest
from conftest import CACHE
from PIL import Image
from triptych.data.sources.embedded import medical, medical_files, medical_images, medical_questions, medical_volumes
from triptych.errors import TriptychError

SHAPE = (40, 50, 30)  # right, anterior, superior
FIELDS = {
    "img_id", "img_name", "question", "answer", "q_lang", "location", "modality", "answer_type", "base_type",
    "content_type", "triple", "qid", "subject",
}  # fmt: skip


def blob(right: slice, front: slice, top: slice) -> np.ndarray:
    """A mask of shape `SHAPE` in RAS+ order."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[right, front, top] = True
    return mask


RIGHT_FRONT_TOP = blob(slice(30, 38), slice(38, 46), slice(20, 28))


def picture(name: str, **facts) -> medical_images.MedicalImage:
    return medical_images.MedicalImage("s", name, "MRI", "Brain", "axial", np.zeros((8, 8), np.uint8), "nilearn", facts)


@pytest.mark.parametrize(
    ("plane", "index", "rows", "columns"),
    [("axial", 24, "top", "left"), ("coronal", 42, "top", "left"), ("sagittal", 34, "top", "left")],
)
def test_cut_is_radiological(plane, index, rows, columns):
    """Patient's right is on the left, the front is up (axial) or left (sagittal), the head is up."""
    section = medical_volumes.cut(RIGHT_FRONT_TOP, plane, index)
    row, column = np.array(np.nonzero(section)).mean(axis=1) / section.shape
    assert (row < 0.5, column < 0.5) == (rows == "top", columns == "left")


def test_cut_matches_pixel_size():
    spacing = np.array([1.0, 2.0, 5.0])
    for plane in medical_volumes.AXES:
        size = medical_volumes.pixel_size(spacing, plane)
        extent = np.array(medical_volumes.cut(RIGHT_FRONT_TOP, plane, 0).shape) * size
        columns, rows = np.delete(np.array(SHAPE) * spacing, medical_volumes.AXES[plane])
        assert extent.tolist() == [rows, columns]


def test_lesion_on_the_patients_right():
    facts = medical_images.lesion_facts(RIGHT_FRONT_TOP, "axial", 24, np.ones(3), doubtful=False)
    assert facts == {
        "lesion": True,
        "lesion_half": "Upper",
        "lesion_picture_side": "Left",
        "lesion_body_side": "Right",
        "lesion_quadrant": "Upper Left",
    }


def test_flipped_mask_changes_the_side():
    facts = medical_images.lesion_facts(RIGHT_FRONT_TOP[::-1], "coronal", 42, np.ones(3), doubtful=False)
    assert (facts["lesion_body_side"], facts["lesion_picture_side"]) == ("Left", "Right")


def test_sagittal_slices_have_no_body_side():
    facts = medical_images.lesion_facts(RIGHT_FRONT_TOP, "sagittal", 34, np.ones(3), doubtful=False)
    assert "lesion_body_side" not in facts
    assert facts["lesion_quadrant"] == "Upper Left"


def test_central_lesion_has_no_side():
    central = blob(slice(16, 24), slice(20, 30), slice(10, 20))
    assert medical_images.lesion_facts(central, "axial", 15, np.ones(3), doubtful=False) == {"lesion": True}


@pytest.mark.parametrize(
    ("index", "doubtful", "expected"),
    [
        (5, False, {"lesion": False}),  # 15 mm below the lowest labelled slice
        (5, True, {}),  # something unlabelled is there
        (12, False, {}),  # 8 mm: too near
        (18, False, {}),
    ],
)
def test_absent_lesion_needs_a_margin(index, doubtful, expected):
    assert medical_images.lesion_facts(RIGHT_FRONT_TOP, "axial", index, np.ones(3), doubtful) == expected


def test_small_cut_of_a_lesion_is_skipped():
    tiny = blob(slice(30, 33), slice(38, 41), slice(20, 28))
    assert medical_images.lesion_facts(tiny, "axial", 24, np.ones(3), doubtful=False) == {}


def test_nrrd_becomes_ras(tmp_path):
    """The same place in the world is read from both directions of the x axis."""
    for step in (1.0, -1.0):
        data = np.zeros((4, 5, 6), np.int16)
        data[0 if step > 0 else 3, 0, 0] = 7  # LPS: the lowest x is the patient's right, the lowest y the front
        header = {"space": "left-posterior-superior", "space directions": np.diag([step, 1.0, 2.0])}
        nrrd.write(str(tmp_path / "v.nrrd"), data, header | {"space origin": [0 if step > 0 else 3, 0, 0]})
        volume = medical_volumes.read_nrrd(tmp_path / "v.nrrd")
        assert volume.data[-1, -1, 0] == 7
        assert volume.spacing.tolist() == [1, 1, 2]


def test_nrrd_of_another_space_is_refused(tmp_path):
    nrrd.write(
        str(tmp_path / "v.nrrd"),
        np.zeros((4, 4, 4), np.int16),
        {"space": "right-anterior-superior", "space directions": np.eye(3), "space origin": [0, 0, 0]},
    )
    with pytest.raises(TriptychError, match=r"v\.nrrd.*right-anterior-superior"):
        medical_volumes.read_nrrd(tmp_path / "v.nrrd")
    with pytest.raises(TriptychError, match=r"gone\.nrrd"):
        medical_volumes.read_nrrd(tmp_path / "gone.nrrd")


def test_oblique_axes_are_refused():
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(TriptychError, match="oblique"):
        medical_volumes.to_ras(np.zeros((3, 3, 3)), turned)


def test_isotropic_images_keep_their_shape_in_mm():
    assert medical_volumes.to_isotropic(np.zeros((25, 250), np.uint8), (6.5, 0.78)).shape == (208, 250)
    assert medical_volumes.to_isotropic(np.zeros((512, 400), np.uint8), (1.0, 1.0)).shape == (256, 200)


def chest(lungs: str) -> tuple[np.ndarray, np.ndarray]:
    """A body in air with the named lungs, in Hounsfield units and RAS+ order, and the body's mask."""
    values = np.full((100, 80, 20), -1000.0)
    values[5:95, 5:75] = 40
    if "right" in lungs:
        values[58:85, 15:65, 5:] = -850
    if "left" in lungs:
        values[15:42, 15:65, 5:] = -850
    values[45:52, 60:70, :4] = -1000  # gas in a bowel
    return values, values > -2000


@pytest.mark.parametrize(("lungs", "count", "present"), [("right left", 2, True), ("left", 1, True), ("", 0, False)])
def test_lungs_are_counted(lungs, count, present):
    values, body = chest(lungs)
    mask = medical_images.lung_mask(values, voxel_mm3=20.0)
    assert mask.sum() == len(lungs.split()) * 27 * 50 * 15  # neither the bowel gas nor the air outside
    section, outline = (medical_volumes.cut(part, "axial", 10) for part in (mask, body))
    facts = medical_images.lung_facts(section, outline, (2.0, 2.0), "axial")
    assert (facts["lungs"], facts["contains"]["lung"]) == (count, present)


def test_regions_between_yes_and_no_are_skipped():
    regions = {"here": (0.1, [RIGHT_FRONT_TOP]), "elsewhere": (0.1, [blob(slice(5), slice(5), slice(5))])}
    regions["unsure"] = (0.1, [RIGHT_FRONT_TOP, np.zeros(SHAPE, bool)])  # the atlases disagree
    regions["little"] = (9.0, [RIGHT_FRONT_TOP])
    regions["near"] = (0.1, [blob(slice(5), slice(5), slice(19, 21))])
    facts = medical_images.region_facts(regions, "axial", 23, np.ones(3))
    assert facts == {"here": True, "elsewhere": False}


def test_on_grid_follows_the_world():
    coarse = medical_volumes.Volume(np.arange(27).reshape(3, 3, 3), np.diag([2.0, 2.0, 2.0, 1.0]))
    moved = np.eye(4)
    moved[:3, 3] = [2, 2, 2]
    fine = medical_volumes.on_grid(coarse, medical_volumes.Volume(np.zeros((5, 5, 5)), moved))
    assert fine[0, 0, 0] == coarse.data[1, 1, 1]
    assert fine[2, 2, 2] == coarse.data[2, 2, 2]
    assert fine[4, 4, 4] == 0


@pytest.mark.parametrize(
    ("header", "flips"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, (1, 1)),
        ({"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}, (-1, 1)),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, (1, -1)),
        ({"PatientOrientation": ["R", "F"]}, (1, -1)),
        ({"PatientOrientation": ["L", "F"]}, (1, 1)),
        ({}, (1, 1)),
    ],
)
def test_single_files_are_turned_to_convention(header, flips):
    dataset = pydicom.Dataset()
    for key, value in header.items():
        setattr(dataset, key, value)
    pixels = np.arange(6).reshape(2, 3)
    assert np.array_equal(medical_files.turned(pixels, dataset), pixels[:: flips[0], :: flips[1]])


def test_missing_dicom_file_is_named(tmp_path):
    with pytest.raises(TriptychError, match="693_UNCR"):
        list(medical_files.single_images(medical_files.SINGLES[0], tmp_path / "693_UNCR.dcm"))


def test_candidates_answer_from_the_facts():
    found = medical_questions.candidates(
        picture("a", contains={"lung": False}, lesion_body_side="Right", window="lung")
    )
    answers = {question.question: question.answer for question in found}
    assert answers["Does the picture contain lung?"] == "No"
    assert answers["On which side of the body is the labelled lesion?"] == "Right"
    assert {question.answer for question in found if question.kind == "window"} == {"Lung"}
    assert {question.answer for question in found if question.kind == "plane"} == {"Transverse Plane"}
    assert not [question for question in found if question.kind == "lesion"]  # nothing is known, nothing is asked
    assert found == medical_questions.candidates(
        picture("a", contains={"lung": False}, lesion_body_side="Right", window="lung")
    )


def test_choice_is_balanced_and_small():
    found = [picture(f"p{n}", contains={"liver": n < 20}, part="Head") for n in range(200)]
    chosen = medical_questions.choose(found)
    counts: dict[str, Counter] = defaultdict(Counter)
    for question in chosen:
        counts[question.question][question.answer] += 1
    liver = counts["Does the picture contain liver?"]
    assert liver["Yes"] == 20
    assert liver["No"] <= 30
    assert all(len(answers) > 1 for answers in counts.values())  # "Head" alone needs no look at the image
    assert max(Counter(question.image for question in chosen).values()) <= medical_questions.MAX_QUESTIONS


def test_blind_accuracy():
    assert medical_questions.blind_accuracy([("q", "a"), ("q", "a"), ("q", "b"), ("r", "c")]) == 0.75
    assert medical_questions.blind_accuracy([]) == 0


def test_every_subject_has_one_part():
    assert not set(medical_images.TEST) & set(medical_images.VALIDATION)
    subjects = {scan.subject for scan in medical.SCANS} | {single.subject for single in medical_files.SINGLES}
    assert set(medical_images.TEST) | set(medical_images.VALIDATION) <= subjects
    assert not set(medical_images.TEST) & {"brain1", "brain2", "lung1", "lung2", "mni152"}


def test_build_from_the_real_packages(tmp_path):
    """Two builds are equal byte for byte, and the set is as large and as hard to guess as it says."""
    for name in ("one", "two"):
        medical.build(CACHE, tmp_path / name)
    one, two = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two

    parts = {part: json.loads(one[f"{part}.json"]) for part in medical_images.PARTS}
    rows = [row for part in parts.values() for row in part]
    images = {row["img_name"] for row in rows}
    assert {f"imgs/{name}" for name in images} == {name for name in one if name.startswith("imgs/")}
    assert len(images) >= 200
    assert len(rows) >= 1500
    assert len({row["subject"] for row in rows}) >= 8
    assert {"CT", "MRI", "X-Ray", "Ultrasound"} == {row["modality"] for row in rows}
    assert all(set(row) == FIELDS for row in rows)
    assert len({row["qid"] for row in rows}) == len(rows)
    assert len({row["img_id"] for row in rows}) == len(images)
    assert all(row["question"] and row["answer"] for row in rows)

    subjects = [{row["subject"] for row in part} for part in parts.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects))
    assert {"brain1", "brain2", "lung1", "lung2", "mni152"} <= subjects[0] | subjects[1]
    assert medical_questions.blind_accuracy((row["question"], row["answer"]) for row in rows) < 0.6

    card = json.loads(one["card.json"])
    assert (card["pictures"], card["questions"]) == (len(images), len(rows))
    assert sum(len(part) for part in parts.values()) == sum(
        source[part]["questions"] for source in card["sources"].values() for part in medical_images.PARTS
    )
    for term in ("research only", "averages", "pyradiomics", "Left out"):
        assert term in one["card.md"].decode()

    pixels = set()
    for name in images:
        with Image.open(tmp_path / "one" / "imgs" / name) as image:
            assert (image.format, image.mode in ("L", "RGB")) == ("PNG", True)
            assert 64 <= max(image.size) <= 512
            assert np.asarray(image).std() > 5
            pixels.add(image.tobytes())
    assert len(pixels) == len(images)  # no image twice


def test_sides_in_the_real_scans(tmp_path):
    """The liver and the lesions lie where anatomy and the masks' own headers put them."""
    folder = medical.fetch("pyradiomics", CACHE) / "pyradiomics-3.0.1" / "data"
    for name, side in {"brain1": -1, "brain2": -1, "lung1": 1, "lung2": -1}.items():
        data, header = nrrd.read(str(folder / f"{name}_label.nrrd"))
        mask = medical_volumes.read_nrrd(folder / f"{name}_label.nrrd")
        raw = np.array(np.nonzero(data)).mean(axis=1) @ header["space directions"] + header["space origin"]
        ras = mask.affine @ [*np.array(np.nonzero(mask.data)).mean(axis=1), 1]
        assert np.allclose(raw * [-1, -1, 1], ras[:3])
        middle = np.array(mask.data.shape) / 2
        assert np.sign(np.nonzero(mask.data)[0].mean() - middle[0]) == side
    values = medical_volumes.read_nrrd(folder / "lung2_image.nrrd").data[:, :, 8]
    soft = (values > 30) & (values < 90)
    assert soft[256:].sum() > 1.2 * soft[:256].sum()  # the liver fills the patient's right at this height
