"""Lists of JSON are read element by element, as `json.loads` reads them; one that is nested too deeply costs itself."""

import codecs
import json
import math
import random

import pytest
from triptych.errors import TriptychError
from triptych.io import json_list
from triptych.io.json_list import read_json_list
from triptych.io.text import Unreadable, parse_json


def read(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return list(read_json_list(path, "a list of records"))


def nested(levels, inside='"]"', kind="list"):
    opening, closing = {"list": ("[", "]"), "object": ('{"a":', "}")}[kind]
    return opening * levels + inside + closing * levels


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_elements_are_those_of_the_whole_list_however_it_is_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    generator = random.Random(chunk)
    value = [
        12, -0.5e3, "", "a \"quoted\" [text] \\", "Röntgen 肝脏 \U0001f600", None, True, {}, [], {"a": [{"b": ", ]"}]},
        *("x" * generator.randrange(30) for _ in range(20)), 34,
    ]  # fmt: skip
    for text in (json.dumps(value), json.dumps(value, indent=2, ensure_ascii=False), " [ ] ", "[\r\n1\r\n,\t2 ]\n"):
        assert read(tmp_path / "list.json", text) == json.loads(text)
    assert read(tmp_path / "list.json", json.dumps(value), "utf-16") == value


@pytest.mark.parametrize("chunk", [5, 1 << 20])
@pytest.mark.parametrize(
    "deep",
    [nested(100_000), nested(100_000, kind="object"), nested(400), nested(101), nested(3000, '"[[ \\" {", "}"')],
    ids=["lists", "objects", "400 levels", "one too many", "brackets in texts"],
)
def test_an_element_nested_too_deeply_costs_itself(tmp_path, monkeypatch, deep, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    first, second, third, last = read(tmp_path / "list.json", f'[{{"a": 1}}, {deep}, {{"b": {deep}}}, "last"]')
    assert (first, last) == ({"a": 1}, "last")
    assert isinstance(second, Unreadable) and isinstance(third, Unreadable)
    with pytest.raises(ValueError, match="nested more than 100 levels deep"):
        parse_json(deep)


def test_a_hundred_levels_are_read(tmp_path):
    assert read(tmp_path / "list.json", f"[{nested(100)}]") == [parse_json(nested(100))]
    wide = [[[]] for _ in range(500)]  # many brackets, but none deep
    assert read(tmp_path / "list.json", json.dumps([wide])) == [wide] and parse_json(json.dumps(wide)) == wide


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    "text",
    ["", "[", "[1", "[1,", "[1 2]", "[1],", "[1]]", '[{"a": 1}\n, {"b" 2}]', "[1,\n\n  oops]", '["open]', "nope"],
)
def test_what_is_no_json_is_named_with_its_place_in_the_whole_file(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(TriptychError, match=r"list\.json: not valid JSON .*; restore the file") as raised:
        read(tmp_path / "list.json", text)
    place = str(expected.value).partition(": ")[2]
    assert place in str(raised.value)


@pytest.mark.parametrize("text", ['{"rows": []}', '"text"', "7", "null"])
def test_what_is_no_list_is_told_so(tmp_path, text):
    with pytest.raises(TriptychError, match=r"list\.json: must be a list of records"):
        read(tmp_path / "list.json", text)


def test_a_deep_list_that_does_not_end_and_a_cut_encoding_stop_the_file(tmp_path):
    for data in (b"[" * 100_000, b"[" + b'{"a":' * 5000 + b"}" * 4999 + b"]", codecs.BOM_UTF16_LE + b"[\0]"):
        with pytest.raises(TriptychError, match=r"list\.json: .*restore the file"):
            read(tmp_path / "list.json", data)


def test_numbers_and_texts_at_the_limits_are_read(tmp_path):
    assert read(tmp_path / "list.json", f'[{"9" * 6000}, "\\ud800", -1]') == [math.inf, "\ud800", -1]
    assert read(tmp_path / "list.json", b'\xef\xbb\xbf["caf\xe9"]') == ["caf\udce9"]


def test_only_a_part_of_a_large_list_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(json_list, "CHUNK", 1000)
    (tmp_path / "list.json").write_text(json.dumps([{"number": number} for number in range(10_000)]))
    held = []
    monkeypatch.setattr(json_list, "_element", lambda text, read=json_list._element: held.append(text) or read(text))
    lengths = [len(held[-1].held) for _ in read_json_list(tmp_path / "list.json", "a list")]
    assert len(lengths) == 10_000 and max(lengths) < 3000
