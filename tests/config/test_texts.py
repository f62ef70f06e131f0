"""Every text that a configuration may hold, with values that no one should write: harmless, or one line says why."""

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from conftest import ROOT, Study, toy_config
from pydantic import AfterValidator
from triptych.config.base import Record
from triptych.config.datasets import SOURCES, Images
from triptych.config.settings import Settings
from triptych.config.study import load_study
from triptych.config.texts import cache_folder, located
from triptych.errors import TriptychError

RUN = "touch PWNED"
HOSTILE = [
    *(f"a $({RUN}) b", f"a`{RUN}`", f"a; {RUN}; b", f"a\n{RUN}", "2\n", f"a' ; {RUN} ; '", f'a" ; {RUN} ; "'),
    *(f"a && {RUN}", f"a | {RUN}", "a > PWNED", "{output}", "{", "}}", "<results>", "<none>", "~", "~nobody-here/x"),
    *("$HOME/x", "${NOT_SET}", "$NOT_SET", "", " ", " a", "a ", "-rf", "--out=x", "a\0b", "a\tb", "a\rb", "a\x1b[31mb"),
    *("a\u2028b", "\ud800", "é ü 漢", "a/../../b", "..", "/", "*", "?[x]", "%s", "\\", "it's", 'a "b"', "#a"),
    *("a" * 300, "a/" * 2000, "null", "audit.json"),
]  # fmt: skip
# What settings without a default may be.
EXAMPLES = {"repo": "a/b", "revision": "0" * 40, "folder": "/data", "table": "/data/x.csv", "sizes": [5]}
EXAMPLES |= {"prompt": "<image> {question}"}


def example(record: type[Record]) -> dict[str, Any]:
    """Settings of a source, as short as they can be."""
    needed = {
        name: EXAMPLES[name] for name, field in record.model_fields.items() if field.is_required() and name != "source"
    }
    return {"source": get_args(record.model_fields["source"].annotation)[0], **needed}


