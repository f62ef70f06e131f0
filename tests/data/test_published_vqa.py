"""Converters: every published row ends in one part or among the rejects, and no image in two parts."""

import json
import math
import random
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_dicom import NAME, dicom, grey
from test_image_formats import encoded
from triptych.data.sources.published_rows import OSF_IMAGES, OSF_JSON, PARTS
from triptych.data.sources.published_vqa import Split, convert, main
from triptych.errors import TriptychError, run_step
from triptych.io.manifest import sha256_bytes

KEYS = {
    *("qid", "img_id", "img_name", "question", "answer", "q_lang", "location", "modality", "answer_type"),
    *("base_type", "content_type", "triple"),
}
IMAGE = Split("image", validation=0.25, test=0.25)
OFFICIAL = Split("official", validation=0.25)


def picture(index: int, kind: str = "jpg") -> bytes:
    return {"jpg": b"\xff\xd8\xff\xe0", "png": b"\x89PNG\r\n\x1a\n", "gif": b"GIF89a"}[
        kind
    ] + f"picture {index}".encode()


def rad_record(number: int, image: int, **changes) -> dict:
    """A record with the 14 fields of VQA-RAD's JSON file."""
    return {
        "qid": number,
        "phrase_type": "freeform",
        "qid_linked_id": f"linked{number}",
        "image_case_url": "https://medpix.nlm.nih.gov/case?id=0",
        "image_name": f"synpic{image}.jpg",
        "image_organ": "HEAD",
        "evaluation": "not evaluated",
        "question": f"Are regions of the brain infarcted, case {number}?",
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": "Yes",
        "answer_type": "CLOSED",
        **changes,
    }


def rad_records() -> list[dict]:
    """Twenty images, each with a training and a test question, as in the official parts."""
    return [
        rad_record(2 * image + test, image, phrase_type="test_freeform" if test else "para")
        for image in range(20)
        for test in (0, 1)
    ]


def write_osf(folder, records, images=20):
    (folder / OSF_IMAGES).mkdir(parents=True)
    for image in range(images):
        (folder / OSF_IMAGES / f"synpic{image}.jpg").write_bytes(picture(image))
    (folder / OSF_JSON).write_text(json.dumps(records))
    return folder


def write_shard(path, rows):
    """Rows (image bytes, question, answer) as `datasets` pushes them to the hub."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("question", pa.string()), ("answer", pa.string())])
    table = [
        {"image": {"bytes": data, "path": None} if data is not None else None, "question": question, "answer": answer}
        for data, question, answer in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path)


def write_hub(folder, **parts):
    for part, rows in parts.items():
        write_shard(folder / "data" / f"{part}-00000-of-00001-eb8844602202be60.parquet", rows)
    return folder


def path_rows(images, kind="jpg"):
    return [
        (picture(image, kind), question, answer)
        for image in images
        for question, answer in ((f"what is present in {image}?", "colon"), (f"is {image} normal?", "no"))
    ]


def write_path_vqa(folder):
    return write_hub(
        folder, train=path_rows(range(6)), validation=path_rows(range(6, 8)), test=path_rows(range(8, 10), "png")
    )


def read(folder):
    """Records by part; checks on the way what SLAKE's reader needs."""
    parts = {part: json.loads((folder / f"{part}.json").read_text()) for part in PARTS}
    rows = [record for records in parts.values() for record in records]
    assert all(set(record) == KEYS for record in rows)
    assert all(record["answer_type"] in ("OPEN", "CLOSED") and record["q_lang"] == "en" for record in rows)
    assert all(record[key] for record in rows for key in KEYS)
    assert len({record["qid"] for record in rows}) == len(rows)
    owners = [{record["img_id"] for record in records} for records in parts.values()]
    assert all(owners) and sum(map(len, owners)) == len(set.union(*owners))
    names = {record["img_id"]: record["img_name"] for record in rows}
    assert {path.name for path in (folder / "imgs").iterdir()} == set(names.values())
    for image_id, name in names.items():
        assert sha256_bytes((folder / "imgs" / name).read_bytes()).startswith(image_id)
    return parts


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejected(folder):
    return [reject["reason"] for reject in json.loads((folder / "rejects.json").read_text())]


