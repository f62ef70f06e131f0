"""Questions as people have them: values, spellings, encodings and conversations in SLAKE's layout."""

import codecs
import json
import math

import pytest
from conftest import image_bytes
from triptych.config.datasets import SlakeFolderVqa
from triptych.data.fetch import fetch, tabulate
from triptych.data.sources import slake_folder
from triptych.data.sources.base import Item, Reject
from triptych.data.sources.conversations import question_rows
from triptych.data.sources.slake_layout import folder_listing
from triptych.errors import TriptychError
from triptych.io.parquet import read_table
from triptych.io.text import decode_text, encoding_of, parse_json, plain_text


def row(number: int, image: int = 0, **changes) -> dict:
    return {
        "qid": number,
        "img_id": image,
        "img_name": f"toy{image}/source.png",
        "question": f"what is it, {number} ?",
        "answer": "Liver",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "CT",
        "answer_type": "OPEN",
        "content_type": "Organ",
        **changes,
    }


def write(folder, train, validation=(), test=(), images=3, encode=json.dumps):
    for image in range(images):
        path = folder / "imgs" / f"toy{image}" / "source.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes("red", "left", image))
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        text = encode(list(rows))
        (folder / f"{name}.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def listed(folder, **options) -> tuple[dict[str, dict], dict[str, str]]:
    """Questions by id, and reasons of rejects by id."""
    found = list(folder_listing(folder, **options))
    questions = {row["question_id"]: row for item in found if isinstance(item, Item) for row in item.questions}
    return questions, {item.id: item.reason for item in found if isinstance(item, Reject)}


@pytest.mark.parametrize("stated", ["open", " OPEN", "Open ", "oPeN\t", "OPEN"])
def test_answer_types_are_read_without_regard_to_case_and_blanks(tmp_path, stated):
    questions, rejects = listed(write(tmp_path, [row(1, answer_type=stated), row(2, answer_type="closed ")]))
    assert {name: found["answer_type"] for name, found in questions.items()} == {"1": "OPEN", "2": "CLOSED"}
    assert not rejects


@pytest.mark.parametrize("stated", ["YES/NO", "", "OPEN-ENDED", "O PEN", "number", 1, "CLOSED."])
def test_answer_types_that_no_table_counts_are_rejected(tmp_path, stated):
    questions, rejects = listed(write(tmp_path, [row(1, answer_type=stated), row(2)]))
    assert set(questions) == {"2"}
    assert "train.json[0] has an answer_type that is neither OPEN nor CLOSED" in rejects["1"]


def test_what_folds_and_tables_group_by_has_one_spelling(tmp_path, capsys):
    rows = [row(1, modality="X-Ray"), row(2, modality="x-ray "), row(3, modality="X-RAY"), row(4, modality="X Ray")]
    rows += [row(5, location="Pelvic Cavity"), row(6, location="pelvic  cavity"), row(7, content_type=" ORGAN")]
    questions, _ = listed(write(tmp_path, rows))
    assert [questions[str(number)]["modality"] for number in (1, 2, 3, 4)] == ["X-Ray"] * 3 + ["X Ray"]
    assert questions["6"]["location"] == "Pelvic Cavity" and questions["7"]["content_type"] == "Organ"
    said = capsys.readouterr().out
    assert "modality: 2 values differed in case or blanks and are read alike: 'x-ray ' as 'X-Ray'" in said
    assert "answer_type" not in said


def test_numbers_that_a_table_holds_as_fractions_are_not_said_to_differ(tmp_path, capsys):
    questions, _ = listed(write(tmp_path, [row(1, content_type=2.0), row(2, content_type=2)]))
    assert [questions[name]["content_type"] for name in ("1", "2")] == ["2", "2"]
    assert "read alike" not in capsys.readouterr().out


def test_ids_of_conversations_are_the_same_however_a_table_holds_them():
    turns = [{"from": who, "value": "text"} for who in ("human", "gpt")]
    for number in (7, 7.0):
        for times, ids in ((1, ["7"]), (2, ["7-1", "7-2"])):
            rows = question_rows({"id": number, "image": "a.png", "conversations": turns * times}, "train.json[0]")
            assert [plain_text(one["qid"]) for one in rows] == ids


def test_blanks_around_ids_make_no_other_image_question_or_patient(tmp_path):
    rows = [row(1, subject="p  1"), row(2, " 0", img_name="toy0/source.png", subject=" p 1 "), row("1 ")]
    found = list(folder_listing(write(tmp_path, rows)))
    (item,) = (one for one in found if isinstance(one, Item))
    assert (item.id, item.group, len(item.questions)) == ("0", "subject p 1", 2)
    assert [one.reason for one in found if isinstance(one, Reject)] == [
        "train.json[2] repeats the qid of another row: 1"
    ]


def test_any_row_names_the_subject_of_its_image_and_another_one_is_rejected(tmp_path):
    rows = [row(1), row(2, subject="p7"), row(3), row(4, subject="p9"), row(5, subject=7.0)]
    found = list(folder_listing(write(tmp_path, rows)))
    (item,) = (one for one in found if isinstance(one, Item))
    assert (item.group, [one["question_id"] for one in item.questions]) == ("subject p7", ["1", "2", "3"])
    assert [one.reason for one in found if isinstance(one, Reject)] == [
        "train.json[3] names another subject than an earlier row of its image: p9, not p7",
        "train.json[4] names another subject than an earlier row of its image: 7, not p7",
    ]


def test_a_whole_number_is_the_same_however_a_table_holds_it(tmp_path):
    assert [plain_text(value) for value in (7, 7.0, -3.0, 2.5, 1e300)] == ["7", "7", "-3", "2.5", "1e+300"]
    questions, rejects = listed(write(tmp_path, [row(1.0, answer=3.0), row(1)]))
    assert questions["1"]["answer"] == "3" and "repeats the qid" in rejects["1"]


def test_languages_are_read_without_regard_to_case_and_unknown_ones_rejected(tmp_path):
    rows = [row(1, q_lang=" EN"), row(2, q_lang="ZH"), row(3, q_lang="english"), row(4, q_lang=7), row(5)]
    rows += [{key: value for key, value in row(6).items() if key != "q_lang"}, row(7, q_lang=None)]
    write(tmp_path, rows)
    questions, rejects = listed(tmp_path)
    assert set(questions) == {"1", "5", "6", "7"} and set(rejects) == {"3", "4"}
    assert "neither en nor zh: 'english'" in rejects["3"]
    assert set(listed(tmp_path, language="zh")[0]) == {"2", "6", "7"}
    assert set(listed(tmp_path, language="both")[0]) == {"1", "2", "5", "6", "7"}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("answer", ["left", "right"], "has an answer that is a list, not text"),
        ("answer", math.nan, "has an answer that is not a finite number"),
        ("answer", -math.inf, "has an answer that is not a finite number"),
        ("answer", True, "has an answer that is true or false, not text"),
        ("answer", {"a": 1}, "has an answer that is a mapping, not text"),
        ("question", {"text": "what ?"}, "has a question that is a mapping"),
        ("question", ["what ?"], "has a question that is a list"),
        ("modality", False, "has a modality that is true or false"),
        ("img_id", [1], "has an img_id that is a list"),
        ("qid", math.nan, "has a qid that is not a finite number"),
        ("subject", {"id": 3}, "has a subject that is a mapping"),
        ("qid", " ", "has an empty qid"),
    ],
)
def test_values_that_are_not_text_are_rejected(tmp_path, key, value, reason):
    questions, rejects = listed(write(tmp_path, [row(1, **{key: value}), row(2)]))
    assert set(questions) == {"2"}
    assert [text for text in rejects.values() if reason in text], rejects


