"""The short form of `make chaos`: a finished study is damaged and killed, and ends with the bytes that it had."""

import random
import shutil

import chaos
import pytest
from conftest import toy_config
from triptych.commands.verify import damages
from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table

HASHED = sorted(set(chaos.FILES) - {"table", "log", "saved state", "answers under way", "cached block"})


@pytest.fixture
def damaged(study, world, tmp_path):
    """A copy of the finished toy study, to be damaged."""
    copy = chaos.Study(tmp_path / "storm", toy_config(world))
    for name in ("results", ".snakemake"):
        shutil.copytree(study.folder / name, copy.folder / name)
    return copy


def value(path):
    """What a reader makes of a file; the bytes of one that is not ours to read."""
    if path.suffix == ".json" and "models" not in path.parts:
        return read_json(path)
    return read_table(path) if path.suffix == ".parquet" else path.read_bytes()


@pytest.mark.parametrize("kind", HASHED)
def test_verify_finds_whatever_changes_what_is_read(damaged, world, kind):
    generator = random.Random(kind)
    paths = sorted(path for path in damaged.folder.glob(chaos.FILES[kind]) if path.is_file())
    noticed = 0
    for _ in range(10):
        path = generator.choice(paths)
        data, before = path.read_bytes(), value(path)
        changed = bytearray(data)
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        found = list(damages(damaged.results, world / "cache"))
        noticed += bool(found)
        if not found:  # blanks, statistics that nobody reads
            assert value(path) == before
        path.write_bytes(data[: generator.randrange(len(data) - 1)])  # more than the last newline
        assert list(damages(damaged.results, world / "cache")), f"{path} is cut short"
        path.write_bytes(data)
    assert noticed >= 4 and not list(damages(damaged.results, world / "cache"))


def test_what_is_damaged_is_an_error_that_names_the_file(damaged):
    path = next(damaged.results.glob("predictions/2-3/*/seed0.parquet"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(TriptychError, match=r"seed0\.parquet: cannot be read as Parquet .*delete it and run again"):
        read_table(path)
    path = next(damaged.results.glob("checkpoints/2-3/*/seed0/manifest.json"))
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(TriptychError, match=r"manifest\.json: damaged or edited.*delete it and run again"):
        read_json(path)


def test_damaged_and_killed_it_ends_with_the_same_bytes(study, damaged):
    ledger = chaos.Ledger(seed=3)
    leaf = damaged.results / "checkpoints/2-3/fold0/seed0"
    for path in (leaf / "connector.safetensors", damaged.results / "predictions/majority/fold1/untrained.parquet"):
        path.write_bytes(path.read_bytes()[:-9])
    ledger.hit("cut short of a leaf", {"2-3/fold0/seed0"})
    status, found = damaged.verify("--delete")
    assert status == 0 and len(found) == 2 and "connector.safetensors: differs from the hash" in "".join(found)
    chaos.go_on(damaged, ledger, False, seconds=None, kill_at="triptych.train")
    chaos.complete(damaged, ledger, False)
    assert ledger.faults == [] and chaos.compare(study, damaged) == []
    # It ran to its end though its Snakemake was killed, which believed it unfinished and deleted its outputs.
    assert ledger.begun == {"2-3/fold0/seed0": 1} and ledger.counts["finished trainings restored"] == 1
