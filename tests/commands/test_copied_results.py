"""Results that were copied without Snakemake's records: a changed setting is noticed by the checkpoints' manifests."""

from types import SimpleNamespace

import pytest
from triptych import workflow_hooks
from triptych.commands.retraining import other_settings
from triptych.config.grid import Checkpoint
from triptych.config.jobs import TrainingJob
from triptych.config.paths import CHECKPOINT
from triptych.config.study import load_study
from triptych.errors import TriptychError
from triptych.io.manifest import write_json

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
