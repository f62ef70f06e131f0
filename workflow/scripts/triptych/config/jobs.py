"""What each step is given as its job: built here from a study for the rules, and checked by the step that reads it.

A job's text holds all settings that decide the step's result, and depends on nothing else. Snakemake records it: a step
runs again when its text changes, and only then.
"""

import json
from functools import cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, PositiveInt

from triptych.config.arms import CAPTIONS, HELD_OUT, PARTS, question_views
from triptych.config.base import Precision, Record, added
from triptych.config.evaluation import Layer, Occlusion, Probe
from triptych.config.grid import Checkpoint
from triptych.config.settings import WeightsAndBiases
from triptych.config.stages import Connector, Lora, Stage, Training
from triptych.config.study import Study
from triptych.io.manifest import canonical_json, sha256_file


def _known_view(view: str) -> str:
    known = tuple(dict.fromkeys((*question_views(), CAPTIONS, *PARTS)))
    if view not in known:
        raise ValueError(f"must be one of {', '.join(known)}, not {view!r}")
    return view


View = Annotated[str, AfterValidator(_known_view)]


class JobSettings(Record):
    """Base of all jobs."""

    def text(self) -> str:
        """Write the job as JSON with sorted keys, under the names that settings had when finished studies ran."""
        return canonical_json(self.model_dump(by_alias=True, mode="json"))


class TrainingJob(JobSettings):
    """One training: one stage of one schedule, on one split, with one seed."""

    prefix: str
    split: str
    seed: int
    stage_name: str
    stage: Stage
    connector: Connector
    lora: Lora | None
    training: Training

    @classmethod
    def of(cls, study: Study, cell: Checkpoint) -> Self:
        """Build the job of one checkpoint."""
        settings, stage = study.grid.settings_of(cell.prefix), study.grid.stage_of(cell.prefix)
        return cls(
            prefix=cell.prefix,
            split=cell.split,
            seed=cell.seed,
            stage_name=study.grid.last_stage(cell.prefix),
            stage=stage,
            connector=settings.connector,
            lora=settings.lora if "lora" in stage.train else None,
            training=settings.training,
        )


class PredictionJob(JobSettings):
    """How one checkpoint answers. Which views it is asked is no part of it: a new view asks no other one again."""

    precision: Precision
    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    limit: PositiveInt | None = None  # see `data.questions.asked_questions`
    constrained: bool = added(False)  # of controls, `Respondent` leaves it

    @classmethod
    def of(cls, study: Study, view: str) -> Self:
        """Build the job of a view: captions have a limit of their own, all others are alike."""
        evaluation = study.settings.evaluation
        return cls(
            precision=study.settings.training.precision,
            max_new_tokens=evaluation.max_new_tokens,
            batch_size=evaluation.batch_size,
            limit=evaluation.captions if view == CAPTIONS else evaluation.max_questions,
            constrained=evaluation.constrained and view != CAPTIONS,
        )

    def text(self) -> str:
        """Write the job as `JobSettings.text` does, without a limit where there is none."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))


class ProbeJob(JobSettings):
    """The probes of one representation; `layer` and `lora` are those of `grid.Representation`."""

    representation: str
    seed: int
    connector: Connector
    probe: Probe
    layer: Layer | None = None
    lora: bool = True

    @classmethod
    def of(cls, study: Study, representation: str, seed: int) -> Self:
        """Build the job of a representation."""
        found = study.grid.representations[representation]
        settings = study.grid.settings_of(found.of) if found.of in study.grid.prefixes else study.settings
        return cls(
            representation=representation,
            seed=seed,
            connector=settings.connector,
            probe=study.settings.evaluation.probe,
            layer=found.layer,
            lora=found.lora,
        )

    def text(self) -> str:
        """Write the job as `JobSettings.text` does, with `layer` and `lora` only where there is a layer.

        `probe.layers` names other jobs, so that a further layer probes nothing else again.
        """
        unsaid = {"probe": {"layers"}} | ({} if self.layer else dict.fromkeys(("layer", "lora"), True))
        return canonical_json(self.model_dump(by_alias=True, mode="json", exclude=unsaid))


class OcclusionJob(JobSettings):
    """The occlusion of held-out images for one checkpoint."""

    precision: Precision
    occlusion: Occlusion

    @classmethod
    def of(cls, study: Study) -> Self:
        """Build the job of a study."""
        return cls(precision=study.settings.training.precision, occlusion=study.settings.evaluation.occlusion)


class WandbJob(JobSettings):
    """The runs of Weights & Biases."""

    schedules: dict[str, list[str]]
    wandb: WeightsAndBiases

    @classmethod
    def of(cls, study: Study) -> Self:
        """Build the job of a study."""
        return cls(schedules=study.grid.lineage, wandb=study.settings.wandb)


@cache
def _training_template(study: Study, prefix: str) -> dict[str, Any]:
    """Give what the jobs of a prefix's trainings have in common; made once, because large grids have thousands."""
    return json.loads(TrainingJob.of(study, Checkpoint(prefix, "", 0)).text())


def training_text(study: Study, cell: Checkpoint) -> str:
    """Write the job of one checkpoint, as `TrainingJob.text` does."""
    return canonical_json(_training_template(study, cell.prefix) | {"split": cell.split, "seed": cell.seed})


@cache
def prediction_text(study: Study, view: str) -> str:
    """Write the job of a view."""
    return PredictionJob.of(study, view).text()


def transfer_text(study: Study) -> str:
    """Write the job of a data set that nothing trains on: as for the study's own, but free answers alone."""
    return PredictionJob.of(study, HELD_OUT).model_copy(update={"constrained": False}).text()


def folds_text(study: Study, group: str = "") -> str:
    """Write the settings that cut folds; those of the leak study are of another `group`."""
    other: dict[str, Any] = {"group": group} if group else {}
    return canonical_json(study.settings.folds.model_dump(exclude={"shared_stages"}) | other)


def sweeps_text(study: Study) -> str:
    """Write the sweeps: name -> setting, and pairs of a value and its schedule, ascending."""
    found = {
        name: {"setting": sweep.setting, "arms": list(study.grid.sweeps[name].items())}
        for name, sweep in study.settings.sweeps.items()
    }
    return canonical_json(list(found.items()))


def dataset_text(study: Study, name: str) -> str:
    """Write the settings of a data set."""
    return canonical_json(study.datasets[name].model_dump(mode="json", by_alias=True))


def tables_text(study: Study, name: str) -> str:
    """Write the SHA-256 of each table file that a data set's local source names, so that a changed table is noticed."""
    files = study.datasets[name].local_tables()
    return canonical_json({file.name: sha256_file(file) for file in files if file.is_file()})


def model_text(study: Study, name: str) -> str:
    """Write the settings of a model: the base's, or those of the ablation that its tag names."""
    return canonical_json(study.grid.models[name].model_dump())
