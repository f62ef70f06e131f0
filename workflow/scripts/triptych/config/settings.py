"""The settings of a study: what `config/*.yaml` may say, checked as a whole before anything runs.

Every field has a description; `config/schema.json`, which editors use, is generated from these models.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
)

from triptych.config.base import Record, added
from triptych.config.datasets import Dataset
from triptych.config.evaluation import Evaluation
from triptych.config.folds import Folds
from triptych.config.models import AnyModels
from triptych.config.runtime import Runtime
from triptych.config.sizes import expanded_names
from triptych.config.stages import Connector, FeatureSettings, Lora, Stage, Training
from triptych.config.texts import Line, LocalPath, Name, ResultsPath, WandbName
from triptych.io.manifest import write_json


class WeightsAndBiases(Record):
    """Charts in Weights & Biases: one run per checkpoint, from its `metrics.jsonl`."""

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline",
        description="offline: runs are written to wandb/ in the results folder, for `wandb sync`; online: they "
        "are also uploaded, from the machine on which Snakemake runs; disabled: no runs are written.",
    )
    project: WandbName = Field("triptych", description="Project in Weights & Biases.")
    entity: WandbName | None = Field(
        None, description="User or team in Weights & Biases; null: the user who is logged in."
    )


class Plan(Record):
    """Assumptions of `snakemake plan`. The defaults are those of one user on Aire."""

    tflops: float = Field(
        362, gt=0, description="Peak rate of one device in 10^12 operations per second: 362 for an L40S in bf16."
    )
    utilisation: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Fraction of the peak rate that training reaches; the rate of finished training jobs replaces it.",
    )
    at_once: PositiveInt = Field(15, description="Training jobs that run in parallel.")
    unit: Line = Field("GPU hours", description="Unit of time in the plan: one hour of one training job.")
    disk_gb: float = Field(1000, gt=0, description="Disk space available for results, in GB.")


Differences = dict[str, Any]  # some settings of a section, as they are written


class Ablation(Record):
    """A further schedule of the study, given by its differences from the base in the sections below.

    Mappings are merged with those of the base; other values replace them. If `source` or `kind` changes, its whole
    mapping is replaced. If `train` changes, the values by part of parts that no longer train are dropped.
    """

    schedule: list[Name] | None = Field(
        None, min_length=1, description="Names of the stages; null: the first schedule."
    )
    models: dict[Literal["vision_encoder", "language_model", "llava"], Differences] = Field(
        {}, description="Differences of a model. A new `repo` or `folder` drops the base's revision and prompt."
    )
    connector: Differences = Field({}, description="Differences of the projection.")
    lora: Differences = Field({}, description="Differences of the adapters.")
    stages: dict[Name, Differences] = Field({}, description="Differences of stages, by name.")


class Sweep(Record):
    """One setting with several values: each is trained as an ablation, and the tables of scale show the curve.

    With 0 samples a stage is left out. `lora.rank` takes `alpha` along, so that alpha / rank stays the base's (with
    `use_rslora` alpha stays). `connector.pool` of 1 is `mlp2x_gelu`; other values are `pooled-mlp`.
    """

    setting: Line = Field(
        description="Path of a number in `connector`, `lora`, `models` or `stages`, such as stages.1.max_samples."
    )
    also: list[Line] = Field(
        [], description="Settings that take the same value, as stages.3.fraction beside stages.2.fraction."
    )
    values: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=2, description="Its values; one that the base has is the base itself."
    )
    schedule: list[Name] | None = Field(
        None, min_length=1, description="Names of the stages; null: the first schedule."
    )


class Settings(Record):
    """A whole study."""

    __hash__ = object.__hash__  # by identity, so that what follows from a study can be cached

    pathvars: dict[Literal["results"], ResultsPath] = Field(
        {}, description="`results`: the output folder; each study needs its own."
    )
    cache: LocalPath = Field(
        "cache", description="Folder for downloads, shared by studies; TRIPTYCH_CACHE takes precedence."
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(
        min_length=1, description="Seeds; every training job runs once per seed."
    )
    models: AnyModels = Field(
        description="The two frozen models that a new connector joins, or `llava`, which has a connector of its own."
    )
    datasets: dict[Name, Dataset] = Field(min_length=1, description="Data sets by name.")
    folds: Folds
    features: FeatureSettings = Field(FeatureSettings(), description="How vision features are stored.")
    connector: Connector = Field(Connector(), description="The projection.")
    lora: Lora = Field(Lora(), description="The adapters of stages that train `lora`.")
    stages: dict[Name, Stage] = Field(min_length=1, description="Stages by name; you choose the names.")
    schedules: list[Annotated[list[Name], Field(min_length=1)]] = Field(
        min_length=1, description="Schedules, each a list of stage names in order."
    )
    ablations: dict[Name, Ablation] = Field(
        {}, description="Variants of the first or another schedule, by name; each states only its differences."
    )
    sweeps: dict[Name, Sweep] = added(
        {}, description="Curves of scale by name: one setting with several values, in tables and figures of their own."
    )
    training: Training = Field(Training(), description="Settings that affect the result of every training job.")
    runtime: Runtime = Field(Runtime(), description="How training jobs run.")
    evaluation: Evaluation = Field(Evaluation(), description="How answers are generated and compared.")
    plan: Plan = Field(Plan(), description="Assumptions of the plan; they change no result.")
    wandb: WeightsAndBiases = Field(WeightsAndBiases(), description="Charts in Weights & Biases.")
    shards: PositiveInt = Field(2, description="Processes that read and check the images of a data set in parallel.")

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
