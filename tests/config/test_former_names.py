"""Names and places that settings had in version 0.1: they mean what they meant, and a line gives the new ones."""

import copy

import pytest
from triptych.config.jobs import TrainingJob
from triptych.config.study import load_study
from triptych.errors import TriptychError


@pytest.fixture
def former_config(demo_config):
    """The demonstration's configuration as version 0.1 had it."""
    config = copy.deepcopy(demo_config)
    for stage in config["stages"].values():
        if "lr_schedule" in stage:
            stage["schedule"] = stage.pop("lr_schedule")
        stage["warmup"] = stage.pop("warmup_ratio", 0.03)
        if "max_samples" in stage:
            stage["samples"] = stage.pop("max_samples")
    config["training"] |= config.pop("runtime", {})
    config["training"] |= {"threads": 3, "checkpointing": "always", "time_limit_minutes": 60}
    return config


def test_former_names_and_places_give_the_same_jobs(demo_config, former_config, capsys):
    former, present = load_study(former_config, "old.yaml"), load_study(demo_config)
    runtime = former.settings.runtime
    assert (runtime.threads, runtime.gradient_checkpointing, runtime.time_limit_minutes) == (3, "always", 60)
    for cell in present.grid.trainings:
        assert TrainingJob.of(former, cell).text() == TrainingJob.of(present, cell).text()
    notes = capsys.readouterr().err.splitlines()
    assert "old.yaml: training.threads is now runtime.threads; please move it" in notes
    assert "old.yaml: training.checkpointing is now runtime.gradient_checkpointing; please move it" in notes
    assert "old.yaml: stages.2.warmup is now called warmup_ratio; please rename it" in notes
    assert len(set(notes)) == len(notes)


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"threads": 2}, "training.threads is now runtime.threads, which is also set; remove training.threads"),
        (
            {"checkpointing": "never"},
            "training.checkpointing is now runtime.gradient_checkpointing, which is also set; remove",
        ),
        ({"gradient_checkpointing": "never"}, "training.checkpointing is now runtime.gradient_checkpointing, which is"),
    ],
)
def test_one_setting_in_both_places_is_an_error(former_config, runtime, said):
    with pytest.raises(TriptychError) as caught:
        load_study({**former_config, "runtime": runtime}, "old.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize("runtime", ["fast", ["threads"], 3])
def test_a_section_of_another_type_is_named(former_config, runtime):
    with pytest.raises(TriptychError, match="runtime"):
        load_study({**former_config, "runtime": runtime}, "old.yaml")


def test_a_moved_setting_of_another_type_is_named_where_it_stands_now(former_config):
    former_config["training"]["save_minutes"] = "soon"
    with pytest.raises(TriptychError, match=r"runtime\.save_minutes"):
        load_study(former_config, "old.yaml")
