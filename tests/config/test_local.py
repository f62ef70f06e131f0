"""What the user must provide is looked for before anything runs; what was read already is not asked for again."""

import pytest
from triptych.commands import plan
from triptych.config import paths
from triptych.config.datasets import SLAKE_VARIABLE
from triptych.config.local import absent, still_read
from triptych.config.study import load_study
from triptych.io.manifest import write_json


@pytest.fixture
def at(config, tmp_path, monkeypatch):
    """A study of the toy world whose results are in an empty folder, with other settings of its data and models."""
    monkeypatch.delenv(SLAKE_VARIABLE, raising=False)

    def make(medical=None, general=None, language_model=None):
        config["pathvars"] = {"results": str(tmp_path / "results")}
        config["datasets"]["medical"] |= medical or {}
        config["datasets"]["general"] |= general or {}
        config["models"]["language_model"] |= language_model or {}
        return load_study(config)

    return make


def missing(study):
    return absent(study, *still_read(study))


def test_folders_that_are_there_are_not_named(at):
    assert missing(at()) == []


def test_every_folder_that_is_not_there_is_named_with_its_key(at):
    gone = {"folder": "/not/here"}
    found = missing(at(gone, gone | {"sizes": [12, 24]}, gone))
    assert sorted(line.split(":")[0] for line in found) == [
        "datasets.general.folder", "datasets.medical.folder", "models.language_model.folder",
    ]  # fmt: skip
    assert all("/not/here is not there" in line for line in found)


def test_a_file_is_no_folder_and_no_folder_at_all_is_said_with_the_variable(at, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert missing(at({"folder": str(tmp_path / "file")})) != []
    study = at({"folder": None})
    assert missing(study) == [
        f"datasets.medical.folder: none is given; set {SLAKE_VARIABLE}=/path/to/slake, or the key"
    ]
    monkeypatch.setenv(SLAKE_VARIABLE, str(tmp_path))
    assert missing(study) == []


def test_what_was_read_already_may_be_gone(at):
    study = at({"folder": "/not/here"}, None, {"folder": "/not/here"})
    write_json(study.path(paths.SOURCE, dataset="medical"), {})
    assert [line.split(":")[0] for line in missing(study)] == ["models.language_model.folder"]
    write_json(study.path(paths.MODEL, role="language_model", tag=""), {})
    assert missing(study) == []


def test_the_plan_says_it(at, capsys):
    plan.main(["--settings", at({"folder": "/not/here"}).text()])
    assert capsys.readouterr().out.endswith(
        "missing     datasets.medical.folder: /not/here is not there, or is no folder\n"
    )
