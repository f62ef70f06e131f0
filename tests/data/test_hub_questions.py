"""Questions of the hub by column names: what is read, what is one image, and that nothing is guessed."""

import io
from collections import Counter

import hub_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import REVISION, Fault, Hub
from pydantic import TypeAdapter, ValidationError
from triptych.config.datasets import Dataset, HubQuestions
from triptych.config.folds import Folds
from triptych.data import check, fetch, folds, prepare
from triptych.data.duplicates import read_thumbnails
from triptych.data.sources import hub_questions
from triptych.data.sources.base import Item, Reject
from triptych.data.sources.options import with_options
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, sha256_bytes
from triptych.io.parquet import read_table

TRAIN_AND_TEST = {"train": "data/train-*.parquet", "test": "data/test-*.parquet"}
ONE = {"test": "data/test.parquet"}
JPEGS = [hub_files.jpeg(number)[0] for number in range(6)]


def settings(**changes) -> HubQuestions:
    return HubQuestions(**{"source": "hub-questions", "repo": "some/data", "revision": REVISION, **changes})


def listed(tmp_path, files, *faults, **changes) -> tuple[list[Item], list[Reject]]:
    with Hub({"datasets/some/data": files}, *faults):
        found = list(hub_questions.listing(settings(**changes), tmp_path / "cache"))
    return [one for one in found if isinstance(one, Item)], [one for one in found if isinstance(one, Reject)]


def one_file(tmp_path, columns: dict, features: dict | None = None, **changes):
    """Items, and the reasons of rejects by row, of a test part of one file."""
    files = {"data/test.parquet": hub_files.image_table(columns, features)}
    items, rejects = listed(tmp_path, files, parts=ONE, **changes)
    assert all(one.kind == "question" and one.id.startswith("data/test.parquet:") for one in rejects)
    return items, {int(one.id.rpartition(":")[2]): one.reason for one in rejects}


def asked(items) -> list[dict]:
    return [row for item in items for row in item.questions]


def columns(number: int = 3, **changes) -> dict:
    """Rows about as many images."""
    rows = {"image": JPEGS[:number], "question": [f"what is {n}?" for n in range(number)]}
    return {**rows, "answer": [f"thing {n}" for n in range(number)], **changes}


def test_the_layout_of_path_vqa_is_read_without_any_further_setting(tmp_path, capsys):
    items, rejects = listed(tmp_path, hub_files.path_vqa(), Fault("GET /store/", cut=900, times=3))
    assert not rejects and len({item.id for item in items}) == len(items) == 16
    assert Counter(item.split for item in items) == {"train": 10, "validation": 2, "test": 4}
    assert all(len(item.questions) == 3 for item in items)
    for item in items:
        number = next(n for n in range(20, 36) if sha256_bytes(hub_files.jpeg(2000 + n)[0]) == item.stamp)
        _, colour, side = hub_files.jpeg(2000 + number)
        assert [(row["answer"], row["answer_type"]) for row in item.questions] == [
            (colour, "OPEN"), ("yes" if colour == "red" else "no", "CLOSED"), (side, "OPEN"),
        ]  # fmt: skip
        assert {row[name] for row in item.questions for name in ("modality", "location", "content_type")} == {"Unknown"}
    assert (
        "16 of 48 questions are CLOSED, because the answer is yes or no; the others are OPEN" in capsys.readouterr().out
    )


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(TriptychError) as told:
        listed(tmp_path, hub_files.vqa_rad())
    message = str(told.value)
    assert message.startswith(f"some/data: no file matches 'data/validation-*.parquet' at {REVISION}; correct the key")
    assert (
        "`parts.validation` (its Parquet files are data/test-00000-of-00001-e5bc3d208bb4deeb.parquet, data/tr"
        in message
    )


