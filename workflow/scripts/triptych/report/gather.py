"""Everything that the report shows, gathered from a study's results: tables, answers, metrics, images, provenance."""

import base64
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import pandas

from triptych.commands import estimate
from triptych.commands.jobs import WORK, jobs, seconds_taken
from triptych.config import paths
from triptych.config.arms import BASELINES, CONTROLS, HELD_OUT, view_suffix
from triptych.config.settings import Settings
from triptych.config.study import Study
from triptych.data.image_table import ImageTable
from triptych.data.rejects import causes_of, counted, summary
from triptych.evaluate.metrics import exact_match
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.tables import by_type, calibration, captions, leakage, probes, schedules, stages
from triptych.tables import transfer as transfer_table
from triptych.tables.format import NUMBER, Columns, current_names, make_table, read_csv, rows_of
from triptych.tables.runs import accuracy, group_runs

THUMBNAIL = 96  # side in pixels of the images in the browser of questions
MOST_IMAGES = 1500  # shown as thumbnails: about 4 MB
MOST_REJECTS = 50  # listed of each data set

LOOKUP = "nearest-images"
BLIND = "majority-per-question"
FEATURES = "classifier"

HIDDEN = 3  # points: a larger minimum detectable effect is a limitation of the study
LOOKS = 2  # points: a model that loses fewer with another image hardly uses the image

# Metrics that tell whether a training is healthy.
HEALTH = dict.fromkeys(("gradient_norm_max", "token_norm_ratio", "loss_spikes"), NUMBER)

# Tables that not every study has, with their columns.
OPTIONAL: dict[str, Columns] = {
    by_type.NAME: by_type.COLUMNS,
    calibration.NAME: calibration.COLUMNS,
    "probe": probes.COLUMNS,
    "leak": leakage.COLUMNS,
    "captions": captions.COLUMNS,
}


def read_records(study: Study) -> list[dict]:
    """Read the answers of all schedules and baselines to held-out questions; none that other settings left behind."""
    folds, suffix = study.grid.folds, view_suffix(HELD_OUT)
    files = [
        study.path(paths.BASELINE_PREDICTION, baseline=arm, fold=fold, view=suffix)
        for arm, fold in product(BASELINES, folds)
    ]
    files += [
        study.path(paths.PREDICTION, prefix=arm, fold=fold, seed=seed, view=suffix)
        for arm, seed, fold in product(study.grid.schedules, study.settings.seeds, folds)
    ]
    return [record for file in files for record in read_table(file)]


def read_curves(study: Study) -> pandas.DataFrame:
    """Read the metrics of every epoch of every checkpoint: a row for each schedule that the checkpoint belongs to."""
    manifests = [study.checkpoint(cell, paths.CHECKPOINT) for cell in study.grid.checkpoints]
    found = [path for path in manifests if path.exists()]
    return stages.collect(found, study.grid.lineage, {**stages.COLUMNS, **HEALTH})


def read_comparison(path: Path) -> list[dict]:
    """Read the comparison in full precision, also one that version 0.1 wrote."""
    return [current_names(row) for row in read_json(path)["comparisons"]]


def read_audit(path: Path) -> dict:
    """Read the audit of the data, also one that version 0.1 wrote."""
    audit = read_json(path)
    return {**audit, "fold_overlaps": [current_names(row) for row in audit["fold_overlaps"]]}


def accuracy_of_runs(records: Sequence[dict], names: Collection[str]) -> pandas.DataFrame:
    """Give exact match in per cent of every run of the arms named."""
    rows = [
        {"arm": arm, "run": f"{split}, seed {seed}", "fold": split, "accuracy": accuracy(answers)}
        for arm, runs in group_runs(records).items()
        if arm in names
        for (split, seed), answers in runs.items()
    ]
    return pandas.DataFrame(rows)


def questions_and_answers(records: Sequence[dict], arms: Sequence[str]) -> dict:
    """List every held-out question once, with the answer of each arm (of several seeds, that of the first).

    Returns:
        `arms`, and `rows`: question, gold answer, image, modality, content type, answers, which of them are right.
    """
    answers: dict[str, dict[str, dict]] = {}
    for arm, runs in group_runs(records).items():
        for run in runs.values():  # in the order of the seeds
            for record in run:
                answers.setdefault(record["question_id"], {}).setdefault(arm, record)
    rows = []
    for _, by_arm in sorted(answers.items()):
        asked = next(iter(by_arm.values()))
        said = [by_arm.get(arm) for arm in arms]
        rows.append(
            [
                asked["question"],
                asked["gold"],
                asked["image_id"],
                asked["modality"],
                asked["content_type"],
                [record["prediction"] if record else "" for record in said],
                [int(bool(record and exact_match(record))) for record in said],
            ]
        )
    return {"arms": list(arms), "rows": rows}