def test_vqa_rad_is_regrouped_by_image(tmp_path):
    source = write_osf(tmp_path / "rad", rad_records())
    summary = convert("vqa-rad", source, tmp_path / "out", IMAGE)
    parts = read(tmp_path / "out")
    assert (summary["layout"], summary["seen"], summary["accepted"], summary["rejected"]) == ("osf", 40, 40, 0)
    assert summary["images_in_several_official_parts"] == 20
    assert summary["questions"] == {part: len(records) for part, records in parts.items()}
    assert summary["questions"] == {part: 2 * images for part, images in summary["images"].items()}
    # Each image has one question in train and one in test, so what moved follows from where its image is now.
    images = summary["images"]
    assert summary["questions_moved"] == {
        "test -> train": images["train"],
        "test -> validation": images["validation"],
        "train -> test": images["test"],
        "train -> validation": images["validation"],
    }
    assert json.loads((tmp_path / "out" / "conversion.json").read_text()) == summary


def test_vqa_rad_keeps_what_it_publishes(tmp_path):
    records = rad_records()
    records[0] |= {"answer_type": "CLOSED ", "question_type": " attrib", "image_organ": "ABD"}
    records[1] |= {"answer_type": "OPEN", "answer": 3, "question": "How many\tlesions? "}
    records[2] |= {"answer_type": None, "answer": "YES", "question_type": None}
    records[3] |= {"answer_type": "", "answer": "left lobe"}
    convert("vqa-rad", write_osf(tmp_path / "rad", records), tmp_path / "out", IMAGE)
    rows = {record["qid"]: record for records in read(tmp_path / "out").values() for record in records}
    assert [rows["0"][key] for key in ("answer_type", "content_type", "location")] == ["CLOSED", "ATTRIB", "ABD"]
    assert [rows["1"][key] for key in ("answer_type", "answer", "question")] == ["OPEN", "3", "How many lesions?"]
    assert [rows["2"][key] for key in ("answer_type", "content_type", "answer")] == ["CLOSED", "Unknown", "YES"]
    assert rows["3"]["answer_type"] == "OPEN"
    assert {record["modality"] for record in rows.values()} == {"Radiology"}


def test_question_types_are_the_published_ones_and_what_was_changed_is_counted(tmp_path):
    stated = ["PRSE", "ATRIB", "POS, PRES", " pres ", "Other", "SIZE/COLOR", "strange", "prse", None, "MODALITY "]
    records = rad_records()
    for record, text in zip(records, stated, strict=False):
        record["question_type"] = text
    summary = convert("vqa-rad", write_osf(tmp_path / "rad", records), tmp_path / "out", IMAGE)
    rows = {record["qid"]: record["content_type"] for records in read(tmp_path / "out").values() for record in records}
    expected = ["PRES", "ATTRIB", "POS", "PRES", "OTHER", "SIZE", "Unknown", "PRES", "Unknown", "MODALITY"]
    assert [rows[str(number)] for number in range(10)] == expected
    assert summary["content_types_folded"] == {
        "ATRIB -> ATTRIB": 1, "POS, PRES -> POS": 1, "PRSE -> PRES": 2, "SIZE/COLOR -> SIZE": 1,
        "STRANGE -> Unknown": 1,
    }  # fmt: skip


def test_framed_questions_and_names_made_on_windows_are_read(tmp_path):
    records = rad_records()
    records[0]["phrase_type"], records[1]["phrase_type"] = "frame", "test_frame"
    records[2]["image_name"] = ".\\SYNPIC1.jpg"
    summary = convert("vqa-rad", write_osf(tmp_path / "rad", records), tmp_path / "out", IMAGE)
    assert (summary["accepted"], summary["rejected"]) == (40, 0)


