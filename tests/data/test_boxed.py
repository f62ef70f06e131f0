"""Which boxes a question asks for, and which questions occlusion is measured on."""

import json

import pyarrow
import pytest
from pyarrow import parquet
from triptych.data.boxed import asked_for, boxed_questions, named
from triptych.errors import TriptychError

LEFT, RIGHT, LIVER, CANCER, COLON = ((float(number), 0.0, 10.0, 10.0) for number in range(5))
BOXES = [("Left Lung", LEFT), ("Right Lung", RIGHT), ("Liver", LIVER), ("Liver Cancer", CANCER), ("Colon", COLON)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Where is the liver?", {LIVER}),
        ("Is the lung healthy?", {LEFT, RIGHT}),
        ("Are the lungs healthy?", {LEFT, RIGHT}),
        ("What colour is the Left  lung?", {LEFT}),
        ("left lung and right lung", {LEFT, RIGHT}),
        ("Where is the liver cancer?", {CANCER}),
        ("Is there liver cancer in the liver?", {CANCER, LIVER}),
        ("Does it show a semicolon or a delivery?", set()),
        ("What modality is this?", set()),
    ],
)
def test_boxes_are_found_by_whole_names(text, found):
    assert set(named(text, BOXES)) == found == set(named(text, BOXES[::-1]))


def test_the_answer_counts_where_the_question_names_nothing():
    assert asked_for({"question": "What is the largest organ?", "answer": "Liver"}, BOXES) == [LIVER]
    assert asked_for({"question": "Is the colon in front of the liver?", "answer": "Right Lung"}, BOXES) != [RIGHT]
    assert set(asked_for({"question": "Which organs?", "answer": "Liver, Lung"}, BOXES)) == {LIVER, LEFT, RIGHT}


def write(folder, images, questions, held_out):
    boxes = [{"id": name, "width": 50, "height": 40, "boxes": json.dumps(found) if found else None}
             for name, found in images.items()]  # fmt: skip
    asked = [{"question_id": f"q{n}", "image_id": image, "question": text, "answer": "Yes"}
             for n, (image, text) in enumerate(questions)]  # fmt: skip
    folds = [{"fold": f"fold{n % 2}", "question_id": row["question_id"], "part": "test"}
             for n, row in enumerate(asked) if row["image_id"] in held_out]  # fmt: skip
    folds += [{**row, "fold": "fold7", "part": "train"} for row in folds]
    for name, rows in {"images": boxes, "questions.parquet": asked, "folds.parquet": folds}.items():
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)


def test_held_out_questions_about_boxes_are_chosen_by_their_ids(tmp_path):
    liver = [["Liver", [5, 5, 10, 10]]]
    images = {f"i{n}": liver for n in range(6)} | {"none": None, "outside": [["Liver", [60, 5, 10, 10]]], "kept": liver}
    asked = ["Where is the liver?", "Is this the liver?", "Is the liver healthy?", "Is it CT?"]
    questions = [(image, text) for image in images for text in asked]
    write(tmp_path, images, questions, set(images) - {"kept"})
    rows = boxed_questions(tmp_path, 100, 100)
    assert {row["image_id"] for row in rows} == {f"i{n}" for n in range(6)} and len(rows) == 18
    assert {row["fold"] for row in rows} == {"fold0", "fold1"} and rows[0]["boxes"] == [[5, 5, 10, 10]]
    few = boxed_questions(tmp_path, 3, 2)
    assert len(few) == 6 and len({row["image_id"] for row in few}) == 3
    assert [row["question_id"] for row in few] == [row["question_id"] for row in rows if row in few], "a beginning"
    write(tmp_path, dict(reversed(images.items())), questions, set(images) - {"kept"})
    assert boxed_questions(tmp_path, 3, 2) == few


def test_data_without_boxes_are_told_so(tmp_path):
    write(tmp_path, {"a": None}, [("a", "Where is the liver?")], {"a"})
    with pytest.raises(TriptychError, match=r"no held-out question names.*evaluation.occlusion: null"):
        boxed_questions(tmp_path, 3, 2)
