"""What answers beside trained models, and with which image trained models are asked: an entry each, and nothing more.

Rules, jobs, plan, tables and report go through these entries. The functions that they name are loaded when they are
called, so that a dry run imports neither torch nor numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal, get_args

from triptych.config.datasets import QuestionPart

# What is probed beside checkpoints: vision features as they are, and behind a connector that nothing has trained.
PRE_PROJECTION = "pre-projection"
RANDOM_CONNECTOR = "random-connector"


@dataclass(frozen=True)
class Baseline:
    """What answers out of the training part, without a language model.

    Attributes:
        function: `module:name` of what makes it: (rows of the training part, vectors by image id) -> (row -> answer);
            where it is fitted, rows of the validation part are a third argument.
        vectors: which vectors of images it compares: 32 x 32 thumbnails; mean vision features, less the mean of all
            images and of length 1; the same as they are; or none.
        leak_study: it answers on the folds of every kind of the leak study, too.
        fitted: it is more than a look-up: the validation part chooses a setting of it. The audit leaves it out.
        in_domain: it answers a data set of `evaluation.datasets` out of that data set's own training part, too.
        answer: what it answers, in words; "" is left unsaid.
    """

    function: str
    vectors: Literal["thumbnails", "features", "plain features"] | None = None
    leak_study: bool = False
    fitted: bool = False
    in_domain: bool = False
    answer: str = ""

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        return resolve_name(self.function)


BASELINES: dict[str, Baseline] = {
    "majority": Baseline(
        "triptych.data.lookups:majority",
        in_domain=True,
        answer="the commonest answer of all",
    ),
    "majority-per-question": Baseline(
        "triptych.data.lookups:majority_per_question",
        leak_study=True,
        in_domain=True,
        answer="the commonest answer to the same question",
    ),
    "majority-per-place": Baseline(
        "triptych.data.lookups:majority_per_place",
        answer="the commonest answer to the same question for the same modality and body part, which it is told",
    ),
    "nearest-images": Baseline(
        "triptych.data.lookups:nearest",
        "thumbnails",
        leak_study=True,
        answer="the answer to the same question about the three images most alike, as small grey pictures",
    ),
    "nearest-features": Baseline(
        "triptych.data.lookups:nearest",
        "features",
        answer="the answer to the same question about the three images with the most similar vision features",
    ),
    "classifier": Baseline(
        "triptych.evaluate.classifier:classifier",
        "plain features",
        fitted=True,
        answer="the answer that a classifier of question and vision features chooses",
    ),
    "classifier-blind": Baseline(
        "triptych.evaluate.classifier:classifier",
        fitted=True,
        answer="the answer that the same classifier chooses without the image",
    ),
}


def reserved_names() -> dict[str, str]:
    """Give the names that a trained arm must not have, in tables and paths, with what has them already."""
    probes = {PRE_PROJECTION: "the probe of vision features", RANDOM_CONNECTOR: "the probe of an untrained connector"}
    return dict.fromkeys([*BASELINES, *in_domain_arms().values()], "a baseline") | probes


def in_domain_arms() -> dict[str, str]:
    """Name the baselines out of a data set's own training part, by the names of the baselines."""
    return {name: f"{name}-in-domain" for name, baseline in BASELINES.items() if baseline.in_domain}


@dataclass(frozen=True)
class Control:
    """A view of the held-out questions with other images than their own: a model that looks loses by it.

    Attributes:
        function: `module:name` of what says which images are shown, and whose questions are left out: (rows of the
            question table, features, folder of the vision encoder, device) -> `evaluate.controls.Shown`.
        heading: what the tables call the images.
        note: what the page says of them, after "with".
        unmoved: what the page says of schedules that are not shown to lose points; "" for nothing.
    """

    function: str
    heading: str
    note: str
    unmoved: str = ""

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        return resolve_name(self.function)


CONTROLS: dict[str, Control] = {
    "swapped": Control(
        "triptych.evaluate.controls:swapped",
        "another image",
        "another image",
        "with another image: use of the image is not shown",
    ),
    "swapped-alike": Control(
        "triptych.evaluate.controls:swapped_alike",
        "another of its kind",
        "another image of the same modality and body part (a drop that is more than chance comes from what is seen "
        "beyond these two)",
        "with another image of the same modality and body part: use of more than these two is not shown",
    ),
    "blank": Control("triptych.evaluate.controls:blank", "blank image", "a blank (grey) image"),
}

# Views of questions: a fold's held-out ones with their own images, or with those of a control; the source's own test
# part; captions of the validation part of a stage's own data. Of another data set, any part may be asked.
HELD_OUT, TEST, CAPTIONS = "held-out", "test", "captions"
PARTS: tuple[str, ...] = get_args(QuestionPart)


def question_views() -> tuple[str, ...]:
    """Name all views of questions."""
    return (HELD_OUT, *CONTROLS, TEST)


def view_suffix(view: str) -> str:
    """Give the ending of the name of a view's file of answers: '', '-swapped', '-blank', '-test'."""
    return "" if view == HELD_OUT else f"-{view}"