def test_many_rejects_are_a_warning(tmp_path, monkeypatch, capsys):
    records = rad_records()
    for record in records[:10]:
        record["phrase_type"] = "other"
    source = write_osf(tmp_path / "rad", records)
    main(["vqa-rad", "--from", str(source), "--out", str(tmp_path / "out"), "--test", "0.3", "--validation", "0.3"])
    assert "warning: 25.0 % of the rows were rejected. phrase_type is none of" in capsys.readouterr().out


def test_official_split_never_trains_on_a_test_image(tmp_path):
    records = [record for record in rad_records() if record["qid"] % 2 == 0 or record["qid"] < 20]
    summary = convert("vqa-rad", write_osf(tmp_path / "rad", records), tmp_path / "out", OFFICIAL)
    parts = read(tmp_path / "out")
    tested = {sha256_bytes(picture(image))[:16] for image in range(10)}
    assert {record["img_id"] for record in parts["test"]} == tested
    assert summary["questions_moved"]["train -> test"] == 10
    assert summary["images"]["validation"] > 0  # taken from train, since VQA-RAD has none


def test_both_layouts_of_vqa_rad_give_the_same_parts(tmp_path):
    convert("vqa-rad", write_osf(tmp_path / "osf", rad_records()), tmp_path / "a", IMAGE)
    rows = [(picture(record["qid"] // 2), record["question"], record["answer"]) for record in rad_records()]
    summary = convert("vqa-rad", write_hub(tmp_path / "hub", train=rows[::2], test=rows[1::2]), tmp_path / "b", IMAGE)
    assert summary["layout"] == "hub"
    a, b = (read(tmp_path / name) for name in "ab")
    for part in PARTS:
        assert {record["img_id"] for record in a[part]} == {record["img_id"] for record in b[part]}
    assert {record["location"] for record in b["train"]} == {"Unknown"}


def test_path_vqa_keeps_disjoint_official_parts(tmp_path):
    summary = convert("path-vqa", write_path_vqa(tmp_path / "path"), tmp_path / "out", OFFICIAL)
    parts = read(tmp_path / "out")
    assert summary["questions"] == {"train": 12, "validation": 4, "test": 4}
    assert summary["questions_moved"] == {} and summary["images_in_several_official_parts"] == 0
    assert {record["modality"] for record in parts["test"]} == {"Pathology"}
    assert {record["answer"]: record["answer_type"] for record in parts["test"]} == {"colon": "OPEN", "no": "CLOSED"}
    assert {record["img_name"][-4:] for record in parts["test"]} == {".png"}


def test_path_vqa_image_of_several_parts_goes_to_the_strictest(tmp_path):
    source = write_path_vqa(tmp_path / "path")
    write_hub(source, validation=[*path_rows(range(6, 8)), (picture(0), "where is it?", "left")])
    write_hub(source, test=[*path_rows(range(8, 10)), (picture(1), "where is it?", "left")])
    summary = convert("path-vqa", source, tmp_path / "out", OFFICIAL)
    read(tmp_path / "out")
    assert summary["questions_moved"] == {"train -> test": 2, "train -> validation": 2}
    assert summary["images"] == {"train": 4, "validation": 3, "test": 3}


@pytest.mark.parametrize("split", [IMAGE, OFFICIAL], ids=lambda split: split.mode)
def test_the_order_of_the_source_does_not_matter(tmp_path, split):
    records = [record for record in rad_records() if record["qid"] % 2 == 0 or record["qid"] < 20]
    records += [rad_record(90, 3, answer=""), rad_record(91, 99), {**records[5], "qid": 92}, {**records[6], "qid": 5}]
    convert("vqa-rad", write_osf(tmp_path / "one", records), tmp_path / "a", split)
    random.Random(0).shuffle(records)
    convert("vqa-rad", write_osf(tmp_path / "two", records), tmp_path / "b", split)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_shards_of_the_source_do_not_matter(tmp_path):
    rows = path_rows(range(130))
    for folder, chunks in (("one", [rows]), ("two", [rows[100:][::-1], rows[:100]])):
        write_hub(tmp_path / folder, validation=path_rows([200]), test=path_rows([201]))
        for index, chunk in enumerate(chunks):
            write_shard(tmp_path / folder / "data" / f"train-{index:05d}-of-{len(chunks):05d}.parquet", chunk)
    convert("path-vqa", tmp_path / "two", tmp_path / "b", OFFICIAL)
    with pytest.raises(TriptychError, match="not complete and of one kind"):  # `one` has two kinds of train shards now
        write_hub(tmp_path / "one", train=rows)
        convert("path-vqa", tmp_path / "one", tmp_path / "a", OFFICIAL)
    (tmp_path / "one" / "data" / "train-00000-of-00001.parquet").unlink()
    convert("path-vqa", tmp_path / "one", tmp_path / "a", OFFICIAL)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_every_unusable_row_is_kept_with_its_reason(tmp_path):
    good = rad_records()
    bad = [
        (rad_record(100, 0, answer=" "), "answer is empty"),
        (rad_record(101, 0, question=None), "lacks question"),
        (rad_record(102, 0, phrase_type="framed"), "test_frame: 'framed'"),
        (rad_record(103, 0, answer_type="MAYBE"), "answer_type is neither OPEN nor CLOSED: 'MAYBE'"),
        (rad_record(104, 0, answer=["left"]), "answer is a list, not text"),
        (rad_record(105, 0, answer="\ud800"), "answer is not valid UTF-8"),
        (rad_record(113, 0, answer=math.nan), "answer is not a finite number"),
        (rad_record(114, 0, question=True), "question is true or false, not text"),
        (rad_record(106, 99), "its image cannot be read: 'synpic99.jpg', No such file"),
        (rad_record(107, 0, image_name="../secret.jpg"), "image_name '../secret.jpg' leads out of"),
        (rad_record(108, 0, image_name="/etc/hostname"), "image_name '/etc/hostname' leads out of"),
        (rad_record(109, 0, image_name="a\0b"), "not a usable name"),
        (rad_record(110, 0, image_name=7), "image_name is not a name: '7'"),
        (rad_record(111, 0, image_name="page.jpg"), "the image is a web page (HTML), not an image that is read here"),
        ("no record", "is text, not a record"),
        ({**good[4], "qid": 112}, "repeats image, question and answer of another row"),
        ({**good[6], "question": "Another?"}, "repeats the qid of another row: 6"),
    ]
    source = write_osf(tmp_path / "rad", good + [row for row, _ in bad])
    (tmp_path / "rad" / "secret.jpg").write_bytes(picture(77))
    (source / OSF_IMAGES / "page.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    summary = convert("vqa-rad", source, tmp_path / "out", IMAGE)
    read(tmp_path / "out")
    assert (summary["seen"], summary["accepted"], summary["rejected"]) == (57, 40, 17)
    reasons = rejected(tmp_path / "out")
    assert len(reasons) == 17
    for _, reason in bad:
        assert sum(reason in given for given in reasons) == 1, reason


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("GIF", "gif"),
        ("TIFF", "tif"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("JPEG2000", "jp2"),
        ("PPM", "pnm"),
        ("TGA", "tga"),
    ],
)
def test_images_of_every_format_that_is_read_keep_their_bytes(tmp_path, kind, suffix):
    source = write_osf(tmp_path / "rad", rad_records())
    data = encoded(Image.effect_noise((40, 30), 50), kind)
    (source / OSF_IMAGES / "synpic3.jpg").write_bytes(data)
    assert convert("vqa-rad", source, tmp_path / "out", IMAGE)["rejected"] == 0
    read(tmp_path / "out")
    (path,) = (tmp_path / "out" / "imgs").glob(f"*.{suffix}")
    assert path.read_bytes() == data


def test_dicom_is_written_as_its_pixels_and_its_header_nowhere(tmp_path):
    source = write_osf(tmp_path / "rad", rad_records())
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    (source / OSF_IMAGES / "synpic3.jpg").write_bytes(dicom(values))
    (source / OSF_IMAGES / "synpic4.jpg").write_bytes(dicom(values)[:600])
    summary = convert("vqa-rad", source, tmp_path / "out", IMAGE)
    assert summary["rejected"] == 2 and summary["accepted"] == 38
    assert all(reason.startswith("the image: ") for reason in rejected(tmp_path / "out"))
    read(tmp_path / "out")
    (path,) = (tmp_path / "out" / "imgs").glob("*.png")
    assert np.array_equal(np.asarray(Image.open(path).convert("L")), grey(dicom(values)))
    assert not [name for name, data in tree(tmp_path / "out").items() if NAME.encode() in data]


@pytest.mark.parametrize("levels", [101, 400, 100_000])
def test_a_row_nested_too_deeply_is_a_reject(tmp_path, levels):
    source = write_osf(tmp_path / "rad", rad_records())
    usual = convert("vqa-rad", source, tmp_path / "usual", Split("image"))
    text = (source / OSF_JSON).read_text()
    (source / OSF_JSON).write_text(f"[{'[' * levels}{']' * levels}, {text[1:]}")
    summary = convert("vqa-rad", source, tmp_path / "out", Split("image"))
    assert summary["seen"] == usual["seen"] + 1 and summary["accepted"] == usual["accepted"]
    rejected = json.loads((tmp_path / "out" / "rejects.json").read_text())
    said = "nested more than 100 levels deep"
    assert {"row": said, "reason": f"is {said}, not a record"} in rejected


def test_hub_rows_without_image_or_text_are_rejected(tmp_path):
    source = write_path_vqa(tmp_path / "path")
    odd = [(None, "what is it?", "colon"), (b"", "what?", "colon"), (picture(0), None, "colon"), (picture(50), "?", "")]
    write_hub(source, train=path_rows(range(6)) * 2 + odd)
    summary = convert("path-vqa", source, tmp_path / "out", OFFICIAL)
    read(tmp_path / "out")
    assert (summary["seen"], summary["accepted"], summary["rejected"]) == (36, 20, 16)
    expected = ["answer is empty", "lacks image", "lacks image", "lacks question"]
    assert sorted(reason for reason in rejected(tmp_path / "out") if "repeats" not in reason) == expected


def test_pickles_are_refused(tmp_path, monkeypatch):
    (tmp_path / "pvqa" / "qas" / "train").mkdir(parents=True)
    (tmp_path / "pvqa" / "qas" / "train" / "train_qa.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setitem(sys.modules, "pickle", None)
    with pytest.raises(TriptychError, match=r"train_qa\.pkl: is a pickle.*flaviagiammarino/path-vqa"):
        convert("path-vqa", tmp_path / "pvqa", tmp_path / "out", OFFICIAL)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: (data / "test-00000-of-00001-eb8844602202be60.parquet").unlink(), r"has no test-\*\.parquet"),
        (
            lambda data: write_shard(data / "train-00000-of-00007.parquet", path_rows([0])),
            "shards of part 'train' are not complete",
        ),
        (
            lambda data: (data / "train-00000-of-00001-eb8844602202be60.parquet").write_bytes(b"PAR1 cut off"),
            "cannot be read as Parquet",
        ),
        (
            lambda data: pq.write_table(
                pa.table({"image": ["a"], "question": ["b"]}), data / "train-00000-of-00001-eb8844602202be60.parquet"
            ),
            "has no column 'answer'",
        ),
        (
            lambda data: pq.write_table(
                pa.table({"image": ["a"], "question": ["b"], "answer": ["c"]}),
                data / "train-00000-of-00001-eb8844602202be60.parquet",
            ),
            "column 'image' is string, not a struct",
        ),
    ],
)
def test_a_broken_hub_folder_stops_with_one_message(tmp_path, spoil, message):
    source = write_path_vqa(tmp_path / "path")
    spoil(source / "data")
    with pytest.raises(TriptychError, match=message):
        convert("path-vqa", source, tmp_path / "out", OFFICIAL)
    assert [path.name for path in tmp_path.iterdir()] == ["path"]  # nothing half-written is left


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / OSF_JSON).unlink(), "--from must name a folder with the OSF layout"),
        (lambda folder: (folder / OSF_JSON).write_text("[{"), "not valid JSON"),
        (lambda folder: (folder / OSF_JSON).write_text("{}"), "must be a list of records"),
        (lambda folder: (folder / OSF_IMAGES).rename(folder / "images"), f"{OSF_IMAGES}: no such folder"),
        (
            lambda folder: (folder / OSF_JSON).write_text("[1]"),
            r"part 'train' would be empty \(1 rows, 1 rejected: is a number, not a record",
        ),
    ],
)
def test_a_broken_osf_folder_stops_with_one_message(tmp_path, spoil, message):
    source = write_osf(tmp_path / "rad", rad_records())
    spoil(source)
    with pytest.raises(TriptychError, match=message):
        convert("vqa-rad", source, tmp_path / "out", IMAGE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 1.5), (0.5, 0.5)])