@pytest.mark.parametrize(
    ("shared", "questions", "left"),
    [("leave-out", {"train": 18, "test": 12}, 6), ("move", {"train": 18, "test": 14}, 4)],
)
def test_images_of_both_parts_of_vqa_rad_end_in_the_test_part_alone(tmp_path, shared, questions, left, capsys):
    """Two images of eight have three questions in train, of which two are asked in test, too."""
    items, rejects = listed(tmp_path, hub_files.vqa_rad(), parts=TRAIN_AND_TEST, shared_images=shared)
    found = Counter()
    for item in items:
        found[item.split] += len(item.questions)
    assert found == questions and len(rejects) == left
    assert len({item.stamp for item in items}) == len(items) == 12
    reasons = {one.reason.rpartition(": ")[0] or one.reason for one in rejects}
    said = (
        "its image is in part test, too"
        if shared == "leave-out"
        else "repeats image, question and answer of another row"
    )
    assert reasons == {said}
    assert (
        "2 images are in several parts; questions "
        + ("left out: train -> test: 6" if shared == "leave-out" else "moved: train -> test: 6")
        in capsys.readouterr().out
    )


def test_files_and_order_of_rows_do_not_matter(tmp_path, monkeypatch):
    whole, rows = hub_files.questions_of(range(12)), range(36)
    mixed = {name: [values[(7 * n) % 36] for n in rows] for name, values in whole.items()}
    one, _ = listed(tmp_path / "1", {"data/test.parquet": hub_files.image_table(whole)}, parts=ONE)
    monkeypatch.setattr(hub_questions, "BATCH", 5)
    halves = {
        f"data/test-{part}.parquet": hub_files.image_table({name: values[part::2] for name, values in mixed.items()})
        for part in (0, 1)
    }
    two, _ = listed(tmp_path / "2", halves, parts={"test": "data/test-*.parquet"})

    def said(items):
        return {
            (item.id, row["question_id"], row["question"], row["answer"]) for item in items for row in item.questions
        }

    assert said(one) == said(two) and len(one) == len(two) == 12


def test_rows_that_cannot_be_used_are_rejected_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("triptych.data.sources.hub_rows.MAX_BYTES", 5000)
    images = [JPEGS[0], None, {"bytes": b"", "path": "x.jpg"}, b"x" * 5001, JPEGS[1], JPEGS[2], JPEGS[3], JPEGS[4]]
    images += [JPEGS[0], JPEGS[0]]
    questions = [*[f"what {n}?" for n in range(4)], None, "  \n", "what 6?", "what 7?", "what  0? ", "what 0?"]
    answers = pa.array([b"a", b"a", b"a", b"a", b"a", b"a", b" ", b"caf\xe9", b"a", b"b"], pa.binary()).view(
        pa.string()
    )
    items, reasons = one_file(tmp_path, {"image": images, "question": questions, "answer": answers})
    assert reasons == {
        1: "column 'image' holds no bytes of an image",
        2: "column 'image' holds no bytes of an image",
        3: "larger than 5000 bytes",
        4: "column 'question' is null, not text",
        5: "column 'question' is empty",
        6: "column 'answer' is empty",
        7: "column 'answer' is not valid UTF-8",
        8: "repeats image, question and answer of another row",
    }
    [item] = items
    assert [(row["question"], row["answer"]) for row in item.questions] == [("what 0?", "a"), ("what 0?", "b")]
    assert item.path == "data/test.parquet:000000000" == item.place


def test_an_image_id_that_stands_for_two_images_costs_the_rows_of_the_second(tmp_path):
    images = [JPEGS[0], JPEGS[1], JPEGS[0], JPEGS[0], JPEGS[2]]
    rows = {**columns(5), "image": images, "case": [17, 17, 17, 18, None]}
    items, reasons = one_file(tmp_path, rows, image_id_column="case")
    assert {item.id: len(item.questions) for item in items} == {"17": 2, "18": 1}
    assert reasons == {
        1: "has another image than an earlier row with its image id: 17",
        4: "column 'case' is null, not text",
    }
    assert len({item.stamp for item in items}) == 1


