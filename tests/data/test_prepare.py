"""Preparation: everything of the source is either in the tables or among the rejects, with a reason."""

import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from conftest import CACHE, ROOT, image_bytes, write_slake
from PIL import Image
from pydantic import TypeAdapter
from triptych.config.datasets import (
    SLAKE_VARIABLE,
    Dataset,
    FolderCaptions,
    HubParquetCaptions,
    OpenMojiCaptions,
    SlakeFolderVqa,
)
from triptych.data import check
from triptych.data.duplicates import normalised, perceptual_hashes
from triptych.data.fetch import fetch
from triptych.data.images import decode, inspect
from triptych.data.prepare import write_dataset
from triptych.data.rejects import FAILED
from triptych.data.schemas import CANDIDATE_SCHEMA
from triptych.data.sources import source_module
from triptych.data.sources.slake_folder import local_folder
from triptych.errors import TriptychError
from triptych.io.manifest import sha256_bytes, sha256_file
from triptych.io.parquet import read_table, write_table


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(number: int, width: int = 160, height: int = 120) -> Image.Image:
    """An image like no other: broad patches of colour with noise."""
    generator = np.random.default_rng(number)
    patches = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height), 3)
    noise = generator.normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(patches) + noise, 0, 255).astype(np.uint8))


def prepared(settings: Dataset, folder: Path, cache: Path | None = None) -> dict:
    """Fetch and prepare into `folder`, in one process; the counts."""
    cache = cache or folder / "cache"
    fetch(settings, cache, folder / "source")
    return write_dataset(settings, folder / "source", cache, folder)["counts"]


def rejects(folder: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in read_table(folder / "rejects.parquet")}


def hashes(folder: Path) -> dict[str, str]:
    files = [*sorted((folder / "images").iterdir()), folder / "questions.parquet", folder / "rejects.parquet"]
    return {file.name: sha256_file(file) for file in files}


@pytest.fixture
def slake(tmp_path):
    folder = tmp_path / "slake"
    write_slake(folder)
    return folder


@pytest.fixture
def captioned(tmp_path):
    """A function that writes a folder of captioned images, and gives settings for it."""

    def write(pictures: dict[str, bytes], captions: dict[str, str] | None = None, **options) -> FolderCaptions:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
        names = list(captions or pictures)
        lines = [json.dumps({"image": name, "caption": (captions or {}).get(name, f"about {name}")}) for name in names]
        (folder / "captions.jsonl").write_text("\n".join(lines))
        return FolderCaptions(**{"source": "caption-folder", "folder": str(folder), "sizes": [len(names)], **options})

    return write


def edit(folder, part, change):
    records = json.loads((folder / f"{part}.json").read_text())
    change(records)
    (folder / f"{part}.json").write_text(json.dumps(records))


def of_slake(folder, **options) -> SlakeFolderVqa:
    return SlakeFolderVqa(source="slake-folder", folder=str(folder), **options)


# Questions in SLAKE's layout


def test_a_clean_folder_is_taken_whole(slake, tmp_path):
    counts = prepared(of_slake(slake), tmp_path)
    assert counts == {
        "images": {"test": 2, "train": 16, "validation": 2},
        "questions": {"test": 6, "train": 48, "validation": 6},
        "rejects": {},
        "seen": 20,
    }
    images = read_table(tmp_path / "images")
    assert {(row["width"], row["height"], row["source"]) for row in images} == {(32, 32, "slake-folder")}
    source = (slake / "imgs" / images[0]["image"]["path"]).read_bytes()
    assert images[0]["image"]["bytes"] == source, "the original bytes are kept"


