"""Caption sources of the user's choice: tables of four formats, tar shards, Parquet files of the hub."""

import csv
import gzip
import io
import json
import os
import random
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COLOURS, image_bytes
from hub import Hub
from triptych.config.datasets import FolderCaptions, HubParquetCaptions, WebdatasetCaptions
from triptych.data.sources import base, caption_folder, hub_parquet, hub_rows, webdataset
from triptych.data.sources.base import Item, Reject, item_id
from triptych.data.sources.table_files import Columns, caption_text, read_rows
from triptych.download import hub_http, huggingface
from triptych.errors import TriptychError

REVISION = "0123456789abcdef0123456789abcdef01234567"
RED, BLUE = image_bytes("red", "left"), image_bytes("blue", "right")
TABLES = ("captions.csv", "captions.json", "captions.jsonl", "captions.parquet")


def pictures(found):
    return [item for item in found if isinstance(item, Item)]


def rejects(found):
    return [(item.id, item.reason) for item in found if isinstance(item, Reject)]


# Tables


def write_rows(path, rows, columns=("image", "caption")):
    """The same rows in the format that the name of the table asks for."""
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    match path.suffix:
        case ".csv":
            with path.open("w", encoding="utf-8-sig", newline="") as file:  # with the mark that Excel writes
                csv.writer(file).writerows([columns, *rows])
        case ".json":
            path.write_text(json.dumps(records))
        case ".jsonl":
            path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        case ".parquet":
            schema = pa.schema([(name, pa.string()) for name in columns])
            pq.write_table(pa.Table.from_pylist(records, schema=schema), path)
    return path


def folder_settings(folder, **changes):
    return FolderCaptions(**{"source": "caption-folder", "folder": str(folder), "sizes": [5], **changes})


def folder_listing(folder, **changes):
    return list(caption_folder.listing(folder_settings(folder, **changes), folder / "cache"))


ROWS = [
    ("a/0.png", 'a "red" square, on the left'),
    ("a/1.png", "two\nlines"),
    ("2.png", "ein rotes Viereck — 赤い四角"),
    ("3.png", "a line\u2028separator"),
    *((f"{number}.png", f"thing {number}") for number in range(4, 12)),
]


@pytest.fixture
def folder(tmp_path):
    for number, (name, _) in enumerate(ROWS):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(list(COLOURS)[number % 4], "left"))
    return tmp_path / "data"


def test_all_formats_say_the_same(folder):
    listings = []
    for name in TABLES:
        write_rows(folder / name, ROWS)
        listings.append(folder_listing(folder, table=name))
    assert listings[0] == listings[1] == listings[2] == listings[3]
    assert {(item.path, item.caption) for item in listings[0]} == set(ROWS)
    with caption_folder.reader(folder_settings(folder), folder / "cache") as read:
        assert all(read(item.place) == (folder / item.path).read_bytes() for item in listings[0])


@pytest.mark.parametrize("table", TABLES)
def test_the_order_of_rows_and_the_size_do_not_matter(folder, table):
    write_rows(folder / table, ROWS)
    found = folder_listing(folder, table=table)
    write_rows(folder / table, random.Random(3).sample(ROWS, len(ROWS)))
    assert folder_listing(folder, table=table) == found
    assert folder_listing(folder, table=table, sizes=[3]) == found  # a smaller set is a beginning
    assert [i.id for i in folder_listing(folder, table=table, seed=1)] != [i.id for i in found]
    # Without some rows the others keep their order.
    write_rows(folder / table, ROWS[:6])
    kept = {name for name, _ in ROWS[:6]}
    assert folder_listing(folder, table=table) == [item for item in found if item.path in kept]


def test_columns_may_have_other_names(folder):
    write_rows(folder / "x.csv", [("1", "2.png", "a thing")], ("number", "file", "text"))
    (item,) = folder_listing(folder, table="x.csv", image_column="file", caption_column="text")
    assert (item.path, item.caption) == ("2.png", "a thing")


def test_of_repeated_rows_one_is_used(folder):
    write_rows(folder / "captions.jsonl", [ROWS[4], ROWS[4], (ROWS[4][0], "another caption")])
    found = folder_listing(folder)
    assert sorted(item.caption for item in pictures(found)) == ["another caption", "thing 4"]
    assert [reason for _, reason in rejects(found)] == ["the source names it more than once; one of them is used"]


def test_the_stamp_changes_with_the_file(folder):
    write_rows(folder / "captions.jsonl", ROWS)
    before = {item.path: item.stamp for item in folder_listing(folder)}
    (folder / "4.png").write_bytes(RED + b"more")
    about = (folder / "5.png").stat()
    os.utime(folder / "5.png", ns=(about.st_atime_ns, about.st_mtime_ns + 1_000))
    (folder / "6.png").unlink()
    after = {item.path: item.stamp for item in folder_listing(folder)}
    assert {name for name in before if before[name] != after[name]} == {"4.png", "5.png", "6.png"}
    assert after["6.png"] == ""


