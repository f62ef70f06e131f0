"""Where a study's numbers come from: code, hashes, devices and hours, and what was trained from what."""

import shlex
from collections.abc import Collection
from pathlib import Path

from triptych.commands import estimate
from triptych.commands.jobs import WORK, jobs, seconds_taken
from triptych.config import paths
from triptych.config.paths import STEPS
from triptych.config.study import Study
from triptych.io.manifest import read_json
from triptych.tables import by_type, calibration, occlusion


def planned_and_used(study: Study) -> list[dict]:
    """Give hours planned and used, of finished trainings by prefix, and of predictions.

    Planned is the estimate before anything ran, at the rate that was known then. Used is what Snakemake
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


def trained_from(study: Study) -> list[dict]:
    """List what was trained from what: an entry for each prefix, parents before children.

    Returns:
        Entries of `prefix`, `parent` (None where it starts from the frozen models), `stage`, `data`, `parts` (what
        trains), `schedules` (that pass through it), `jobs`, `hours` (None where none were measured), `devices`, and
        `hash`: the first of its weights' sha256.
    """
    found = []
    for prefix, behind in study.grid.prefixes.items():
        cells = [cell for cell in study.grid.checkpoints if cell.prefix == prefix]
        stage = study.grid.stage_of(prefix)
        entry = {
            "prefix": prefix,
            "parent": behind.before[-1] if behind.before else None,
            "stage": behind.stages[-1],
            "data": stage.data,
            "parts": list(stage.train),
            "schedules": [arm for arm, lineage in study.grid.lineage.items() if prefix in lineage],
            "jobs": len(cells),
            "hours": None,
            "devices": [],
            "hash": "",
        }
        devices, seconds = set(), []
        for cell in cells:
            path = study.checkpoint(cell, paths.CHECKPOINT)
            if not path.exists():
                continue
            manifest = read_json(path)
            devices.add(manifest.get("device") or "")
            entry["hash"] = entry["hash"] or next(iter(sorted(manifest["files"].items())), ("", ""))[1]
            seconds.append(seconds_taken(study.path(STEPS["train_stage"].benchmark, **vars(cell))))
        measured = [value for value in seconds if value is not None]
        entry["hours"] = sum(measured) / 3600 if measured else None
        entry["devices"] = sorted(devices - {""})
        found.append(entry)
    return found


# Table -> the rule that makes it.
MADE_BY = {
    "schedules": "tabulate",
    "controls": "tabulate",
    "above_lookups": "tabulate",
    "by_content": "tabulate",
    "comparison": "compare_schedules",
    by_type.NAME: "compare_schedules",
    calibration.NAME: "tabulate_calibration",
    "leak": "tabulate_leak",
    "scaling": "tabulate_scaling",
    "captions": "tabulate_captions",
    occlusion.NAME: "tabulate_occlusion",
    "probe": "tabulate_probe",
    "stages": "tabulate_stages",
}


def commands(study: Study, made: Collection[str]) -> dict[str, str]:
    """Give for each table the command that makes it again from stored answers; study.yaml is its configuration."""
    run = "snakemake --profile profiles/local --configfile study.yaml --forcerun"
    return {
        table: f"{run} {rule} -- {shlex.quote(str(study.path(paths.TABLE, table=f'{table}.csv')))}"
        for table, rule in MADE_BY.items()
        if table in made
    }


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
        "trained_from": trained_from(study),
        "hours": hours_by_step(study.results),
        "planned": planned_and_used(study),
        "unit": study.settings.plan.unit,
        "hashes": hashes | weights,
        "settings": study.settings.model_dump(mode="json"),
    }
