"""The settings of a study: what `config/*.yaml` may say, checked as a whole before anything runs.

Every field has a description; `config/schema.json`, which editors use, is generated from these models.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
)

from triptych.config.base import Name, Record
from triptych.config.datasets import Dataset, Folds, expanded_names
from triptych.config.evaluation import Evaluation
from triptych.config.models import Models
from triptych.config.runtime import Runtime
from triptych.config.stages import Connector, FeatureSettings, Lora, Stage, Training
from triptych.io.manifest import write_json


class WeightsAndBiases(Record):
    """Charts in Weights & Biases; a run of it is made from each checkpoint's `metrics.jsonl`."""

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline",
        description="offline: runs are written to results/wandb, to be uploaded with `wandb sync`; online: they are "
        "also uploaded, from where Snakemake runs; disabled: none are written.",
    )
    project: str = Field("triptych", min_length=1, description="Project in Weights & Biases.")
    entity: str | None = Field(None, description="Its user or team; null: the one that is logged in.")


class Plan(Record):
    """What `snakemake plan` reckons with. The defaults are those of one user on Aire."""

    tflops: float = Field(
        362, gt=0, description="Highest rate of one device, 10^12 operations a second: 362 for an L40S in bf16."
    )
    utilisation: float = Field(
        0.1, gt=0, le=1, description="Share of it that trainings use; finished trainings take its place."
    )
    at_once: PositiveInt = Field(15, description="Trainings that run side by side.")
    unit: str = Field("GPU hours", description="What an hour of one training is called.")
    disk_gb: float = Field(1000, gt=0, description="GB of disk that there are for results.")


Differences = dict[str, Any]  # some settings of a section, as they are written


class Ablation(Record):
    """A further schedule of the study, by its differences from the base: sections as above, of which only these keys.

    Mappings are merged with the base's, and other values take their places. Where `source` or `kind` changes, the
    mapping that holds it is replaced whole; where `train` does, rates and the like of parts that train no more go.
    """

    schedule: list[Name] | None = Field(
        None, min_length=1, description="Names of its stages; null: those of the first schedule."
    )
    models: dict[Literal["vision_encoder", "language_model"], Differences] = Field(
        {}, description="Differences of a model. Another `repo` or `folder` drops the base's revision and prompt."
    )
    connector: Differences = Field({}, description="Differences of the projection.")
    lora: Differences = Field({}, description="Differences of the adapters.")
    stages: dict[Name, Differences] = Field({}, description="Differences of stages, by name.")


class Settings(Record):
    """A whole study."""

    __hash__ = object.__hash__  # by identity, so that what follows from a study can be cached

    pathvars: dict[Literal["results"], str] = Field({}, description="`results`: the output folder, one for each study.")
    cache: str = Field("cache", description="Folder of downloads, shared by studies; TRIPTYCH_CACHE takes precedence.")
    seeds: list[NonNegativeInt] = Field(min_length=1, description="Every training runs once per seed.")
    models: Models
    datasets: dict[Name, Dataset] = Field(min_length=1, description="Data sets by name.")
    folds: Folds
    features: FeatureSettings = Field(FeatureSettings(), description="How vision features are kept.")
    connector: Connector = Field(Connector(), description="The projection.")
    lora: Lora = Field(Lora(), description="The adapters of stages that train `lora`.")
    stages: dict[Name, Stage] = Field(min_length=1, description="Stages by name; names are free.")
    schedules: list[Annotated[list[Name], Field(min_length=1)]] = Field(
        min_length=1, description="Each a list of stage names, in order."
    )
    ablations: dict[Name, Ablation] = Field(
        {}, description="Variants of the first schedule, or of another, by name; each states its differences only."
    )
    training: Training = Field(Training(), description="What decides the result of every training.")
    runtime: Runtime = Field(Runtime(), description="How trainings run.")
    evaluation: Evaluation = Field(Evaluation(), description="How answers are generated.")
    plan: Plan = Field(Plan(), description="What planning reckons with; it changes no result.")
    wandb: WeightsAndBiases = Field(WeightsAndBiases(), description="Charts in Weights & Biases.")
    shards: PositiveInt = Field(2, description="Processes that read and check a data set's images side by side.")

    def expanded_datasets(self) -> dict[str, Dataset]:
        """Data sets by the names that stages use: `general` with sizes [10, 30] becomes general-10 and general-30."""
        return {
            name: dataset if size is None else dataset.model_copy(update={"sizes": [size]})
            for base, dataset in self.datasets.items()
            for name, size in expanded_names(base, getattr(dataset, "sizes", None))
        }


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych schema`."""
    parser = argparse.ArgumentParser(
        prog="triptych schema", description=main.__doc__, epilog="example: triptych schema --out config/schema.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the JSON schema of the settings, with which editors check and complete configuration files."""
    arguments = build_parser().parse_args(arguments)
    write_json(arguments.out, Settings.model_json_schema(by_alias=False))


if __name__ == "__main__":
    main()
