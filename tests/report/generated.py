"""What a report shows of a study of full size, made up: 5 folds x 3 seeds x 7 arms, without a training."""

import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas
from conftest import toy_config
from triptych.config.arms import BASELINES
from triptych.config.study import Study, load_study
from triptych.report.gallery import confusions, questions_and_answers
from triptych.report.gather import HEALTH, OPTIONAL
from triptych.report.limitations import BLIND, LOOKUP
from triptych.report.provenance import commands, provenance
from triptych.tables import by_type, calibration, evidence, leakage, probes, schedules, stages, verdicts
from triptych.tables.format import make_table
from triptych.tables.runs import group_runs

SCHEDULES = [["1", "2", "3"], ["2", "3"], ["1", "3"], ["3"], ["1", "2"], ["2"], ["3", "2"]]
EPOCHS = 10
MODALITIES, CONTENTS = ("CT", "MRI", "X-Ray"), ("Organ", "Position", "Abnormality", "Modality", "Color", "Size")
ANSWERS = [
    "Yes",
    "No",
    "Liver",
    "Lung",
    "Left",
    "Right",
    "Head",
    *(f"an answer of some words, {n}" for n in range(200)),
]
HOSTILE = "</script><img src=x onerror=alert(1)>"


def full_study(world: Path, results: Path, folds: int = 5, seeds: int = 3) -> Study:
    """Lay out the study; nothing of it is there."""
    config = toy_config(world) | {"schedules": SCHEDULES, "seeds": list(range(seeds))}
    config["folds"] = {**config["folds"], "number": folds}
    return replace(load_study(config), results=results)


def full_gathered(study: Study, questions: int) -> dict:
    """Make up what `gather` finds."""
    chance = random.Random(0)
    arms, folds, seeds = study.grid.schedules, len(study.grid.folds), len(study.settings.seeds)
    records = _records(study, questions, chance)
    answered = {arm: evidence.answered(runs) for arm, runs in group_runs(records).items()}
    views = {view: group_runs(_views(records, arms, view, chance)) for view in ("swapped", "swapped-alike", "blank")}
    rows = [_arm(arm, arm in arms, questions, chance) for arm in (*arms, *BASELINES)]
    comparison = [_comparison(arms[0], other, number) for number, other in enumerate(arms[1:])]
    browser = questions_and_answers(records, [*arms, BLIND, LOOKUP])
    control = [{"arm": arm, "true_mean": 60.0, "swapped_mean": 50.0, "swapped_lost_mean": 10.0} for arm in arms]
    optional = {name: make_table([], columns) for name, columns in OPTIONAL.items()}
    types = [
        {"first": arms[0], "second": other, "aspect": "content_type", "value": value, "questions": 10, "effect": 1.0}
        for other, value in product(arms[1:], CONTENTS)
    ]
    probed = [
        {"representation": name, "attribute": "modality", "probe": kind, "f1": 80.0, "low": 70.0, "high": 90.0}
        | {"images": 12, "folds": folds, "seeds": seeds, "probe_seeds": 2}
        for name, kind in product(("pre-projection", "random-connector", *arms), ("linear", "mlp"))
    ]
    leaky = [{"arm": BLIND, "folds_by": "row", "mean": 60.0, "inflation": 5.0, "low": 3.0, "high": 7.0}]
    leaky[0] |= {"questions": questions, "runs": folds, "folds": folds, "seeds": 0}
    sure = [{"arm": arm, **{f"{name}_mean": 50.0 for name in calibration.HEADINGS}} for arm in arms]
    part = {"questions": 300, "images": 60, "groups": 20}
    return optional | {
        "schedules": make_table(rows, schedules.COLUMNS),
        "comparison": comparison,
        "controls": make_table(control, schedules.control_columns()),
        by_type.NAME: make_table(types, by_type.COLUMNS),
        calibration.NAME: make_table(sure, calibration.COLUMNS),
        "probe": make_table(probed, probes.COLUMNS),
        "leak": make_table(leaky, leakage.COLUMNS),
        "accuracies": evidence.accuracies(answered),
        "lost": evidence.lost(answered, views, arms),
        "above_lookups": evidence.above_lookups(answered, arms, list(BASELINES)),
        "subjects": questions // 10,
        "subjects_named": True,
        "images": questions // 5,
        "runs": pandas.DataFrame(
            [
                {"arm": arm, "run": f"{fold}, seed {seed}", "fold": fold, "accuracy": chance.uniform(40, 60)}
                for arm, fold, seed in product(arms, study.grid.folds, study.settings.seeds)
            ]
        ),
        "curves": _curves(study, chance),
        "by_content": _by_content([*arms, *BASELINES], chance),
        "audit": _audit(study),
        "counts": [("medical: 642 images seen, 642 accepted, 0 rejected", False), ("warning: much", True)],
        "rejects": {
            "medical": [
                {
                    "kind": "question",
                    "cause": "is empty",
                    "number": 14,
                    "examples": [
                        {"id": f"q<{n}>", "reason": f"is empty {HOSTILE}", "thumbnail": ""} for n in range(12)
                    ],
                }
            ]
        },
        "transfer": [{"dataset": HOSTILE, "part": "test", "arms": rows[:0], "verdicts": ["words"]}],
        "browser": browser,
        "confusions": confusions(records, arms),
        "folds": {fold: dict.fromkeys(("train", "validation", "test"), part) for fold in study.grid.folds},
        "commands": commands(study, {"schedules", "comparison", "stages"}),
        "thumbnails": {},
        "limitations": ["`1-2-3` against `2-3`: a weakness."],
        "provenance": provenance(study),
    }


