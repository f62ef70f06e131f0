"""Captions in Parquet files of the hub."""

import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import image_bytes
from hub import Hub
from listings import TURNS, pictures, rejects
from triptych.config.datasets import HubParquetCaptions
from triptych.data.sources import hub_parquet, hub_rows
from triptych.data.sources.base import Item, item_id
from triptych.download import hub_http, huggingface
from triptych.errors import TriptychError

REVISION = "0123456789abcdef0123456789abcdef01234567"
RED, BLUE = image_bytes("red", "left"), image_bytes("blue", "right")


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def served(tmp_path):
    """A folder whose files the hub holds, and that hub."""
    folder = tmp_path / "served"
    folder.mkdir()
    with Hub({"datasets/some/data": folder}) as hub:
        yield folder, hub


def serve(folder, name, images, captions, kind=IMAGE, rows=3):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(images, kind), "caption": captions, "other": ["x"] * len(images)})
    pq.write_table(table, folder / name, row_group_size=rows)


def named(*numbers):
    """Cells with the bytes b"0", b"1", ... and a name each."""
    return [{"bytes": b"%d" % number, "path": f"{number}.jpg"} for number in numbers]


def hub_settings(**changes):
    return HubParquetCaptions(
        **{"source": "hub-parquet", "repo": "some/data", "revision": REVISION, "sizes": [5], **changes}
    )


def hub_listing(tmp_path, **changes):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # what is stored is never asked for again
    return list(hub_parquet.listing(hub_settings(**changes), tmp_path / "cache"))


def test_hub_rows_are_listed_and_read(tmp_path, served):
    numbers = range(20)
    serve(served[0], "data/train-0.parquet", named(*numbers[:10]), [f"thing {n}" for n in numbers[:10]])
    serve(served[0], "data/train-1.parquet", named(*numbers[10:]), [f"thing {n}" for n in numbers[10:]])
    found = hub_listing(tmp_path)
    assert {(item.path, item.caption) for item in found} == {(f"{n}.jpg", f"thing {n}") for n in numbers}
    assert found[0].caption != "thing 0" or found[1].caption != "thing 1"
    with hub_parquet.reader(hub_settings(), tmp_path / "cache") as read:
        for item in found:
            assert item.caption == f"thing {read(item.place).decode()}"
    ordered = sorted(found, key=lambda item: item.place)
    assert [item.caption for item in ordered] == [f"thing {n}" for n in numbers]


def test_the_order_of_hub_rows_and_the_size_do_not_matter(tmp_path, served):
    serve(served[0], "a.parquet", named(*range(12)), [f"thing {n}" for n in range(12)])
    ids = [item.id for item in hub_listing(tmp_path)]
    assert [item.id for item in hub_listing(tmp_path, sizes=[3])] == ids
    mixed = random.Random(1).sample(range(12), 12)
    serve(served[0], "a.parquet", named(*mixed), [f"thing {n}" for n in mixed])
    assert [item.id for item in hub_listing(tmp_path)] == ids
    assert [item.id for item in hub_listing(tmp_path, seed=1)] != ids


def test_images_without_names_and_with_one_name_stay_apart(tmp_path, served):
    cells = [{"bytes": b"0", "path": None}, {"bytes": b"1", "path": None}]
    cells += [{"bytes": b"2", "path": "image.jpg"}, {"bytes": b"3", "path": "image.jpg"}]
    serve(served[0], "a.parquet", cells, ["a photo"] * 4)
    found = hub_listing(tmp_path)
    assert len({item.id for item in found}) == 4 and not rejects(found)
    paths = {item.place: item.path for item in found}
    assert [paths[f"a.parquet:{row:09d}"] for row in range(4)] == [
        "a.parquet:000000000", "a.parquet:000000001", "image.jpg", "image.jpg",
    ]  # fmt: skip
    serve(served[0], "b.parquet", [*cells, *named(4)], ["a photo", "a photo", "a photo", "of a cat", "a photo"])
    ids = {item.place: item.id for item in hub_listing(tmp_path)}
    for place, name, caption in (
        ("b.parquet:000000002", "b.parquet:000000002", "a photo"),  # as two in the other file
        ("b.parquet:000000003", "image.jpg", "of a cat"),
        ("b.parquet:000000004", "4.jpg", "a photo"),
        ("a.parquet:000000003", "a.parquet:000000003", "a photo"),
    ):
        assert ids[place] == item_id(name, caption)