def test_an_image_of_two_parts_under_two_ids_is_in_one_part(tmp_path):
    files = {
        f"data/{part}.parquet": hub_files.image_table({**columns(2), "image": images, "id": ids})
        for part, images, ids in (("train", JPEGS[:2], ["a", "b"]), ("test", JPEGS[1:3], ["c", "d"]))
    }
    items, rejects = listed(
        tmp_path, files, parts={"train": "data/train.parquet", "test": "data/test.parquet"}, image_id_column="id"
    )
    assert {item.id: item.split for item in items} == {"a": "train", "c": "test", "d": "test"}
    assert [one.reason for one in rejects] == ["its image is in part test, too: b"]


def test_columns_say_what_they_are_named_for(tmp_path, capsys):
    rows = columns(6)
    rows |= {"q": [5, 6, 7, 8, 8, 9], "kind": ["open", "Closed ", "CLOSED", "neither", "OPEN", None]}
    rows |= {"organ": ["Head", " head", None, "Head", "Head", "Head"], "scan": pa.array(["CT"] * 6).dictionary_encode()}
    rows |= {"patient": ["p1", "p2", None, "p4", "p5", "p6"], "what": [1, 2, 2, 2, 2, 2]}
    named = {"question_id": "q", "answer_type": "kind", "location": "organ", "modality": "scan", "subject": "patient"}
    items, reasons = one_file(
        tmp_path, rows, content_type_column="what", **{f"{name}_column": column for name, column in named.items()}
    )
    assert reasons == {3: "column 'kind' is neither OPEN nor CLOSED: 'NEITHER'", 5: "column 'kind' is null, not text"}
    found = [(row["question_id"], row["answer_type"], row["location"], row["modality"], row["content_type"])
             for row in asked(items)]  # fmt: skip
    assert found == [
        ("5", "OPEN", "Head", "CT", "1"), ("6", "CLOSED", "Head", "CT", "2"), ("7", "CLOSED", "Unknown", "CT", "2"),
        ("8", "OPEN", "Head", "CT", "2"),
    ]  # fmt: skip
    assert [item.group for item in items] == ["subject p1", "subject p2", "", "subject p5"]
    said = capsys.readouterr().out
    assert "location: 1 values differed in case or blanks and are read alike: ' head' as 'Head'" in said
    assert "no column states" not in said
    images = [*JPEGS[:3], JPEGS[2], JPEGS[4], JPEGS[4]]
    rows["q"], rows["image"], rows["kind"] = [5, 5, 6, 7, 8, 9], images, ["OPEN"] * 6
    items, reasons = one_file(tmp_path / "again", rows, question_id_column="q", subject_column="patient")
    assert reasons == {
        1: "repeats the question id of another row: 5",
        5: "names another subject than an earlier row of its image: 'p6', not 'p5'",
    }
    assert [item.group for item in items] == ["subject p1", "subject p4", "subject p5"], "any row may name it"


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ({}, {"answer_column": "reply"}, "has no column 'reply', but 'image', 'question', 'answer'"),
        ({}, {"image_column": "picture"}, "has no column 'picture'"),
        ({}, {"modality_column": "scan"}, "has no column 'scan'"),
        ({}, {"option_columns": ["A", "B"]}, "has no column 'A'"),
        ({}, {"image_column": "question"}, "column 'question' is string; images are bytes"),
        ({"answer": [True, False, True]}, {}, "column 'answer' is bool; texts and numbers are read"),
        ({"answer": [["a"], ["b"], []]}, {}, "column 'answer' is list<"),
        ({"question": [{"en": "what?"}] * 3}, {}, "column 'question' is struct<en: string>"),
        ({}, {"question_column": "image"}, "column 'image' is struct<bytes: binary, path: string>; texts and numbers"),
    ],
)
def test_columns_that_are_missing_or_of_another_type_are_named_with_the_file(tmp_path, rows, changes, message):
    with pytest.raises(TriptychError) as told:
        one_file(tmp_path, columns(**rows), **changes)
    assert str(told.value).startswith(f"some/data, data/test.parquet: {message}")


