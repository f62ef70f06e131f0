"""What the report shows, gathered from a study's results: tables, records of answers, metrics, images, provenance."""

import base64
import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

from triptych.commands import estimate
from triptych.commands.jobs import WORK, jobs, seconds_taken
from triptych.config import paths
from triptych.config.arms import BASELINES
from triptych.config.study import Study
from triptych.data.image_table import ImageTable
from triptych.errors import TriptychError
from triptych.evaluate.metrics import exact_match, scores
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.tables.runs import group_runs
from triptych.tables.stages import COLUMNS, collect

THUMBNAIL = 96  # side in pixels of the images in the browser of questions


MOST_IMAGES = 1500  # that are shown: about 4 MB


MOST_REJECTS = 50  # of each data set that are listed


LOOKUP = "nearest-images"


BLIND = "majority-per-question"


# Columns of words; all others are numbers.
TEXT = {"arm", "trained", "aspect", "value", "representation", "attribute", "probe", "reference", "folds_by", "prefix"}


HEALTH = ("gradient_norm_max", "token_norm_ratio", "loss_spikes")


def table(path: Path) -> list[dict]:
    """Rows of a CSV table, numbers as numbers, empty cells as None.

    Raises:
        TriptychError: there is no such table.
    """
    if not path.exists():
        raise TriptychError(f"{path}: missing; run the study first")
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(name: str, text: str) -> str | float | None:
    if name in TEXT:  # where a stage may be called 1
        return text
    return float(text) if text else None


def read_records(study: Study) -> list[dict]:
    """Answers of all schedules and baselines to their folds' held-out questions; not what earlier settings left."""
    runs = [(arm, "untrained") for arm in BASELINES]
    runs += [(arm, f"seed{seed}") for arm in study.grid.schedules for seed in study.settings.seeds]
    return [
        record
        for arm, run in runs
        for fold in study.grid.folds
        for record in read_table(study.results / f"predictions/{arm}/{fold}/{run}.parquet")
    ]


def read_curves(study: Study) -> list[dict]:
    """Metrics of every epoch of every checkpoint, an entry for each schedule that passes through it."""
    manifests = [study.checkpoint(cell, paths.CHECKPOINT) for cell in study.grid.checkpoints]
    return collect([path for path in manifests if path.exists()], study.grid.lineage, (*COLUMNS[5:], *HEALTH))


