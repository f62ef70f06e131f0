"""The data card of the embedded medical questions."""

from collections import Counter
from typing import Any

from triptych.data.sources.embedded.medical_images import PARTS, MedicalImage, part_of
from triptych.data.sources.embedded.medical_questions import blind_accuracy
from triptych.download.packages import PACKAGES

# fmt: off
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


def summary(found: list[MedicalImage], parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Count images and questions as the data card shows them."""
    rows = [row for part in PARTS for row in parts[part]]
    sources = {}
    for name in sorted({image.source for image in found}):
        mine = [image for image in found if image.source == name]
        asked = Counter(row["img_name"] for row in rows)
        sources[name] = {
            "version": PACKAGES[name].version,
            "licence": PACKAGES[name].licence,
            "subjects": sorted({image.subject for image in mine}),
            **{
                part: {
                    "pictures": sum(part_of(image.subject) == part for image in mine),
                    "questions": sum(
                        asked[f"{image.name}/source.png"] for image in mine if part_of(image.subject) == part
                    ),
                }
                for part in PARTS
            },
        }
    fields = ("modality", "location", "subject", "content_type", "answer_type")
    return {
        "pictures": len(found),
        "questions": len(rows),
        "subjects": len({image.subject for image in found}),
        "blind_accuracy": round(blind_accuracy((row["question"], row["answer"]) for row in rows), 4),
        "sources": sources,
        "questions_by": {
            part: {field: dict(sorted(Counter(row[field] for row in parts[part]).items())) for field in fields}
            for part in PARTS
        },
        "pictures_by_subject": dict(sorted(Counter(image.subject for image in found).items())),
    }


def card_text(card: dict[str, Any]) -> str:
    """Write the data card as Markdown."""
    head = ["source", "version", "licence", "subjects", *(f"{part}: pictures / questions" for part in PARTS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, source in card["sources"].items():
        counts = [f"{source[part]['pictures']} / {source[part]['questions']}" for part in PARTS]
        cells = [name, source["version"], source["licence"], ", ".join(source["subjects"]), *counts]
        lines.append("| " + " | ".join(cells) + " |")
    excluded = "\n".join(f"* {what}: {why}." for what, why in EXCLUDED)
    return CARD.format(**card, blind=card["blind_accuracy"], table="\n".join(lines), excluded=excluded)
