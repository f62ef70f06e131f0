"""Questions and answers in SLAKE's style, made from the known facts of an image.

The facts (`MedicalImage.facts`), all optional: contains {structure: bool}, part, organ, window, lungs, lung_colour,
lung_side, lesion, lesion_half, lesion_picture_side, lesion_body_side, lesion_quadrant, midline,
tissue. A fact that is not clear is left out, and then nothing is asked about it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from triptych.data.sources.embedded.medical_images import MedicalImage
from triptych.utils.seeds import stable_order

SEED = 20250221
PLANES = {"axial": "Transverse Plane", "coronal": "Coronal Plane", "sagittal": "Sagittal Plane"}
MODALITIES = {"CT": "a CT", "MRI": "an MRI", "X-Ray": "an X-Ray", "Ultrasound": "an ultrasound"}
MAX_SHARE = {"CLOSED": 0.6, "OPEN": 0.66}  # of the commonest answer to one question string
MAX_QUESTIONS = 8  # for one image

PHRASES = {
    "modality": (
        "What modality is used to take this image?",
        "What modality is shown in this image?",
        "What imaging modality was used?",
    ),
    "plane": (
        "What is the scanning plane of this image?",
        "In what plane is this image scanned?",
        "What scanning plane does this image belong to?",
    ),
    "part": ("Which part of the body does this image belong to?", "Where does the picture show?"),
    "organ": ("What is the main organ in the image?", "What is the largest organ in the picture?"),
    "window": ("Which window is this CT image shown in, lung window or soft tissue window?",),
    "lungs": ("How many lungs are shown in this image?", "How many existing lungs in this image?"),
    "lung_colour": ("What color is the lung in the picture?", "What color does the lung show in the picture?"),
    "lung_side": ("Which lung is shown in this image?",),
    "lesion": (
        "Does this image pass through the labelled lesion?",
        "Does the picture contain the labelled lesion?",
    ),
    "lesion_half": ("Is the labelled lesion in the upper or the lower half of the image?",),
    "lesion_picture_side": ("On which side of the image is the labelled lesion?",),
    "lesion_body_side": ("On which side of the body is the labelled lesion?",),
    "lesion_quadrant": ("In which quadrant of the image is the labelled lesion?",),
    "midline": ("Is this slice near the midline of the head?",),
    "tissue": ("Which is bigger in this image, gray matter or white matter?",),
}

# Facts that are asked about as they are: content type, answer type.
PLAIN = {
    "part": ("Position", "OPEN"),
    "organ": ("Organ", "OPEN"),
    "window": ("Modality", "CLOSED"),
    "lungs": ("Quantity", "OPEN"),
    "lung_colour": ("Color", "OPEN"),
    "lung_side": ("Organ", "OPEN"),
    "lesion": ("Abnormality", "CLOSED"),
    "lesion_half": ("Position", "CLOSED"),
    "lesion_picture_side": ("Position", "OPEN"),
    "lesion_body_side": ("Position", "OPEN"),
    "lesion_quadrant": ("Position", "OPEN"),
    "midline": ("Position", "CLOSED"),
    "tissue": ("Size", "CLOSED"),
}

CONTAINS = "Does the picture contain {}?"
BROAD = {CONTAINS.format(name) for name in ("brain", "lung", "skull")}

# Kinds that are alike and how many of them one image gets, the most wanted first; all others come before them.
FAMILIES = (
    (("contains False",), 3),
    (("part", "organ", "contains True"), 1),
    (("plane", "is_plane"), 1),
    (("modality", "is_modality", "ct_or_mri"), 1),
)


@dataclass(frozen=True)
class Question:
    """One question about the image of that name; `kind` says which fact it asks for."""

    image: str
    kind: str
    question: str
    answer: str
    content_type: str
    answer_type: str


def candidates(image: MedicalImage) -> list[Question]:
    """Ask every question that the image's facts answer, in one phrasing of each."""
    name, found = image.name, []

    def ask(kind: str, question: str, answer: object, content_type: str, answer_type: str) -> None:
        found.append(Question(name, kind, question, answer_text(answer), content_type, answer_type))

    ask("modality", _pick(PHRASES["modality"], name, "modality"), image.modality, "Modality", "OPEN")
    for other, phrase in MODALITIES.items():
        question = _pick((f"Is this {phrase} image?", f"Is this image taken via {other}?"), name, other)
        ask("is_modality", question, other == image.modality, "Modality", "CLOSED")
    if image.modality in ("CT", "MRI"):
        ask("ct_or_mri", "Is this a CT image or an MRI image?", image.modality, "Modality", "CLOSED")
    if image.plane:
        ask("plane", _pick(PHRASES["plane"], name, "plane"), PLANES[image.plane], "Plane", "OPEN")
        for plane, answer in PLANES.items():
            word = answer.lower().removesuffix(" plane")
            question = _pick((f"Is this a {word} plane?", f"Is this a {word} section?"), name, plane)
            ask("is_plane", question, plane == image.plane, "Plane", "CLOSED")
    for kind, (content_type, answer_type) in PLAIN.items():
        if image.facts.get(kind) is not None:
            ask(kind, _pick(PHRASES[kind], name, kind), image.facts[kind], content_type, answer_type)
    for structure, present in sorted(image.facts.get("contains", {}).items()):
        ask("contains", CONTAINS.format(structure), present, "Organ", "CLOSED")
    return found


