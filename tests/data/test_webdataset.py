"""Captions in tar shards."""

import gzip
import io
import json
import os
import random
import tarfile

import pytest
from conftest import image_bytes
from listings import pictures, rejects
from triptych.config.datasets import WebdatasetCaptions
from triptych.data.sources import webdataset
from triptych.errors import TriptychError

RED, BLUE = image_bytes("red", "left"), image_bytes("blue", "right")


def write_shard(path, members):
    """Members are (name, bytes) or ready-made TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))


def shard_settings(folder, **changes):
    return WebdatasetCaptions(**{"source": "webdataset", "folder": str(folder), "sizes": [5], **changes})


def shard_listing(folder, **changes):
    return list(webdataset.listing(shard_settings(folder, **changes), folder / "cache"))


def sample(key, caption, image=RED, suffix="jpg"):
    return [(f"{key}.{suffix}", image), (f"{key}.txt", caption.encode())]


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("name", [b"caf\xe9.tar", b"\xff/a.tar"])
def test_shards_whose_name_is_no_text_are_named(tmp_path, name):
    write_shard(tmp_path / os.fsdecode(name), sample("0", "a thing"))
    with pytest.raises(TriptychError, match=r"the name of the shard '.*\\udc.*' is not valid UTF-8; rename it"):
        shard_listing(tmp_path, shards="**/*.tar")


def test_shards_are_read_in_place(tmp_path):
    write_shard(tmp_path / "00000.tar", [*sample("a/0", "red"), *sample("1", "blue", BLUE, "PNG")])
    about = json.dumps({"caption": "from json", "other": 1}).encode()
    write_shard(tmp_path / "00001.tar", [("0.json", about), ("0.cls", b"7"), ("0.seg.png", BLUE), ("0.webp", RED)])
    before = sorted(tmp_path.rglob("*"))
    found = {item.path: item for item in shard_listing(tmp_path)}
    assert {path: item.caption for path, item in found.items()} == {
        "00000.tar/a/0.jpg": "red",
        "00000.tar/1.png": "blue",
        "00001.tar/0.webp": "from json",
    }
    with webdataset.reader(shard_settings(tmp_path), tmp_path / "cache") as read:
        assert read(found["00000.tar/1.png"].place) == BLUE
        assert read(found["00000.tar/a/0.jpg"].place) == read(found["00001.tar/0.webp"].place) == RED
    assert sorted(tmp_path.rglob("*")) == before


def test_places_sort_as_they_lie_in_the_shard(tmp_path):
    write_shard(tmp_path / "0.tar", [part for number in range(9) for part in sample(f"{8 - number}", f"x {number}")])
    items = sorted(shard_listing(tmp_path), key=lambda item: item.place)
    assert [item.caption for item in items] == [f"x {number}" for number in range(9)]


def test_the_order_in_shards_and_the_size_do_not_matter(tmp_path):
    samples = [sample(f"{number:03d}", f"thing {number}") for number in range(20)]
    write_shard(tmp_path / "0.tar", [part for parts in samples for part in parts])
    names = [(item.id, item.path) for item in shard_listing(tmp_path)]
    assert [(item.id, item.path) for item in shard_listing(tmp_path, sizes=[2])] == names
    shuffled = random.Random(0).sample(samples, len(samples))
    write_shard(tmp_path / "0.tar", [part for parts in shuffled for part in parts[::-1]])
    assert [(item.id, item.path) for item in shard_listing(tmp_path)] == names
    assert [(item.id, item.path) for item in shard_listing(tmp_path, seed=1)] != names


def test_long_and_foreign_names_are_kept(tmp_path):
    name = "b" * 150 + "/é"
    write_shard(tmp_path / "0.tar", sample(name, "a thing"))  # needs a header of its own
    (item,) = shard_listing(tmp_path)
    assert item.path == f"0.tar/{name}.jpg"
    with webdataset.reader(shard_settings(tmp_path), tmp_path) as read:
        assert read(item.place) == RED


def test_members_that_cannot_be_used_are_rejected_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_BYTES", 5_000)
    monkeypatch.setattr(webdataset, "MAX_CAPTION_BYTES", 1_000)
    members = [
        *sample("good", "a thing"), special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("link.txt", b"linked"),
        special("hard.jpg", tarfile.LNKTYPE, "good.jpg"), special("device.jpg", tarfile.CHRTYPE),
        special("folder.jpg", tarfile.DIRTYPE), ("silent.jpg", RED), *sample("blank", " "),
        *sample("huge", "x", b"x" * 6_000),
        *sample("long", "x" * 1_001), ("bytes.jpg", RED), ("bytes.txt", b"caf\xe9"), ("broken.jpg", RED),
        ("broken.json", b"{"), ("keyless.jpg", RED), ("keyless.json", b'{"text": "x"}'), ("half.jpg", RED),
        ("half.json", b'{"caption": "\\ud800"}'), ("good.jpg", BLUE), ("._good.jpg", BLUE), ("n\udce9.jpg", RED),
        ("n\udce9.txt", b"x"), ("README", b"x"), ("model.pkl", b"x"), ("model.pth", b"x"),
    ]  # fmt: skip
    write_shard(tmp_path / "0.tar", members)
    found = shard_listing(tmp_path)
    (item,) = pictures(found)
    with webdataset.reader(shard_settings(tmp_path), tmp_path) as read:
        assert read(item.place) == RED
    expected = {
        "link.jpg": "is a link, device", "hard.jpg": "is a link, device", "device.jpg": "is a link, device",
        "good.jpg": "two members of this name", "link": "no image of this key", "silent.jpg": "no caption",
        "blank.jpg": "its .txt is empty", "huge.jpg": "larger than 5000 bytes",
        "long.jpg": "its .txt is larger than 1000",
        "bytes.jpg": "its .txt is not valid UTF-8", "broken.jpg": "its .json is not valid JSON",
        "keyless.jpg": "its .json has no key 'caption'", "._good.jpg": "no caption",
        "half.jpg": "'caption' in its .json is not valid UTF-8",
        "n?.jpg": "its name is not valid UTF-8", "README": "no image of this key",
        "model.pkl": "no image of this key", "model.pth": "no image of this key",
    }  # fmt: skip
    reasons = dict(rejects(found))
    assert set(reasons) == {f"0.tar/{name}" for name in expected}
    assert all(text in reasons[f"0.tar/{name}"] for name, text in expected.items())


def test_names_with_dots_are_pairs_or_rejects_and_further_files_of_a_sample_are_neither(tmp_path, capsys):
    members = [
        ("patient1.2.png", RED), ("patient1.2.txt", b"one"), ("a.b/v1.0.JPG", BLUE),
        ("a.b/v1.0.json", b'{"caption": "two"}'),
        ("alone.1.png", RED), ("text.1.2.txt", b"lost"), (".jpg", RED), ("noname", RED),
        ("s.seg.npy", b"7"), ("x.heic", RED), ("p.1.heic", RED), ("q.heic", RED), ("q.txt", b"lost"), ("d/s.cls", b"7"),
        *sample("s", "three"), ("s.mask.png", BLUE), ("s.meta.json", b"{}"), ("s.cls", b"7"), ("s.png", RED),
    ]  # fmt: skip
    write_shard(tmp_path / "0.tar", members)
    found = shard_listing(tmp_path)
    assert {item.path: item.caption for item in pictures(found)} == {
        "0.tar/patient1.2.png": "one", "0.tar/a.b/v1.0.jpg": "two", "0.tar/s.jpg": "three",
    }  # fmt: skip
    reasons = {name: reason.split(":")[0].split("(")[0].strip() for name, reason in rejects(found)}
    assert reasons == {
        "0.tar/alone.1.png": "no caption", "0.tar/text.1.2": "no image of this key", "0.tar/.jpg": "no caption",
        "0.tar/s.png": "another image of its key is used",
        **dict.fromkeys(
            ("0.tar/noname", "0.tar/x.heic", "0.tar/p.1.heic", "0.tar/q", "0.tar/d/s.cls"), "no image of this key"
        ),
    }  # fmt: skip
    assert "0.tar: 2 further files of samples are not used, such as 's.mask'" in capsys.readouterr().out
    with webdataset.reader(shard_settings(tmp_path), tmp_path) as read:
        assert [read(item.place) for item in sorted(pictures(found), key=lambda item: item.path)] == [BLUE, RED, RED]


def test_the_key_of_captions_may_be_another(tmp_path):
    write_shard(tmp_path / "0.tar", [("0.jpg", RED), ("0.json", b'{"text": ["first", "second"]}')])
    assert [item.caption for item in shard_listing(tmp_path, caption_key="text")] == ["first"]


def test_a_named_key_alone_is_read_and_never_the_text_file_beside_it(tmp_path):
    written = [("0.jpg", RED), ("0.txt", b"IMG_1.JPG alt text"), ("0.json", b'{"recaption": "a red square"}')]
    written += [("1.jpg", BLUE), ("1.txt", b"alt"), ("1.json", b"{}"), ("2.jpg", BLUE), ("2.txt", b"alt")]
    write_shard(tmp_path / "0.tar", written)
    found = list(shard_listing(tmp_path, caption_key="recaption"))
    assert [item.caption for item in pictures(found)] == ["a red square"]
    assert [reason for _, reason in rejects(found)] == [
        "its .json has no key 'recaption'",
        "no caption: there is no .json of this key (with 'recaption' in it)",
    ]
    assert {item.caption for item in pictures(shard_listing(tmp_path))} == {"IMG_1.JPG alt text", "alt"}


@pytest.mark.parametrize("cut", ["data of the last member", "last header", "middle header", "first header"])
def test_shards_cut_off_or_damaged_are_named(tmp_path, cut):
    path = tmp_path / "0.tar"
    write_shard(path, [("0.jpg", RED), ("0.txt", b"a thing"), ("1.jpg", RED), ("1.txt", b"x" * 600)])
    (first,) = (item for item in shard_listing(tmp_path) if item.caption == "a thing")
    data = bytearray(path.read_bytes())
    text = data.index(b"x" * 600)
    header = data.index(b"1.jpg")
    match cut:
        case "data of the last member":
            data = data[: text + 300]
        case "last header":
            data = data[: text - 400]
        case "middle header":
            data[header : header + 20] = b"?" * 20
        case "first header":
            data = data[:100]
    path.write_bytes(data)
    with pytest.raises(TriptychError, match=r"0\.tar: cut off or damaged .*get the shard again"):
        shard_listing(tmp_path)
    if cut == "first header":
        with (
            webdataset.reader(shard_settings(tmp_path), tmp_path) as read,
            pytest.raises(TriptychError, match=r"0\.tar: has become shorter"),
        ):
            read(first.place)


def test_a_shard_without_its_end_blocks_is_whole(tmp_path):
    write_shard(tmp_path / "0.tar", sample("0", "a thing"))
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data.rstrip(b"\0").ljust(-(-len(data.rstrip(b"\0")) // 512) * 512, b"\0"))
    assert [item.caption for item in shard_listing(tmp_path)] == ["a thing"]


def test_compressed_shards_are_refused(tmp_path):
    write_shard(tmp_path / "0.tar", sample("0", "a thing"))
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    with pytest.raises(TriptychError, match=r"0\.tar\.gz: compressed with gzip; unpack it"):
        shard_listing(tmp_path, shards="*.tar.gz")


@pytest.mark.parametrize("pattern", ["*.zip", "/etc/*", "../*.tar"])
def test_patterns_without_shards_below_the_folder_are_refused(tmp_path, pattern):
    write_shard(tmp_path / "outside.tar", sample("0", "a thing"))
    (tmp_path / "shards").mkdir()
    with pytest.raises(TriptychError, match=r"no file matches|no pattern of files|leads out"):
        shard_listing(tmp_path / "shards", shards=pattern)


def test_places_are_bounded(tmp_path):
    write_shard(tmp_path / "outside.tar", sample("0", "a thing"))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "link.tar").symlink_to(tmp_path / "outside.tar")
    with webdataset.reader(shard_settings(tmp_path / "shards"), tmp_path) as read:
        for place in ("../outside.tar:0:10", "link.tar:0:10", f"{tmp_path}/outside.tar:0:10"):
            with pytest.raises(TriptychError, match="leads out"):
                read(place)
        with pytest.raises(TriptychError, match="larger than"):
            read("0.tar:0:60000000")
