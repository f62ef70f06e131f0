"""Data sets of the hub, with the download functions replaced: order, and what archives may hold."""

import io
import json
import zipfile

import pytest
from PIL import Image
from triptych.config.datasets import LlavaPretrainCaptions
from triptych.data.sources import llava_pretrain, slake_hub
from triptych.data.sources.base import Item, Reject
from triptych.download import hub_zip, huggingface
from triptych.errors import TriptychError

REVISION = "0123456789abcdef0123456789abcdef01234567"


def jpeg(value):
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8), (value, 40, 90)).save(file, "JPEG")
        return file.getvalue()


def entry(number, caption="a thing"):
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": caption}]
    return {"id": f"{number:09d}", "image": f"{number:05d}/{number:09d}.jpg", "conversations": turns}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder whose files the hub seems to hold."""
    folder = tmp_path / "served"
    folder.mkdir()

    def give(repo, filename, *, repo_type, revision, cache_dir):
        assert repo_type == "dataset" and revision == REVISION
        return str(folder / filename)

    monkeypatch.setattr(huggingface, "hf_hub_download", give)
    monkeypatch.setattr(hub_zip, "stored_file", lambda repo, filename, revision, cache: folder / filename)
    return folder


def serve_pairs(folder, entries, images):
    (folder / llava_pretrain.PAIRS).write_text(json.dumps(entries))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, data in images.items():
            archive.writestr(name, data)


def serve_slake(folder, members):
    for name in slake_hub.SLAKE_TABLES:
        (folder / name).write_text("[]")
    with zipfile.ZipFile(folder / "imgs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def settings(**changes):
    return LlavaPretrainCaptions(**{"source": "llava-pretrain", "revision": REVISION, "sizes": [10], **changes})


def listing(tmp_path, **changes):
    return list(llava_pretrain.listing(settings(**changes), tmp_path / "cache"))


def test_pairs_are_nested_and_independent_of_their_order(tmp_path, served):
    entries = [entry(number, f"thing {number}") for number in range(40)]
    serve_pairs(served, entries, {e["image"]: jpeg(i) for i, e in enumerate(entries)})
    found = listing(tmp_path)
    assert len(found) == 40 and listing(tmp_path, sizes=[30]) == found
    serve_pairs(served, entries[::-1], {e["image"]: jpeg(i) for i, e in enumerate(entries)})
    assert listing(tmp_path) == found
    assert [item.id for item in listing(tmp_path, seed=2)] != [item.id for item in found]
    number = int(found[0].id.rsplit("-", 1)[1])
    assert (found[0].caption, found[0].path) == (f"thing {number}", entries[number]["image"])
    with llava_pretrain.reader(settings(), tmp_path / "cache") as read:
        assert read(found[0].place) == jpeg(number)


def test_the_stamp_changes_with_the_image(tmp_path, served):
    entries = [entry(number) for number in range(2)]
    serve_pairs(served, entries, {e["image"]: jpeg(5) for e in entries})
    before = {item.id: item.stamp for item in listing(tmp_path)}
    serve_pairs(served, entries, {entries[0]["image"]: jpeg(5), entries[1]["image"]: jpeg(6)})
    after = {item.id: item.stamp for item in listing(tmp_path)}
    assert [before[name] == after[name] for name in sorted(before)] == [True, False]


def test_entries_that_lack_a_part_are_rejected_with_the_reason(tmp_path, served):
    good, silent, alone, gone, nameless = (entry(number) for number in range(5))
    silent["conversations"] = silent["conversations"][:1]
    del alone["image"], nameless["id"]
    entries = [good, silent, alone, gone, nameless, "text", entry(6, "\ud800"), {**good, "id": "b", "image": None}]
    serve_pairs(served, entries, {e["image"]: jpeg(1) for e in (good, silent, nameless, entry(6))})
    *rejects, item = listing(tmp_path)
    assert item.id == f"llava-pretrain-{good['id']}"
    name = llava_pretrain.PAIRS
    assert [(reject.id, reject.reason) for reject in rejects] == [
        (silent["id"], f"{name}[1]: has no caption"),
        (alone["id"], f"{name}[2]: has no image"),
        (gone["id"], f"{name}[3]: its image is not in images.zip: '{gone['image']}'"),
        (f"{name}[4]", f"{name}[4]: has no id"),
        (f"{name}[5]", f"{name}[5]: is not an object with id, image and conversations"),
        (entry(6)["id"], f"{name}[6]: its caption is not valid UTF-8"),
        ("b", f"{name}[7]: has no image"),
    ]


def test_of_a_repeated_id_one_entry_is_used_whatever_their_order(tmp_path, served):
    entries = [entry(1, "first"), entry(1, "second")]
    serve_pairs(served, entries, {entries[0]["image"]: jpeg(1)})
    found = listing(tmp_path)
    assert [type(one) for one in found] == [Item, Reject] and "more than once" in found[1].reason
    serve_pairs(served, entries[::-1], {entries[0]["image"]: jpeg(1)})
    assert listing(tmp_path) == found


def test_images_stay_in_the_archive(tmp_path, served):
    serve_pairs(served, [entry(1)], {entry(1)["image"]: jpeg(1)})
    before = sorted(tmp_path.rglob("*"))
    (item,) = listing(tmp_path)
    with llava_pretrain.reader(settings(), tmp_path / "cache") as read:
        read(item.place)
    assert sorted(tmp_path.rglob("*")) == before


def test_members_that_cannot_be_read_are_one_images_error(tmp_path, served, monkeypatch):
    serve_pairs(served, [], {"good.jpg": jpeg(1), "bad.jpg": jpeg(2)})
    data = bytearray((served / "images.zip").read_bytes())
    data[data.index(jpeg(2)) + 30] ^= 1
    (served / "images.zip").write_bytes(data)
    with llava_pretrain.reader(settings(), tmp_path / "cache") as read:
        with pytest.raises(TriptychError, match=r"bad\.jpg: cannot be read out of images\.zip"):
            read("bad.jpg")
        with pytest.raises(TriptychError, match=r"has no member 'other\.jpg'"):
            read("other.jpg")
        assert read("good.jpg") == jpeg(1)
        monkeypatch.setattr(llava_pretrain, "MAX_BYTES", len(jpeg(1)) - 1)
        with pytest.raises(TriptychError, match="larger than"):
            read("good.jpg")


def test_broken_files_are_named(tmp_path, served):
    serve_pairs(served, [entry(1)], {entry(1)["image"]: jpeg(1)})
    (served / llava_pretrain.PAIRS).write_text("[{")
    with pytest.raises(TriptychError, match="not valid JSON"):
        listing(tmp_path)
    (served / "images.zip").write_bytes(b"PK nothing")
    with pytest.raises(TriptychError, match=r"images\.zip: not a readable zip"):
        listing(tmp_path)


def test_slake_is_unpacked_once_without_masks(tmp_path, served, monkeypatch):
    names = ("source.jpg", "detection.json", "mask.png", "question.json")
    serve_slake(served, {f"imgs/xmlab1/{name}": name for name in names} | {"__MACOSX/imgs/xmlab1/._source.jpg": "x"})
    folder = slake_hub.slake_folder(tmp_path / "cache", REVISION)
    assert folder == tmp_path / "cache" / "slake-0123456789ab"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*slake_hub.SLAKE_TABLES, "imgs/xmlab1/source.jpg", "imgs/xmlab1/detection.json"}
    monkeypatch.setattr(huggingface, "hf_hub_download", None)
    assert slake_hub.slake_folder(tmp_path / "cache", REVISION) == folder


def link():
    member = zipfile.ZipInfo("imgs/xmlab2/source.jpg")
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../source.jpg", "leads out"),
        ("imgs/../../../source.jpg", "leads out"),
        ("/tmp/triptych-test/source.jpg", "leads out"),
        ("imgs/../../mask.png", "leads out"),
        ("..\\source.jpg", "backslash"),
        (link(), "link or device"),
    ],
    ids=["up", "far up", "absolute", "not kept", "backslash", "link"],
)
def test_members_that_lead_out_are_refused(tmp_path, served, member, message):
    serve_slake(served, {"imgs/xmlab1/source.jpg": "x", member: "/etc/hostname"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TriptychError, match=message):
        slake_hub.slake_folder(tmp_path / "cache", REVISION)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "cache"])


@pytest.mark.parametrize(
    "names", [["imgs/a/source.jpg", "imgs/a/source.jpg/source.jpg"], [f"imgs/{'x' * 300}/source.jpg"]]
)
def test_members_that_cannot_be_files_are_one_line(tmp_path, served, names):
    serve_slake(served, dict.fromkeys(names, b"data"))
    with pytest.raises(TriptychError, match=r"imgs\.zip: 'imgs/.*' cannot be unpacked \(.*\); check the revision"):
        slake_hub.slake_folder(tmp_path / "cache", REVISION)
    assert not list((tmp_path / "cache").glob("slake-*"))


def test_bombs_and_empty_archives_are_refused(tmp_path, served, monkeypatch):
    monkeypatch.setattr(slake_hub, "MAX_UNPACKED_BYTES", 1000)
    serve_slake(served, {"imgs/xmlab1/source.jpg": "x", "imgs/xmlab2/source.jpg": b"0" * 1000})
    with pytest.raises(TriptychError, match="more than 1000 bytes"):
        slake_hub.slake_folder(tmp_path / "cache", REVISION)
    serve_slake(served, {"imgs/xmlab1/mask.png": "x"})
    with pytest.raises(TriptychError, match=r"no source\.jpg"):
        slake_hub.slake_folder(tmp_path / "cache", REVISION)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("revision", ["main", "a9083ce", REVISION.upper(), REVISION + "0", REVISION + "\n", ""])
def test_revisions_must_be_full_commit_ids(tmp_path, revision):
    calls = (
        lambda: huggingface.download("some/data", "train.json", revision, tmp_path),
        lambda: huggingface.list_files(huggingface.HubFiles("dataset", "some/data", revision, ("*",)), tmp_path),
        lambda: slake_hub.slake_folder(tmp_path, revision),
        lambda: huggingface.model_folder(
            huggingface.HubFiles("model", "some/model", revision, ("*.safetensors",)), tmp_path / "model", tmp_path
        ),
    )
    for call in calls:
        with pytest.raises(TriptychError, match="40 hexadecimal digits"):
            call()
    assert not list(tmp_path.iterdir())
