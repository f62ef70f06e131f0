"""Mutated inputs are thrown at the data steps and the settings: one clear error at most, nothing lost or random.

Each test goes on for `SECONDS`. A failure names its seed, with which its input is made again.
"""

import contextlib
import copy
import io
import json
import os
import random
import re
import shutil
import signal
import time
import traceback
import zipfile

import pytest
import yaml
from conftest import ROOT, write_slake
from mutations import json_text, mutate_bytes, mutate_value, picture, write_shard, write_table
from pydantic import TypeAdapter
from triptych.config.datasets import Dataset
from triptych.config.study import read_study
from triptych.data import check, fetch, prepare
from triptych.data.sources import slake_hub
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

SECONDS = float(os.environ.get("TRIPTYCH_FUZZ_SECONDS", "24"))
PATIENCE = 20  # seconds that one case may take


def captions_in_a_folder(rng, folder):
    """A table of captions, some of its rows or bytes wrong; gives the settings, and the images that are named."""
    folder.mkdir()
    rows = []
    for number in range(rng.randint(1, 10)):
        name = f"{number}.png"
        if rng.random() < 0.95:
            (folder / name).write_bytes(picture(rng, number))
        row = {"image": name, "caption": f"thing of number {number}"}
        rows.append(mutate_value(rng, row) if rng.random() < 0.2 else row)
    rows = [row if isinstance(row, dict) else {"image": row} for row in rows]
    if rng.random() < 0.2:
        rows.append(rng.choice(rows))
    table = folder / f"captions{rng.choice(['.csv', '.tsv', '.json', '.jsonl', '.parquet'])}"
    write_table(rng, table, rows)
    seen = len(rows)
    if rng.random() < 0.3:
        table.write_bytes(mutate_bytes(rng, table.read_bytes()))
        seen = None
    return {"source": "caption-folder", "folder": str(folder), "table": table.name, "sizes": ["all"]}, seen


def captions_in_shards(rng, folder):
    """Tar shards of captioned pictures."""
    folder.mkdir()
    seen = 0
    for number in range(rng.randint(1, 2)):
        shard = folder / f"{number}.tar"
        seen += write_shard(rng, shard, rng.randint(1, 6))
        if rng.random() < 0.3:
            shard.write_bytes(mutate_bytes(rng, shard.read_bytes()))
            seen = None
            break
    return {"source": "webdataset", "folder": str(folder), "sizes": ["all"]}, seen


def questions_in_slakes_layout(rng, folder):
    """A folder in SLAKE's layout, some rows, pictures or tables wrong; gives the settings, and the number of rows."""
    write_slake(folder, subjects=3)
    pictures = sorted(folder.glob("imgs/*/source.png"))
    for path in rng.sample(pictures, rng.randint(0, 3)):
        path.unlink() if rng.random() < 0.3 else path.write_bytes(picture(rng, rng.randrange(100)))
    seen = 0
    for part in ("train", "validation", "test"):
        file = folder / f"{part}.json"
        rows = json.loads(file.read_text())
        rows = [mutate_value(rng, row) if rng.random() < 0.15 else row for row in rows]
        seen += len(rows)
        file.write_bytes(json_text(rows).encode("utf-8", "surrogatepass"))
    if rng.random() < 0.25:
        file = folder / f"{rng.choice(['train', 'validation', 'test'])}.json"
        file.write_bytes(mutate_bytes(rng, file.read_bytes()))
        seen = None
    return {"source": "slake-folder", "folder": str(folder), "language": "both"}, seen