def places(record: type[Record], way: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """The way to every text of a record of settings, with its type; a key that may be any name ends with None."""
    for name, field in record.model_fields.items():
        kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        yield from _places(kind, (*way, name))


def _places(kind: Any, way: tuple) -> Iterator[tuple[tuple, Any]]:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is str or (origin is Annotated and parts[0] is str):
        yield way, kind
    elif kind is Images or (origin is Annotated and parts[0] is Images):
        for source in SOURCES.values():
            yield from places(source, (*way, source))
    elif isinstance(kind, type) and issubclass(kind, Record):
        sources = (*way, kind) if "source" in kind.model_fields else way
        yield from places(kind, sources)
    elif origin is dict:
        names = [("name", None)] if get_origin(parts[0]) is Annotated else get_args(parts[0])
        if names == [("name", None)]:
            yield (*way, None), parts[0]
            names = ["any"]
        for name in names:
            yield from _places(parts[1], (*way, name))
    elif origin is list:
        yield from _places(parts[0], (*way, 0))
    elif origin in (Annotated, Union, types.UnionType, tuple):
        for part in parts[:1] if origin is Annotated else parts:
            yield from _places(part, way)


PLACES = list(places(Settings))


def put(config: dict, way: tuple, value: str) -> dict:
    """The toy study with a text at a place; a new entry of a section where there is none like it."""
    config = copy.deepcopy(config)
    config["ablations"] = {"any": {"lora": {"rank": 3}, "stages": {"3": {"epochs": 2}}}}
    config["sweeps"] = {
        "curve": {"setting": "lora.rank", "also": ["lora.alpha"], "values": [4, 8], "schedule": ["2", "3"]}
    }
    node: Any = config
    for key, after in zip(way, (*way[1:], ""), strict=True):
        if key == "any" and way[0] in ("stages", "ablations", "sweeps"):
            node = next(iter(node.values()))
        elif isinstance(key, type):
            node.clear()
            node.update(example(key))
        elif key is None:
            node[value] = copy.deepcopy(next(iter(node.values()), "test"))  # the part of a data set that is asked
            if way == ("ablations", None):
                node[value]["lora"]["rank"] = 4
        elif after == "" and key == 0:
            node[:] = [value]
        elif after == "":
            node[key] = value
        elif key == 0:
            node = node[0]
        else:
            node = node.setdefault(key, [] if after == 0 else {})
    return config


def test_every_text_has_a_kind_that_checks_it_whole():
    assert len(PLACES) > 40
    for way, kind in PLACES:
        metadata = get_args(kind)[1:]
        checked = any(isinstance(data, AfterValidator) for data in metadata)
        assert checked or any("pattern=" in repr(data) for data in metadata), way
    folder = ROOT / "workflow/scripts/triptych/config"
    assert not [path.name for path in folder.glob("*.py") if "re.match(" in path.read_text(encoding="utf-8")]


def label(way: tuple) -> str:
    return ".".join(getattr(key, "__name__", str(key)) for key in way)


@pytest.mark.parametrize("way", [way for way, _ in PLACES], ids=label)
def test_a_hostile_text_is_taken_as_it_is_or_told_in_one_line(way, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET", raising=False)
    taken = []
    for value in HOSTILE:
        try:
            load_study(put(config, way, value), "study.yaml")
            taken.append(value)
        except TriptychError as error:
            [line] = str(error).splitlines()
            assert line.startswith("study.yaml: ") and line.isprintable() and len(line) < 2000, (value, line)
    assert len(taken) < len(HOSTILE) and not list(tmp_path.iterdir())


def test_paths_are_expanded_in_one_place(monkeypatch, config, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("TRIPTYCH_CACHE", raising=False)
    assert located("~/a b") == tmp_path / "a b" and located("$SCRATCH/${SCRATCH}x") == Path("/scratch/me/scratch/mex")
    config["cache"] = "$SCRATCH/cache"
    config["datasets"]["medical"]["folder"] = "~/slake"
    settings = load_study(config).settings
    assert cache_folder(settings.cache) == Path("/scratch/me/cache")
    assert settings.datasets["medical"].location == tmp_path / "slake"
    assert settings.datasets["medical"].folder == "~/slake", "what is recorded is what was written"
    monkeypatch.setenv("TRIPTYCH_CACHE", "~/mine")
    assert cache_folder(settings.cache) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("~/results", "must not begin with '~', which is not expanded here; write the whole path"),
        ("$SCRATCH/x", "must not hold '$', which is not expanded here; write the whole path"),
        ("results/{x}", "must not hold '{', which is not expanded here; write the whole path"),
        ("", "must not be empty or blank; is ''"),
        ("r\n", "must be one line without control characters, and holds '\\n'"),
        ("x" * 256, "is too long: 255 bytes between two '/', and 3000 in all, are the most"),
    ],
)
def test_the_results_folder_is_read_as_it_stands(config, text, line):
    with pytest.raises(TriptychError) as caught:
        load_study(config | {"pathvars": {"results": text}}, "study.yaml")
    assert str(caught.value) == f"study.yaml: pathvars.results: {line}"


HARMLESS = """it's "r" & ü; `touch PWNED` > PWNED | x"""


@pytest.fixture
def hostile(world, tmp_path) -> Study:
    """The toy study with blanks, quotes, signs of the shell and letters that are not ASCII in every text that may."""
    home = tmp_path / f"w {HARMLESS}"
    home.mkdir()
    folder = home / "data"
    folder.symlink_to(world, target_is_directory=True)
    config = toy_config(folder)
    config["pathvars"] = {"results": HARMLESS.replace(">", "")}
    config["cache"] = f"c {HARMLESS}"
    config["datasets"]["general"] |= {"question": f"{HARMLESS}\n{HARMLESS}"}
    config["plan"] = {"unit": HARMLESS}
    config["wandb"] = {"project": "it's `touch PWNED`; $(touch PWNED) ü"}
    return Study(home, config)


def test_no_text_reaches_a_shell_as_anything_but_a_word(hostile, tmp_path):
    """Every command of the whole study runs, with a `python` that only counts: none makes a file, all are words."""
    said = hostile.snakemake("all", "plan", "test", "--dry-run", "--printshellcmds", "--quiet", "host")
    commands = [line.partition("Shell command: ")[2] for line in said.splitlines() if "-m triptych." in line]
    steps = [re.search(r"-m (triptych\.[a-z_.]+)", line)[1] for line in commands]
    assert len(steps) > 60 and {"triptych.train", "triptych.report", "triptych.commands.plan"} <= set(steps)
    empty = tmp_path / "empty"
    script = "\n".join(["python() { printf '%s\\n' \"$2\" >> ../steps; }", *commands]).replace("exec $LAUNCH", "python")
    for name in {str(Path(word).parent) for line in commands for word in shlex.split(line) if word.endswith(".log")}:
        (empty / name).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["bash", "-e"], input=script, text=True, cwd=empty, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "steps").read_text().splitlines() == steps
    assert [path.name for path in empty.iterdir()] == [hostile.config["pathvars"]["results"]]
    assert not list(tmp_path.rglob("PWNED"))


def test_steps_run_where_everything_has_blanks_quotes_and_other_letters(hostile, tmp_path):
    results = hostile.config["pathvars"]["results"]
    hostile.snakemake(f"{results}/sources/general-24/manifest.json", f"{results}/models/vision_encoder/manifest.json")
    assert (hostile.folder / results / "sources/general-24/candidates.parquet").exists()
    assert (hostile.folder / results / "models/vision_encoder/model.safetensors").exists()
    assert not list(tmp_path.rglob("PWNED"))


def test_the_checkout_may_have_blanks_quotes_and_other_letters(config, tmp_path):
    checkout, folder = tmp_path / f"c {HARMLESS}", tmp_path / "study"
    folder.mkdir()
    for name in ("Snakefile", "workflow"):
        (checkout / name).parent.mkdir(exist_ok=True)
        copy_of = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy_of(ROOT / name, checkout / name)
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "results/models/vision_encoder/manifest.json"]
    command += ["--cores", "1", "--snakefile", str(checkout / "Snakefile"), "--configfile", "study.yaml"]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "results/models/vision_encoder/manifest.json").exists() and not list(tmp_path.rglob("PWNED"))
