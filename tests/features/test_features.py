"""Vision features: shards that are shared and found again, features computed on the fly, and what is in between."""

import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading

import pytest
import torch
from conftest import (
    COLOURS,
    FEATURES,
    IMAGE_COLUMNS,
    ROOT,
    TOKENS,
    image_bytes,
    make_model,
    make_questions,
    write_images,
)
from PIL import Image
from safetensors import safe_open
from triptych.config.stages import FeatureSettings, Stage
from triptych.data.image_table import ImageTable
from triptych.errors import TriptychError
from triptych.features.encode import encode
from triptych.features.store import Features
from triptych.io.manifest import canonical_json, read_json, sha256_bytes, write_json
from triptych.io.parquet import read_table, write_table
from triptych.model import vision
from triptych.model.tokens import tokenise
from triptych.train.trainer import train
from triptych.utils.prefetch import map_ahead

CPU = torch.device("cpu")


def run(image_sets, name="general-30", size=8, **settings):
    paths = image_sets / "data" / name, image_sets / "models" / "vision_encoder", image_sets / "features" / name
    return encode(*paths, FeatureSettings(**settings), CPU, size)


def shards(image_sets):
    return {path.name: path for path in (image_sets / "features" / "shards").iterdir()}


def stamps(image_sets):
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in shards(image_sets).items()}


def all_ids(images=30):
    return [f"image{number}" for number in range(images)]


def test_features_are_read_back_by_image_in_any_order(image_sets):
    record = run(image_sets)
    assert [len(shard["images"]) for shard in record["shards"]] == [8, 8, 8, 6]
    assert record["shape"] == [TOKENS, FEATURES] and set(record["files"]) == set(shards(image_sets))
    features = Features(image_sets / "features" / "general-30")
    encoder = vision.load(image_sets / "models" / "vision_encoder", CPU)
    table = ImageTable(image_sets / "data" / "general-30" / "images")
    for numbers in ([7, 0, 19], [29]):
        with torch.no_grad():
            direct = encoder.tokens(encoder.preprocess(table.images(numbers)))
        stored = features([f"image{number}" for number in numbers])
        assert stored.dtype == torch.bfloat16
        assert torch.allclose(stored.float(), direct, atol=1e-2, rtol=1e-2)
    with pytest.raises(TriptychError, match="image99 has no vision features"):
        features(["image99"])


def test_a_shard_says_what_it_is_and_nothing_rounds_fp32(image_sets):
    record = run(image_sets, dtype="fp32")
    name, sha256 = next(iter(record["files"].items()))
    with safe_open(image_sets / "features" / "shards" / name, framework="pt") as file:
        about = file.metadata()
        assert (about["key"], about["sha256"]) == (name.removesuffix(".safetensors"), sha256)
        stored = file.get_tensor("features")
    assert stored.dtype == torch.float32 and sha256_bytes(stored.numpy().tobytes()) == sha256
    features = Features(image_sets / "features" / "general-30")
    encoder = vision.load(image_sets / "models" / "vision_encoder", CPU)
    table = ImageTable(image_sets / "data" / "general-30" / "images")
    direct = encoder.tokens(encoder.preprocess(table.images(range(4)))).detach()
    assert torch.allclose(features(all_ids(4)), direct, atol=1e-6)


def test_a_larger_data_set_shares_the_shards_of_a_smaller_one(image_sets, capsys):
    small = run(image_sets, "general-10")
    before = stamps(image_sets)
    large = run(image_sets, "general-30")
    assert "8 images computed before" in capsys.readouterr().out
    shared = set(small["files"]) & set(large["files"])
    # 10 = 8 + 2: the full shard is shared, the last one of the smaller set holds fewer images.
    assert len(shared) == 1 and len(shards(image_sets)) == 2 + 4 - 1
    assert {name: stamp for name, stamp in stamps(image_sets).items() if name in before} == before
    both = [Features(image_sets / "features" / name)(all_ids(10)) for name in ("general-10", "general-30")]
    assert torch.allclose(*both, atol=1e-2, rtol=1e-2)