def slakes_archive(rng, folder):
    """SLAKE's tables and zip archive as the hub has them, with wrong members or bytes."""
    write_slake(folder, subjects=2)
    for part in ("train", "validation", "test"):
        file = folder / f"{part}.json"
        file.write_text(file.read_text().replace("source.png", "source.jpg"))
    archive = folder / "imgs.zip"
    with zipfile.ZipFile(archive, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
        for number, path in enumerate(sorted(folder.glob("imgs/*/source.png"))):
            name = f"imgs/{path.parent.name}/source.jpg"
            if rng.random() < 0.1:
                name = rng.choice(
                    ["../source.jpg", "/source.jpg", "imgs", f"{'x' * 300}/source.jpg", "a\\source.jpg", name]
                )
            file.writestr(name, path.read_bytes() if rng.random() < 0.8 else picture(rng, number))
    if rng.random() < 0.5:
        archive.write_bytes(mutate_bytes(rng, archive.read_bytes()))
    return {"source": "slake-hub", "revision": "0" * 40, "language": "both"}, None


CASES = [captions_in_a_folder, captions_in_shards, questions_in_slakes_layout, slakes_archive]


@contextlib.contextmanager
def patience():
    """End what hangs."""

    def out_of_patience(*_):
        raise TimeoutError(f"nothing came within {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, out_of_patience)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_steps(monkeypatch, settings, folder):
    """Fetch, check and prepare a data set; gives what the steps said at the end, or their one error."""
    text = TypeAdapter(Dataset).validate_python(settings).model_dump_json(by_alias=True)
    cache, source, out = folder / "cache", folder / "source", folder / "out"
    steps = [
        (fetch, {"cache": cache, "out": source}),
        (check, {"source": source, "cache": cache, "shard": "1-of-1", "out": folder / "blocks.json"}),
        (prepare, {"source": source, "cache": cache, "out": out}),
    ]
    with contextlib.redirect_stdout(io.StringIO()), patience():
        for step, options in steps:
            given = {"settings": text, **options}
            monkeypatch.setattr("sys.argv", ["step", *(f"--{name}={value}" for name, value in given.items())])
            try:
                step.main()
            except TriptychError as error:
                return str(error)
    return None


def outputs(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_steps_name_what_is_wrong_and_lose_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slake_hub, "download", lambda repo, name, revision, cache: tmp_path / "raw" / name)
    started, seed, ends = time.monotonic(), 0, {"prepared": 0, "refused": 0}
    while time.monotonic() < started + SECONDS:
        seed += 1
        raw, first, second = tmp_path / "raw", tmp_path / "first", tmp_path / "second"
        settings, seen = case(random.Random(seed), raw)
        try:
            error = run_steps(monkeypatch, settings, first)
        except Exception:
            pytest.fail(f"{case.__name__}, seed {seed}:\n{traceback.format_exc()}", pytrace=False)
        if error is None:
            counts = read_json(first / "out/manifest.json")["counts"]
            kind = "images" if settings["source"] != "slake-folder" else "questions"
            accounted = sum(counts[kind].values()) + counts["rejects"].get(kind.removesuffix("s"), 0)
            assert seen is None or accounted == seen, f"seed {seed}: {accounted} of {seen} {kind} accounted for"
        else:
            assert error and "\n" not in error and not re.search("0x[0-9a-f]{6}", error), f"seed {seed}: {error}"
        ends["refused" if error else "prepared"] += 1
        if seed % 5 == 0:
            assert run_steps(monkeypatch, settings, second) == (error and error.replace(str(first), str(second))), (
                f"seed {seed}: another error of the same input"
            )
            assert outputs(second / "out") == outputs(first / "out"), f"seed {seed}: other bytes of the same input"
        assert not list(tmp_path.rglob("PWNED"))
        for folder in (raw, first, second):
            shutil.rmtree(folder, ignore_errors=True)
    assert min(ends.values()) > 0, f"the mutations are too strong, or too weak, to show anything: {ends}"


def test_settings_name_what_is_wrong(tmp_path):
    started, seed, ends = time.monotonic(), 0, {"read": 0, "refused": 0}
    studies = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "config").glob("*.yaml"))]
    file = tmp_path / "study.yaml"
    while time.monotonic() < started + SECONDS:
        seed += 1
        rng = random.Random(seed)
        config = copy.deepcopy(rng.choice(studies))
        for _ in range(rng.randint(0, 3)):
            config = mutate_value(rng, config)
        try:
            text = yaml.safe_dump(config, allow_unicode=True).encode("utf-8", "surrogatepass")
        except yaml.YAMLError:
            continue
        file.write_bytes(mutate_bytes(rng, text) if rng.random() < 0.3 else text)
        try:
            with contextlib.redirect_stderr(io.StringIO()), patience():
                read_study(file)
            ends["read"] += 1
        except TriptychError as error:
            ends["refused"] += 1
            lines = str(error).splitlines()
            assert lines and all(line.startswith((file.name, str(file))) for line in lines), f"seed {seed}: {error}"
        except Exception:
            pytest.fail(f"seed {seed}:\n{traceback.format_exc()}", pytrace=False)
    assert min(ends.values()) > 0
