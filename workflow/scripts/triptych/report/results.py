"""A study's results in one file, `results.json`: what its page shows as numbers, under one schema."""

import argparse
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from triptych.config import paths
from triptych.config.study import Study, read_study
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import write_text
from triptych.report import answer
from triptych.report.gather import gather
from triptych.tables import by_type, calibration
from triptych.tables.format import rows_of

SCHEMA = "triptych-results/1"
TABLES = ("schedules", "controls", "comparison", by_type.NAME, calibration.NAME, "captions", "leak", "probe")

Number = float | None


class Part(BaseModel):
    """Base of all parts of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Stage(Part):
    """A stage that a schedule uses."""

    name: str
    data: str = Field(description="name of its data set")
    train: list[str] = Field(description="parts that train")
    epochs: int | None
    best: bool = Field(False, description="the epoch that is best on the validation part is kept, not the last")
    fraction: float = Field(1.0, description="of the training part")
    max_samples: int | None = Field(None, description="at most so many samples of the training part")


class Arm(Part):
    """What one arm reaches on the held-out questions, in per cent of exact match."""

    arm: str
    trained: bool = Field(description="false: a look-up or classifier without a language model")
    questions: int
    folds: int
    seeds: int
    accuracy: float = Field(description="mean over all answers")
    low: Number = Field(description="lower end of its 95 % interval; null where it is unknown")
    high: Number
    open: Number = Field(description="mean over runs, of open questions")
    closed: Number
    yes_no: Number


class Difference(Part):
    """The first schedule minus another, in points of exact match."""

    first: str
    second: str
    effect: float
    low: Number
    high: Number
    p: Number
    p_holm: Number = Field(description="corrected for the number of comparisons; the first comparison is not")
    equivalence_margin: float
    detectable: Number = Field(description="minimum detectable effect at 80 % power")
    runs: int
    folds: int
    verdict: str


class Lost(Part):
    """Points that a schedule loses with other images."""

    arm: str
    view: str = Field(description="swapped, swapped-alike, blank")
    effect: float
    low: Number
    high: Number
    p: Number
    p_holm: Number = Field(None, description="corrected for the number of all schedules and controls")


class AboveLookup(Part):
    """Points of a schedule above an arm that is not trained."""

    arm: str
    lookup: str
    effect: float
    low: Number
    high: Number
    p: Number
    p_holm: Number = Field(description="corrected for the number of all pairs")


class ByContent(Part):
    """Exact match of an arm on questions of one kind, in per cent, mean over runs."""

    arm: str
    aspect: str = Field(description="modality, location, content_type or answer_type")
    value: str
    questions: int
    accuracy: Number


class Card(Part):
    """One more question about the study, and its answer in plain words."""

    question: str
    short: str
    text: str


class Results(Part):
    """The file."""

    format: Literal["triptych-results/1"]
    question: str
    answer: str = Field(description="in plain words")
    caveat: str = Field("", description="what all runs behind the answer share by chance; empty where nothing is known")
    verdict: str = Field(description="in statistical words; empty where nothing is compared")
    cards: list[Card] = Field([], description="does it look at the image, does it beat a look-up, what could be found")
    code: list[str] = Field(description="versions of Triptych that trained")
    data: dict[str, str] = Field({}, description="what each data set is, by name")
    dataset: str = Field(description="the data set whose questions are asked")
    questions: int
    images: int
    subjects: int = Field(description="groups of images that folds keep together")
    subjects_named: bool = Field(True, description="the data name subjects; false: folds cannot keep them together")
    folds: int
    seeds: list[int]
    models: dict[str, str] = Field(description="vision encoder and language model")
    stages: list[Stage]
    schedules: list[str]
    arms: list[Arm]
    comparisons: list[Difference]
    lost: list[Lost]
    above_lookups: list[AboveLookup]
    by_content: list[ByContent]


def model_name(settings: Any) -> str:
    """Name a model as its settings do: repository and revision, package or folder."""
    named = settings.model_dump()
    for key in ("repo", "package", "folder"):
        if named.get(key):
            revision = named.get("revision")
            return f"{Path(str(named[key])).name if key == 'folder' else named[key]}" + (
                f" at {revision[:12]}" if revision else ""
            )
    return named["source"]


def data_name(settings: Any) -> str:
    """Say what a data set is: what its source says of itself, and repository, folder or table."""
    named, about = settings.model_dump(), str(inspect.getdoc(type(settings))).partition("\n")[0].rstrip(".")
    place = next((str(named[key]) for key in ("repo", "folder", "table") if named.get(key)), None)
    return f"{about} ({Path(place).name if named.get('folder') else place})" if place else about


def results(study: Study, gathered: Mapping[str, Any]) -> Results:
    """Make the file's content of what `gather` found."""
    comparison, arms = gathered["comparison"], rows_of(gathered["schedules"])
    settings, known = study.settings, gathered["accuracies"]

    def chosen(part: type[Part], row: Mapping[str, Any], **more: Any) -> Any:
        return part(**{name: row.get(name) for name in part.model_fields if name not in more}, **more)

    def of_arm(row: Mapping[str, Any]) -> Arm:
        found = known.get(row["arm"], {"mean": row["all_mean"], "low": None, "high": None})
        means = {name: row[f"{name}_mean"] for name in ("open", "closed", "yes_no")}
        return chosen(Arm, row, accuracy=found["mean"], low=found["low"], high=found["high"], **means)

    def of_stage(name: str) -> Stage:
        stage = settings.stages[name]
        limits = {"fraction": stage.fraction, "max_samples": stage.max_samples}
        limits["best"] = stage.select == "best"
        return Stage(name=name, data=stage.data, train=list(stage.train), epochs=stage.epochs, **limits)

    return Results(
        format=SCHEMA,
        question=answer.question(study, comparison),
        answer=answer.plain_answer(study, comparison, arms),
        caveat=answer.caveat(study, comparison),
        verdict=comparison[0]["verdict"] if comparison else "",
        cards=[chosen(Card, card) for card in answer.cards(gathered, study.grid.schedules)],
        code=gathered["provenance"]["code"],
        data={name: data_name(study.datasets[name]) for name in study.grid.used_datasets},
        dataset=settings.folds.dataset,
        questions=arms[0]["questions"],
        images=gathered["images"],
        subjects=gathered["subjects"],
        subjects_named=gathered["subjects_named"],
        folds=len(study.grid.folds),
        seeds=settings.seeds,
        models={role: model_name(getattr(settings.models, role)) for role in ("vision_encoder", "language_model")},
        stages=[of_stage(name) for name in study.grid.used_stages],
        schedules=study.grid.schedules,
        arms=[of_arm(row) for row in arms],
        comparisons=[chosen(Difference, row) for row in comparison],
        lost=[chosen(Lost, row) for row in gathered["lost"]],
        above_lookups=[chosen(AboveLookup, row) for row in gathered["above_lookups"]],
        by_content=[
            chosen(ByContent, row, value=row["value"] or "", accuracy=row["mean"])
            for row in rows_of(gathered["by_content"])
        ],
    )