def test_names_that_lead_out_cost_their_image_only(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(RED)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "2.png")
    os.mkfifo(folder / "pipe.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "a/../../secret.png", "nul\0.png"]
    names += ["gone.png", "a", "pipe.png", "2.png", "inside.png"]
    write_rows(folder / "captions.jsonl", [(name, "a thing") for name in names])
    items = {item.path: item for item in folder_listing(folder)}
    assert set(items) == set(names)
    messages = dict.fromkeys(names[:4], "leads out") | {names[4]: "not a file name"}
    messages |= {"gone.png": "No such file"} | dict.fromkeys(names[6:8], "no image file")
    with caption_folder.reader(folder_settings(folder), folder / "cache") as read:
        for name, message in messages.items():
            with pytest.raises((TriptychError, OSError), match=message):
                read(items[name].place)
        assert read("2.png") == read("inside.png") == (folder / "2.png").read_bytes()


def test_huge_files_are_not_read_whole(folder, monkeypatch):
    monkeypatch.setattr(base, "MAX_BYTES", 10)
    with (
        caption_folder.reader(folder_settings(folder), folder) as read,
        pytest.raises(TriptychError, match=r"2\.png: larger than 10 bytes"),
    ):
        read("2.png")


def test_bad_rows_of_json_lines_are_named_by_line(folder):
    lines = [
        b'{"image": "2.png", "caption": "good"}', b"", b"{not json", b'{"image": "2.png"}', b"[1]", b"null",
        b'{"image": "2.png", "caption": null}', b'{"image": "2.png", "caption": 7}',
        b'{"image": "2.png", "caption": " "}', b'{"image": "2.png", "caption": "caf\xe9"}',
        b'{"image": "2.png", "caption": "half \\ud800"}', b"[" * 100_000, b'{"image": "3.png", "caption": "good too"}',
    ]  # fmt: skip
    (folder / "captions.jsonl").write_bytes(b"\n".join(lines))
    found = folder_listing(folder)
    assert {item.caption for item in pictures(found)} == {"good", "good too"}
    reasons = dict(rejects(found))
    assert list(reasons) == [f"captions.jsonl:{number}" for number in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)]
    expected = [
        "not valid JSON", "'caption' is missing or null", "is a list, not an object", "is null, not an object",
        "'caption' is missing or null", "'caption' is a number, not text", "'caption' is empty", "not valid UTF-8",
        "not valid UTF-8", "not valid JSON",
    ]  # fmt: skip
    assert all(text in reason for text, reason in zip(expected, reasons.values(), strict=True))


def test_bad_rows_of_csv_are_named_by_line(folder):
    lines = [
        b"image,caption", b"2.png,good", b"2.png,a red, round thing", b"2.png", b"", b'3.png,"two', b'lines"',
        b"2.png,", b"2.png,caf\xe9", b'2.png,"closed" early', b"4.png,good", b'5.png,"never closed', b"6.png,lost",
    ]  # fmt: skip
    (folder / "captions.csv").write_bytes(b"\r\n".join(lines))
    found = folder_listing(folder, table="captions.csv")
    assert {item.caption for item in pictures(found)} == {"good", "two\r\nlines"}
    reasons = dict(rejects(found))
    assert list(reasons) == [f"captions.csv:{number}" for number in (3, 4, 8, 9, 10, 12)]
    expected = ["(3, not 2; quote cells that hold commas)", "(1, not 2;", "'caption' is empty", "not valid UTF-8"]
    expected += ["not valid CSV (up to line 10", "not valid CSV (up to line 13"]
    assert all(text in reason for text, reason in zip(expected, reasons.values(), strict=True))


def test_a_quote_left_open_costs_no_more_than_the_rows_it_swallows(folder):
    rows = "".join(f"{number}.png,thing {number}\n" for number in range(20_000))
    (folder / "captions.csv").write_text('image,caption\nx.png,"open\n' + rows)
    found = folder_listing(folder, table="captions.csv")
    assert rejects(found)[0][0] == "captions.csv:2" and len(rejects(found)) == 1
    assert len(pictures(found)) > 10_000


