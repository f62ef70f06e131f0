"""Everything that the report shows, gathered from a study's results: tables, answers, metrics, images, provenance."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path

import pandas

from triptych.config import paths
from triptych.config.arms import BASELINES, HELD_OUT, view_suffix
from triptych.config.study import Study
from triptych.data.audit import subjects_of
from triptych.data.rejects import causes_of, counted, summary
from triptych.evaluate.metrics import always_the_same
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.report.gallery import confusions, questions_and_answers, thumbnails
from triptych.report.limitations import BLIND, LOOKUP, limitations
from triptych.report.provenance import commands, provenance
from triptych.report.rejected import rejected
from triptych.tables import (
    by_type,
    calibration,
    captions,
    evidence,
    leakage,
    occlusion,
    probes,
    scaling,
    schedules,
    stages,
)
from triptych.tables import transfer as transfer_table
from triptych.tables.format import NUMBER, Columns, current_names, make_table, read_csv, rows_of
from triptych.tables.runs import Arms, accuracy, group_runs

# Metrics that tell whether a training is healthy.
HEALTH = dict.fromkeys(("gradient_norm_max", "token_norm_ratio", "loss_spikes"), NUMBER)

# Tables that not every study has, with their columns.
OPTIONAL: dict[str, Columns] = {
    by_type.NAME: by_type.COLUMNS,
    calibration.NAME: calibration.COLUMNS,
    "probe": probes.COLUMNS,
    "leak": leakage.COLUMNS,
    "captions": captions.COLUMNS,
    "scaling": scaling.COLUMNS,
    occlusion.NAME: occlusion.COLUMNS,
}


READ = [
    *("arm", "split", "seed", "question_id", "image_id", "group", "question", "content_type", "answer_type"),
    *("modality", "gold", "prediction", "logprob"),
]


def read_controls(study: Study) -> dict[str, Arms]:
    """Read the answers of all schedules with other images, by control and arm."""
    cells = list(product(study.grid.schedules, study.settings.seeds, study.grid.folds))
    found = {}
    for view in study.settings.evaluation.controls:
        suffix = view_suffix(view)
        files = [
            study.path(paths.PREDICTION, prefix=arm, fold=fold, seed=seed, view=suffix) for arm, seed, fold in cells
        ]
        columns = ["arm", "split", "seed", "question_id", "group", "gold", "prediction"]
        found[view] = group_runs([record for file in files for record in read_table(file, columns)])
    return found


def read_folds(study: Study) -> dict[str, dict]:
    """Read how many questions, images and groups are in the parts of every fold."""
    return read_json(study.path(paths.FOLDS, dataset=study.settings.folds.dataset, cut=""))["folds"]


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
    return [record for file in files for record in read_table(file, READ)]


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


def read_and_rejected(study: Study, data: Mapping[str, Mapping]) -> list[tuple[str, bool]]:
    """Say of each data set what was seen, accepted and rejected, and whether so much was rejected that it is a warning.

    Args:
        study: the study.
        data: counts of its data sets by name, as in the audit.
    """
    folders = {name: study.path(paths.DATA, dataset=name).parent for name in data}
    return [summary(name, counted(counts, causes_of(folders[name]))) for name, counts in data.items()]


def transfer(study: Study) -> list[dict]:
    """Read the tables of the data sets that nothing trains on: `dataset`, `part`, rows `arms`, and `verdicts`."""
    found = []
    for name, part in study.settings.evaluation.datasets.items():
        stem = study.path(paths.TRANSFER_TABLE, table=name)
        arms = rows_of(read_csv(Path(f"{stem}.csv"), transfer_table.COLUMNS))
        verdicts = [row["verdict"] for row in read_json(Path(f"{stem}.json"))["comparisons"]]
        found.append({"dataset": name, "part": part, "arms": arms, "verdicts": verdicts})
    return found


def _questions_of_groups(records: Sequence[Mapping]) -> Counter[str]:
    """Count the questions about each group of images, each question once."""
    return Counter({record["question_id"]: record["group"] for record in records}.values())


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
    arms_answers = {arm: evidence.answered(runs) for arm, runs in group_runs(records).items()}
    controls = read_controls(study) if "controls" in made else {}
    trained = provenance(study)
    browser = questions_and_answers(records, [*names, BLIND, LOOKUP])
    data = study.path(paths.DATA, dataset=study.settings.folds.dataset).parent
    audit = read_audit(study.path(paths.AUDIT))
    lost, curves = evidence.lost(arms_answers, controls, names), read_curves(study)
    named = bool(subjects_of(read_table(data / "questions.parquet", ["image_id", "group"])))
    return {
        "schedules": arms,
        "comparison": comparison,
        "accuracies": evidence.accuracies(arms_answers),
        "lost": lost,
        "above_lookups": evidence.above_lookups(arms_answers, names, list(BASELINES)),
        "subjects": len({record["group"] for record in records}),
        "subjects_named": named,
        "images": len({record["image_id"] for record in records}),
        "runs": accuracy_of_runs(records, names),
        "curves": curves,
        **optional,
        "by_content": read_csv(folder / "by_content.csv", schedules.CONTENT_COLUMNS),
        "audit": audit,
        "counts": read_and_rejected(study, audit["data"]),
        "rejects": {name: found for name in audit["data"] if (found := rejected(study, name))},
        "transfer": transfer(study),
        "browser": browser,
        "confusions": confusions(records, names),
        "folds": read_folds(study),
        "commands": commands(study, {*made, "stages"}),
        "thumbnails": thumbnails(data, [row["image"] for row in browser["rows"]]),
        "limitations": limitations(
            study,
            arms,
            comparison,
            lost,
            _questions_of_groups(records),
            trained["code"],
            audit["data"][study.settings.folds.dataset]["questions"].get("test", 0),
            always_the_same(records),
            curves,
            audit["fold_overlaps"],
            named,
        ),
        "provenance": trained,
    }