def thumbnails(data: Path, images: Sequence[str]) -> dict[str, str]:
    """Make small JPEGs of the first MOST_IMAGES images by id, as data URLs by id."""
    table = ImageTable(data / "images")
    place = {image: row for row, image in enumerate(table.image_ids)}
    wanted = [image for image in sorted(set(images)) if image in place][:MOST_IMAGES]
    found = {}
    for start in range(0, len(wanted), 100):
        part = wanted[start : start + 100]
        for name, image in zip(part, table.images([place[name] for name in part]), strict=True):
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=60)
            found[name] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return found


def limitations(
    study: Study, arms: pandas.DataFrame, comparison: Sequence[Mapping], controls: pandas.DataFrame
) -> list[str]:
    """Say what limits the study's conclusions, in sentences, from its own numbers.

    Args:
        study: the study.
        arms: the table `schedules`.
        comparison: rows of `comparison.json`; none where one schedule stands alone.
        controls: the table of controls; empty where there are none.
    """
    return [
        *_few_runs(study.settings),
        *_baselines_ahead(arms),
        *_unused_images(controls),
        *_leaking_folds(study.settings),
        *_hidden_differences(comparison),
        *_unused_test_part(study),
        *filter(None, [schedules.rules_differ(arms)]),
    ]


def _few_runs(settings: Settings) -> Iterator[str]:
    if len(settings.seeds) == 1:
        yield "One seed: the variation of a schedule from run to run is known over folds only."
    if settings.folds.number < 5:
        parts = "Only one held-out part" if settings.folds.number == 1 else f"Only {settings.folds.number} folds"
        yield f"{parts}: intervals are wide, with few degrees of freedom."


def _baselines_ahead(arms: pandas.DataFrame) -> Iterator[str]:
    reached = dict(zip(arms["arm"], arms["all_mean"], strict=True))
    trained = arms[arms["trained"]]
    best = trained["arm"].iloc[trained["all_mean"].argmax()]
    for name, what in (
        (LOOKUP, "a look-up in the three most similar images"),
        (BLIND, "the most common answer to the same question"),
        (FEATURES, "a classifier on the frozen vision features"),
    ):
        if name in reached and reached[name] >= reached[best]:
            yield (
                f"No schedule beats {what} (`{name}`, {reached[name]:.1f} %): the best is `{best}` with "
                f"{reached[best]:.1f} %."
            )


def _unused_images(controls: pandas.DataFrame) -> Iterator[str]:
    for view, unmoved in ((view, control.unmoved) for view, control in CONTROLS.items() if control.unmoved):
        known = controls.dropna(subset=[f"{view}_lost_mean"])
        for arm, lost in zip(known["arm"], known[f"{view}_lost_mean"], strict=True):
            if lost < LOOKS:
                yield f"`{arm}` loses only {lost:.1f} points {unmoved}."


def _leaking_folds(settings: Settings) -> Iterator[str]:
    if settings.folds.group == "row":
        yield "Folds are assigned by row: images of held-out questions occur in training, so all scores are too high."


def _hidden_differences(comparison: Sequence[Mapping]) -> Iterator[str]:
    hidden = [row for row in comparison if row.get("detectable") and row["detectable"] > HIDDEN]
    if len(hidden) > 3:
        least, most = (choose(row["detectable"] for row in hidden) for choose in (min, max))
        yield (
            f"In {len(hidden)} of {len(comparison)} comparisons the minimum detectable effect at 80 % power is "
            f"{least:.1f} to {most:.1f} points; smaller differences are not detected."
        )
        return
    for row in hidden:
        yield (
            f"`{row['first']}` against `{row['second']}`: the minimum detectable effect at 80 % power is "
            f"{row['detectable']:.1f} points; smaller differences are not detected."
        )


def _unused_test_part(study: Study) -> Iterator[str]:
    if not list((study.results / "predictions").glob("*/*/*-test.parquet")):
        yield "The official test part has not been used yet (`snakemake test`)."


def read_and_rejected(study: Study, data: Mapping[str, Mapping]) -> list[tuple[str, bool]]:
    """Say of each data set what was seen, accepted and rejected, and whether so much was rejected that it is a warning.

    Args:
        study: the study.
        data: counts of its data sets by name, as in the audit.
    """
    folders = {name: study.path(paths.DATA, dataset=name).parent for name in data}
    return [summary(name, counted(counts, causes_of(folders[name]))) for name, counts in data.items()]


def rejects(study: Study, name: str) -> list[dict]:
    """List what was rejected of a data set, with the reason: the first MOST_REJECTS; nothing without its tables."""
    path = study.path(paths.REJECTS, dataset=name)
    return read_table(path)[:MOST_REJECTS] if path.exists() else []


