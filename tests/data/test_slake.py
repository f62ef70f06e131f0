"""On the real SLAKE, where TRIPTYCH_SLAKE names a copy: the published counts and blind baseline."""

import pytest
from conftest import SLAKE
from triptych.config.datasets import SLAKE_VARIABLE, SlakeFolderVqa
from triptych.config.folds import Folds
from triptych.data.audit import baseline_scores
from triptych.data.duplicates import read_thumbnails
from triptych.data.fetch import fetch
from triptych.data.folds import assign, group_images
from triptych.data.prepare import write_dataset
from triptych.data.schemas import FOLD_SCHEMA
from triptych.evaluate.metrics import scores
from triptych.io.parquet import read_table, write_table

pytestmark = [
    pytest.mark.slake,
    pytest.mark.skipif(not SLAKE, reason=f"{SLAKE_VARIABLE} names no copy of SLAKE"),
]


@pytest.fixture(scope="module")
def slake(tmp_path_factory):
    out = tmp_path_factory.mktemp("slake")
    expected = {"images": 642, "train": 4919, "validation": 1053, "test": 1061}
    settings = SlakeFolderVqa(source="slake-folder", folder=SLAKE, expected=expected)
    fetch(settings, out / "cache", out / "source")
    counts = write_dataset(settings, out / "source", out / "cache", out)["counts"]
    questions, (images, thumbnails) = read_table(out / "questions.parquet"), read_thumbnails(out / "images")
    folds = Folds(dataset="medical", number=5)
    write_table(out / "folds.parquet", assign(questions, group_images(images, thumbnails, folds), folds), FOLD_SCHEMA)
    return out, counts


def test_the_published_counts(slake):
    _, counts = slake
    assert counts["images"] == {"train": 450, "validation": 96, "test": 96}
    # 4919 English training rows are published; one has an empty answer and is among the rejects.
    assert counts["questions"] == {"train": 4918, "validation": 1053, "test": 1061}
    assert counts["rejects"] == {"question": 1} and counts["seen"] == 642


def test_baselines_on_the_official_test_part(slake):
    """As measured apart from this project."""
    folder, _ = slake
    found = {row["baseline"]: row for row in baseline_scores(folder) if row["part"] == "test (official)"}
    assert found["majority"]["all"] == pytest.approx(16.5, abs=0.3)
    assert found["majority-per-question"]["all"] == pytest.approx(54.0, abs=0.3)
    assert found["majority-per-question"]["open"] == pytest.approx(46.2, abs=0.3)
    assert found["majority-per-question"]["closed"] == pytest.approx(66.1, abs=0.3)
    assert found["majority-per-place"]["all"] == pytest.approx(69.8, abs=0.3)
    assert found["nearest-images"]["all"] == pytest.approx(74.2, abs=0.3)


def test_a_perfect_predictor_misses_llava_meds_closed_questions(slake):
    rows = [row for row in read_table(slake[0] / "questions.parquet") if row["split"] == "test"]
    found = scores([{**row, "prediction": row["answer"], "gold": row["answer"]} for row in rows])
    assert found["all"] == found["closed"] == 100
    assert found["llava_med_closed"] == found["llava_med_ceiling"] == pytest.approx(85.34, abs=0.005)


def test_no_image_is_trained_on_and_held_out(slake):
    folder, _ = slake
    image = {row["question_id"]: row["image_id"] for row in read_table(folder / "questions.parquet")}
    rows = read_table(folder / "folds.parquet")
    for fold in {row["fold"] for row in rows}:
        parts = {}
        for row in rows:
            if row["fold"] == fold:
                parts.setdefault(row["part"], set()).add(image[row["question_id"]])
        assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 546


def test_bilingual_parts_are_regrouped_by_image(tmp_path):
    """72 images of the English test part are in the Chinese training part."""
    settings = SlakeFolderVqa(source="slake-folder", folder=SLAKE, language="both")
    fetch(settings, tmp_path, tmp_path / "source")
    parts = {}
    for row in read_table(tmp_path / "source" / "questions.parquet"):
        parts.setdefault(row["image_id"], set()).add(row["split"])
    assert len(parts) == 642 and all(len(found) == 1 for found in parts.values())
    assert sum(found == {"test"} for found in parts.values()) == 96