@pytest.mark.parametrize(
    ("answer", "text"), [(3, "3"), (2.5, "2.5"), (0, "0"), ("None", "None"), ("N/A", "N/A"), ("nan", "nan")]
)
def test_numbers_and_words_that_look_like_nothing_stay(tmp_path, answer, text):
    questions, rejects = listed(write(tmp_path, [row(1, answer=answer)]))
    assert questions["1"]["answer"] == text and not rejects


def test_rows_that_are_no_records_cost_themselves_alone(tmp_path):
    questions, rejects = listed(write(tmp_path, ["a text", row(1), None, [row(2)]]))
    assert set(questions) == {"1"}
    assert rejects == {
        "train.json[0]": "train.json[0] is text, not a record",
        "train.json[2]": "train.json[2] is null, not a record",
        "train.json[3]": "train.json[3] is a list, not a record",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_tables_of_any_usual_encoding_are_read(tmp_path, encoding):
    rows = [row(1, answer="Röntgen"), row(2, answer="肝脏")]
    write(tmp_path, rows, encode=lambda rows: json.dumps(rows, ensure_ascii=False).encode(encoding))
    assert [found["answer"] for found in listed(tmp_path)[0].values()] == ["Röntgen", "肝脏"]


def test_what_is_no_json_is_named_and_never_to_be_deleted(tmp_path):
    write(tmp_path, [row(1)])
    for data in (b'[{"qid": 1,', b"[" * 100_000, codecs.BOM_UTF16_LE + b"[\0]", b"", b"\xff\xfe"):
        (tmp_path / "train.json").write_bytes(data)
        with pytest.raises(TriptychError, match=r"train\.json: .*restore the file") as raised:
            listed(tmp_path)
        assert "delete" not in str(raised.value)
    (tmp_path / "train.json").write_text('{"rows": []}')
    with pytest.raises(TriptychError, match=r"train\.json: must be a list of records"):
        listed(tmp_path)


def test_numbers_of_thousands_of_digits_cost_their_row(tmp_path):
    write(tmp_path, [row(1, answer="BIG"), row(2, qid="HUGE"), row(3)])
    text = (tmp_path / "train.json").read_text()
    (tmp_path / "train.json").write_text(text.replace('"BIG"', "9" * 6000).replace('"HUGE"', "-" + "1" * 5000))
    questions, rejects = listed(tmp_path)
    assert set(questions) == {"3"} and len(rejects) == 2
    assert all("is not a finite number" in reason for reason in rejects.values())
    assert parse_json("9" * 299) == 10**299 - 1 and parse_json("9" * 6000) == math.inf


def test_a_lone_surrogate_costs_its_row_and_can_be_stored(tmp_path):
    rows = [row("x\ud800"), row(2, subject="\udfff"), row(3, img_name="\ud812.png"), row(4, q_lang="\ud800"), row(5)]
    settings = SlakeFolderVqa(source="slake-folder", folder=str(write(tmp_path / "data", rows, images=1)))
    fetch(settings, tmp_path, tmp_path / "out")
    assert [found["question_id"] for found in read_table(tmp_path / "out" / "questions.parquet")] == ["5"]
    rejects = read_table(tmp_path / "out" / "rejects.parquet")
    assert [found["id"] for found in rejects] == ["x\\ud800", "2", "3", "4"]
    (found,) = tabulate([Reject("image", "a\udc80", "its \ud800")], settings)
    assert found == ("rejects", {"kind": "image", "id": "a\\udc80", "reason": "its \\ud800"})


@pytest.mark.parametrize(
    "deep", ["[" * 100_000 + "]" * 100_000, '{"a": ' * 600 + "null" + "}" * 600, "[" * 150 + "]" * 150]
)
def test_a_row_nested_too_deeply_costs_itself(tmp_path, deep):
    write(tmp_path, [row(1), row(2, answer="HERE"), "THERE", row(3)])
    text = (tmp_path / "train.json").read_text()
    (tmp_path / "train.json").write_text(text.replace('"HERE"', deep).replace('"THERE"', deep))
    questions, rejects = listed(tmp_path)
    assert set(questions) == {"1", "3"}
    said = "is nested more than 100 levels deep, not a record"
    assert rejects == {f"train.json[{number}]": f"train.json[{number}] {said}" for number in (1, 2)}


def test_boxes_at_the_limits_of_json_are_reported(tmp_path):
    write(tmp_path, [row(1, 0), row(2, 1), row(3, 2)])
    for image, text in enumerate(
        ("[" * 100_000, '[{"Liver\\ud800": [1, 2, 3, 4]}]', f'[{{"Liver": [1, 2, 3, {"9" * 5000}]}}]')
    ):
        (tmp_path / "imgs" / f"toy{image}" / "detection.json").write_text(text)
    questions, rejects = listed(tmp_path)
    assert len(questions) == 3 and set(rejects) == {"0", "1", "2"}
    assert all("not a list of organ boxes" in reason for reason in rejects.values())


# Names of images


@pytest.mark.parametrize(
    "stated", ["toy0\\source.png", ".\\toy0\\source.png", " toy0/source.png ", "Toy0/SOURCE.png", "./toy0/source.png"]
)
def test_names_as_people_write_them_find_their_file(tmp_path, capsys, stated):
    write(tmp_path, [row(1), row(2, 1, img_name="toy1\\Source.PNG"), row(3, img_name=stated)])
    write(tmp_path, [row(3, img_name=stated), row(2, 1)])
    (item, _) = (found for found in folder_listing(tmp_path) if isinstance(found, Item))
    assert item.path == stated and (tmp_path / "imgs" / item.place).is_file() and item.stamp
    assert ("1 image names were found in another spelling" in capsys.readouterr().out) == (item.place != stated)


def test_one_image_may_be_named_in_two_spellings_and_a_name_with_a_backslash_is_a_name(tmp_path):
    write(tmp_path, [row(1), row(2, img_name="toy0\\source.png"), row(3, 1, img_name="odd\\name.png")])
    (tmp_path / "imgs" / "odd\\name.png").write_bytes(image_bytes("red", "left", 5))
    items = [found for found in folder_listing(tmp_path) if isinstance(found, Item)]
    assert [(item.place, len(item.questions)) for item in items] == [("toy0/source.png", 2), ("odd\\name.png", 1)]


def test_names_that_two_files_have_but_for_case_and_names_that_lead_out_are_not_guessed(tmp_path):
    write(
        tmp_path / "data",
        [row(1, img_name="A.png"), row(2, 1, img_name="..\\..\\secret.png"), row(3, 2, img_name="\\x")],
    )
    for name in ("a.png", "a.PNG"):
        (tmp_path / "data" / "imgs" / name).write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"secret")
    items = {found.id: found for found in folder_listing(tmp_path / "data") if isinstance(found, Item)}
    assert (items["0"].place, items["0"].stamp) == ("A.png", "") and items["2"].stamp == ""
    settings = SlakeFolderVqa(source="slake-folder", folder=str(tmp_path / "data"))
    with slake_folder.reader(settings, tmp_path) as read, pytest.raises(TriptychError, match="leads out of"):
        read(items["1"].place)