def test_a_second_run_makes_nothing_and_needs_no_encoder(image_sets, monkeypatch, capsys):
    first = run(image_sets)
    before = stamps(image_sets)
    monkeypatch.setattr("triptych.model.vision.load", lambda *_: pytest.fail("the encoder was loaded"))
    assert run(image_sets, batch_size=3, budget_gb=1) == first and stamps(image_sets) == before
    assert "all computed before" in capsys.readouterr().out


KILLED = """
import os, signal
from triptych.features import encode
compute, calls = encode.compute_tokens, []
def compute_and_die(*arguments):
    calls.append(None)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(*arguments)
encode.compute_tokens = compute_and_die
encode.main()
"""


def test_a_killed_run_goes_on_where_it_stopped(image_sets, tmp_path_factory):
    paths = {"--data": "data/general-30", "--encoder": "models/vision_encoder", "--out": "features/general-30"}
    command = [sys.executable, "-c", KILLED, "--shard-size", "8", "--settings", canonical_json({"batch_size": 4})]
    command += [part for option, path in paths.items() for part in (option, str(image_sets / path))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow" / "scripts"), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = {name: stamp for name, stamp in stamps(image_sets).items() if name.endswith(".safetensors")}
    # Two calls try the encoder out, five encode 8 of 8, 8 of 8 and half of the next shard.
    assert 1 <= len(finished) <= 2
    assert not (image_sets / "features" / "general-30" / "manifest.json").exists()

    resumed = run(image_sets, batch_size=4)
    assert finished.items() <= stamps(image_sets).items()
    assert set(shards(image_sets)) == set(resumed["files"])  # what the killed run left half-written is gone
    other = tmp_path_factory.mktemp("undisturbed")
    for part in ("data", "models"):
        shutil.copytree(image_sets / part, other / part)
    assert run(other, batch_size=4) == resumed
    for name, path in shards(other).items():
        assert path.read_bytes() == shards(image_sets)[name].read_bytes()


def test_another_layer_dtype_or_image_meets_no_old_shard(image_sets):
    keys = [set(run(image_sets)["files"]), set(run(image_sets, dtype="fp32")["files"])]
    manifest = image_sets / "models" / "vision_encoder" / "manifest.json"
    record = read_json(manifest)
    write_json(manifest, record | {"settings": record["settings"] | {"layer": -1}})
    encoder = Features(image_sets / "features" / "general-30").encoder
    keys.append(set(run(image_sets)["files"]))
    assert Features(image_sets / "features" / "general-30").encoder != encoder
    # Where an encoder's files came from does not matter: their hashes are the same.
    write_json(manifest, record | {"settings": record["settings"] | {"folder": "elsewhere"}})
    assert set(run(image_sets)["files"]) == keys[0]
    write_images(image_sets / "data" / "general-30", 31, first=1)
    keys.append(set(run(image_sets)["files"]))
    assert all(not keys[a] & keys[b] for a in range(4) for b in range(a))


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        os.truncate(path, path.stat().st_size - 1)
    elif how == "empty":
        path.write_bytes(b"")
    else:  # another shard under this name
        other = next(file for file in path.parent.iterdir() if file != path)
        path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("how", ["missing", "cut short", "empty", "another shard"])
def test_a_damaged_shard_is_refused_and_made_again(image_sets, how, capsys):
    record = run(image_sets)
    path = image_sets / "features" / "shards" / record["shards"][1]["file"]
    good = path.read_bytes()
    damage(path, how)
    message = rf"{path.name}: (missing|damaged \(.*\)); delete .*manifest\.json and run again"
    with pytest.raises(TriptychError, match=message):
        Features(image_sets / "features" / "general-30")
    others = {name: stamp for name, stamp in stamps(image_sets).items() if name != path.name}
    assert run(image_sets) == record and path.read_bytes() == good
    assert others.items() <= stamps(image_sets).items()
    if how != "missing":
        assert f"{path.name}: damaged" in capsys.readouterr().out


def test_an_image_that_is_not_the_tables_own_is_an_error(image_sets):
    table = image_sets / "data" / "general-30" / "images"
    rows = [{"id": "a", "image": {"bytes": image_bytes("red", "left"), "path": None}, "sha256": "0" * 64}]
    write_table(table, rows, IMAGE_COLUMNS)
    with pytest.raises(TriptychError, match=r"images: image a: its bytes differ from its sha256; delete the folder"):
        run(image_sets)
    assert not list((image_sets / "features").rglob("*.safetensors*"))
    data = b"no image"
    write_table(table, [rows[0] | {"image": {"bytes": data}, "sha256": sha256_bytes(data)}], IMAGE_COLUMNS)
    with pytest.raises(TriptychError, match="image a: cannot be decoded"):
        run(image_sets)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_above_the_budget_tokens_are_computed_and_are_the_same(image_sets, dtype, capsys):
    run(image_sets, dtype=dtype, batch_size=4)
    stored = Features(image_sets / "features" / "general-30")
    batches = [all_ids()[start : start + 4] for start in range(0, 24, 4)]  # as they were encoded
    expected = [stored(batch) for batch in batches]
    shutil.rmtree(image_sets / "features")
    record = run(image_sets, dtype=dtype, batch_size=4, budget_gb=0)
    assert record["on_the_fly"] and record["shape"] == [TOKENS, FEATURES] and not record["files"]
    assert "above features.budget_gb (0): nothing is stored" in capsys.readouterr().out
    assert not list((image_sets / "features").rglob("*.safetensors"))
    # Results are moved as a whole, and the caller has autocast on.
    moved = image_sets.rename(image_sets.with_name(f"{image_sets.name}-moved"))
    computed = Features(moved / "features" / "general-30")
    assert (computed.hidden_size, computed.encoder) == (stored.hidden_size, stored.encoder)
    with torch.autocast("cpu", torch.bfloat16):
        for batch, tokens in zip(batches, expected, strict=True):
            assert torch.equal(computed(batch), tokens)
    chosen = [19, 3, 17, 3, 8, 11, 0, 21, 5]
    tokens = computed([f"image{number}" for number in chosen])
    assert torch.allclose(tokens, torch.cat(expected)[chosen], atol=1e-2, rtol=1e-2)
    with pytest.raises(TriptychError, match="image99 has no vision features"):
        computed(["image99"])


def test_training_learns_the_same_from_stored_and_from_computed_features(image_sets, prompt):
    samples = tokenise(make_questions(images=20), prompt)
    stage = Stage(data="toy", train=["connector"], learning_rate={"connector": 1e-2}, epochs=2, batch_size=8)
    losses = []
    for budget in (100, 0):
        run(image_sets, budget_gb=budget)
        features = Features(image_sets / "features" / "general-30")
        assert features.manifest["on_the_fly"] == (budget == 0)
        rows = list(train(make_model(), samples, samples, features, prompt, stage, "fp32", 0, ["fold0", "2"]))
        losses.append([row["validation_loss"] for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[1][-1] < losses[1][0]


def as_written_before(path):
    """Make a shard one of the versions that missed orientations: its header does not say that all are applied."""
    data = path.read_bytes()
    mark = b',"upright":"every orientation is applied"'
    end = 8 + int.from_bytes(data[:8], "little")
    assert mark in data[:end]
    path.write_bytes(data[:end].replace(mark, b"") + b" " * len(mark) + data[end:])


def turned(image, kind):
    """A JPEG that is to be turned, as its EXIF at the start, behind 5 kB, or its XMP says; or not to be turned."""
    orientation, plain = Image.Exif(), io.BytesIO()
    orientation[0x0112] = 1 if kind == "upright" else 6
    image.save(plain, "JPEG", quality=95)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<rdf tiff:Orientation='3'/>"
    filling = b"\xff\xe5" + struct.pack(">H", 5002) + bytes(5000)
    before = {"start": b"", "xmp": b""}.get(kind, filling)
    body = xmp if kind == "xmp" else orientation.tobytes()
    exif = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return plain.getvalue()[:2] + before + exif + plain.getvalue()[2:]


@pytest.mark.parametrize(("kind", "anew"), [("behind", 1), ("xmp", 1), ("start", 0), ("upright", 0)])
def test_shards_of_before_are_made_anew_where_an_orientation_was_missed_and_only_there(image_sets, kind, anew, capsys):
    table = image_sets / "data" / "general-30" / "images"
    rows = read_table(table)
    with Image.open(io.BytesIO(rows[11]["image"]["bytes"])) as image:
        data = turned(image.convert("RGB"), kind)
    rows[11] |= {"image": {"bytes": data, "path": None}, "sha256": sha256_bytes(data)}
    write_table(table, rows, IMAGE_COLUMNS)
    first = run(image_sets)
    for path in shards(image_sets).values():
        as_written_before(path)
    before = stamps(image_sets)
    capsys.readouterr()
    second = run(image_sets)
    assert f"{30 - 8 * anew} images computed before" in capsys.readouterr().out or not anew
    assert len(set(second["files"]) - set(first["files"])) == anew, "only the shard of image 11"
    assert {name: stamp for name, stamp in stamps(image_sets).items() if name in before} == before
    assert run(image_sets) == second and len(shards(image_sets)) == 4 + anew, "once"
    features = Features(image_sets / "features" / "general-30")
    encoder = vision.load(image_sets / "models" / "vision_encoder", CPU)
    with torch.no_grad():
        direct = encoder.tokens(encoder.preprocess(ImageTable(table).images([11])))
    assert torch.allclose(features(["image11"]).float(), direct, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("changed", ["data", "models"])
def test_computed_features_refuse_other_images_or_another_encoder(image_sets, changed):
    run(image_sets, budget_gb=0)
    if changed == "data":
        write_images(image_sets / "data" / "general-30", 31, first=1)
    else:
        manifest = image_sets / "models" / "vision_encoder" / "manifest.json"
        record = read_json(manifest)
        write_json(manifest, record | {"settings": record["settings"] | {"layer": -1}})
    with pytest.raises(TriptychError, match=r"was computed (from|with); delete .*manifest\.json and run again"):
        Features(image_sets / "features" / "general-30")


def test_images_of_a_table_are_found_across_row_groups(tmp_path):
    write_images(tmp_path, 230)
    table = ImageTable(tmp_path / "images")
    for number in (229, 0, 99, 100, 199, 200):
        data = image_bytes(list(COLOURS)[number % 4], "left", number)
        assert table.hashes[number] == sha256_bytes(data) and table.image_ids[number] == f"image{number}"
        (image,) = table.images([number])  # compares the bytes with the hash
        assert image.size == (32, 32)


def test_the_estimate_comes_first_and_names_all_that_matters(image_sets, capsys):
    run(image_sets)
    first, last = capsys.readouterr().out.splitlines()
    size = 30 * TOKENS * FEATURES * 2 / 1e6
    start = f"30 images x {TOKENS} tokens x {FEATURES}: {size:.1f} MB in bf16, about "
    assert first.startswith(start) and first.endswith("/s")
    assert last.startswith("30/30 images, ")


def test_map_ahead_keeps_order_and_does_not_run_away():
    started, release = [], threading.Event()

    def work(item):
        started.append(item)
        if item == 0:
            release.wait(10)  # the first result is the last to be ready
        return -item

    results = map_ahead(work, iter(range(100)), threads=3)
    threading.Timer(0.2, release.set).start()
    assert [next(results), next(results)] == [0, -1]
    assert max(started) <= 5
    assert list(results) == [-item for item in range(2, 100)]


def test_map_ahead_raises_what_the_work_raised():
    results = map_ahead(lambda item: 1 // item, [1, 0, 1], threads=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