def test_files_of_two_parts_broken_files_and_other_formats_are_named(tmp_path):
    files = {"data/test.parquet": hub_files.image_table(columns())}
    for parts, message in (
        (
            {"train": "data/*.parquet", "test": "data/test.parquet"},
            r"data/test\.parquet matches the patterns of two parts",
        ),
        ({"test": "data/*.csv"}, r"parts\.test: 'data/\*\.csv' must end in \.parquet"),
        ({"test": "other/*.parquet"}, r"correct the key `parts\.test` \(its Parquet files are data/test\.parquet\)"),
    ):
        with pytest.raises(TriptychError, match=message):
            listed(tmp_path, files, parts=parts)
    with pytest.raises(TriptychError, match="it has no Parquet files"):
        listed(tmp_path / "csv", {"data/test.csv": b"image,question"}, parts=ONE)
    with pytest.raises(TriptychError, match=r"test\.parquet: cannot be read as Parquet"):
        listed(tmp_path / "broken", {"data/test.parquet": b"PAR1 nothing"}, parts=ONE)
    table = pa.table({"image": JPEGS[:1], "question": ["a?"], "answer": ["b"]}).select([0, 1, 2, 2])
    with io.BytesIO() as file:
        pq.write_table(table.rename_columns(["image", "question", "answer", "answer"]), file)
        data = file.getvalue()
    with pytest.raises(TriptychError, match="several columns 'answer', 3 and 4"):
        listed(tmp_path / "twice", {"data/test.parquet": data}, parts=ONE)


def test_plain_bytes_are_images_and_numbers_are_answers(tmp_path):
    table = pa.table({"image": JPEGS[:2], "question": ["how many?", "how large?"], "answer": [3, 4]})
    with io.BytesIO() as file:
        pq.write_table(table, file)
        items, rejects = listed(tmp_path, {"data/test.parquet": file.getvalue()}, parts=ONE)
    assert [row["answer"] for row in asked(items)] == ["3", "4"] and not rejects