def test_every_fault_is_rejected_with_its_reason_and_nothing_is_lost(slake, tmp_path):
    def spoil(records):
        records[0]["answer"] = " "
        del records[1]["modality"]
        records[2]["qid"] = records[3]["qid"]
        records[9]["q_lang"] = "zh"  # not a fault: another language is simply not asked for
        for record in records:
            record["img_name"] = "../../secret.png" if record["img_id"] == 4 else record["img_name"]
            record["img_name"] = "/etc/hostname" if record["img_id"] == 8 else record["img_name"]
            record["img_name"] = "link/source.png" if record["img_id"] == 9 else record["img_name"]
        records += [{**records[20], "qid": 900, "img_name": 7}, {**records[20], "qid": 901, "question": "\ud800"}]

    edit(slake, "train", spoil)
    edit(slake, "test", lambda records: records[0].update(img_id=0, img_name="toy0/source.png"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "source.png").write_bytes(image_bytes("red", "left"))
    (slake / "imgs" / "link").symlink_to(tmp_path / "outside")
    (slake / "imgs" / "toy5" / "source.png").unlink()
    (slake / "imgs" / "toy6" / "source.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    whole = (slake / "imgs" / "toy7" / "source.png").read_bytes()
    (slake / "imgs" / "toy7" / "source.png").write_bytes(whole[: len(whole) // 2])

    counts = prepared(of_slake(slake), tmp_path / "out")
    found = read_table(tmp_path / "out" / "rejects.parquet")
    reasons = " | ".join(row["reason"] for row in found)
    for part in (
        "empty question or answer",
        "lacks modality",
        "repeats the qid of another row: 3",
        "leads out of",
        "No such file",
        "not a file name",
        "not valid UTF-8",
    ):
        assert part in reasons, part
    assert reasons.count("cannot be decoded") == 8  # two images and their three questions each
    assert reasons.count("leads out of") == 12  # three images and their questions
    assert "already belongs to train.json" in reasons
    assert counts["images"]["train"] == 10 and counts["rejects"]["image"] == 6
    asked = sum(
        record["q_lang"] == "en"
        for part in ("train", "validation", "test")
        for record in json.loads((slake / f"{part}.json").read_text())
    )
    assert sum(counts["questions"].values()) + counts["rejects"]["question"] == asked
    assert sum(counts["images"].values()) + counts["rejects"]["image"] == counts["seen"] == 20


def test_groups_are_subjects_where_named_and_images_otherwise(slake, tmp_path):
    edit(slake, "validation", lambda records: [record.pop("subject") for record in records])
    edit(slake, "test", lambda records: [record.update(subject=None) for record in records])
    prepared(of_slake(slake), tmp_path)
    rows = read_table(tmp_path / "questions.parquet")
    assert {row["group"] for row in rows if row["split"] == "train"} == {
        f"subject subject{index}" for index in range(8)
    }
    assert all(row["group"] == row["image_id"] for row in rows if row["split"] != "train")


def test_in_two_languages_an_image_stays_in_the_part_of_its_english_questions(slake, tmp_path):
    english = json.loads((slake / "test.json").read_text())
    translated = [{**row, "q_lang": "zh", "qid": 1000 + row["qid"], "question": "这是什么"} for row in english]
    edit(slake, "train", lambda records: records.extend(translated))
    counts = prepared(of_slake(slake, language="both"), tmp_path / "both")
    assert counts["questions"] == {"test": 12, "train": 48, "validation": 6} and not counts["rejects"]
    assert prepared(of_slake(slake, language="zh"), tmp_path / "zh")["questions"] == {"test": 6}
    assert prepared(of_slake(slake), tmp_path / "en")["questions"]["test"] == 6


def test_other_numbers_than_expected_stop_with_what_was_found(slake, tmp_path):
    expected = {"images": 20, "train": 48, "validation": 6, "test": 6}
    prepared(of_slake(slake, expected=expected), tmp_path / "good")
    with pytest.raises(TriptychError, match=r"images: 20 instead of 21; train: 48 instead of 50.*`expected`"):
        prepared(of_slake(slake, expected={**expected, "train": 50, "images": 21}), tmp_path / "bad")


def test_organ_boxes_are_kept_and_broken_ones_reported(slake, tmp_path):
    (slake / "imgs" / "toy0" / "detection.json").write_text('[{"Liver": [54.0, 106, 30, 31.5]}, {"Spleen": [1,2,3,4]}]')
    (slake / "imgs" / "toy1" / "detection.json").write_text('[{"Liver": [54.0]}]')
    (slake / "imgs" / "toy2" / "detection.json").write_text("[]")
    (slake / "imgs" / "toy3" / "detection.json").write_text('[{"Liver": [0.1, 0.2, 0.5, 0.5]}]')
    counts = prepared(of_slake(slake), tmp_path / "out")
    boxes = {row["id"]: row["boxes"] for row in read_table(tmp_path / "out" / "images")}
    assert json.loads(boxes["0"]) == [["Liver", [54, 106, 30, 31.5]], ["Spleen", [1, 2, 3, 4]]]
    assert boxes["1"] is None and boxes["2"] == "[]" and boxes["3"] is None
    assert counts["rejects"] == {"boxes": 2} and "not a list of organ boxes" in rejects(tmp_path / "out")["1"]
    assert "in pixels, not in parts of the image" in rejects(tmp_path / "out")["3"]


def test_nothing_usable_is_an_error_and_leaves_no_tables_but_the_rejects(slake, tmp_path):
    for part in ("train", "validation", "test"):
        edit(slake, part, lambda records: [record.update(answer="") for record in records])
    with pytest.raises(TriptychError, match="60 rows were rejected: has an empty question or answer: 60; each"):
        prepared(of_slake(slake), tmp_path / "out")
    for path in (slake / "imgs").glob("*/source.png"):
        path.write_bytes(b"")
    write_slake(tmp_path / "other")
    for path in (tmp_path / "other" / "imgs").glob("*/source.png"):
        path.write_bytes(b"")
    failed = read_table(tmp_path / "out" / "source" / FAILED)
    assert {row["reason"] for row in failed if row["id"] == "1"} == {"train.json[1] has an empty question or answer"}
    why = r"no usable question; 80 were rejected: its image was rejected: 60; no bytes: 20; each"
    with pytest.raises(TriptychError, match=why):
        prepared(of_slake(tmp_path / "other"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == [FAILED]
    assert len(read_table(tmp_path / "out" / FAILED)) == 80
    write_slake(tmp_path / "other")
    prepared(of_slake(tmp_path / "other"), tmp_path / "out")
    assert not list((tmp_path / "out").rglob(FAILED))


def test_a_whole_copy_that_is_asked_for_has_all_its_images(slake, tmp_path):
    (slake / "imgs" / "toy3" / "source.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    expected = {"images": 20, "train": 48}
    with pytest.raises(TriptychError, match=r"1 of 20 images cannot be used, though `expected` asks for a whole copy"):
        prepared(of_slake(slake, expected=expected), tmp_path / "out")
    assert prepared(of_slake(slake), tmp_path / "out")["images"]["train"] == 15


def test_the_slake_folder_is_named_by_the_variable_or_the_key(slake, monkeypatch):
    monkeypatch.delenv(SLAKE_VARIABLE, raising=False)
    assert local_folder(of_slake(slake)) == slake
    assert of_slake(slake).overruled is None
    with pytest.raises(TriptychError, match=r"set TRIPTYCH_SLAKE=/path/to/slake, or the key `folder`"):
        local_folder(SlakeFolderVqa(source="slake-folder"))
    monkeypatch.setenv(SLAKE_VARIABLE, str(slake / "nowhere"))
    with pytest.raises(TriptychError, match=r"nowhere/train\.json: not there; TRIPTYCH_SLAKE must name"):
        local_folder(SlakeFolderVqa(source="slake-folder"))
    assert local_folder(of_slake(slake)) == slake
    with pytest.raises(TriptychError, match=r"imgs/train\.json: not there; the key `folder` must name"):
        local_folder(of_slake(slake / "imgs"))


def test_the_folder_that_is_read_is_named_and_a_variable_that_differs_is_pointed_out(
    slake, tmp_path, monkeypatch, capsys
):
    write_slake(tmp_path / "other", subjects=4)
    monkeypatch.setenv(SLAKE_VARIABLE, str(tmp_path / "other"))
    for name, settings, read in (
        ("key", of_slake(slake), slake),
        ("variable", SlakeFolderVqa(source="slake-folder"), tmp_path / "other"),
    ):
        manifest = fetch(settings, tmp_path / "cache", tmp_path / name)
        assert manifest["folder"] == str(read) and manifest["counts"]["candidates"] == (20 if read == slake else 8)
        said = capsys.readouterr().out
        assert f"read from {read}" in said and (f"{SLAKE_VARIABLE} is {tmp_path / 'other'}" in said) == (name == "key")
    monkeypatch.setenv(SLAKE_VARIABLE, str(slake / ".." / "slake"))
    fetch(of_slake(slake), tmp_path / "cache", tmp_path / "same")
    assert "warning" not in capsys.readouterr().out


# Captions


def test_captions_end_in_the_same_tables(captioned, tmp_path):
    settings = captioned({f"{n}.png": encoded(photo(n), "PNG") for n in range(12)}, validation_fraction=0.3)
    counts = prepared(settings, tmp_path / "out")
    assert sum(counts["images"].values()) == sum(counts["questions"].values()) == 12
    rows = read_table(tmp_path / "out" / "questions.parquet")
    captions = {row["id"]: row["caption"] for row in read_table(tmp_path / "out" / "images")}
    assert all(row["answer"] == captions[row["image_id"]] for row in rows)
    assert {row["question"] for row in rows} == {"Describe the image."}
    assert set(counts["images"]) == {"train", "validation"}


def test_a_smaller_set_begins_a_larger_one_whatever_the_order_of_the_source(captioned, tmp_path):
    settings = captioned({f"{n}.jpg": encoded(photo(n), "JPEG") for n in range(30)})
    table = Path(settings.folder) / "captions.jsonl"
    kept = {}
    for size in (8, 16, 30):
        lines = table.read_text().splitlines()
        random.Random(size).shuffle(lines)
        table.write_text("\n".join(lines))
        prepared(settings.model_copy(update={"sizes": [size]}), tmp_path / str(size), tmp_path / "cache")
        kept[size] = [row["id"] for row in read_table(tmp_path / str(size) / "images")]
    assert len(kept[30]) == 30 and kept[16][:8] == kept[8] and kept[30][:16] == kept[16]
    prepared(settings, tmp_path / "scratch", tmp_path / "empty")
    assert hashes(tmp_path / "scratch") == hashes(tmp_path / "30"), "the larger set after the smaller one, or alone"


def test_copies_look_alikes_placeholders_and_flat_images_are_left_out(captioned, tmp_path):
    first, other = photo(1), photo(2)
    pictures = {
        "a.jpg": encoded(first, "JPEG", quality=95),
        "copy.jpg": encoded(first, "JPEG", quality=95),
        "smaller.jpg": encoded(first.resize((100, 75)), "JPEG", quality=40),
        "other.jpg": encoded(other, "JPEG"),
        "white.png": encoded(Image.new("RGB", (64, 64), "white"), "PNG"),
        "missing.jpg": encoded(photo(3), "JPEG"),
    }
    known = sha256_bytes(pictures["missing.jpg"])
    settings = captioned(pictures, placeholders=[known], sizes=[2])
    told = ""
    for seed in range(6):  # in some of these orders each fault comes before the second good image
        prepared(settings.model_copy(update={"seed": seed}), tmp_path / f"out{seed}", tmp_path / "cache")
        names = {row["image"]["path"] for row in read_table(tmp_path / f"out{seed}" / "images")}
        assert len(names) == 2 and len(names & {"a.jpg", "copy.jpg", "smaller.jpg"}) == 1 and "other.jpg" in names
        told += " | ".join(rejects(tmp_path / f"out{seed}").values())
    assert "white.png: shows nothing: one flat colour" in told
    with pytest.raises(TriptychError, match=r"6 images were asked for, but only 2 of 6 could be used"):
        prepared(settings.model_copy(update={"sizes": [6]}), tmp_path / "all")
    keep = settings.model_copy(update={"keep_near_duplicates": True, "sizes": [3]})
    counts = prepared(keep, tmp_path / "keep")
    assert counts["images"]["train"] + counts["images"].get("validation", 0) == 3
    for part in (".jpg: the same image as", ".jpg: nearly the same image as", "missing.jpg: a placeholder"):
        assert part in told, part
    assert "nearly" not in " ".join(rejects(tmp_path / "keep").values())


def test_a_placeholder_in_several_encodings_is_pointed_out_too(captioned, tmp_path, capsys):
    one, other = encoded(photo(1), "PNG"), encoded(photo(1), "JPEG", quality=90)
    pictures = {"a.png": one, **{f"{n}.jpg": other for n in range(4)}, "x.jpg": encoded(photo(2), "JPEG")}
    settings = captioned(pictures, sizes=[2])
    for seed in range(8):
        prepared(settings.model_copy(update={"seed": seed}), tmp_path / f"seed{seed}")
    assert "captions: is it a placeholder?" in capsys.readouterr().out


def test_too_few_images_are_told_with_what_every_step_rejected(captioned, tmp_path):
    pictures = {f"{n}.jpg": encoded(photo(n), "JPEG") if n < 2 else b"" for n in range(4)}
    settings = captioned(pictures, {**{name: f"about {name}" for name in pictures}, "4.jpg": " ", "5.jpg": ""})
    with pytest.raises(TriptychError) as caught:
        prepared(settings, tmp_path / "out")
    told = "6 images were asked for, but only 2 of 6 could be used. Rejected: 'caption' is empty: 2; no bytes: 2; each"
    assert told in str(caught.value)
    assert len(read_table(tmp_path / "out" / FAILED)) == 4


def test_a_changed_revision_never_meets_old_images(tmp_path):
    settings = HubParquetCaptions(source="hub-parquet", repo="a/b", revision="0" * 40, sizes=[1])
    rows = [{"id": "x", "path": "p", "place": "q"}]
    paths = {
        check.block_path(rows, settings.model_copy(update=change), tmp_path)
        for change in ({}, {"revision": "1" * 40}, {"image_column": "other"}, {"repo": "a/c"}, {"min_side": 9})
    }
    assert len(paths) == 5


def test_a_fault_that_may_pass_is_not_kept(captioned, tmp_path):
    settings = captioned({f"{n}.jpg": encoded(photo(n), "JPEG") for n in range(3)})
    fetch(settings, tmp_path, tmp_path / "source")
    rows = check.Candidates(tmp_path / "source", settings).block(0)
    path = check.block_path(rows, settings, tmp_path)

    def failing(place):
        raise OSError(errno.ESTALE, "Stale file handle")

    def gone(place):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with pytest.raises(TriptychError, match=r"jpg: Stale file handle; run again"):
        check.ensure_block(rows, settings, failing, path)
    assert not path.exists()
    assert len(_rejects(rows, settings, gone, path)) == 3
    with source_module(settings).reader(settings, tmp_path) as read:
        assert not _rejects(rows, settings, read, path), "the files are there again"
        path.write_bytes(path.read_bytes()[:500])
        assert not _rejects(rows, settings, read, path), "a damaged block is made again"


def _rejects(rows, settings, read, path):
    """What a finished block refuses; the file says the same as the block that was just made."""
    block, finish = check.ensure_block(rows, settings, read, path)
    finish()
    assert block == check._read_block(path)
    return block.rejects


def test_corrupt_cmyk_is_found_like_any_other(tmp_path):
    data = bytearray(encoded(photo(1, 320, 240).convert("CMYK"), "JPEG", quality=90))
    inspect(bytes(data))
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(range(200))
    with pytest.raises(TriptychError, match="cannot be decoded"):
        inspect(bytes(data))


def test_an_image_under_many_captions_is_pointed_out(captioned, tmp_path, capsys):
    same = encoded(photo(5), "JPEG")
    settings = captioned({**{f"{n}.jpg": same for n in range(4)}, "x.jpg": encoded(photo(6), "JPEG")}, sizes=[2])
    prepared(settings.model_copy(update={"oversample": 5.0}), tmp_path / "out")
    with pytest.raises(TriptychError):
        prepared(settings.model_copy(update={"sizes": [5]}), tmp_path / "all")
    for seed in range(5):  # the four copies come first for some seed
        prepared(settings.model_copy(update={"seed": seed}), tmp_path / f"seed{seed}")
    assert "captions: is it a placeholder?" in capsys.readouterr().out


def test_a_file_with_many_captions_and_files_with_one_caption_each(captioned, tmp_path, capsys):
    settings = captioned({f"{n}.jpg": encoded(photo(n), "JPEG") for n in range(3)}, sizes=[3])
    lines = [{"image": "0.jpg", "caption": f"caption {n}"} for n in range(5)]
    lines += [{"image": f"{n}.jpg", "caption": f"other {n}"} for n in (1, 2)]
    (tmp_path / "images" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for seed in range(5):  # the five captions of one file come before the others for some seed
        prepared(settings.model_copy(update={"seed": seed}), tmp_path / f"seed{seed}")
    assert "warning" not in capsys.readouterr().out, "a file with several captions is no placeholder"


@pytest.mark.parametrize(("same", "warned"), [(8, True), (5, False)])
def test_one_caption_under_most_images_is_pointed_out(captioned, tmp_path, capsys, same, warned):
    captions = {f"{n}.jpg": "human" if n < same else f"thing {n}" for n in range(10)}
    prepared(
        captioned({name: encoded(photo(n), "JPEG") for n, name in enumerate(captions)}, captions), tmp_path / "out"
    )
    assert (f"warning: out: {same} of 10 images have the caption 'human'" in capsys.readouterr().out) == warned


def test_the_requested_number_is_delivered_although_spares_run_out(captioned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "BLOCK", 4)
    pictures = {f"{n}.jpg": encoded(photo(n), "JPEG") if n % 2 else b"broken" for n in range(24)}
    counts = prepared(captioned(pictures, sizes=[10]), tmp_path / "out")
    assert sum(counts["images"].values()) == 10
    assert counts["seen"] == 10 + counts["rejects"]["image"] > 11, "accepted + rejected = seen"
    assert "the oversample did not suffice" in capsys.readouterr().out


def test_all_takes_every_usable_image_and_a_number_is_its_beginning(captioned, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "BLOCK", 4)
    pictures = {f"{n}.jpg": encoded(photo(n), "JPEG") if n % 3 else b"broken" for n in range(15)}
    settings = captioned(pictures, sizes="all")
    assert settings.sizes == ["all"] and settings.model_dump(mode="json")["sizes"] == ["all"]
    counts = prepared(settings, tmp_path / "all")
    assert sum(counts["images"].values()) == 10 and counts["rejects"] == {"image": 5} and counts["seen"] == 15
    prepared(settings.model_copy(update={"sizes": [6]}), tmp_path / "six")
    first, every = ([row["id"] for row in read_table(tmp_path / name / "images")] for name in ("six", "all"))
    assert every[:6] == first
    nothing = captioned(dict.fromkeys(pictures, b"broken"), sizes=["all"])
    with pytest.raises(TriptychError, match="all images were asked for, but only 0 of 15 could be used"):
        prepared(nothing, tmp_path / "none")


@pytest.mark.parametrize(
    ("caption", "reason"),
    [("  ", "is empty"), ("ab", "2 characters, not 3 to 2000"), ("x" * 2001, "2001 characters")],
)
def test_captions_that_cannot_be_used_say_why(captioned, tmp_path, caption, reason):
    pictures = {f"{n}.jpg": encoded(photo(n), "JPEG") for n in range(3)}
    settings = captioned(pictures, {"0.jpg": caption, "1.jpg": "fine", "2.jpg": "un  café \u0000 ici"}, sizes=[2])
    counts = prepared(settings, tmp_path / "out")
    assert counts["rejects"]["image"] == 1 and counts["seen"] == 3
    assert any(reason in told for told in rejects(tmp_path / "out").values())
    captions = {row["caption"] for row in read_table(tmp_path / "out" / "images")}
    assert captions == {"fine", "un café ici"}


def test_composed_drawings_carry_their_card(tmp_path):
    settings = OpenMojiCaptions(source="openmoji", sizes=[20], validation_fraction=0.2)
    counts = prepared(settings, tmp_path, CACHE)
    assert counts["images"] == {"train": 16, "validation": 4} and not counts["rejects"]
    assert "OpenMoji" in source_module(settings).card(settings, CACHE, counts)


def test_the_table_shows_its_images_to_the_datasets_library(slake, tmp_path):
    prepared(of_slake(slake), tmp_path)
    table = pq.ParquetFile(tmp_path / "images" / "00000.parquet")
    assert {"id", "caption", "width", "height", "sha256", "phash", "source"} <= set(table.schema_arrow.names)
    shown = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "images" / "*.parquet"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert isinstance(shown.features["image"], datasets.Image) and shown[0]["image"].size == (32, 32)


def test_row_groups_are_small_whatever_was_rejected(captioned, tmp_path):
    pictures = {f"{n}.png": image_bytes("red", "left", n) if n % 9 else b"" for n in range(300)}
    prepared(captioned(pictures, sizes=[250]), tmp_path / "out")
    table = pq.ParquetFile(tmp_path / "out" / "images" / "00000.parquet").metadata
    assert [table.row_group(n).num_rows for n in range(table.num_row_groups)] == [100, 100, 50]


# The same bytes, whatever happens


def test_shards_kills_and_sizes_do_not_change_a_byte(captioned, tmp_path, monkeypatch):
    """Ten thousand after thirty, in parts, after SIGKILL: in small. Blocks that are there are not made again."""
    pictures = {f"{n}.jpg": encoded(photo(n), "JPEG") for n in range(60)}
    settings = captioned(pictures, sizes=[54])
    monkeypatch.setattr(check, "BLOCK", 10)
    prepared(settings, tmp_path / "plain")

    cache, source = tmp_path / "kept", tmp_path / "killed" / "source"
    fetch(settings, cache, source)
    program = (
        "import sys; from triptych.data import check; from triptych.errors import run_step; check.BLOCK = 10\n"
        "sys.argv[0] = 'blocks'; run_step(check.main)"
    )
    command = [sys.executable, "-c", program, "--settings", settings.model_dump_json(), "--source", str(source)]
    command += ["--cache", str(cache), "--shard", "1-of-1", "--out", str(tmp_path / "killed" / "shard.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")}
    killed = 0
    for delay in (0.0, 0.01, 0.02, 0.04):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(cache.glob("blocks/*/.*")):
            time.sleep(0.002)  # until a block is half written
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    subprocess.run(command, env=environment, check=True, capture_output=True)
    times = {path: path.stat().st_mtime_ns for path in cache.glob("blocks/*/*.parquet")}
    assert len(times) == 6
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("blocks/*/*.parquet")} == times
    assert not list(cache.glob("blocks/*/.*")), "what the killed left is cleared away"
    write_dataset(settings, source, cache, tmp_path / "killed")
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "plain")


def test_a_changed_image_or_check_never_meets_an_old_block(captioned, tmp_path):
    settings = captioned({f"{n}.jpg": encoded(photo(n), "JPEG") for n in range(5)})
    cache = tmp_path / "cache"
    prepared(settings, tmp_path / "a", cache)
    path = Path(settings.folder) / "3.jpg"
    path.write_bytes(encoded(photo(99), "JPEG"))
    prepared(settings, tmp_path / "b", cache)
    rows = {row["image"]["path"]: row["image"]["bytes"] for row in read_table(tmp_path / "b" / "images")}
    assert rows["3.jpg"] == path.read_bytes()
    with pytest.raises(TriptychError, match="asked for, but only 0 of 5"):
        prepared(settings.model_copy(update={"min_side": 500}), tmp_path / "c", cache)


def test_a_source_that_shrinks_between_runs_says_so(captioned, tmp_path):
    settings = captioned({f"{n}.jpg": encoded(photo(n), "JPEG") for n in range(6)})
    cache, source = tmp_path / "cache", tmp_path / "source"
    fetch(settings, cache, source)
    (Path(settings.folder) / "2.jpg").unlink()
    with pytest.raises(TriptychError, match=r"6 images were asked for, but only 5 of 6.*No such file"):
        write_dataset(settings, source, cache, tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists()


def full_disk(folder: Path) -> bool:
    """Mount a disk of 300 kB at `folder`; False where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True).returncode == 0


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(captioned, tmp_path):
    settings = captioned({f"{n}.png": encoded(photo(n), "PNG") for n in range(12)})  # 55 kB each
    source, cache, out = tmp_path / "source", tmp_path / "cache", tmp_path / "small"
    fetch(settings, cache, source)
    out.mkdir()
    mounted = full_disk(out)
    command = [sys.executable, "-m", "triptych.data.prepare", "--settings", settings.model_dump_json()]
    command += ["--source", str(source), "--cache", str(cache), "--out", str(out)]

    def small_files():  # where no disk can be mounted, a limit on the size of files does the same
        if not mounted:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")}
    try:
        result = subprocess.run(command, env=environment, preexec_fn=small_files, capture_output=True, text=True)
        left = [path for path in out.rglob("*") if path.is_file()]
    finally:
        if mounted:
            subprocess.run(["umount", str(out)], check=True)
    assert result.returncode == 1
    assert "error: no space left" in result.stderr and "Traceback" not in result.stderr
    assert not left
    write_dataset(settings, source, cache, tmp_path / "out")
    assert len(read_table(tmp_path / "out" / "images")) == 12, "with room, it goes on from what was checked"


# Images


def test_images_are_decoded_upright_in_rgb_over_white():
    assert decode(encoded(Image.new("RGBA", (10, 10), (255, 0, 0, 0)), "PNG")).getpixel((5, 5)) == (255, 255, 255)
    assert decode(encoded(Image.new("CMYK", (10, 10), (0, 255, 255, 0)), "JPEG")).mode == "RGB"
    assert decode(encoded(Image.new("L", (10, 10), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode(encoded(Image.new("L", (16, 16), 77), "JPEG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode(encoded(Image.new("I;16", (10, 10), 257 * 140), "PNG")).getpixel((0, 0)) == (140, 140, 140)
    palette = Image.new("RGB", (10, 10), (10, 200, 30)).quantize(4)
    assert decode(encoded(palette, "PNG")).getpixel((3, 3)) == (10, 200, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_set_upright_as_pillow_does(orientation):
    turned = Image.Exif()
    turned[0x0112] = orientation
    data = encoded(photo(4, 96, 64), "JPEG", exif=turned)
    from PIL import ImageOps

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))
    found = inspect(data)
    assert (found.width, found.height) == expected.size
    whole = np.asarray(expected.convert("L").resize((32, 32), Image.Resampling.BILINEAR))
    assert (normalised(found.thumbnail[None]) @ normalised(whole[None]).T).item() > 0.98


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://x.example/a.png'/></svg>", "an SVG drawing"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "a side below 8"),
        (encoded(Image.new("RGB", (1, 1)), "JPEG"), "a side below 8"),
        (encoded(Image.new("F", (10, 10), 0.5), "TIFF"), "no fixed brightness scale"),
        (encoded(Image.new("1", (10_000, 10_000)), "PNG"), "100000000 pixels|DecompressionBomb|more than 50000000"),
        (encoded(photo(3), "JPEG")[:-400], "cannot be decoded"),
        (encoded(photo(3), "PNG")[:-400], "cannot be decoded"),
        (b"\xff\xd8\xff\xe0 no image", "cannot be decoded"),
    ],
)
def test_images_that_cannot_be_used_say_why(data, reason):
    for read in (decode, inspect):
        with pytest.raises(TriptychError, match=reason):
            read(data)


def test_images_that_show_nothing_are_rejected_in_question_sets_too(slake, tmp_path):
    name = json.loads((slake / "train.json").read_text())[0]["img_name"]
    (slake / "imgs" / name).write_bytes(encoded(Image.new("I;16", (64, 64), 900), "PNG"))
    prepared(SlakeFolderVqa(source="slake-folder", folder=str(slake)), tmp_path / "out")
    assert any("shows nothing" in reason for reason in rejects(tmp_path / "out").values())


def test_how_deep_images_were_read_is_warned_of_and_stands_in_the_card(captioned, tmp_path, capsys):
    deep = (np.asarray(photo(1).convert("L")).astype(np.uint16)) * 16
    settings = captioned({"a.png": encoded(Image.fromarray(deep), "PNG"), "b.jpg": encoded(photo(2), "JPEG")})
    counts = prepared(settings, tmp_path)
    note = "values in 16 bits, scaled by the 12 bits that their real range needs: nothing narrower is declared"
    assert counts["read_as"] == {note: 1}
    assert f": 1 images were read as {note}" in capsys.readouterr().out
    command = [sys.executable, "-m", "triptych.data.prepare", "--settings", settings.model_dump_json()]
    command += ["--source", tmp_path / "source", "--cache", tmp_path / "cache", "--out", tmp_path / "again"]
    subprocess.run(command, check=True, capture_output=True)
    assert f"| 1 | {note} |" in (tmp_path / "again" / "card.md").read_text()
    rows = read_table(tmp_path / "again" / "images")
    assert [row["width"] for row in rows] == [160, 160]
    assert all(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("L")).max() > 200 for row in rows)


def test_equal_input_gives_equal_rejects(captioned, tmp_path):
    strangers = {
        "a.ppm": b"P6\n9 9\n255\n",
        "b.jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "c.tga": bytes(30),
        "d.tif": b"II*\0" * 9,
    }
    settings = captioned({**strangers, "e.png": encoded(photo(1), "PNG")}, sizes=[1], oversample=5)
    prepared(settings, tmp_path / "one")
    again = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "triptych.data.prepare", "--settings", settings.model_dump_json()]
    command += ["--source", tmp_path / "one" / "source", "--cache", tmp_path / "other", "--out", tmp_path / "two"]
    subprocess.run(command, check=True, capture_output=True, env=again)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_a_wrong_extension_does_not_matter(captioned, tmp_path):
    counts = prepared(captioned({"a.png": encoded(photo(1), "JPEG"), "b.jpg": encoded(photo(2), "PNG")}), tmp_path)
    assert sum(counts["images"].values()) == 2


def test_inspection_is_as_strict_as_full_decoding_of_corrupt_scans():
    """Bytes changed inside the scan: what full strict decoding finds, the quick inspection finds too."""
    generator, found = random.Random(0), 0
    whole = [encoded(photo(n, 320, 240), "JPEG", quality=90) for n in range(3)]
    for trial in range(120):
        data = bytearray(whole[trial % 3])
        place = generator.randrange(1000, len(data) - 20)
        data[place : place + 12] = bytes(generator.randrange(256) for _ in range(12))
        try:
            simplejpeg.decode_jpeg(bytes(data))
            corrupt = False
        except ValueError:
            corrupt = True
        try:
            inspect(bytes(data))
            assert not corrupt
        except TriptychError:
            assert corrupt
        found += corrupt
    assert found > 20


def test_perceptual_hashes_are_near_for_look_alikes_and_far_for_others():
    pictures = [photo(n) for n in range(20)]
    thumbnails = np.stack([inspect(encoded(image, "JPEG", quality=95)).thumbnail for image in pictures])
    worse = [inspect(encoded(image.resize((80, 60)), "JPEG", quality=30)).thumbnail for image in pictures]
    worse = np.stack(worse)
    distance = np.bitwise_count(perceptual_hashes(thumbnails)[:, None] ^ perceptual_hashes(worse)[None])
    assert np.diag(distance).max() <= 10
    assert distance[~np.eye(20, dtype=bool)].min() > 10


def test_settings_pass_through_json(captioned):
    settings = captioned({"a.jpg": encoded(photo(1), "JPEG")})
    assert TypeAdapter(Dataset).validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("group", [1, 7, 100, 5000])
@pytest.mark.parametrize("rows", [0, 1, 20, 45, 60])
def test_blocks_of_candidates_are_the_rows_in_order_whatever_groups_they_lie_in(tmp_path, monkeypatch, rows, group):
    monkeypatch.setattr(check, "BLOCK", 20)
    listed = [{"id": str(number), "path": f"{number}.png"} for number in range(rows)]
    table = pa.Table.from_pylist(listed, schema=CANDIDATE_SCHEMA)
    pq.write_table(table, tmp_path / "candidates.parquet", row_group_size=group, write_page_checksum=True)
    candidates = check.Candidates(tmp_path, SlakeFolderVqa(source="slake-folder"))
    assert candidates.blocks == candidates.planned == -(-rows // 20)
    found = [candidates.block(number) for number in range(candidates.blocks)]
    assert [row for block in found for row in block] == table.to_pylist()
    assert all(len(block) == 20 for block in found[:-1])


def test_damage_to_the_list_of_candidates_is_one_line(tmp_path):
    listed = [{"id": f"{number:050d}"} for number in range(2500)]
    write_table(tmp_path / "candidates.parquet", listed, CANDIDATE_SCHEMA)
    data = bytearray((tmp_path / "candidates.parquet").read_bytes())
    data[pq.read_metadata(tmp_path / "candidates.parquet").row_group(23).column(0).dictionary_page_offset + 60] ^= 1
    (tmp_path / "candidates.parquet").write_bytes(data)
    candidates = check.Candidates(tmp_path, SlakeFolderVqa(source="slake-folder"))
    assert len(candidates.block(0)) == 1000
    with pytest.raises(TriptychError, match=r"candidates\.parquet: cannot be read as Parquet .*delete it and run"):
        candidates.block(2)
