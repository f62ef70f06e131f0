"""Asking by hand: the answers of `triptych ask` are those of the study, and its errors say what to do."""

import io
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import image_bytes
from PIL import Image
from triptych.commands import ask
from triptych.config import paths
from triptych.config.grid import Checkpoint
from triptych.config.study import read_study
from triptych.errors import TriptychError
from triptych.evaluate.asking import Answerer, read_image
from triptych.features.store import Features
from triptych.io.parquet import read_table
from triptych.serve.desk import LoadedCheckpoints


@pytest.fixture
def here(study, monkeypatch):
    """The finished toy study, in its folder."""
    monkeypatch.chdir(study.folder)
    monkeypatch.setenv(ask.DEVICE, "cpu")
    return read_study(study.folder / "study.yaml")


def held_out(here, prefix="2-3", fold="fold0"):
    """Answers of a checkpoint to held-out questions."""
    return read_table(here.path(paths.PREDICTION, prefix=prefix, fold=fold, seed=0, view=""))


def files(here):
    """The image files of the toy study, by image id."""
    return {row["id"]: row["image"]["bytes"] for row in read_table(here.results / "data/medical/images")}


def asked(capsys, *words):
    ask.main([*map(str, words), "--configfile", "study.yaml", "--json"])
    return json.loads(capsys.readouterr().out)["answers"]


@pytest.mark.parametrize("prefix", ["1-2-3", "2-3"])
def test_features_and_answers_are_those_of_the_study(here, prefix):
    answerer, data = Answerer(here, Checkpoint(prefix, "fold0", 0)), files(here)
    stored = Features(here.results / "features/medical")
    lookups = {
        name: {row["question_id"]: row["prediction"] for row in read_table(path)}
        for name in ("majority-per-question", "nearest-images")
        for path in [here.path(paths.BASELINE_PREDICTION, baseline=name, fold="fold0", view="")]
    }
    records = held_out(here, prefix)
    assert len({record["prediction"] for record in records}) > 1
    for record in records[:9]:
        sent = read_image(data[record["image_id"]], here)
        assert torch.equal(answerer.encode([sent.image]), stored([record["image_id"]]))
        found = answerer.answer(sent, record["question"])
        assert found.text == record["prediction"]
        assert math.log(found.probability) == pytest.approx(record["logprob"], abs=1e-4)
        assert found.lookups == {name: answers[record["question_id"]] for name, answers in lookups.items()}
        assert found.known.row["answer"] == record["gold"] and not found.known.trained_on
        assert found.known.image == f"{record['image_id']} of medical, held out of fold0"


def test_it_says_what_training_has_seen(here):
    answerer, data = Answerer(here, Checkpoint("1-2-3", "fold0", 0)), files(here)
    folds = {row["question_id"]: row["part"] for row in read_table(here.results / "data/medical/folds.parquet")
             if row["fold"] == "fold0"}  # fmt: skip
    rows = read_table(here.results / "data/medical/questions.parquet")
    part_of = {row["image_id"]: folds.get(row["question_id"], "") for row in rows}
    words = {"train": "in the training part of fold0", "validation": "in the validation part of fold0"}
    words |= {"test": "held out of fold0", "": "in the source's own test part"}
    for image, part in part_of.items():
        known = answerer.known(read_image(data[image], here), "is it red ?")
        assert known.image.startswith(f"{image} of medical, {words[part]}")
        assert known.trained_on == (part == "train")
        assert known.question.endswith("this one") == (part == "train")
    known = answerer.known(read_image(image_bytes("red", "left", 777), here), "is it large ?")
    assert (known.image, known.trained_on) == ("not among the study's images", False)
    assert (known.question, known.row) == ("not asked in training", None)
    # The same pixels in other bytes, and an image of the first stage, which has no folds.
    trained = next(image for image, part in part_of.items() if part == "train")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data[trained])).save(buffer, "BMP")
    known = answerer.known(read_image(buffer.getvalue(), here), "is it red ?")
    assert known.trained_on and known.image.startswith(f"looks like {trained} of medical, in the training part of")
    general = read_table(here.results / "data/general-24/images")
    [row, *_] = [row for row in general if row["split"] == "train"]
    known = answerer.known(read_image(row["image"]["bytes"], here), "is it red ?")
    assert known.trained_on and known.image == f"{row['id']} of general-24, in the training part"
    other = Answerer(here, Checkpoint("2-3", "fold0", 0))
    assert not other.known(read_image(row["image"]["bytes"], here), "is it red ?").trained_on