# Completeness


def test_a_copy_without_some_of_its_pictures_is_not_what_was_expected(tmp_path):
    write(tmp_path, [row(1), row(2, 1), row(3, 2)], [row(4)][:0])
    expected = {"images": 3, "train": 3}
    assert len(listed(tmp_path, expected=expected)[0]) == 3
    (tmp_path / "imgs" / "toy1" / "source.png").write_bytes(b"")
    with pytest.raises(TriptychError, match=r"imgs: 1 pictures .* missing or empty, such as 'toy1/source.png'"):
        listed(tmp_path, expected=expected)
    (tmp_path / "imgs" / "toy2" / "source.png").unlink()
    with pytest.raises(TriptychError, match=r"imgs: 2 pictures .* leave out the key `expected`"):
        listed(tmp_path, expected=expected)
    assert len(listed(tmp_path)[0]) == 3


# Conversations


def entry(number, *said, **changes):
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(said)]
    return {"id": f"e{number}", "image": f"toy{number}/source.png", "conversations": turns, **changes}


def test_conversations_are_read_as_questions(tmp_path, capsys):
    entries = [
        entry(0, "<image>\nIs this a CT ?", "Yes.", "Where is it ?", "left lobe"),
        entry(1, "What is it ?\n<image>", "Liver", answer_type="closed", modality="MRI", subject="p1"),
        entry(2, "And this ?"),
        {"id": "e3", "conversations": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}]},
    ]
    questions, rejects = listed(write(tmp_path, entries))
    shown = {
        name: tuple(found[key] for key in ("question", "answer", "answer_type", "modality"))
        for name, found in questions.items()
    }
    assert shown == {
        "e0-1": ("Is this a CT ?", "Yes.", "CLOSED", "Unknown"),
        "e0-2": ("Where is it ?", "left lobe", "OPEN", "Unknown"),
        "e1": ("What is it ?", "Liver", "CLOSED", "MRI"),
    }
    assert rejects == {"e2": "train.json[2] lacks answer", "e3": "train.json[3] lacks img_id, img_name"}
    assert "4 conversations, read as questions with their answers" in capsys.readouterr().out


# The reader of text


def test_encodings_are_told_by_their_first_bytes():
    found = [
        encoding_of(text.encode(name)[:4]) for text, name in (("[1]", "utf-8"), ("[1]", "utf-16-le"), ("é", "utf-8"))
    ]
    assert found == ["utf-8", "utf-16-le", "utf-8"]
    assert encoding_of(b"") == encoding_of(b"1") == "utf-8"
    assert decode_text(b"caf\xe9") == "caf\udce9"
    with pytest.raises(TriptychError, match="is not valid UTF-8"):
        plain_text("caf\udce9")
