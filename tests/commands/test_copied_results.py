"""Results that were copied without Snakemake's records: a changed setting is noticed by the checkpoints' manifests."""

import json
from types import SimpleNamespace

import pytest
from triptych import workflow_hooks
from triptych.commands.retraining import other_settings
from triptych.config.arms import HELD_OUT
from triptych.config.grid import Checkpoint
from triptych.config.jobs import PredictionJob, TrainingJob
from triptych.config.paths import CHECKPOINT
from triptych.config.study import load_study
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import TriptychError
from triptych.evaluate.answered import write_answered
from triptych.io.manifest import write_json, write_record
from triptych.io.parquet import write_table

CELL = Checkpoint("1-2-3", "fold0", 0)


@pytest.fixture
def finished(config, tmp_path):
    """A study whose checkpoints hold the manifests of finished trainings, and a way to change its settings."""
    config["pathvars"] = {"results": str(tmp_path)}
    study = load_study(config)
    for cell in study.grid.trainings:
        job = TrainingJob.of(study, cell)
        stage = {job.stage_name: job.stage.model_dump(by_alias=True, mode="json")}
        lora = job.lora.model_dump() if job.lora else None
        manifest = {"stages": [stage], "connector": job.connector.model_dump(), "lora": lora}
        write_json(study.checkpoint(cell, CHECKPOINT), manifest)

    def changed(change):
        change(config)
        return load_study(config)

    return changed


def started(study, recorded=(), rerun=()):
    """Snakemake as it starts on all trainings, some of which it has records of or would run again."""
    jobs = [
        SimpleNamespace(rule=SimpleNamespace(name="train_stage"), wildcards=SimpleNamespace(**vars(cell)), cell=cell)
        for cell in study.grid.trainings
    ]
    dag = SimpleNamespace(jobs=jobs, needrun=lambda job: job.cell in rerun)
    persistence = SimpleNamespace(has_metadata=lambda job: job.cell in recorded)
    workflow_hooks.refuse_other_settings(SimpleNamespace(dag=dag, persistence=persistence), study)


def test_equal_settings_are_no_difference(finished):
    study = finished(lambda config: config["evaluation"].update(batch_size=3))
    assert [other_settings(study, cell) for cell in study.grid.trainings] == [[]] * len(study.grid.trainings)
    started(study)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["stages"]["3"].update(epochs=2), ["stage.epochs 1 -> 2"]),
        (lambda config: config["stages"]["3"].update(select="best"), ["stage.select last -> best"]),
        (lambda config: config["stages"]["3"].update(label_smoothing=0.1), ["stage.label_smoothing None -> 0.1"]),
        (lambda config: config["lora"].update(rank=4, alpha=8), ["lora.alpha 4 -> 8", "lora.rank 2 -> 4"]),
        (lambda config: config.update(connector={"kind": "linear"}), ["connector.kind mlp2x_gelu -> linear"]),
    ],
)
def test_a_changed_setting_stops_the_start_where_nothing_else_would_notice_it(finished, change, said):
    study = finished(change)
    assert other_settings(study, CELL) == said
    with pytest.raises(TriptychError, match="Snakemake has no record") as caught:
        started(study)
    assert f"checkpoints/1-2-3/fold0/seed0: {'; '.join(said)}" in str(caught.value)
    started(study, recorded=study.grid.trainings)
    started(study, rerun=study.grid.trainings)
    for cell in study.grid.trainings:
        study.checkpoint(cell, CHECKPOINT).unlink()
    started(study)


def start_with(rule, output, **params):
    """Snakemake as it starts where one job without a record has left a file."""
    job = SimpleNamespace(rule=SimpleNamespace(name=rule), output=[str(output)], params=SimpleNamespace(**params))
    dag = SimpleNamespace(jobs=[job], needrun=lambda job: False)
    persistence = SimpleNamespace(has_metadata=lambda job: False)
    workflow_hooks.refuse_other_settings(SimpleNamespace(dag=dag, persistence=persistence), None)


