"""The audit: overlaps are counted, and a leak into a shared stage stops the run."""

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_captions, write_slake
from triptych.config.datasets import FolderCaptions, SlakeFolderVqa
from triptych.config.folds import Folds
from triptych.data.audit import Part, audit, cropped_share, fold_overlaps, leaks, main, overlap
from triptych.data.audit_page import markdown
from triptych.data.duplicates import read_thumbnails
from triptych.data.fetch import fetch
from triptych.data.folds import assign, group_images
from triptych.data.prepare import write_dataset
from triptych.data.schemas import FOLD_SCHEMA, IMAGE_SCHEMA, QUESTION_SCHEMA
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, write_json
from triptych.io.parquet import read_table, write_table


def part(name, numbers, questions=()):
    thumbnails = np.stack([np.random.default_rng(n).integers(0, 200, (32, 32), np.uint8) for n in numbers])
    return Part(name, [f"{name}{n}" for n in numbers], [f"hash{n}" for n in numbers], thumbnails, set(questions))


def test_overlap_counts_copies_look_alikes_and_questions():
    first, second = part("a", [1, 2, 3], ["x", "y"]), part("b", [3, 4, 5, 6], ["y", "z", "w"])
    second.thumbnails[1] = first.thumbnails[0] + 10
    assert overlap(first, second, 0.98) == {
        "seen": "a", "part": "b", "images": 4, "identical_images": 1, "similar_images": 1,
        "question_strings": 3, "shared_question_strings": 1, "seen_subject_images": None,
    }  # fmt: skip
    assert leaks(first, second, 0.98) == [
        "a a3 is the image b3 of b",
        "a a1 looks like b4 of b (1.000)",
    ]
    assert leaks(first, part("c", [7, 8]), 0.98) == []


def prepared(settings, folder, cache):
    fetch(settings, cache, folder / "source")
    write_json(folder / "manifest.json", write_dataset(settings, folder / "source", cache, folder))
    return folder


@pytest.fixture
def folders(tmp_path):
    write_slake(tmp_path / "slake")
    write_captions(tmp_path / "captions")
    medical = SlakeFolderVqa(source="slake-folder", folder=str(tmp_path / "slake"))
    general = FolderCaptions(source="caption-folder", folder=str(tmp_path / "captions"), sizes=[20])
    found = {"medical": medical, "again": medical, "general-20": general}
    found = {name: prepared(settings, tmp_path / name, tmp_path / "cache") for name, settings in found.items()}
    folds = Folds(dataset="medical", number=2)
    questions = read_table(found["medical"] / "questions.parquet")
    groups = group_images(*read_thumbnails(found["medical"] / "images"), folds)
    write_table(found["medical"] / "folds.parquet", assign(questions, groups, folds), FOLD_SCHEMA)
    return found


def test_a_shared_stage_on_held_out_images_is_a_leak(folders):
    clean = {name: folders[name] for name in ("medical", "general-20")}
    record, found = audit(clean, "medical", ["general-20"], 0.98)
    assert found == [] and "None." in markdown(record)
    record, found = audit(folders, "medical", ["again", "general-20"], 0.98)
    assert len(found) == 20 and "again 0 is the image 0 of medical" in found
    assert any(row["identical_images"] == 2 for row in record["overlaps"] if row["part"] == "medical test")


def test_the_audit_knows_every_part_and_baseline(folders):
    record, _ = audit({"medical": folders["medical"]}, "medical", [], 0.98)
    assert all(row["identical_images"] == 0 for row in record["overlaps"] + record["fold_overlaps"])
    assert {row["part"] for row in record["fold_overlaps"]} == {
        f"fold{n} {name}" for n in (0, 1) for name in ("validation", "held out")
    }
    assert all(row["seen_subject_images"] == 0 for row in record["fold_overlaps"]), "subjects are kept together"
    assert [row["questions"] for row in record["balance"]] == [54, 24, 30]
    assert all(sum(row["labels"].values()) == pytest.approx(200) for row in record["balance"])
    assert {row["part"] for row in record["baselines"]} == {
        "validation (official)", "test (official)", "fold0 held out", "fold1 held out",
    }  # fmt: skip
    assert {row["baseline"] for row in record["baselines"]} == {
        "majority", "majority-per-question", "majority-per-place", "nearest-images",
    }  # fmt: skip
    assert markdown(record).count("| nearest-images |") == 4


def test_images_of_a_subject_that_is_trained_on_are_counted(folders):
    data = folders["medical"]
    rows = {row["question_id"]: row for row in read_table(data / "questions.parquet")}
    images = sorted({row["image_id"] for row in rows.values()})
    subjects = {row["image_id"]: row["group"] for row in rows.values()}
    halves = {image: "train" if place % 2 else "test" for place, image in enumerate(images)}
    folds = read_table(data / "folds.parquet")
    cut = [row | {"part": halves[rows[row["question_id"]]["image_id"]]} for row in folds]
    write_table(data / "folds.parquet", cut, FOLD_SCHEMA)
    trained = {subjects[image] for image in images if halves[image] == "train"}
    folded = {rows[row["question_id"]]["image_id"] for row in folds}
    seen = sum(halves[image] == "test" and subjects[image] in trained for image in folded)
    found = {row["part"]: row["seen_subject_images"] for row in fold_overlaps(data, 0.98)}
    assert seen > 0 and found["fold0 held out"] == found["fold1 held out"] == seen
    unnamed = [row | {"group": None} for row in rows.values()]
    write_table(data / "questions.parquet", unnamed, QUESTION_SCHEMA)
    assert {row["seen_subject_images"] for row in fold_overlaps(data, 0.98)} == {None}, "subjects are not known"