def questions_and_answers(records: Sequence[dict], arms: Sequence[str]) -> dict:
    """Every held-out question once, with the answer of each arm (of several seeds, the first one's).

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
    """Small JPEGs of images by id, as data URLs; of the first MOST_IMAGES by id."""
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


def weaknesses(
    study: Study,
    schedules: Sequence[dict],
    comparison: Sequence[dict],
    controls: Sequence[dict],
) -> list[str]:
    """What a reader should hold against the study, in sentences, from its own numbers."""
    found = []
    by_arm = {row["arm"]: row for row in schedules}
    trained = [row for row in schedules if row["trained"] == "True"]
    best = max(trained, key=lambda row: row["all_mean"])
    seeds = len(study.settings.seeds)
    if seeds == 1:
        found.append("One seed: how much a schedule varies from run to run is known over folds only.")
    if study.settings.folds.number < 5:
        parts = (
            "one part is held out" if study.settings.folds.number == 1 else f"only {study.settings.folds.number} folds"
        )
        found.append(f"{parts[0].upper()}{parts[1:]}: the interval is wide, and the degrees of freedom are few.")
    for name, what in ((LOOKUP, "a look-up of the three images most alike"), (BLIND, "the commonest answer")):
        if name in by_arm and by_arm[name]["all_mean"] >= best["all_mean"]:
            found.append(
                f"No schedule beats {what} (`{name}`, {by_arm[name]['all_mean']:.1f} %): the best is `{best['arm']}` "
                f"with {best['all_mean']:.1f} %."
            )
    for row in controls:
        lost = row.get("swapped_lost_mean")
        if lost is not None and lost < 2:
            found.append(f"`{row['arm']}` loses {lost:.1f} points only with another image: it hardly looks.")
    if study.settings.folds.group == "row":
        found.append("Folds cut rows: images were seen in training, and all numbers are too high.")
    hidden = [row for row in comparison if row.get("detectable") and row["detectable"] > 3]
    if len(hidden) > 3:
        least, most = (choose(row["detectable"] for row in hidden) for choose in (min, max))
        found.append(
            f"{len(hidden)} of {len(comparison)} comparisons would find differences of {least:.1f} to {most:.1f} "
            "points in 4 cases of 5; smaller ones stay hidden."
        )
    else:
        found += [
            f"`{row['first']}` against `{row['second']}` would find a difference of {row['detectable']:.1f} points "
            "in 4 cases of 5; smaller ones stay hidden."
            for row in hidden
        ]
    if not list((study.results / "predictions").glob("*/*/*-test.parquet")):
        found.append("The source's own test part has not been looked at yet (`snakemake test`).")
    return found


def rejects(study: Study, name: str) -> list[dict]:
    """What was not used of a data set, with the reason: the first MOST_REJECTS; none where its tables are gone."""
    path = study.path(paths.REJECTS, dataset=name)
    return read_table(path)[:MOST_REJECTS] if path.exists() else []


def planned_and_used(study: Study) -> list[dict]:
    """Hours of finished trainings by prefix, and of predictions: planned before anything ran, and used.

    Planned is the plan's estimate at the rate that the configuration assumes; used is what Snakemake's benchmarks say,
    which know the last attempt alone of a job that was resumed.

    Returns:
        Rows of `what`, `jobs`, `planned`, `used`; the last is their sum.
    """
    before = estimate.hours(study, [])
    found: dict[str, dict] = {}
    for job in jobs(study):
        if job.rule not in WORK or not job.output.exists() or (seconds := seconds_taken(job.times)) is None:
            continue
        what = job.cell.prefix if job.cell else "predictions"
        row = found.setdefault(what, {"what": what, "jobs": 0, "planned": 0.0, "used": 0.0})
        row["jobs"] += 1
        row["planned"] += before.of(job)
        row["used"] += seconds / 3600
    total = {name: sum(row[name] for row in found.values()) for name in ("jobs", "planned", "used")}
    return [*found.values(), {"what": "all", **total}] if found else []


def provenance(study: Study) -> dict:
    """Where the numbers come from: code, hashes of models, data and final checkpoints, times, the configuration."""
    versions, hours, weights = set(), {}, {}
    for cell in study.grid.checkpoints:
        path = study.checkpoint(cell, paths.CHECKPOINT)
        if path.exists():
            manifest = read_json(path)
            versions.add(manifest["code"])
            if cell.prefix in study.grid.schedules:
                weights[paths.CHECKPOINT_FOLDER.format(**vars(cell))] = manifest["files"]
    for path in sorted((study.results / "benchmarks").rglob("*.jsonl")):
        rule = path.relative_to(study.results / "benchmarks").parts[0]
        taken = seconds_taken(path)
        if taken is not None:
            jobs, seconds = hours.get(rule, (0, 0.0))
            hours[rule] = (jobs + 1, seconds + taken)
    hashes = {}
    for kind in ("models", "data"):
        for path in sorted((study.results / kind).glob("*/manifest.json")):
            manifest = read_json(path)
            hashes[f"{kind}/{path.parent.name}"] = dict(sorted(manifest["files"].items()))
    return {
        "code": sorted(versions),
        "hours": {rule: (jobs, seconds / 3600) for rule, (jobs, seconds) in hours.items()},
        "planned": planned_and_used(study),
        "unit": study.settings.plan.unit,
        "hashes": hashes | weights,
        "settings": study.settings.model_dump(mode="json"),
    }


def gather(study: Study, made: Collection[str]) -> dict:
    """Everything that the page needs.

    Args:
        study: the study.
        made: names of its tables; others may lie there that were made with other settings.

    Raises:
        TriptychError: a table, an answer or another record is missing.
    """
    folder = study.results / "tables"
    some = ("controls", "probe", "leak", "captions")
    optional = {name: table(folder / f"{name}.csv") if name in made else [] for name in some}
    schedules = table(folder / "schedules.csv")
    comparison = read_json(folder / "comparison.json")["comparisons"] if "comparison" in made else []
    records = read_records(study)
    names = study.grid.schedules
    browser = questions_and_answers(records, [*names, BLIND, LOOKUP])
    data = study.path(paths.DATA, dataset=study.settings.folds.dataset).parent
    audit = read_json(study.path(paths.AUDIT))
    return {
        "schedules": schedules,
        "comparison": comparison,
        "runs": [
            {"arm": arm, "run": f"{split}, seed {seed}", "fold": split, "accuracy": scores(answers, ["all"])["all"]}
            for arm, runs in group_runs(records).items()
            if arm in names
            for (split, seed), answers in runs.items()
        ],
        "curves": read_curves(study),
        **optional,
        "by_content": table(folder / "by_content.csv"),
        "audit": audit,
        "rejects": {name: found for name in audit["data"] if (found := rejects(study, name))},
        "browser": browser,
        "thumbnails": thumbnails(data, [row[2] for row in browser["rows"]]),
        "weaknesses": weaknesses(study, schedules, comparison, optional["controls"]),
        "provenance": provenance(study),
    }
