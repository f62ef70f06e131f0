"""Settings of answers, controls, probes and comparisons."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, WithJsonSchema

from triptych.config.arms import CONTROLS
from triptych.config.base import Record, former


def _known_control(name: str) -> str:
    if name not in CONTROLS:
        raise ValueError(f"must be {' or '.join(map(repr, CONTROLS))}, not {name!r}")
    return name


ControlName = Annotated[str, AfterValidator(_known_control), WithJsonSchema({"enum": list(CONTROLS), "type": "string"})]


class Probe(Record):
    """Probes of what image tokens hold: modality, body part and organs of held-out images (arXiv 2402.16832)."""

    seeds: PositiveInt = Field(3, description="Every probe is trained so many times.")
    hidden: PositiveInt = Field(128, description="Width of the MLP probe's one hidden layer.")
    rare: PositiveInt = Field(20, description="Values that fewer images have count as one, `other`.")


class Leak(Record):
    """The leak study: folds that cut what belongs together, beside folds that do not."""

    groups: list[Literal["row", "image", "subject", "near-duplicate-cluster"]] = Field(
        ["row", "image", "near-duplicate-cluster"],
        min_length=2,
        description="Kinds of folds, the strictest last: inflation is counted from it. See `folds.group`.",
    )
    schedules: list[str] = Field(
        [],
        description="Schedules, such as `2-3`, that are trained on the folds of every kind. Look-ups, which cost "
        "nothing, answer in any case.",
    )


class Evaluation(Record):
    """How answers are generated."""

    max_new_tokens: PositiveInt = Field(32, description="Longest answer in tokens; never taken from the gold answer.")
    batch_size: PositiveInt = Field(64, description="Questions answered at a time.")
    max_questions: PositiveInt | None = Field(
        None,
        description="Most questions that are asked, of all folds together, in every view: whole images, chosen by a "
        "seeded hash, the same for every arm; null: all. For a quick trial of a configuration.",
    )
    captions: PositiveInt | None = Field(
        200, description="Validation captions that stages on captions are scored on, by generating them; null: none."
    )
    controls: list[ControlName] = Field(
        ["swapped", "blank"],
        description="Ask every finished schedule again with another image, and with a grey one: a model that looks "
        "loses by it.",
    )
    probe: Probe | None = Field(Probe(), description="Probes of every checkpoint's image tokens; null: none.")
    leak: Leak | None = Field(
        Leak(), description="How many points folds that leak would add; null: no such study. Not with official folds."
    )
    equivalence_margin: float = former(
        "rope",
        1.0,
        gt=0,
        description="Differences below so many points count as none. Settle it before you see results.",
    )