def planned_and_used(study: Study) -> list[dict]:
    """Give hours planned and used, of finished trainings by prefix, and of predictions.

    Planned is the estimate before anything ran, at the rate that the configuration assumes. Used is what Snakemake
    measured: of a job that was resumed, its last attempt alone.

    Returns:
        Rows of `what`, `jobs`, `planned`, `used`; the last is their sum.
    """
    before = estimate.hours(study, [])
    found: dict[str | None, dict] = {}
    for job in jobs(study):
        if job.rule not in WORK or not job.done or (seconds := seconds_taken(job.times)) is None:
            continue
        prefix = job.cell.prefix if job.cell else None  # a stage, too, may be called `predictions`
        row = found.setdefault(prefix, {"what": prefix or "predictions", "jobs": 0, "planned": 0.0, "used": 0.0})
        row["jobs"] += 1
        row["planned"] += before.of(job)
        row["used"] += seconds / 3600
    total = {name: sum(row[name] for row in found.values()) for name in ("jobs", "planned", "used")}
    return [*found.values(), {"what": "all", **total}] if found else []


def hours_by_step(results: Path) -> dict[str, tuple[int, float]]:
    """Give number of jobs and hours by rule, from Snakemake's benchmarks."""
    found: dict[str, tuple[int, float]] = {}
    for path in sorted((results / "benchmarks").rglob("*.jsonl")):
        rule = path.relative_to(results / "benchmarks").parts[0]
        taken = seconds_taken(path)
        if taken is not None:
            number, seconds = found.get(rule, (0, 0.0))
            found[rule] = (number + 1, seconds + taken)
    return {rule: (number, seconds / 3600) for rule, (number, seconds) in found.items()}


def provenance(study: Study) -> dict:
    """Say where the numbers come from: code, hashes of models, data and final checkpoints, hours, configuration."""
    versions, weights = set(), {}
    for cell in study.grid.checkpoints:
        path = study.checkpoint(cell, paths.CHECKPOINT)
        if path.exists():
            manifest = read_json(path)
            versions.add(manifest["code"])
            if cell.prefix in study.grid.schedules:
                weights[paths.CHECKPOINT_FOLDER.format(**vars(cell))] = manifest["files"]
    hashes = {}
    for kind in ("models", "data"):
        for path in sorted((study.results / kind).glob("*/manifest.json")):
            manifest = read_json(path)
            hashes[f"{kind}/{path.parent.name}"] = dict(sorted(manifest["files"].items()))
    return {
        "code": sorted(versions),
        "hours": hours_by_step(study.results),
        "planned": planned_and_used(study),
        "unit": study.settings.plan.unit,
        "hashes": hashes | weights,
        "settings": study.settings.model_dump(mode="json"),
    }


def transfer(study: Study) -> list[dict]:
    """Read the tables of the data sets that nothing trains on: `dataset`, `part`, rows `arms`, and `verdicts`."""
    found = []
    for name, part in study.settings.evaluation.datasets.items():
        stem = study.path(paths.TRANSFER_TABLE, table=name)
        arms = rows_of(read_csv(Path(f"{stem}.csv"), transfer_table.COLUMNS))
        verdicts = [row["verdict"] for row in read_json(Path(f"{stem}.json"))["comparisons"]]
        found.append({"dataset": name, "part": part, "arms": arms, "verdicts": verdicts})
    return found


def gather(study: Study, made: Collection[str]) -> dict:
    """Gather everything that the page needs: tables as data frames, the rest as plain values.

    Args:
        study: the study.
        made: names of its tables; others may lie there that were made with other settings.

    Raises:
        TriptychError: a table, an answer or another record is missing.
    """
    folder = study.results / "tables"
    arms = read_csv(folder / "schedules.csv", schedules.COLUMNS)
    comparison = read_comparison(folder / "comparison.json") if "comparison" in made else []
    optional = {
        name: read_csv(folder / f"{name}.csv", columns) if name in made else make_table([], columns)
        for name, columns in {"controls": schedules.control_columns(), **OPTIONAL}.items()
    }
    records = read_records(study)
    names = study.grid.schedules
    browser = questions_and_answers(records, [*names, BLIND, LOOKUP])
    data = study.path(paths.DATA, dataset=study.settings.folds.dataset).parent
    audit = read_audit(study.path(paths.AUDIT))
    return {
        "schedules": arms,
        "comparison": comparison,
        "runs": accuracy_of_runs(records, names),
        "curves": read_curves(study),
        **optional,
        "by_content": read_csv(folder / "by_content.csv", schedules.CONTENT_COLUMNS),
        "audit": audit,
        "counts": read_and_rejected(study, audit["data"]),
        "rejects": {name: found for name in audit["data"] if (found := rejects(study, name))},
        "transfer": transfer(study),
        "browser": browser,
        "thumbnails": thumbnails(data, [row[2] for row in browser["rows"]]),
        "limitations": limitations(study, arms, comparison, optional["controls"]),
        "provenance": provenance(study),
    }