def test_numbers_of_classes_are_read_by_their_names(tmp_path):
    features = {"answer": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    items, reasons = one_file(tmp_path, columns(answer=[1, -1, 0]), features)
    assert [(row["answer"], row["answer_type"]) for row in asked(items)] == [("yes", "CLOSED"), ("no", "CLOSED")]
    assert reasons == {1: "column 'answer' is null, not text"}


CHOICE = {"A": "liver", "B": "left lung", "C": "spleen"}


@pytest.mark.parametrize(
    ("into", "right", "answer", "question", "text"),
    [
        ("question", "letter", "b", "What? A: liver, B: left lung, C: spleen", "B"),
        ("question", "number", "2", "What? A: liver, B: left lung, C: spleen", "C"),
        ("question", "text", "liver", "What? A: liver, B: left lung, C: spleen", "A"),
        ("answer", "letter", "(B)", "What?", "left lung"),
        ("answer", "number", "0", "What?", "liver"),
        ("both", "letter", "C.", "What? A: liver, B: left lung, C: spleen", "spleen"),
        ("both", "text", "spleen", "What? A: liver, B: left lung, C: spleen", "spleen"),
    ],
)
def test_multiple_choice_as_text(into, right, answer, question, text):
    chosen = settings(option_columns=list(CHOICE), options_in=into, right_option=right)
    assert with_options("What?", answer, CHOICE, chosen) == (question, text)


@pytest.mark.parametrize(
    ("cells", "right", "answer", "reason"),
    [
        (CHOICE, "letter", "D", "does not name one of the 3 options by its letter: 'D'"),
        (CHOICE, "letter", "liver", "by its letter: 'liver'"),
        (CHOICE, "letter", "()", "by its letter"),
        (CHOICE, "number", "3", "by its number: '3'"),
        (CHOICE, "number", "-1", "by its number"),
        (CHOICE, "text", "Liver", "by its text: 'Liver'"),
        ({**CHOICE, "C": "liver"}, "text", "liver", "by its text"),
        ({**CHOICE, "B": None}, "letter", "A", "column 'B' has an empty option before others"),
        ({"A": "liver", "B": " ", "C": None}, "letter", "A", "has 1 options; 2 to 26 are read"),
        ({**CHOICE, "A": ["x"]}, "letter", "A", "column 'A' is a list, not text"),
    ],
)
def test_choices_that_are_unclear_are_not_guessed(cells, right, answer, reason):
    chosen = settings(option_columns=list(CHOICE), right_option=right)
    with pytest.raises(TriptychError) as told:
        with_options("What?", answer, cells, chosen)
    assert reason in str(told.value)


@pytest.mark.parametrize("options", [["liver", "lung"], {"A": "liver", "B": "lung", "C": None}])
def test_a_column_may_hold_a_list_of_options(tmp_path, options, capsys):
    rows = columns(2, answer=["A", "no"], choices=[options, options])
    items, reasons = one_file(tmp_path, rows, option_columns=["choices"])
    [row] = asked(items)
    assert (row["question"], row["answer"], row["answer_type"]) == ("what is 0? A: liver, B: lung", "A", "CLOSED")
    assert reasons == {1: "column 'answer' does not name one of the 2 options by its letter: 'no'"}
    assert "because the answer is yes or no or options are listed in the question" in capsys.readouterr().out
    _, reasons = one_file(tmp_path / "text", columns(2), option_columns=["question"])
    assert set(reasons.values()) == {"column 'question' is text, not a list of options"}


def test_settings_are_checked():
    for wrong in ({"parts": {}}, {"parts": {"dev": "a.parquet"}}, {"shared_images": "keep"}, {"revision": "main"}):
        with pytest.raises(ValidationError):
            settings(**wrong)


def test_data_are_prepared_and_folds_do_not_cut_an_image(tmp_path, monkeypatch):
    files, pinned = hub_files.path_vqa(), settings()
    broken = hub_files.questions_of(range(40, 41))
    broken["image"] = [data[:300] for data in broken["image"]]
    files["data/train-00002-of-00003.parquet"] = hub_files.image_table(broken)
    text = pinned.model_dump_json()
    assert TypeAdapter(Dataset).validate_json(text) == pinned
    source, cache, out = tmp_path / "source", tmp_path / "cache", tmp_path / "out"

    def run(step, **options):
        monkeypatch.setattr("sys.argv", ["step", *(f"--{name}={value}" for name, value in options.items())])
        step.main()

    with Hub({"datasets/some/data": files}) as hub:
        run(fetch, settings=text, cache=cache, out=source)
        requests = len(hub.requests)
        run(check, settings=text, source=source, cache=cache, shard="1-of-1", out=tmp_path / "shard.json")
        run(prepare, settings=text, source=source, cache=cache, out=out)
        assert len(hub.requests) == requests, "later steps need no network"
    counts = read_json(out / "manifest.json")["counts"]
    assert counts["images"] == {"test": 4, "train": 10, "validation": 2}
    assert counts["questions"] == {"test": 12, "train": 30, "validation": 6}
    assert counts["rejects"] == {"image": 1, "question": 3}
    assert all("cannot be decoded" in row["reason"] for row in read_table(out / "rejects.parquet"))
    images, thumbnails = read_thumbnails(out / "images")
    questions, cut = read_table(out / "questions.parquet"), Folds(dataset="medical", number=3, group="image")
    rows = folds.assign(questions, folds.group_images(images, thumbnails, cut), cut)
    image_of = {row["question_id"]: row["image_id"] for row in questions}
    for fold in ("fold0", "fold1", "fold2"):
        parts = [
            {image_of[row["question_id"]] for row in rows if (row["fold"], row["part"]) == (fold, part)}
            for part in ("train", "validation", "test")
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 12
