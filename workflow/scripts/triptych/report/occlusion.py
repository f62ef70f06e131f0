"""Pictures of where schedules look, for the report."""

import json
from dataclasses import dataclass

from PIL import Image

from triptych.config import paths
from triptych.config.study import Study
from triptych.config.wildcards import EACH
from triptych.data.image_table import ImageTable
from triptych.evaluate.occlusion import picture
from triptych.io.parquet import read_table
from triptych.utils.seeds import stable_order


@dataclass(frozen=True)
class Example:
    """Where two or more schedules look for one question.

    Attributes:
        question: the question.
        gold: the answer whose log-probability is meant.
        pictures: schedule -> the image with what each square matters, and the boxes of what is asked for.
    """

    question: str
    gold: str
    pictures: dict[str, Image.Image]


def occlusion_examples(study: Study, number: int = 4) -> list[Example]:
    """Draw where the schedules look for some held-out questions, one for each image, chosen by a seeded hash.

    Of several seeds the first is shown. Without the setting `evaluation.occlusion` there are none.
    """
    found: dict[str, dict[str, dict]] = {}
    for values in EACH["occlusion"](study):
        if values["seed"] == study.settings.seeds[0]:
            for record in read_table(study.path(paths.OCCLUSION, **values)):
                found.setdefault(record["question_id"], {})[record["arm"]] = record
    by_image = {next(iter(of.values()))["image_id"]: of for _, of in sorted(found.items(), reverse=True)}
    images = sorted(by_image, key=lambda image: stable_order(0, "example", image))[:number]
    if not images:
        return []
    table = ImageTable(study.path(paths.DATA, dataset=study.settings.folds.dataset).parent / "images")
    shown = table.images([table.image_ids.index(image) for image in images])
    examples = []
    for image, pixels in zip(images, shown, strict=True):
        of_arm = by_image[image]
        first = next(iter(of_arm.values()))
        pictures = {arm: picture(pixels, one["drops"], json.loads(one["boxes"])) for arm, one in of_arm.items()}
        examples.append(Example(first["question"], first["gold"], pictures))
    return examples
