"""Who may read and write what Triptych makes: the umask decides, and for what is replaced whoever set its mode."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from triptych.errors import run_step
from triptych.io import atomic, parquet
from triptych.io.direct_file import DirectFile

root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two users")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o077, 0o007, 0o022, 0o002], ids="{:04o}".format)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_all(folder: Path) -> None:
    """A file and a folder in each way that they are made."""
    atomic.write_text(folder / "new/text", "a")
    parquet.write_table(folder / "table", [], parquet.pa.schema([("a", parquet.pa.string())]))
    with atomic.atomic_directory(folder / "model") as out:
        (out / "inner").mkdir()
        (out / "inner/text").write_text("a")
        save_file({"a": torch.zeros(2)}, out / "a.safetensors")  # which makes its files readable for the owner only
        with DirectFile(out / "direct") as file:
            file.write(b"a")


def test_the_umask_decides_who_may_read_and_write(tmp_path, umask):
    write_all(tmp_path)
    for path in tmp_path.rglob("*"):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_what_is_replaced_stays_as_open_or_closed_as_it_was(tmp_path, umask):
    write_all(tmp_path)
    opened = {"new/text": 0o640, "table": 0o604, "model": 0o755}
    for name, bits in opened.items():
        (tmp_path / name).chmod(bits)
    write_all(tmp_path)
    assert {name: mode(tmp_path / name) for name in opened} == opened
    for path in (path for path in (tmp_path / "model").rglob("*") if path.is_file()):
        assert mode(path) & 0o044 == 0o044, "readable for who may read the folder"


def test_a_file_with_another_name_elsewhere_keeps_its_mode(tmp_path, umask):
    block = tmp_path / "block"
    block.touch(0o600)
    with atomic.atomic_directory(tmp_path / "images") as out:
        atomic.link_or_copy(block, out / "part")
    assert (tmp_path / "images/part").samefile(block) and mode(block) == 0o600


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_where_a_link_cannot_be_made_there_is_a_copy(tmp_path, monkeypatch, number):
    def no_link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_link)
    (tmp_path / "block").write_text("rows")
    with atomic.atomic_directory(tmp_path / "images") as out:
        atomic.link_or_copy(tmp_path / "block", out / "part")
    assert (tmp_path / "images/part").read_text() == "rows"
    assert not (tmp_path / "images/part").samefile(tmp_path / "block")


@pytest.mark.parametrize("kind", [os.path.isdir, os.path.isfile])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_is_written_to_all_the_same(tmp_path, monkeypatch, kind, number):
    real = os.fsync

    def picky(descriptor):
        if kind(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    write_all(tmp_path)
    assert (tmp_path / "new/text").read_text() == "a"


def test_a_disk_that_fails_to_sync_is_one_line(tmp_path, monkeypatch):
    def failing(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(SystemExit, match=r"error: the file system fails: .*Input/output error; run again"):
        run_step(lambda: atomic.write_text(tmp_path / "file", "a"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file/folder/text", "folder", "x" * 300, "loop/text"])
def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("of a user")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit, match=r"error: not a place for files: .*; move what stands in its way, or name"):
        run_step(lambda: atomic.write_text(tmp_path / name, "a"))
    assert (tmp_path / "file").read_text() == "of a user"


def use_cache(user: int, umask: int, cache: Path, out: Path) -> tuple[int, str]:
    """Let a user write into a cache, over what is there, and take a file out of it: exit status, and what it prints."""

    def step():
        atomic.write_text(cache / "blocks/ab/block", out.name)
        with atomic.atomic_directory(cache / "package") as folder:
            (folder / "file").write_text(out.name)
        with atomic.atomic_directory(out) as folder:
            atomic.link_or_copy(cache / "blocks/ab/block", folder / "part")

    reader, writer = os.pipe()
    if not (process := os.fork()):  # the interpreter itself may lie where another user cannot start it
        status, said = 0, ""
        try:
            os.umask(umask)
            os.setgroups([])
            os.setgid(4321)
            os.setuid(user)
            run_step(step)
        except SystemExit as end:
            status, said = 1, str(end)
        except BaseException as error:
            status, said = 2, repr(error)
        finally:  # whatever happens, the copy of this test ends here
            os.write(writer, said.encode())
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


@pytest.fixture
def shared():
    """A folder of the two users' group, in which both may write; others may not pass through pytest's own folders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, 0, 4321)
        folder.chmod(0o2775)
        yield folder


@root_only
def test_two_users_of_a_group_share_a_cache(shared):
    for user, name in ((4001, "one"), (4002, "two"), (4001, "again")):
        assert use_cache(user, 0o007, shared / "cache", shared / name) == (0, "")
        assert (shared / name / "part").read_text() == (shared / "cache/package/file").read_text() == name


@root_only
def test_a_cache_of_another_user_is_one_line_that_names_the_file(shared):
    assert use_cache(4001, 0o022, shared / "cache", shared / "one") == (0, "")
    status, said = use_cache(4002, 0o022, shared / "cache", shared / "two")
    assert status == 1 and len(said.splitlines()) == 1
    assert said.startswith(f"error: permission denied: {shared / 'cache/blocks/ab'}/.block.")
    assert "umask 002" in said and "TRIPTYCH_CACHE" in said
