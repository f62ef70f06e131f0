"""Settings of answers, controls, probes and comparisons."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, WithJsonSchema

from triptych.config.arms import CONTROLS
from triptych.config.base import Record, added, former
from triptych.config.datasets import QuestionPart
from triptych.config.texts import Name


def _known_control(name: str) -> str:
    if name not in CONTROLS:
        raise ValueError(f"must be {' or '.join(map(repr, CONTROLS))}, not {name!r}")
    return name


ControlName = Annotated[str, AfterValidator(_known_control), WithJsonSchema({"enum": list(CONTROLS), "type": "string"})]


Layer = Literal["middle", "last"]


class Probe(Record):
    """Probes of image tokens for the modality, body part and organs of held-out images (arXiv 2402.16832)."""

    seeds: PositiveInt = Field(3, description="Number of times that every probe is trained.")
    hidden: PositiveInt = Field(128, description="Width of the hidden layer of the MLP probe.")
    rare: PositiveInt = Field(20, description="Values that occur on fewer images are merged into one, `other`.")
    tokens: Literal["mean", "all"] = added(
        "mean",
        description="What a probe sees of an image: the mean of its tokens, as in the paper, or all of them "
        "at their places, by random projection to the same width.",
    )
    layers: list[Layer] = added(
        [],
        description="Also probe the language model's hidden states at the image tokens, after its middle layer "
        "(`middle`) or its last one, final norm included (`last`), with the checkpoint's LoRA and without it. Every "
        "checkpoint's language model then runs once over all images, which large ones need a GPU for.",
    )


class Leak(Record):
    """The leak study: folds that separate what belongs together, compared with folds that do not."""

    groups: list[Literal["row", "image", "subject", "near-duplicate-cluster"]] = Field(
        ["row", "image", "near-duplicate-cluster"],
        min_length=2,
        description="Kinds of folds, the strictest last; inflation is relative to it. See `folds.group`.",
    )
    schedules: list[Name] = Field(
        [],
        description="Schedules, such as `2-3`, that are trained on folds of every kind. Look-ups cost nothing and are "
        "always included.",
    )


class Occlusion(Record):
    """Where models look: squares of held-out images are greyed out, one after the other."""

    images: PositiveInt = Field(
        40,
        description="Maximum number of images, of all folds together: those with organ boxes (SLAKE's detection.json) "
        "and a question that names the organ. Every image is encoded `grid` x `grid` + 1 times.",
    )
    questions: PositiveInt = Field(4, description="Maximum number of questions about an image.")
    grid: int = Field(7, ge=2, le=32, description="Number of squares along each side of an image.")


class Evaluation(Record):
    """How answers are generated and compared."""

    max_new_tokens: PositiveInt = Field(
        32, description="Maximum length of an answer in tokens; it never depends on the gold answer."
    )
    batch_size: PositiveInt = Field(64, description="Questions answered in one batch.")
    max_questions: PositiveInt | None = Field(
        None,
        description="Maximum number of held-out (over all folds) or test questions, for a quick trial of a "
        "configuration. Whole images are selected by a seeded hash, the same for every arm and control; null: all.",
    )
    constrained: bool = added(
        False,
        description="Also keep, of every held-out or test question, the answer among those that the fold trains on: "
        "chosen greedily, token by token. It is a column of its own beside the free answers, which decide all else.",
    )
    captions: PositiveInt | None = Field(
        200, description="Number of validation captions to generate after stages on captions; null: none."
    )
    controls: list[ControlName] = Field(
        ["swapped", "blank"],
        description="Ask every finished schedule again with another image (`swapped`), with another one of the same "
        "modality and body part (`swapped-alike`), both of another subject, and with a grey one (`blank`): a model "
        "that uses the image scores lower. `swapped-alike` leaves out, and counts, questions whose image is the only "
        "one of its kind.",
    )
    probe: Probe | None = Field(Probe(), description="Probes of the image tokens of every checkpoint; null: none.")
    occlusion: Occlusion | None = added(
        None,
        description="Measure by occlusion whether schedules look at the organ that a question asks for; null: off.",
    )
    leak: Leak | None = Field(
        Leak(), description="Measures how many points leaking folds would add; null: off. Not with official folds."
    )
    datasets: dict[Name, QuestionPart] = added(
        {},
        description="Transfer: data sets that no stage trains on, each with the part whose questions every finished "
        "schedule is asked, such as `{vqa-rad: test}`. They have tables of their own, tables/transfer/.",
    )
    primary: Name | None = Field(
        None,
        description="The schedule that the first one is compared with primarily, without correction for the number of "
        "comparisons; all others are corrected (Holm). Choose it before you see results; null: the second schedule.",
    )
    equivalence_margin: float = former(
        "rope",
        1.0,
        gt=0,
        description="Differences below this number of points count as none. Choose it before you see results.",
    )
