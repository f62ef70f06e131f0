"""Preparation: everything of the source is either in the tables or among the rejects, with a reason."""

import io
import json

import pytest
from conftest import CACHE, write_slake
from PIL import Image
from triptych.pictures import decode
from triptych.prepare import prepare, read_slake, write_dataset
from triptych.settings import FolderCaptions, OpenMojiCaptions, SlakeFolderVqa
from triptych.sources.fetch import SLAKE_VARIABLE, local_folder
from triptych.storage import TriptychError, read_table, sha256_file


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def slake(tmp_path):
    folder = tmp_path / "slake"
    write_slake(folder)
    return folder


def edit(folder, part, change):
    records = json.loads((folder / f"{part}.json").read_text())
    change(records)
    (folder / f"{part}.json").write_text(json.dumps(records))


def test_a_clean_folder_is_taken_whole(slake, tmp_path):
    counts = write_dataset(read_slake(slake), tmp_path / "out")
    assert counts == {
        "images": {"test": 2, "train": 16, "validation": 2},
        "questions": {"test": 6, "train": 48, "validation": 6},
        "rejects": {},
    }
    images = read_table(tmp_path / "out" / "images.parquet")
    assert {(row["width"], row["height"]) for row in images} == {(32, 32)}
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

    edit(slake, "train", spoil)
    edit(slake, "test", lambda records: records[0].update(img_id=0, img_name="toy0/source.png"))
    (slake / "imgs" / "toy5" / "source.png").unlink()
    (slake / "imgs" / "toy6" / "source.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    whole = (slake / "imgs" / "toy7" / "source.png").read_bytes()
    (slake / "imgs" / "toy7" / "source.png").write_bytes(whole[: len(whole) // 2])

    counts = write_dataset(read_slake(slake), tmp_path / "out")
    rejects = {(row["kind"], row["id"]): row["reason"] for row in read_table(tmp_path / "out" / "rejects.parquet")}
    reasons = " | ".join(rejects.values())
    for part in ("empty question or answer", "lacks modality", "repeats qid", "leads out of", "No such file"):
        assert part in reasons, part
    assert reasons.count("cannot be decoded") == 8  # two pictures and their three questions each
    assert "already belongs to train.json" in reasons
    assert counts["images"]["train"] == 12 and counts["rejects"]["image"] == 4
    asked = sum(
        record["q_lang"] == "en"
        for part in ("train", "validation", "test")
        for record in json.loads((slake / f"{part}.json").read_text())
    )
    assert sum(counts["questions"].values()) + counts["rejects"]["question"] == asked


def test_groups_are_subjects_where_named_and_images_otherwise(slake, tmp_path):
    edit(slake, "validation", lambda records: [record.pop("subject") for record in records])
    write_dataset(read_slake(slake), tmp_path / "out")
    rows = read_table(tmp_path / "out" / "questions.parquet")
    assert {row["group"] for row in rows if row["split"] == "train"} == {f"subject{index}" for index in range(8)}
    assert all(row["group"] == row["image_id"] for row in rows if row["split"] == "validation")


def test_the_same_source_gives_the_same_bytes(slake, tmp_path):
    for name in ("a", "b"):
        write_dataset(read_slake(slake), tmp_path / name)
    for table in ("images.parquet", "questions.parquet", "rejects.parquet"):
        assert sha256_file(tmp_path / "a" / table) == sha256_file(tmp_path / "b" / table)


def test_nothing_usable_is_an_error_and_leaves_no_tables(slake, tmp_path):
    for part in ("train", "validation", "test"):
        edit(slake, part, lambda records: [record.update(answer="") for record in records])
    with pytest.raises(TriptychError, match="no usable question; 60 were rejected"):
        write_dataset(read_slake(slake), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_captions_end_in_the_same_tables(world, tmp_path):
    settings = FolderCaptions(source="caption-folder", folder=str(world / "captions"), size=10, validation_fraction=0.2)
    counts = prepare(settings, tmp_path, tmp_path / "out")
    assert sum(counts["images"].values()) == sum(counts["questions"].values()) == 10
    rows = read_table(tmp_path / "out" / "questions.parquet")
    captions = {row["image_id"]: row["caption"] for row in read_table(tmp_path / "out" / "images.parquet")}
    assert all(row["answer"] == captions[row["image_id"]] for row in rows)
    assert {row["question"] for row in rows} == {"Describe the image."}


def test_composed_drawings_carry_their_card(tmp_path):
    counts = prepare(OpenMojiCaptions(source="openmoji", size=20, validation_fraction=0.2), CACHE, tmp_path)
    assert counts["images"] == {"train": 16, "validation": 4} and not counts["rejects"]
    card = (tmp_path / "card.md").read_text()
    assert "CC-BY-SA-4.0" in card and "16 for train, 4 for validation" in card


def test_a_smaller_caption_set_is_in_the_larger_one(world, tmp_path):
    names = []
    for size in (8, 16):
        settings = FolderCaptions(source="caption-folder", folder=str(world / "captions"), size=size)
        prepare(settings, tmp_path, tmp_path / str(size))
        names.append([row["image_id"] for row in read_table(tmp_path / str(size) / "images.parquet")])
    assert names[1][:8] == names[0]
    with pytest.raises(TriptychError, match="has 24 pictures, but `size` asks for 99"):
        prepare(
            FolderCaptions(source="caption-folder", folder=str(world / "captions"), size=99), tmp_path, tmp_path / "x"
        )


def test_the_slake_folder_is_named_by_the_variable_or_the_key(slake, monkeypatch):
    key = SlakeFolderVqa(source="slake-folder", folder=str(slake))
    monkeypatch.delenv(SLAKE_VARIABLE, raising=False)
    assert local_folder(key) == slake
    with pytest.raises(TriptychError, match=f"set {SLAKE_VARIABLE}=/path/to/slake, or the key `folder`"):
        local_folder(SlakeFolderVqa(source="slake-folder"))
    monkeypatch.setenv(SLAKE_VARIABLE, str(slake / "nowhere"))
    with pytest.raises(TriptychError, match=r"nowhere/train\.json: not there"):
        local_folder(key)


def test_pictures_are_decoded_upright_in_rgb_over_white():
    assert decode(encoded(Image.new("RGBA", (10, 10), (255, 0, 0, 0)), "PNG")).getpixel((5, 5)) == (255, 255, 255)
    assert decode(encoded(Image.new("CMYK", (10, 10), (0, 255, 255, 0)), "JPEG")).mode == "RGB"
    assert decode(encoded(Image.new("L", (10, 10), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=turned)).size == (10, 20)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be decoded"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "a side below 8"),
        (encoded(Image.new("I;16", (10, 10), 40000), "PNG"), "convert it to 8 bits"),
        (encoded(Image.new("RGB", (10, 10)), "GIF"), "cannot be decoded"),
        (encoded(Image.new("L", (10000, 6000)), "PNG"), "more than 50000000"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-400], "cannot be decoded"),
    ],
)
def test_pictures_that_cannot_be_used_say_why(data, reason):
    with pytest.raises(TriptychError, match=reason):
        decode(data)