def test_subjects_of_the_test_part_that_are_trained_on_are_counted_and_said(folders, capsys, monkeypatch, tmp_path):
    data = folders["medical"]
    rows = read_table(data / "questions.parquet")
    one = next(row["group"] for row in rows if row["split"] == "train")
    asked = sorted({row["image_id"] for row in rows if row["split"] == "test"})
    changed = [row | {"group": one} if row["image_id"] == asked[0] else row for row in rows]
    write_table(data / "questions.parquet", changed, QUESTION_SCHEMA)
    options = ["--data", str(data), "--folded", "medical", "--threshold", "0.98", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["audit", *options])
    main()
    said = capsys.readouterr()
    assert f"1 of {len(asked)} images of medical test are of subjects that medical train has" in said.out + said.err
    other = {"medical": data, "again": folders["again"]}
    record, _ = audit(other, "medical", [], 0.98)
    found = {(row["seen"], row["part"]): row["seen_subject_images"] for row in record["overlaps"]}
    assert found["medical train", "medical test"] == 1
    assert not any(number for (seen, _), number in found.items() if not seen.startswith("medical ")), "other sets' own"
    assert ("again", "medical test") in found


def test_subjects_of_a_part_that_is_held_out_are_not_trained_on(folders, capsys, monkeypatch, tmp_path):
    data = folders["medical"]
    rows = read_table(data / "questions.parquet")
    one = next(row["group"] for row in rows if row["split"] == "validation")
    changed = [row | {"group": one} if row["split"] == "test" else row for row in rows]
    write_table(data / "questions.parquet", changed, QUESTION_SCHEMA)
    part = {"train": "train", "validation": "test"}
    folds = [
        {"fold": "official", "question_id": row["question_id"], "part": part[row["split"]], "group": row["group"]}
        for row in changed
        if row["split"] in part
    ]
    options = ["--data", str(data), "--folded", "medical", "--threshold", "0.98", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["audit", *options])
    for extra, warned in (([], False), ([folds[-1] | {"fold": "other", "part": "train"}], True)):
        write_table(data / "folds.parquet", [*folds, *extra], FOLD_SCHEMA)
        main()
        said = capsys.readouterr()
        assert ("that medical validation has images of" in said.out + said.err) == warned


def test_the_page_says_how_much_a_centre_crop_would_lose_and_how_images_were_read(folders):
    assert cropped_share(folders["medical"]) == {"mean": 0.0, "most": 0.0}, "squares"
    result, _ = audit(folders, "medical", ["general-20"], 0.98)
    wide = [{"width": 128, "height": 32}, {"width": 50, "height": 100}, {"width": 9, "height": 9}]
    write_table(folders["again"] / "wide", wide, pa.schema([("width", pa.int32()), ("height", pa.int32())]))
    (folders["again"] / "images").rename(folders["again"] / "before")
    (folders["again"] / "wide").rename(folders["again"] / "images")
    share = cropped_share(folders["again"])
    assert share["most"] == 75 and round(share["mean"], 1) == 41.7
    result["cropped_share"]["again"] = share
    result["data"]["medical"]["read_as"] = {"first frame of a GIF of several": 3}
    page = markdown(result)
    assert "| again | 41.7 | 75.0 |" in page and "| medical | 0.0 | 0.0 |" in page
    assert "| medical | first frame of a GIF of several | 3 |" in page


def test_same_images_in_data_that_nothing_trains_on_stop_and_look_alikes_warn(folders, tmp_path, monkeypatch, capsys):
    def run(*asked):
        arguments = ["--data", *(str(folders[name]) for name in ("medical", "general-20", "again"))]
        arguments += ["--folded=medical", "--shared", "general-20", "--asked", *asked]
        monkeypatch.setattr("sys.argv", ["audit", *arguments, "--threshold=0.98", f"--out={tmp_path / 'out'}"])
        main()
        return read_json(tmp_path / "out/audit.json")["transfer"]

    # `again` is the folded data once more: its test part is in no fold, its training part is trained on.
    assert run("again", "test") == {"again": {"same": [], "alike": []}}
    with pytest.raises(
        TriptychError, match=r"evaluation\.datasets: \d+ images of again are trained on:\n  medical train"
    ):
        run("again", "train")
    lines = read_json(tmp_path / "out/audit.json")["transfer"]["again"]
    trained = [row for row in read_table(folders["medical"] / "images") if row["split"] == "train"]
    assert len(lines["same"]) == len(trained) and not lines["alike"], "each image, and no pair twice"
    assert lines["same"][0] in (tmp_path / "out/audit.md").read_text()
    with pytest.raises(
        TriptychError, match=r"evaluation\.datasets\.again: the data set has no image in its part 'dev'"
    ):
        run("again", "dev")

    capsys.readouterr()
    table = read_table(folders["again"] / "images")
    for row in table:  # other bytes, nearly the same picture
        row["sha256"] = "0" * 56 + f"{len(row['id']):08d}"
    write_table(folders["again"] / "images/00000.parquet", table, IMAGE_SCHEMA)
    found = run("again", "train")["again"]
    assert not found["same"] and len(found["alike"]) >= len(trained)
    assert (
        "warning: evaluation.datasets: images that are trained on look like images of again" in capsys.readouterr().out
    )


def test_without_data_for_transfer_the_audit_says_what_it_said(folders):
    result, _ = audit({name: folders[name] for name in ("medical", "general-20")}, "medical", ["general-20"], 0.98)
    assert "transfer" not in result and "nothing trains on" not in markdown(result)
