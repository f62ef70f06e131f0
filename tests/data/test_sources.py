"""A source of data is added by one settings class, registered, and one module; here both are in this file."""

import copy
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from conftest import COLOURS, chosen, image_bytes
from pydantic import Field, TypeAdapter
from triptych.config import datasets
from triptych.config.datasets import Captions, Dataset, SlakeFolderVqa, data_source
from triptych.config.jobs import tables_text
from triptych.config.settings import Settings
from triptych.config.study import load_study
from triptych.data import check, fetch, prepare
from triptych.data.sources import source_module
from triptych.data.sources.base import Item, Reject
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, sha256_file
from triptych.io.parquet import read_table

# The module of the source: `listing` and `reader`.


def listing(settings, cache):
    items = []
    for number, line in enumerate(Path(settings.list_file).read_text().splitlines()):
        colour, _, side = line.partition(" ")
        if side:
            place = f"{colour}:{side}:{number}"
            items.append(Item(f"square{number}", f"square {number}", place, caption=f"a {colour} square on the {side}"))
        else:
            yield Reject("image", f"square{number}", "has no side")
    yield from chosen(items, settings.seed)


@contextmanager
def reader(settings, cache):
    def read(place):
        colour, side, number = place.split(":")
        return image_bytes(colour, side, settings.first + int(number))

    yield read


@pytest.fixture
def squares(monkeypatch):
    """The settings class of the source, registered for one test."""
    monkeypatch.setattr(datasets, "SOURCES", dict(datasets.SOURCES))

    @data_source
    class SquareCaptions(Captions):
        """Squares, painted when they are read."""

        module = __name__
        read_options = ("first",)

        source: Literal["squares"]
        list_file: str = Field(description="A square a line.")
        first: int = Field(0, description="Number of the first image.")

        def local_tables(self):
            return [Path(self.list_file)]

    return SquareCaptions


@pytest.fixture
def study(squares, config, tmp_path):
    """The toy study on 20 of 24 squares."""
    lines = [f"{colour} {side}" for colour in COLOURS for side in ("left", "right") for _ in range(3)]
    (tmp_path / "squares.txt").write_text("\n".join([*lines, "green"]))
    config = copy.deepcopy(config)
    config["datasets"]["general"] = {
        "source": "squares",
        "list_file": str(tmp_path / "squares.txt"),
        "sizes": [20],
        "validation_fraction": 0.2,
    }
    config["stages"]["1"]["data"] = "general-20"
    return config


def run(step, monkeypatch, **options):
    arguments = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr("sys.argv", ["step", *arguments])
    step.main()


def test_a_registered_source_is_validated_fetched_checked_and_prepared(study, squares, tmp_path, monkeypatch):
    settings = load_study(study).datasets["general-20"]
    assert isinstance(settings, squares) and settings.size == 20
    text = json.dumps(settings.model_dump(mode="json", by_alias=True))
    assert TypeAdapter(Dataset).validate_json(text) == settings
    assert source_module(settings).listing is listing
    tables = {"squares.txt": sha256_file(tmp_path / "squares.txt")}
    assert json.loads(tables_text(load_study(study), "general-20")) == tables

    source, cache, out = tmp_path / "source", tmp_path / "cache", tmp_path / "out"
    run(fetch, monkeypatch, settings=text, cache=cache, out=source)
    run(check, monkeypatch, settings=text, source=source, cache=cache, shard="1-of-1", out=tmp_path / "shard.json")
    run(prepare, monkeypatch, settings=text, source=source, cache=cache, out=out)
    counts = read_json(out / "manifest.json")["counts"]
    assert sum(counts["images"].values()) == sum(counts["questions"].values()) == 20
    assert counts["rejects"] == {"image": 1}
    assert {row["reason"] for row in read_table(out / "rejects.parquet")} == {"has no side"}
    images = {row["id"]: row for row in read_table(out / "images")}
    assert {row["source"] for row in images.values()} == {"squares"}
    answers = {row["image_id"]: row["answer"] for row in read_table(out / "questions.parquet")}
    assert answers == {name: row["caption"] for name, row in images.items()}


def test_options_that_decide_how_an_image_is_read_are_part_of_a_blocks_key(squares, tmp_path):
    given = {"source": "squares", "list_file": "a", "sizes": [1]}
    paths = {
        check.block_path([], squares(**{**given, **change}), tmp_path)
        for change in ({}, {"first": 7}, {"list_file": "b"}, {"seed": 3})
    }
    assert len(paths) == 2


def test_errors_and_the_schema_know_a_registered_source(study, squares):
    study["datasets"]["general"] |= {"list_fil": "x"}
    study["folds"]["dataset"] = "general-20"
    with pytest.raises(TriptychError) as told:
        load_study(study)
    assert "datasets.general.list_fil: not a known setting; did you mean 'list_file'?" in str(told.value)
    assert "folds.dataset: 'general-20' has captions; folds need questions" in str(told.value)
    schema = Settings.model_json_schema(by_alias=False)
    assert schema["properties"]["datasets"]["additionalProperties"]["discriminator"]["mapping"]["squares"]
    assert "first" in schema["$defs"]["SquareCaptions"]["properties"]


def test_after_the_plug_is_gone_its_source_is_unknown(study, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(TriptychError, match=r"datasets\.general\.source: must be one of 'openmoji', .*, not 'squares'"):
        load_study(study)
    assert "SquareCaptions" not in json.dumps(Settings.model_json_schema(by_alias=False))


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(datasets, "SOURCES", dict(datasets.SOURCES))
    with pytest.raises(ValueError, match="'slake-folder' is registered already, by SlakeFolderVqa"):
        data_source(type("Other", (SlakeFolderVqa,), {}))


@pytest.mark.parametrize("settings", datasets.SOURCES.values(), ids=datasets.SOURCES)
def test_every_source_has_its_module_and_options(settings):
    module = source_module(settings)
    assert callable(module.listing) and callable(module.reader)
    assert set(settings.read_options) <= set(settings.model_fields)
    assert settings.has_captions == issubclass(settings, Captions)