def test_plain_bytes_and_several_captions_are_read(tmp_path, served):
    serve(served[0], "a.parquet", [b"0", b"1"], [["", "first", "second"], ["only"]], pa.large_binary())
    found = {item.caption: item for item in hub_listing(tmp_path)}
    assert set(found) == {"first", "only"}
    with hub_parquet.reader(hub_settings(), tmp_path / "cache") as read:
        assert read(found["only"].place) == b"1"


def test_the_caption_of_a_conversation_is_what_is_answered(tmp_path, served):
    captions = [TURNS, TURNS[:1], [*TURNS, *TURNS], [{"from": "gpt", "value": "another thing"}]]
    serve(served[0], "a.parquet", named(0, 1, 2, 3), captions)
    found = hub_listing(tmp_path)
    assert sorted(item.caption for item in pictures(found)) == ["a thing", "a thing", "another thing"]
    assert rejects(found) == [
        ("a.parquet:000000001", "column 'caption' is a conversation without an answer of gpt or assistant")
    ]
    serve(served[0], "a.parquet", named(0), [{"from": "human", "value": "a"}])
    assert not pictures(hub_listing(tmp_path))


def test_hub_rows_that_cannot_be_used_are_rejected(tmp_path, served, monkeypatch):
    captions = pa.array([b"good", None, b" ", b"caf\xe9", b"empty", b"null", b"large"], pa.binary()).view(pa.string())
    cells = [*named(0, 1, 2, 3), {"bytes": None, "path": "x.jpg"}, None, {"bytes": b"large" * 9, "path": "y.jpg"}]
    serve(served[0], "a.parquet", cells, captions)
    monkeypatch.setattr(hub_rows, "MAX_BYTES", 20)
    found = hub_listing(tmp_path)
    assert rejects(found) == [
        ("a.parquet:000000001", "column 'caption' is missing or null"),
        ("a.parquet:000000002", "column 'caption' is empty"),
        ("a.parquet:000000003", "column 'caption' is not valid UTF-8"),
    ]
    places = {item.caption: item.place for item in pictures(found)}
    with hub_parquet.reader(hub_settings(), tmp_path / "cache") as read:
        assert read(places["good"]) == b"0"
        for caption, message in (("empty", "holds no bytes"), ("null", "holds no bytes"), ("large", "larger than 20")):
            with pytest.raises(TriptychError, match=message):
                read(places[caption])
        for place in ("a.parquet:000000099", "../a.parquet:000000000"):
            with pytest.raises(TriptychError, match="no such"):
                read(place)


def test_sorted_reads_open_each_row_group_once(tmp_path, served, monkeypatch):
    serve(served[0], "a.parquet", named(*range(12)), [f"thing {n}" for n in range(12)], rows=4)
    opened = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **k: opened.append(group) or real(self, group, **k)
    )
    with hub_parquet.reader(hub_settings(), tmp_path / "cache") as read:
        for item in sorted(hub_listing(tmp_path), key=lambda item: item.place):
            read(item.place)
    assert opened == [0, 1, 2]


