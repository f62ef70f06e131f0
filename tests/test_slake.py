"""On the real SLAKE, where TRIPTYCH_SLAKE names a copy: the published counts and blind baseline."""

import os

import pytest
from triptych.baseline import majority, majority_per_question
from triptych.folds import assign
from triptych.grid import SHARED
from triptych.prepare import prepare
from triptych.samples import load_questions
from triptych.score import accuracies
from triptych.settings import Folds, SlakeFolderVqa
from triptych.sources.fetch import SLAKE_VARIABLE
from triptych.storage import read_table

pytestmark = [
    pytest.mark.slake,
    pytest.mark.skipif(SLAKE_VARIABLE not in os.environ, reason=f"{SLAKE_VARIABLE} names no copy of SLAKE"),
]


@pytest.fixture(scope="module")
def slake(tmp_path_factory):
    out = tmp_path_factory.mktemp("slake")
    return out, prepare(SlakeFolderVqa(source="slake-folder"), out, out)


def test_the_published_counts(slake):
    _, counts = slake
    assert counts["images"] == {"train": 450, "validation": 96, "test": 96}
    # 4919 English training rows are published; one has an empty answer and is among the rejects.
    assert counts["questions"] == {"train": 4918, "validation": 1053, "test": 1061}
    assert counts["rejects"] == {"question": 1}


def test_blind_baselines_on_the_official_test_part(slake):
    folder, _ = slake
    training, asked = (load_questions(folder, SHARED, part) for part in ("train", "test"))
    scores = []
    for baseline in (majority, majority_per_question):
        predict = baseline(training)
        scores.append(accuracies({**row, "gold": row["answer"], "prediction": predict(row)} for row in asked))
    assert scores[0]["ALL"] == pytest.approx(16.5, abs=0.3)
    assert scores[1]["ALL"] == pytest.approx(54.0, abs=0.3)
    assert scores[1]["OPEN"] == pytest.approx(46.2, abs=0.3)
    assert scores[1]["CLOSED"] == pytest.approx(66.1, abs=0.3)


def test_no_image_is_trained_on_and_held_out(slake):
    folder, _ = slake
    questions = read_table(folder / "questions.parquet")
    image = {row["question_id"]: row["image_id"] for row in questions}
    rows = assign(questions, Folds(dataset="medical", number=5))
    for fold in {row["fold"] for row in rows}:
        parts = {}
        for row in rows:
            if row["fold"] == fold:
                parts.setdefault(row["part"], set()).add(image[row["question_id"]])
        assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 546
