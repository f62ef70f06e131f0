"""Files are whole or absent, and names cannot lead out of their folder."""

import errno
import fcntl
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import safetensors
import torch
from conftest import ROOT
from triptych import errors
from triptych.errors import TriptychError
from triptych.io import atomic, manifest, parquet
from triptych.io.direct_file import DIRECT, SIZE, DirectFile
from triptych.utils import seeds

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "workflow" / "scripts")}
SCHEMA = pa.schema([("name", pa.string())])


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError), atomic.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    folder = tmp_path / "model"
    for text in ("old", "new"):
        with atomic.atomic_directory(folder) as temporary:
            (temporary / "file").write_text(text)
    with pytest.raises(RuntimeError), atomic.atomic_directory(folder) as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert (folder / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_process_left_that_was_killed_as_it_replaced_a_folder_is_swept_away(tmp_path):
    script = """
import os, shutil, sys
from pathlib import Path
from triptych.io.atomic import atomic_directory
for number in range(2):
    with atomic_directory(Path(sys.argv[1])) as folder:
        (folder / "number").write_text(str(number))
        if number == 1:
            shutil.rmtree = lambda *_: os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], env=ENVIRONMENT)
    assert done.returncode == -9 and len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "out/number").read_text() == "1", "the new one was in its place"
    with atomic.atomic_directory(tmp_path / "out") as folder:
        (folder / "number").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_equal_values_give_equal_bytes_whatever_their_order(tmp_path):
    manifest.write_json(tmp_path / "a", {"x": 1, "y": [0.1, "é"]})
    manifest.write_json(tmp_path / "b", {"y": [0.1, "é"], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert manifest.canonical_json({"b": 1e-1, "a": 2}) == manifest.canonical_json({"a": 2, "b": 0.1})


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "link/secret"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(TriptychError, match="leads out of"):
        atomic.resolve_under(root, name)
    assert atomic.resolve_under(root, "a/b.png") == root.resolve() / "a" / "b.png"


def test_broken_files_are_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(TriptychError, match=r"x\.json: not valid JSON"):
        manifest.read_json(tmp_path / "x.json")
    with pytest.raises(TriptychError, match=r"y\.json: no such file"):
        manifest.read_json(tmp_path / "y.json")
    (tmp_path / "z.parquet").write_text("no table")
    with pytest.raises(TriptychError, match=r"z\.parquet: cannot be read as Parquet"):
        parquet.read_table(tmp_path / "z.parquet")


def test_seeds_differ_by_purpose_and_are_stable():
    assert seeds.derive_seed(0, "order", "fold0") == seeds.derive_seed(0, "order", "fold0")
    found = {seeds.derive_seed(s, p, f) for s in (0, 1) for p in ("order", "lora") for f in ("fold0", "fold1")}
    assert len(found) == 8 and all(0 <= seed < 2**63 for seed in found)


def test_a_step_ends_with_one_line(capsys):
    def step():
        raise TriptychError("data.json: broken; mend it")

    with pytest.raises(SystemExit) as caught:
        errors.run_step(step)
    assert caught.value.code == "error: data.json: broken; mend it"


def refused_by_safetensors(folder):
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def too_many_open(folder):
    (folder / "table").touch()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        parquet.read_table(folder / "table")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def no_memory(folder):
    torch.empty(10**15)


def not_mine(folder):
    raise PermissionError(errno.EACCES, "Permission denied", str(folder / "block"))


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (refused_by_safetensors, "no space left: Error while serializing: .*; free some space and run again"),
        (too_many_open, "too many open files: .*/table; allow more "),
        (no_memory, "out of memory: .*can't allocate memory.*; give the step more .mem_mb in the profile.*batch_size"),
        (not_mine, "permission denied: .*/block; let its owner open it"),
    ],
)
def test_what_the_machine_refuses_is_one_line_with_a_remedy(tmp_path, main, line):
    with pytest.raises(SystemExit) as caught:
        errors.run_step(lambda: main(tmp_path))
    assert re.match(f"error: {line}", caught.value.code) and "\n" not in caught.value.code


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 MiB"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_a_gpu_that_is_too_small_is_not_taken_for_the_machine(error):
    def step():
        raise error

    with pytest.raises(SystemExit, match=r"^error: out of the GPU's memory: .*; set runtime\.gradient_checkpointing"):
        errors.run_step(step)


@pytest.mark.parametrize("error", [OSError("odd"), RuntimeError("(os error 2)"), FileNotFoundError(2, "none", "x")])
def test_other_errors_are_not_hidden(error):
    def step():
        raise error

    with pytest.raises(type(error)):
        errors.run_step(step)


def test_a_table_whose_last_rows_cannot_be_written_is_closed_all_the_same(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), parquet.TableWriter(tmp_path / "t", SCHEMA) as table:
        table.add({"name": "a"})
        monkeypatch.setattr(table.writer, "write_table", full)
    assert not table.writer.is_open, "its own clean-up must not write once more"


@pytest.mark.parametrize("sizes", [[], [1], [SIZE], [SIZE - 1, 2, 3 * SIZE + 7], [5000] * 2000])
def test_a_direct_file_holds_what_was_written(tmp_path, sizes):
    random = np.random.default_rng(0)
    pieces = [random.bytes(size) for size in sizes]
    with DirectFile(tmp_path / "f") as file:
        for piece in pieces:
            assert file.write(piece) == len(piece)
    assert (tmp_path / "f").read_bytes() == b"".join(pieces)


def test_a_direct_file_goes_on_through_the_cache_where_direct_writes_are_refused(tmp_path, monkeypatch):
    real, refused = os.write, []

    def picky(descriptor, data):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data[:1000])  # and cuts writes short

    monkeypatch.setattr(os, "write", picky)
    data = np.random.default_rng(0).bytes(SIZE + 12345)
    with DirectFile(tmp_path / "f") as file:
        file.write(data)
    assert (tmp_path / "f").read_bytes() == data
    assert len(refused) <= 1, "asked once, and not again"


def test_a_direct_file_on_a_full_disk_says_which(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught, DirectFile(tmp_path / "f") as file:
        file.write(b"x")
    assert caught.value.filename == str(tmp_path / "f") and file.closed