def _records(study: Study, questions: int, chance: random.Random) -> list[dict]:
    records = []
    for number in range(questions):
        asked = {
            "question_id": f"slake-en-{number}",
            "image_id": f"xmlab{number // 5}",
            "group": f"g{number // 10}",
            "question": f"What does part {number % 400} of this image of a patient show? {HOSTILE * (number == 3)}",
            "gold": HOSTILE if number == 3 else ANSWERS[number % 7 if number % 3 else number % len(ANSWERS)],
            "modality": MODALITIES[number % 3],
            "content_type": CONTENTS[number % 6],
        }
        fold = study.grid.folds[number % len(study.grid.folds)]
        for arm in (*study.grid.schedules, *BASELINES):
            trained = arm in study.grid.schedules
            for seed in study.settings.seeds[: 2 if questions < 1000 else 1] if trained else [None]:
                prediction = asked["gold"] if chance.random() < 0.6 else chance.choice(ANSWERS)
                logprob = -chance.random() if trained else None
                run = {"arm": arm, "split": fold, "seed": seed, "prediction": prediction, "logprob": logprob}
                records.append(asked | run)
    return records


def _views(records: list[dict], arms: list[str], view: str, chance: random.Random) -> list[dict]:
    likely = {"swapped": 0.5, "swapped-alike": 0.1, "blank": 0.8}[view]
    return [
        record | {"view": view, "prediction": "?" if chance.random() < likely else record["prediction"]}
        for record in records
        if record["arm"] in arms
    ]


def _arm(arm: str, trained: bool, questions: int, chance: random.Random) -> dict:
    row = {"arm": arm, "trained": trained, "questions": questions, "runs": 15, "folds": 5, "seeds": 3 if trained else 0}
    return row | {f"{name}_{of}": chance.uniform(1, 60) for name in schedules.MEASURES for of in ("mean", "sd")}


def _comparison(first: str, second: str, number: int) -> dict:
    effect = 3.0 - number
    row = dict.fromkeys(verdicts.COLUMNS) | {"first": first, "second": second, "effect": effect}
    row |= {"runs": 15, "folds": 5, "seeds": 3, "df": 4}
    row |= {"low": effect - 1.5, "high": effect + 1.5, "p": 0.01, "p_holm": 0.01, "equivalence_margin": 1.0}
    row |= {"probability_equal": 0.1, "detectable": 2.5, "verdict": f"{first} is better than {second}: words."}
    return row | {"run_effects": {f"fold{run}, seed 0": effect + run - 2 for run in range(5)}}


def _curves(study: Study, chance: random.Random) -> pandas.DataFrame:
    rows = []
    for cell in study.grid.checkpoints:
        run = {"stage": study.grid.last_stage(cell.prefix), **vars(cell)}
        for schedule, lineage in study.grid.lineage.items():
            if cell.prefix in lineage:
                rows += [
                    {**run, "schedule": schedule, "epoch": epoch}
                    | {name: chance.random() for name in (*stages.MEASURES, *HEALTH)}
                    for epoch in range(EPOCHS + 1)
                ]
    return make_table(rows, {**stages.COLUMNS, **HEALTH})


def _by_content(arms: list[str], chance: random.Random) -> pandas.DataFrame:
    rows = [
        {
            "arm": arm,
            "trained": True,
            "aspect": aspect,
            "value": value,
            "questions": 100,
            "mean": chance.uniform(0, 100),
        }
        for aspect, values in (("modality", MODALITIES), ("content_type", CONTENTS))
        for value, arm in product(values, arms)
    ]
    return make_table(rows, schedules.CONTENT_COLUMNS)


def _audit(study: Study) -> dict:
    counts = {"images": {"train": 642}, "questions": {"train": 7000}, "rejects": {"question": 14}}
    overlap = {"images": 100, "identical_images": 2, "similar_images": 10, "seen_subject_images": 0}
    labels = {"modality CT": 40.0, "modality MRI": 60.0, "answer_type OPEN": 60.0, "answer_type CLOSED": 40.0}
    folds = study.grid.folds
    return {
        "data": {"medical": counts},
        "leaks": [],
        "fold_overlaps": [
            {"seen": f"{fold} train", "part": f"{fold} held out", **overlap, "seen_subject_images": 0} for fold in folds
        ],
        "balance": [{"part": name, "questions": 1400, "labels": labels} for name in ("all folds", *folds)],
    }