def images_asked(found: Results) -> str:
    """Say what held-out questions are about: '546 images of 30 subjects or groups of images'."""
    images = f"{found.images:,} image{'' if found.images == 1 else 's'}"
    if found.subjects_named:  # with folds by row, each question is a group of its own
        return (
            f"{images} of {found.subjects:,} subjects or groups of images" if found.subjects <= found.images else images
        )
    groups = f" in {found.subjects:,} groups" if found.subjects < found.images else ""
    return f"{images}{groups} (the data name no subjects)"


def as_text(found: Results) -> str:
    """Write the file."""
    return found.model_dump_json(indent=1) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych export-results`."""
    parser = argparse.ArgumentParser(
        prog="triptych export-results",
        description=main.__doc__.replace("`", ""),
        epilog="example: triptych export-results --configfile config/demo.yaml --out demo-results.json",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--configfile", type=Path, help="configuration of a finished study")
    what.add_argument("--schema", action="store_true", help="print the JSON schema of the file instead")
    parser.add_argument("--out", type=Path, help="file to write; results.json in the results folder by default")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the numbers of a finished study as one file, `results.json`, which reports compare themselves with."""
    options = build_parser().parse_args(arguments)
    if options.schema:
        print(json.dumps(Results.model_json_schema(), indent=1))
        return
    study = read_study(options.configfile)
    made = {name for name in TABLES if study.path(paths.TABLE, table=f"{name}.csv").exists()}
    if "schedules" not in made:
        raise TriptychError(f"{study.path(paths.TABLE, table='schedules.csv')}: missing; run the study first")
    out = options.out or study.path(paths.RESULTS)
    write_text(out, as_text(results(study, gather(study, made))))
    print(f"{out}: written", flush=True)


if __name__ == "__main__":
    run_step(main)