def test_bad_rows_of_json_and_parquet_are_named_by_row(folder):
    (folder / "captions.json").write_bytes(
        b'[{"image": "2.png", "caption": "good"}, 3, {"image": "2.png", "caption": "caf\xe9"}, {"caption": "x"}]'
    )
    found = folder_listing(folder, table="captions.json")
    assert [item.caption for item in pictures(found)] == ["good"]
    assert [name for name, _ in rejects(found)] == [f"captions.json:{number}" for number in (2, 3, 4)]
    broken = pa.array([b"good", b"caf\xe9", None, b"good too"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": ["2.png"] * 4, "caption": broken}), folder / "captions.parquet")
    found = folder_listing(folder, table="captions.parquet")
    assert {item.caption for item in pictures(found)} == {"good", "good too"}
    assert rejects(found) == [
        ("captions.parquet:2", "'caption' is not valid UTF-8"),
        ("captions.parquet:3", "'caption' is missing or null"),
    ]


def test_a_row_nested_too_deeply_costs_itself(folder):
    deep = {"[": "[" * 100_000 + "]" * 100_000, "{": '{"a":' * 500 + "1" + "}" * 500}
    rows = ['{"image": "2.png", "caption": "good"}', deep["["], f'{{"image": "2.png", "caption": {deep["{"]}}}']
    rows.append('{"image": "3.png", "caption": "good too"}')
    for name, text in (("captions.json", f"[{','.join(rows)}]"), ("captions.jsonl", "\n".join(rows))):
        (folder / name).write_text(text)
        found = folder_listing(folder, table=name)
        assert {item.caption for item in pictures(found)} == {"good", "good too"}
        assert [place for place, _ in rejects(found)] == [f"{name}:2", f"{name}:3"]
        assert all("nested more than 100 levels deep" in reason for _, reason in rejects(found))


def test_texts_stored_as_bytes_are_texts(tmp_path):
    columns = {"image": pa.array([b"a.png"], pa.binary()), "caption": pa.array(["a thing"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "captions.parquet")
    rows = list(read_rows(tmp_path / "captions.parquet", Columns("image", "caption")))
    assert rows == [("captions.parquet:1", ("a.png", "a thing"), "")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "captions.csv",
            b"image,text\na.png,a thing\n",
            r"captions\.csv: has no column 'caption', but 'image', 'text'",
        ),
        ("captions.csv", b"", r"captions\.csv: has no column 'image', but none at all"),
        ("captions.csv", b'"image\n', r"captions\.csv: its first line is not valid CSV"),
        ("captions.jsonl", b'{"image": "a.png", "text": "x"}\n', r"captions\.jsonl: no row has the key 'caption'"),
        ("captions.json", b'[{"text": "x"}]', r"captions\.json: no row has the key 'image'"),
        ("captions.json", b"[{", r"captions\.json: not valid JSON"),
        ("captions.json", b'{"image": "a.png"}', r"captions\.json: must be a list of objects"),
        ("captions.json", b"[" * 100_000, r"captions\.json: not valid JSON"),
        ("captions.parquet", b"PAR1 nothing", r"captions\.parquet: cannot be read as Parquet"),
        ("captions.xlsx", b"", r"captions\.xlsx: a table must be one of \.csv, \.tsv, \.json, \.jsonl, \.parquet"),
        ("captions.csv", None, r"captions\.csv: no such table"),
    ],
)
def test_tables_that_cannot_be_used_stop_with_file_and_column(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TriptychError, match=message):
        folder_listing(tmp_path, table=name)


def test_a_parquet_table_without_the_column_names_it(tmp_path):
    write_rows(tmp_path / "captions.parquet", [("a.png", "x")], ("image", "text"))
    with pytest.raises(TriptychError, match=r"captions\.parquet: has no column 'caption', but 'image', 'text'"):
        folder_listing(tmp_path, table="captions.parquet")


TURNS = [{"from": "human", "value": "<image>\nWhat is it ?"}, {"from": "gpt", "value": "a thing"}]


@pytest.mark.parametrize(
    ("cell", "caption"),
    [
        ("a thing", "a thing"),
        (["a thing", "b"], "a thing"),
        ([None, " ", "a thing"], "a thing"),
        (TURNS, "a thing"),
        (TURNS[::-1], "a thing"),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": "a thing"}], "a thing"),
        ([{"from": " Human", "value": "?"}, {"from": "GPT", "value": "a thing"}, *TURNS], "a thing"),
        (json.dumps(TURNS), "a thing"),
        (' ["", "a thing", "b"]', "a thing"),
        ("[a thing", "[a thing"),
        ("[1] is a thing", "[1] is a thing"),
        ('"a thing"', '"a thing"'),
    ],
)
def test_the_caption_in_a_cell(cell, caption):
    assert caption_text(cell) == caption


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "is missing or null"),
        (" ", "is empty"),
        ([], "is empty"),
        ([" ", None], "is empty"),
        (3, "is a number, not text"),
        (float("nan"), "is a number, not text"),
        (True, "is true or false, not text"),
        ([["a"]], "is a list, not text"),
        ({"from": "gpt", "value": "a"}, r"is a mapping \(from, value\)"),
        ([{"raw": "a", "tokens": []}], r"is a mapping \(raw, tokens\)"),
        (TURNS[:1], "is a conversation without an answer"),
        (json.dumps(TURNS[:1]), "is a conversation without an answer"),
        ('{"en": "a thing"}', r"is a mapping \(en\)"),
        ("[1, 2]", "is a number, not text"),
        ([TURNS[0], {"from": "gpt", "value": ["a"]}], "is a conversation without an answer"),
        ("\ud800", "is not valid UTF-8"),
    ],
)
def test_cells_without_a_caption_are_not_guessed_at(cell, reason):
    with pytest.raises(TriptychError, match=f"^{reason}"):
        caption_text(cell)


