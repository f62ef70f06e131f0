"""Which questions are asked, and which when a configuration is only tried."""

import pytest
from triptych.config.folds import Folds
from triptych.data.folds import assign
from triptych.data.questions import asked_questions, load_questions
from triptych.data.schemas import FOLD_SCHEMA
from triptych.errors import TriptychError
from triptych.io.parquet import write_table

GROUPS = {"": "image", "row-": "row"}


@pytest.fixture
def data(tmp_path):
    """Sixty questions on twenty images, in two folds by image and in two by row."""
    kinds = {"modality": "CT", "answer_type": "OPEN", "split": "train", "question": "?", "answer": "a"}
    rows = [{"question_id": f"q{n}", "image_id": f"image{n // 3}", **kinds} for n in range(60)]
    rows += [row | {"question_id": f"t{n}", "split": "test"} for n, row in enumerate(rows[:6])]
    write_table(tmp_path / "questions.parquet", rows, None)
    for cut, group in GROUPS.items():
        settings = Folds(dataset="medical", number=2, group=group)
        table = assign(rows, {row["image_id"]: row["image_id"] for row in rows}, settings, cut)
        write_table(tmp_path / f"folds{'-' + cut[:-1] if cut else ''}.parquet", table, FOLD_SCHEMA)
    return tmp_path


def asked(data, cut, limit, view="held-out"):
    return [asked_questions(data, f"{cut}fold{fold}", view, limit) for fold in (0, 1)]


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_draw_of_a_shared_stage_has_the_same_questions(data, part):
    whole = load_questions(data, "shared", part)
    assert load_questions(data, "shared-fold0", part) == load_questions(data, "shared-fold11", part) == whole
    assert load_questions(data, "row-fold0", part) != whole


def test_without_a_limit_all_that_is_held_out_is_asked(data):
    assert asked(data, "", None) == [load_questions(data, f"fold{fold}", "test") for fold in (0, 1)]


def test_with_a_limit_folds_of_every_kind_ask_the_same_questions_of_whole_images(data):
    for cut in GROUPS:
        found = [row for rows in asked(data, cut, 18) for row in rows]
        assert len(found) == 18 and len({row["image_id"] for row in found}) == 6
        assert all(row["split"] == "train" for row in found)
        names = {row["question_id"] for row in found}
        assert names == {row["question_id"] for rows in asked(data, "", 18) for row in rows}
    assert all(rows == asked(data, "", 18, view="swapped")[fold] for fold, rows in enumerate(asked(data, "", 18)))
    assert len(asked_questions(data, "fold0", "test", 4)) == 4


def test_a_limit_that_leaves_a_fold_without_questions_is_an_error(data):
    with pytest.raises(TriptychError, match=r"evaluation\.max_questions: 3 leaves no question in fold[01]"):
        asked(data, "", 3)