def test_without_a_checkpoint_the_best_final_one_is_asked(here, capsys, tmp_path):
    (tmp_path / "new.png").write_bytes(image_bytes("red", "left", 777))
    [found] = asked(capsys, tmp_path / "new.png", "is it red ?")
    manifests = [here.checkpoint(Checkpoint(prefix, fold, 0), paths.CHECKPOINT) for prefix in here.grid.schedules
                 for fold in here.grid.folds]  # fmt: skip
    metrics = {str(path): json.loads(path.read_text())["metrics"] for path in manifests}
    best = max(metrics, key=lambda path: (metrics[path]["validation_accuracy"], -metrics[path]["validation_loss"]))
    assert found["checkpoint"] == best and found["chosen"].startswith("best of 4 on validation: ")
    first, second = asked(capsys, tmp_path / "new.png", "is it red ?", "--compare", "2-3", "1-2-3")
    assert (first["schedule"], second["schedule"]) == ("2-3", "1-2-3") and first["split"] == second["split"]
    named = "results/checkpoints/1-2/fold1/seed0"
    found = asked(capsys, tmp_path / "new.png", "is it red ?", "--checkpoint", named, f"{named}/manifest.json")
    assert [one["schedule"] for one in found] == ["1-2", "1-2"] and found[0]["chosen"] is None
    ask.main([str(tmp_path / "new.png"), "is it red ?", "--configfile", "study.yaml"])
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["image"] == "not among the study's images" and "probability" in shown["answer"]
    assert {"checkpoint", "question", "majority-per-question", "nearest-images"} < set(shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.png", "is it red ?"], "nowhere.png: no such file"),
        ([".", "is it red ?"], r"\.: no such file"),
        (["study.yaml", "is it red ?"], "study.yaml: .*image"),
        (["tiny.png", "is it red ?"], "tiny.png: 7 x 7 pixels, a side below 8"),
        (["huge.png", "is it red ?"], "huge.png: 100 x 80 pixels, more than 5000"),
        (["cut.png", "is it red ?"], "cut.png: "),
        (["good.png", "  "], "the question is empty"),
        (["good.png", "is " * 300], "question asked: .* too long"),
        (["good.png", "?", "--checkpoint", "results/checkpoints/1/shared/seed0"], "captions alone.*1-2-3, 2-3"),
        (["good.png", "?", "--checkpoint", "results/models"], "is no checkpoint of the study"),
        (["good.png", "?", "--compare", "2-3", "4"], "'4' is no schedule of the study"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_error(here, words, said, tmp_path, monkeypatch):
    shutil.copy("study.yaml", tmp_path)
    (tmp_path / "results").symlink_to(here.results.resolve())
    (tmp_path / "good.png").write_bytes(image_bytes("red", "left", 777))
    (tmp_path / "cut.png").write_bytes(image_bytes("red", "left", 777)[:-300])
    for name, size in {"tiny": (7, 7), "huge": (100, 80)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    text = (
        (tmp_path / "study.yaml")
        .read_text()
        .replace("source: slake-folder", "source: slake-folder\n    max_pixels: 5000")
    )
    (tmp_path / "study.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TriptychError, match=said):
        ask.main([*words, "--configfile", "study.yaml"])


def test_a_study_without_finished_checkpoints_says_so(here, tmp_path):
    with pytest.raises(TriptychError, match=r"no finished checkpoint of 1-2-3, 2-3.*run the study first"):
        ask.chosen(replace(here, results=tmp_path), [], None)


def test_unfinished_checkpoints_are_not_asked(here, tmp_path):
    folder = tmp_path / "results/checkpoints/2-3/fold0/seed0"
    (folder / "last").mkdir(parents=True)
    with pytest.raises(TriptychError, match="seed0: the checkpoint is not finished"):
        ask.chosen(replace(here, results=tmp_path / "results"), [folder], None)


def test_the_answers_that_are_compared_are_of_the_same_fold_and_seed(here, tmp_path):
    shutil.copytree(here.results / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints/1-2-3/fold0/seed0/manifest.json").unlink()
    cells = [cell for cell, _ in ask.chosen(replace(here, results=tmp_path), [], ["2-3", "1-2-3"])]
    assert cells == [Checkpoint("2-3", "fold1", 0), Checkpoint("1-2-3", "fold1", 0)]
    (tmp_path / "checkpoints/2-3/fold1/seed0/manifest.json").unlink()
    with pytest.raises(TriptychError, match="no fold and seed that both have finished"):
        ask.chosen(replace(here, results=tmp_path), [], ["2-3", "1-2-3"])


def test_where_it_looks_is_drawn_and_recorded(here, capsys, tmp_path):
    [record, *_] = held_out(here)
    (tmp_path / "own.png").write_bytes(files(here)[record["image_id"]])
    options = ["--where", tmp_path / "where.png", "--grid", "3", "--compare", "2-3", "1-2-3"]
    found = asked(capsys, tmp_path / "own.png", record["question"], *options)
    for one in found:
        looked = one["where"]
        assert (looked["answer"], looked["boxes"], len(looked["drops"])) == (record["gold"], [], 9)
        assert max(map(abs, looked["drops"])) > 0
    assert found[0]["where"]["drops"] != found[1]["where"]["drops"]
    with Image.open(tmp_path / "where.png") as drawn:
        assert drawn.format == "PNG" and drawn.width == 2 * drawn.height, "side by side"
    [other] = asked(capsys, tmp_path / "own.png", record["question"], *options[:4], "--answer", "no")
    assert other["where"]["answer"] == "no"
    with pytest.raises(TriptychError, match="--grid: must be a number of squares from 2 to 32, not 1"):
        ask.main([str(tmp_path / "own.png"), "?", "--configfile", "study.yaml", "--grid", "1"])


@pytest.mark.parametrize(
    ("drops", "said"),
    [
        (
            [0.0, 0.1, 0.69, -0.9],
            "0.50 times as probable without square 1 from the left, 2 from the top (0.69 nats less)",
        ),
        ([-0.2, -0.1, -0.3, -0.4], "without no square less probable"),
        ([0.0] * 4, "without no square less probable"),
    ],
)
def test_the_square_that_is_needed_most_is_named_where_there_is_one(drops, said):
    assert ask.most_needed(drops, 2) == said


def test_the_page_shows_the_answers_of_the_study_and_where_each_checkpoint_looks(here, capsys):
    [record, *_] = held_out(here)
    data = files(here)[record["image_id"]]
    named = [here.checkpoint(Checkpoint(prefix, "fold0", 0)) for prefix in ("2-3", "1-2-3")]
    desk = LoadedCheckpoints(here, ask.chosen(here, named, None))
    assert capsys.readouterr().out.splitlines() == [f"loading {place}/2: {path}" for place, path in enumerate(named, 1)]
    assert [(one["schedule"], one["split"]) for one in desk.checkpoints()] == [("2-3", "fold0"), ("1-2-3", "fold0")]
    found = desk.answers(data, record["question"])
    assert found["image"].startswith("data:image/png;base64,")
    for one in found["answers"]:
        stored = {row["question_id"]: row["prediction"] for row in held_out(here, one["schedule"])}
        assert one["answer"] == stored[record["question_id"]]
        assert (one["gold"], one["trained_on_image"]) == (record["gold"], False)
    json.dumps(found)
    first, second = (desk.where(data, record["question"], number) for number in (0, 1))
    assert first["picture"] != second["picture"] and first["words"].startswith(f"'{record['gold']}': ")
    with pytest.raises(TriptychError, match="The image cannot be used: "):
        desk.answers(b"no image", record["question"])
    with pytest.raises(TriptychError, match="the question is empty"):
        desk.answers(data, " ")


def test_a_question_of_the_study_is_asked_by_its_number_on_a_fold_that_holds_it_out(here, capsys):
    for fold in here.grid.folds:
        record = held_out(here, "2-3", fold)[0]
        [one] = asked(capsys, record["question_id"])
        assert one["split"] == fold and one["gold"] == record["gold"] and not one["trained_on_image"]
        [named] = asked(capsys, record["question_id"], "--checkpoint", here.checkpoint(Checkpoint("2-3", fold, 0)))
        assert named["answer"] == record["prediction"]
    with pytest.raises(TriptychError, match="no question of medical has this number"):
        ask.read_given(here, "nowhere.png", None)