def test_answers_by_other_settings_stop_the_start(config, tmp_path):
    asked, out = PredictionJob.of(load_study(config), HELD_OUT), tmp_path / "seed0.parquet"
    write_table(out, [], RECORD_SCHEMA)
    start_with("predict", out, job=asked.text())  # of version 0.1, without a record beside it
    write_answered(out, asked.text(), {})
    start_with("predict", out, job=asked.text())
    for rule in ("predict", "predict_view", "base_predict_transfer"):
        other = asked.model_copy(update={"max_new_tokens": 3}).text()
        with pytest.raises(TriptychError, match=rf"seed0\.parquet: max_new_tokens {asked.max_new_tokens} -> 3"):
            start_with(rule, out, job=other)
    limited = asked.model_copy(update={"limit": 7}).text()
    with pytest.raises(TriptychError, match=r"seed0\.parquet: limit None -> 7"):
        start_with("predict_captions", out, job=limited)
    out.with_suffix(".json").write_text("{")  # damaged: asked again
    start_with("predict_captions", out, job=limited)


def test_models_by_other_settings_stop_the_start(tmp_path):
    manifest = tmp_path / "language_model" / "manifest.json"
    settings = {"source": "package", "package": "small", "prompt": "<image> {question}"}
    write_record(manifest, {"settings": settings})
    start_with("prepare_model", manifest, settings=json.dumps(settings | {"added": 1}))
    with pytest.raises(TriptychError, match=r"language_model: prompt <image> \{question\} -> \{question\}"):
        start_with("prepare_model", manifest, settings=json.dumps(settings | {"prompt": "{question}"}))
    part = {"part_of": "llava", "source": "hub", "prompt": None}
    start_with("prepare_model", manifest, settings=json.dumps(part | {"source": "package"}))
    with pytest.raises(TriptychError, match="language_model: source package -> hub"):
        start_with("prepare_model", manifest, settings=json.dumps(part))
    start_with("prepare_model", tmp_path / "gone" / "manifest.json", settings=json.dumps(part))
    write_record(manifest, {"settings": settings | {"folder": "/here"}})
    start_with("prepare_model", manifest, settings=json.dumps(settings | {"folder": "/there"}))


def test_a_job_that_reads_other_settings_than_it_was_submitted_with_stops(config, monkeypatch):
    def read(submitted=True):
        workflow_hooks.refuse_edited(load_study(config), submitted)

    monkeypatch.delenv(workflow_hooks.SUBMITTED, raising=False)
    read()  # of a Snakemake that said nothing
    monkeypatch.setenv(workflow_hooks.SUBMITTED, "{}")
    config["sweeps"] = {"ranks": {"setting": "lora.rank", "values": [2, 4]}}
    read(submitted=False)
    read()
    config["seeds"] = [*config["seeds"], 91]
    config["runtime"] = {"save_minutes": 3}
    config["ablations"] = {"linear": {"connector": {"kind": "linear"}}}
    config["stages"]["3long"] = config["stages"]["3"] | {"epochs": 9}
    config["sweeps"]["ranks"]["values"] = [2, 4, 8]
    config["evaluation"] = {**config["evaluation"], "equivalence_margin": 2.5}
    read()
    config["sweeps"]["ranks"]["setting"] = "lora.alpha"
    with pytest.raises(TriptychError, match=r"sweeps\.ranks\.setting lora\.rank -> lora\.alpha; change it back"):
        read()
    config["sweeps"]["ranks"]["setting"] = "lora.rank"
    config["stages"]["3"]["epochs"] = 7
    with pytest.raises(TriptychError, match=r"changed after this job was submitted: stages\.3\.epochs 1 -> 7; change"):
        read()
    read(submitted=False)
    read()
    others = {**config, "pathvars": {"results": "others"}}
    workflow_hooks.refuse_edited(load_study(others), submitted=False)
    config["stages"]["3"]["epochs"] = 8
    with pytest.raises(TriptychError, match="epochs 7 -> 8"):
        read()