def test_damage_to_a_stored_file_stops_and_what_is_published_damaged_costs_its_rows(tmp_path, served):
    cells = [{"bytes": b"%d" % number * 500, "path": f"{number}.jpg"} for number in range(6)]
    serve(served[0], "a.parquet", cells, [f"thing {n}" for n in range(6)])
    whole = (served[0] / "a.parquet").read_bytes()
    group = pq.read_metadata(served[0] / "a.parquet").row_group(1).column(0)
    at = group.dictionary_page_offset or group.data_page_offset
    broken = whole[:at] + b"\xff" * 40 + whole[at + 40 :]

    def read_all():
        items = [item for item in hub_parquet.listing(hub_settings(), tmp_path / "cache") if isinstance(item, Item)]
        with hub_parquet.reader(hub_settings(), tmp_path / "cache") as read:
            for item in sorted(items, key=lambda item: item.place):
                try:
                    yield len(read(item.place))
                except TriptychError as error:
                    yield str(error)

    (served[0] / "a.parquet").write_bytes(broken)
    found = list(read_all())
    assert found[:3] == [500] * 3 and all("cannot be read as it is published" in said for said in found[3:])
    (served[0] / "a.parquet").write_bytes(whole)
    shutil.rmtree(tmp_path / "cache")
    path = hub_parquet.parquet_files(hub_settings(), tmp_path / "cache")["a.parquet"]
    huggingface.stop_if_damaged.cache_clear()  # it lies where the other one lay
    path.resolve().write_bytes(broken)
    with pytest.raises(OSError, match=r"a\.parquet differs from its hash on the hub: damaged since"):
        list(read_all())
    assert list(read_all()) == [500] * 6, "it is fetched again"


def test_only_parquet_files_of_the_pattern_are_downloaded_and_their_names_are_kept(tmp_path, served):
    folder, hub = served
    for name in ("root.parquet", "data/train-0.parquet", "data/deep/train-1.parquet", "data/test-0.parquet"):
        serve(folder, name, named(0), ["a thing"])
    for name in ("model.pkl", "load.py", "data/train.csv"):
        (folder / name).write_text("x")
    for pattern, names in {
        "**/*.parquet": {"root.parquet", "data/train-0.parquet", "data/deep/train-1.parquet", "data/test-0.parquet"},
        "data/train-*.parquet": {"data/train-0.parquet"},
        "**/train-*.parquet": {"data/train-0.parquet", "data/deep/train-1.parquet"},
    }.items():
        hub.requests.clear()
        shutil.rmtree(tmp_path / "cache" / "hub", ignore_errors=True)
        files = hub_parquet.parquet_files(hub_settings(files=pattern), tmp_path / "cache")
        asked = {request.line.partition(f"{REVISION}/")[2] for request in hub.requests if "HEAD /data" in request.line}
        assert set(files) == asked == names and list(files) == sorted(files)
    # Later the hub need not be asked for the list.
    hub.requests.clear()
    assert set(hub_parquet.parquet_files(hub_settings(), tmp_path / "cache")) == {*files, "root.parquet"} | {
        "data/test-0.parquet"
    }
    assert not hub.asked("/tree/")


def test_faults_of_hub_data_name_repo_file_and_column(tmp_path, served, monkeypatch):
    serve(served[0], "a.parquet", named(0), ["a thing"])
    for changes, message in (
        ({"caption_column": "text"}, r"some/data, a\.parquet: has no column 'text', but 'image', 'caption', 'other'"),
        ({"image_column": "jpg"}, r"some/data, a\.parquet: has no column 'jpg'"),
        ({"image_column": "other"}, r"some/data, a\.parquet: column 'other' is string; images are bytes"),
        ({"files": "*.csv"}, r"'\*\.csv' must end in \.parquet"),
        ({"files": "b*.parquet"}, r"some/data: no file matches 'b\*\.parquet'"),
    ):
        with pytest.raises(TriptychError, match=message):
            hub_listing(tmp_path, **changes)
    columns = [pa.array([{"bytes": b"0", "path": "0.jpg"}], IMAGE), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "caption", "caption"]), served[0] / "a.parquet")
    with pytest.raises(TriptychError, match=r"some/data, a\.parquet: has several columns 'caption', 2 and 3"):
        hub_listing(tmp_path)
    (served[0] / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(TriptychError, match=r"a\.parquet: cannot be read as Parquet"):
        hub_listing(tmp_path)
    monkeypatch.setattr(hub_http, "is_offline_mode", lambda: True)
    with pytest.raises(TriptychError, match=r"some/data: cannot get the list of files at .*without internet"):
        hub_listing(tmp_path / "new")
    assert not (tmp_path / "new").exists()
