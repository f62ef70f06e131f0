"""Captions in tables of four formats, beside a folder of images."""

import csv
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COLOURS, image_bytes
from listings import TURNS, pictures, rejects
from triptych.config.datasets import FolderCaptions
from triptych.data.sources import base, caption_folder
from triptych.data.sources.table_files import Columns, caption_text, read_rows
from triptych.errors import TriptychError

RED, BLUE = image_bytes("red", "left"), image_bytes("blue", "right")
TABLES = ("captions.csv", "captions.json", "captions.jsonl", "captions.parquet")


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