def answer_text(answer: object) -> str:
    """Write a fact as SLAKE writes answers: Yes and No, words with a capital."""
    if isinstance(answer, bool):
        return "Yes" if answer else "No"
    text = str(answer)
    return text[:1].upper() + text[1:]


def choose(images: Iterable[MedicalImage]) -> list[Question]:
    """Choose the questions of the data set: few for each image, and no question string with a dominant answer."""
    found = _trimmed([question for image in images for question in candidates(image)])
    by_image: dict[str, list[Question]] = defaultdict(list)
    for question in found:
        by_image[question.image].append(question)
    limited = [question for questions in by_image.values() for question in _limited(questions)]
    return _trimmed(limited)


def blind_accuracy(questions: Iterable[tuple[str, str]]) -> float:
    """Compute the share of right answers when every question string gets its commonest answer, without the images.

    `questions` are pairs (question, answer) of the set on which it is both counted and measured.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in questions:
        answers[question][answer] += 1
    right = sum(max(counts.values()) for counts in answers.values())
    return right / max(1, sum(counts.total() for counts in answers.values()))


def _pick(phrases: tuple[str, ...], name: str, kind: str) -> str:
    return phrases[stable_order(SEED, "phrase", name, kind)[0] % len(phrases)]


def _order(question: Question) -> bytes:
    return stable_order(SEED, "keep", question.image, question.question)


def _trimmed(questions: list[Question]) -> list[Question]:
    """Drop questions with the commonest answer until its share of its question string is small enough.

    A question string that has one answer only can be answered blindly and goes altogether.
    """
    by_string: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for question in questions:
        by_string[question.question][question.answer].append(question)
    kept: set[Question] = set()
    for answers in by_string.values():
        commonest = max(sorted(answers), key=lambda answer: len(answers[answer]))
        others = [question for answer, group in answers.items() if answer != commonest for question in group]
        if not others:
            continue
        share = MAX_SHARE[others[0].answer_type]
        room = max(1, int(len(others) * share / (1 - share)))
        kept.update(others, sorted(answers[commonest], key=_order)[:room])
    return [question for question in questions if question in kept]


def _limited(questions: list[Question]) -> Iterator[Question]:
    """Few questions of one image, the ones that need a look at the anatomy first.

    One of each kind, few of each family of `FAMILIES`, and structures that need a close look before the others.
    """
    rank = {kind: family for family, (kinds, _) in enumerate(FAMILIES) for kind in kinds}
    by_family: dict[int, list[Question]] = defaultdict(list)
    seen: set[str] = set()
    for question in sorted(questions, key=_order):
        kind = f"contains {question.question in BROAD}" if question.kind == "contains" else question.kind
        if kind not in seen or kind == "contains False":
            by_family[rank.get(kind, -1)].append(question)
        seen.add(kind)
    kept = by_family.pop(-1, [])
    for family, found in sorted(by_family.items()):
        kept += found[: FAMILIES[family][1]]
    yield from kept[:MAX_QUESTIONS]