def test_shares_that_make_no_sense_are_refused(tmp_path, validation, test):
    with pytest.raises(TriptychError, match=r"--validation|--test"):
        convert("vqa-rad", tmp_path, tmp_path / "out", Split("image", validation, test))


def test_only_an_earlier_conversion_is_replaced(tmp_path):
    source = write_osf(tmp_path / "rad", rad_records())
    for out in (source, tmp_path):
        with pytest.raises(TriptychError, match="holds the published files themselves"):
            convert("vqa-rad", source, out, IMAGE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(TriptychError, match="is no earlier conversion"):
        convert("vqa-rad", source, tmp_path / "mine", IMAGE)
    first = convert("vqa-rad", source, tmp_path / "out", IMAGE)
    second = convert("vqa-rad", source, tmp_path / "out", Split("image", 0.25, 0.25, seed=1))
    assert first["images"] != second["images"] or first["questions_moved"] != second["questions_moved"]


def test_another_image_moves_none_of_the_others(tmp_path):
    convert("vqa-rad", write_osf(tmp_path / "one", rad_records()), tmp_path / "a", IMAGE)
    more = [*rad_records(), rad_record(200, 20)]
    convert("vqa-rad", write_osf(tmp_path / "two", more, images=21), tmp_path / "b", IMAGE)
    old, new = (
        {record["img_id"]: part for part, records in read(tmp_path / name).items() for record in records}
        for name in "ab"
    )
    assert len(new) == 21 and old.items() <= new.items()


def test_command(tmp_path, monkeypatch, capsys):
    source = write_osf(tmp_path / "rad", rad_records())
    command = ["convert", "vqa-rad", "--from", str(source), "--out", str(tmp_path / "out"), "--test", "0.25"]
    monkeypatch.setattr(sys, "argv", [*command, "--validation", "0.25"])
    main()
    printed = capsys.readouterr().out
    assert "vqa-rad, osf layout: 40 rows, 40 accepted, 0 rejected" in printed
    assert "images with questions in several official parts: 20" in printed
    assert "questions that moved part: " in printed and "  train -> test: " in printed
    read(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", [*command[:3], str(tmp_path / "none"), *command[4:]])
    with pytest.raises(SystemExit, match=r"error: .*none: no such folder"):
        run_step(main)
