"""Settings of the folds."""

from typing import Literal

from pydantic import Field, model_validator

from triptych.config.base import Record, added
from triptych.config.texts import Name


class Folds(Record):
    """Cross-validation over the train and validation parts of one data set; its test part is not used."""

    dataset: Name = Field(description="Data set that is divided into folds; stages on it run once per fold.")
    number: int = Field(3, ge=1, description="Number of folds; 1 with the official parts, at least 2 otherwise.")
    group: Literal["subject", "image", "near-duplicate-cluster", "row", "official"] = Field(
        "subject",
        description="What stays on one side of a fold, training or held-out. subject: the source's subjects, or images "
        "if it names none; image: images with their exact copies; near-duplicate-cluster: subjects and images that "
        "look alike; row: nothing, which leaks images and serves to measure the leak; official: one fold of the "
        "source's own parts, which holds out its validation part.",
    )
    near_duplicate: float = Field(
        0.98, gt=0, lt=1, description="Correlation of 32 x 32 grey thumbnails above which two images look alike."
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Fraction of each fold's training groups that is set aside for validation."
    )
    validation_unit: Literal["group", "image"] = Field(
        "group", description="Set aside whole groups, or single images if groups are too few and too large."
    )
    seed: int = Field(0, description="Seed of the assignment to folds.")
    shared_stages: Literal["once", "per-fold"] = added(
        "once",
        description="How often first stages on other data, which all folds share, are trained. once: once per seed, so "
        "that all folds share one draw of them; per-fold: once per fold and seed, on the same data with another "
        "initial connector, order of samples and dropout, so that runs do not depend on one draw.",
    )

    @model_validator(mode="after")
    def _number_fits(self) -> "Folds":
        if (self.number == 1) != (self.group == "official"):
            raise ValueError("number must be 1 with group official, and at least 2 with any other")
        return self