# Tables as people have them


def told(folder, capsys, **options):
    """Captions by file name, and what the log says."""
    found = folder_listing(folder, **options)
    assert not rejects(found)
    return {item.place: item.caption.strip() for item in pictures(found)}, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("captions.csv", "image;caption\n2.png;red, round\n3.png;blue\n", "with semicolons between its cells"),
        ("captions.csv", "image\tcaption\n2.png\tred, round\n3.png\tblue\n", "with tabs between its cells"),
        ("captions.csv", "number|image|caption\n1|2.png|red, round\n2|3.png|blue\n", "with bars between"),
        ("captions.tsv", "caption\timage\nred, round\t2.png\nblue\t3.png\n", ""),
        ("captions.tsv", 'image,caption\n2.png,"red, round"\n3.png,blue\n', "with commas between its cells"),
        ("captions.csv", 'image, caption\n2.png, "red, round"\n3.png, blue\n', "without the blanks before its cells"),
        ("captions.csv", 'Image,CAPTION \n2.png,"red, round"\n3.png,blue\n', "column 'CAPTION' is read as 'caption'"),
        ("captions.csv", 'image,caption\n.\\2.png,"red, round"\n3.PNG,blue\n', "2 image names were found in another"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_tables_that_people_have_are_read_and_it_is_said_how(folder, capsys, name, text, said, encoding):
    (folder / name).write_bytes(text.encode(encoding))
    captions, log = told(folder, capsys, table=name)
    assert captions == {"2.png": "red, round", "3.png": "blue"}
    assert said in log and ("read as UTF-16" in log) == (encoding == "utf-16")
    assert log or not said


@pytest.mark.parametrize("name", ["captions.json", "captions.jsonl", "captions.parquet"])
def test_the_first_answer_of_a_conversation_is_a_caption(folder, name):
    rows = [
        {"id": "1", "image": "2.png", "conversations": TURNS},
        {"id": "2", "image": "a/0.png", "conversations": TURNS[:1]},
    ]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text(json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows)))
    found = folder_listing(folder, table=name)
    assert [(item.path, item.caption) for item in pictures(found)] == [("2.png", "a thing")]
    assert rejects(found) == [(f"{name}:2", "'caption' is a conversation without an answer of gpt or assistant")]
    named = folder_listing(folder, table=name, caption_column="conversations")
    assert [item.caption for item in pictures(named)] == ["a thing"] and len(rejects(named)) == 1


def test_a_key_that_is_set_is_not_replaced_by_a_conversation(folder):
    (folder / "captions.json").write_text(json.dumps([{"image": "2.png", "conversations": TURNS}]))
    with pytest.raises(TriptychError, match="no row has the key 'text'"):
        folder_listing(folder, table="captions.json", caption_column="text")


def test_two_columns_that_differ_in_case_alone_are_not_guessed_at(folder):
    (folder / "captions.csv").write_text("image,Caption,CAPTION\n2.png,a,b\n")
    with pytest.raises(TriptychError, match="has no column 'caption', but 'image', 'Caption', 'CAPTION'"):
        folder_listing(folder, table="captions.csv")


def test_two_columns_of_one_name_are_not_guessed_at(folder):
    (folder / "captions.csv").write_text("caption,image, caption\na,2.png,b\n")
    with pytest.raises(TriptychError, match=r"captions\.csv: has several columns 'caption', 1 and 3; rename"):
        folder_listing(folder, table="captions.csv")
    twice = pa.Table.from_arrays([pa.array(["2.png"])] * 2 + [pa.array(["a"])], ["image", "image", "caption"])
    pq.write_table(twice, folder / "captions.parquet")
    with pytest.raises(TriptychError, match=r"captions\.parquet: has several columns 'image', 1 and 2"):
        folder_listing(folder, table="captions.parquet")
    (folder / "captions.csv").write_text("note,caption,image,note\nx,a,2.png,y\n")  # of no column that is read
    assert len(pictures(folder_listing(folder, table="captions.csv"))) == 1


# Tar shards


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


# Parquet files of the hub

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
