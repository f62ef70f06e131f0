"""What `triptych verify` says of a study whose files are gone; `test_chaos` damages files."""

from dataclasses import replace

import pytest
from conftest import toy_config
from triptych.commands.jobs import jobs
from triptych.commands.verify import missing
from triptych.config.study import load_study


@pytest.fixture
def study(world, tmp_path):
    """Empty files in the place of all results and logs."""
    study = replace(load_study(toy_config(world)), results=tmp_path)
    for path in [study.results / "report.html", *(path for job in jobs(study) for path in (*job.outputs, job.log))]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return study


@pytest.mark.parametrize(
    "name",
    [
        "predictions/2-3/fold0/seed0.parquet",
        "predictions/2-3/fold1/seed0-blank.parquet",
        "predictions/majority/fold1/untrained.parquet",
        "predictions/1/shared/seed0.parquet",
        "probes/1-2/seed0.parquet",
        "checkpoints/2/fold0/seed0/manifest.json",
        "data/audit.json",
    ],
)
def test_a_result_that_is_gone_from_a_finished_study_is_named(study, name):
    assert not list(missing(study))
    (study.results / name).unlink()
    [(said, remove)] = missing(study)
    assert said.startswith(f"{study.results / name}: missing, though ") and remove == []


def test_what_was_not_made_yet_is_not_missing(study, world):
    more = replace(load_study({**toy_config(world), "seeds": [0, 1]}), results=study.results)
    assert not list(missing(more)), "a further seed"
    (study.results / "predictions/2-3/fold0/seed0.parquet").unlink()
    (study.results / "report.html").unlink()
    assert not list(missing(study)), "an unfinished study"
