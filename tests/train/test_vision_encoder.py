"""Trainings of the vision encoder: from pixels, with tokens and gradients as a textbook computes them; to the bit."""

import copy
import json
import shutil

import pytest
import torch
from conftest import CACHE, TOKENS, make_llama, make_model, make_questions, write_images
from safetensors.torch import load_file, save_file
from textbook import unpacked_loss
from torch.nn import functional
from trainings import FP32, KEY, InterruptedAfterCalls, lora_model, run, same, stage, weights
from triptych.config.models import FolderEncoder, PackageEncoder
from triptych.config.stages import Connector, FeatureSettings, Vision
from triptych.errors import TriptychError
from triptych.evaluate.controls import blank
from triptych.features.encode import encode
from triptych.features.shards import encoder_hashes
from triptych.features.store import Features, Pixels, image_encoder
from triptych.io.manifest import read_json, sha256_file, write_record
from triptych.model import checkpoint, vision
from triptych.model.connector import build_connector
from triptych.model.packing import Shape, pack
from triptych.model.prepare import prepare_model
from triptych.model.tokens import tokenise
from triptych.model.tower import VisionTower
from triptych.model.vlm import VisionLanguageModel
from triptych.train.activation_checkpointing import PassSize, encoder_bytes
from triptych.train.augmentation import augmented
from triptych.train.autosave import Interrupted
from triptych.train.parameters import set_trainable

CPU = torch.device("cpu")
PARTS = ("connector", "vision_encoder")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Seen:
    """Ten images with their features, and the encoder that made them."""

    def __init__(self, root, settings, dtype):
        self.folder, self.data, self.dtype = root / "models" / "vision_encoder", root / "data", dtype
        prepare_model("vision_encoder", settings, CACHE, self.folder)
        write_images(self.data, 10)
        encode(self.data, self.folder, root / "features" / "toy", FeatureSettings(dtype=dtype), CPU)
        self.features = Features(root / "features" / "toy")
        self.pixels = Pixels(self.features, self.data, self.folder)

    def model(self, make=make_model):
        """A model with an encoder of its own."""
        model = make()
        if self.features.hidden_size != model.connector.linear_1.in_features:
            model = VisionLanguageModel(build_connector(Connector(), self.features.hidden_size, 32, 3), make_llama())
        model.vision = VisionTower(vision.load(self.folder, CPU), DTYPES[self.dtype])
        return model

    def base(self, language_model):
        return checkpoint.Base(
            language_model, self.features.hidden_size, self.features.encoder, self.dtype, self.folder
        )


@pytest.fixture(params=["clip", "package"])
def settings(request, world):
    if request.param == "package":
        return PackageEncoder(source="package", image_size=32)
    return FolderEncoder(source="folder", folder=str(world / "models" / "clip"))


@pytest.fixture
def clip(world, tmp_path):
    return Seen(tmp_path, FolderEncoder(source="folder", folder=str(world / "models" / "clip")), FP32)


@pytest.fixture
def all_blocks(world, tmp_path):
    """An encoder whose tokens are those of its last block."""
    folder = str(world / "models" / "clip")
    return Seen(tmp_path / "all", FolderEncoder(source="folder", folder=folder, layer=-1), FP32)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_an_untouched_encoder_gives_the_stored_features(settings, tmp_path, dtype):
    seen = Seen(tmp_path, settings, dtype)
    images = [f"image{number}" for number in (3, 0, 7)]
    stored = seen.features(images).float()
    with torch.autocast("cpu", torch.bfloat16):  # of a training; the encoder has a precision of its own
        found = seen.model().see(seen.pixels(images))
    assert found.dtype == torch.float32 and found.shape == stored.shape
    assert torch.equal(found, found.to(DTYPES[dtype]).float())
    # Other images in a batch change sums by rounding, and few numbers by one step of the dtype that they are stored in.
    assert (found - stored).abs().max() <= (2**-7 if dtype == "bf16" else 1e-4) * stored.abs().max()
    assert (found != stored).float().mean() < (0.01 if dtype == "bf16" else 1.1)
    same_batch = [f"image{number}" for number in range(10)]
    assert torch.equal(seen.model().see(seen.pixels(same_batch)), seen.features(same_batch).float())


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_an_encoder_computes_in_fp32_whatever_its_weights_are_stored_in(world, tmp_path, stored):
    folder = shutil.copytree(world / "models" / "clip", tmp_path / "clip")
    halves = {name: part.to(stored) for name, part in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    kept = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(kept | {"dtype": str(stored).removeprefix("torch.")}))
    seen = Seen(tmp_path, FolderEncoder(source="folder", folder=str(folder)), FP32)
    assert vision.load_tower(seen.folder).dtype == stored, "an export keeps the dtype"
    assert {part.dtype for part in vision.load(seen.folder, CPU).network.parameters()} == {torch.float32}
    assert encoder_hashes(seen.folder)["computes"] == "fp32", "shards of earlier versions have other tokens"
    as_fp32 = Seen(tmp_path / "fp32", FolderEncoder(source="folder", folder=str(world / "models" / "clip")), FP32)
    assert "computes" not in encoder_hashes(as_fp32.folder), "keys of others stay"
    images = [f"image{number}" for number in range(10)]
    features = seen.features(images).float()
    assert torch.equal(seen.model().see(seen.pixels(images)), features), "trained and frozen ones agree"
    assert not torch.equal(features, features.to(stored).float()), "nothing was rounded to what weights are stored in"


@pytest.mark.parametrize("blocks", [None, 1])
@pytest.mark.parametrize("row_tokens", [1, 4096])
def test_gradients_are_those_of_one_question_at_a_time(settings, tmp_path, prompt, blocks, row_tokens):
    seen = Seen(tmp_path, settings, "fp32")
    model = seen.model()
    tokens = seen.features.manifest["shape"][0]
    trained = set_trainable(model, PARTS, blocks)
    samples = tokenise(make_questions(images=3), prompt)
    batch = pack(samples, seen.pixels, prompt, tokens, row_tokens)
    packed = functional.cross_entropy(model.answer_logits(batch), batch.targets)
    ours = torch.autograd.grad(packed, list(trained.values()))
    # Textbook: a fresh copy of the encoder, one image at a time, and each question by itself.
    other = copy.deepcopy(model)
    parameters = dict(other.named_parameters())
    loss = unpacked_loss(other, samples, lambda names: encoded(other, seen.pixels(names)), prompt)
    theirs = torch.autograd.grad(loss, [parameters[name] for name in trained])
    assert packed.item() == pytest.approx(loss.item(), rel=1e-5)
    whole = torch.cat([gradient.flatten() for gradient in theirs]).norm()
    for name, mine, textbook in zip(trained, ours, theirs, strict=True):
        # A key's bias changes no attention: its gradient is rounding alone.
        assert (mine - textbook).norm() < 1e-3 * textbook.norm() + 1e-6 * whole, name


def encoded(model, pixels):
    """The tokens of the encoder without any code of the tower."""
    network = model.vision.network
    if hasattr(network, "config"):
        return network(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    return network(pixels)


def test_what_tokens_depend_on_trains_and_nothing_else(clip, samples, prompt):
    model = clip.model()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    rows = run(model, samples, clip.pixels, prompt, stage(PARTS, rate=1e-3, epochs=3))
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    of_encoder = {name for name in moved if name.startswith("vision.")}
    # Layer -2 of two: the second block and the last norm change no token.
    assert of_encoder and not any(".layers.1." in name or "post_layernorm" in name for name in of_encoder)
    assert any("patch_embedding" in name for name in of_encoder) and any(".layers.0." in name for name in of_encoder)
    assert moved - of_encoder == {name for name in before if name.startswith("connector.")}
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]


def test_the_last_blocks_are_counted_from_where_tokens_are_read(all_blocks, clip):
    tower = all_blocks.model().vision
    both, last = tower.trainable(2), tower.trainable(1)
    assert any(".layers.0." in name for name in both) and any(".layers.1." in name for name in both)
    assert last == {name for name in both if ".layers.1." in name}
    assert both < tower.trainable(None) and any("embedding" in name for name in tower.trainable(None) - both)
    assert not any(weight.requires_grad for weight in tower.parameters())
    assert all(".layers.0." in name for name in clip.model().vision.trainable(1))
    with pytest.raises(TriptychError, match=r"vision\.blocks: 2, but the encoder's tokens depend on 1 of its 2 blocks"):
        clip.model().vision.trainable(2)


def test_blocks_of_the_packaged_encoder(tmp_path, samples, prompt):
    seen = Seen(tmp_path, PackageEncoder(source="package", image_size=32), "bf16")
    tower = seen.model().vision
    last = tower.trainable(2)
    assert {name.split(".")[1] for name in last if name.startswith("_blocks.")} == {"14", "15"}
    assert {name.split(".")[0] for name in last} == {"_blocks", "_conv_head", "_bn1"}  # never the classifier
    assert "_conv_stem.weight" in tower.trainable(None) and len(tower.trainable(None)) > len(last)
    model = seen.model()
    buffers = {name: one.clone() for name, one in model.vision.named_buffers()}
    run(model, samples, seen.pixels, prompt, stage(PARTS, rate=1e-4, vision=Vision(blocks=1)))
    assert any("running_mean" in name for name in buffers)
    for name, one in model.vision.named_buffers():
        assert torch.equal(one, buffers[name]), name


def test_the_encoder_alone_may_train_and_has_its_own_rate(clip, samples, prompt):
    settings = stage(PARTS, rate=1e-3, batch_size=2)
    settings = settings.model_copy(update={"learning_rate": {"connector": 1e-3, "vision_encoder": 1e-7}})
    model = clip.model()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    run(model, samples, clip.pixels, prompt, settings)
    moved = {name: (one - before[name]).abs().max() for name, one in model.named_parameters()}
    steps = -(-len(samples) // 2)
    assert max(value for name, value in moved.items() if name.startswith("vision")) < 1e-7 * (steps + 1)
    assert max(value for name, value in moved.items() if name.startswith("connector")) > 1e-4
    run(clip.model(), samples, clip.pixels, prompt, stage(("vision_encoder",), rate=1e-3))


@pytest.mark.parametrize("settings", [Vision(), Vision(crop=0.2, brightness=0.3)], ids=["plain", "augmented"])
def test_a_stopped_training_ends_with_the_same_bits(clip, samples, prompt, tmp_path, settings):
    settings = stage(PARTS, rate=1e-3, epochs=3, select="best", vision=settings)
    undisturbed = clip.model()
    rows = run(undisturbed, samples, clip.pixels, prompt, settings)
    attempts, found = 0, None
    while found is None:
        attempts += 1
        model = clip.model()
        try:
            autosaver = InterruptedAfterCalls(tmp_path / "last", 5)
            found = run(model, samples, clip.pixels, prompt, settings, autosaver)
        except Interrupted:
            assert attempts < 30
    assert attempts > 1
    assert found == rows and same(weights(model), weights(undisturbed))
    assert any("patch_embedding" in name for name in weights(model))


def test_augmented_images_stay_what_they_are(clip):
    """A square that is on the left stays on the left; nothing is mirrored, and only so much is cut off."""
    images = [f"image{number}" for number in range(10)]
    plain = clip.pixels(images)
    assert augmented(clip.pixels, Vision(), 0, KEY) is clip.pixels
    for settings in (Vision(crop=0.25), Vision(brightness=0.5), Vision(crop=0.1, brightness=0.2)):
        first, again, other = (augmented(clip.pixels, settings, 0, [*KEY, epoch])(images) for epoch in "112")
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert not torch.equal(first, plain) and first.shape == plain.shape
        one = augmented(clip.pixels, settings, 0, [*KEY, "1"])(images[3:4])
        assert torch.equal(one[0], first[3]), "an image's changes do not depend on others"
        for before, after in zip(plain, first, strict=True):
            as_is, mirrored = (correlation(after, image) for image in (before, before.flip(-1)))
            assert as_is > mirrored
    assert torch.equal(clip.pixels(images), plain)


def correlation(first, second):
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]


def test_a_later_stage_hands_the_encoder_on(clip, samples, prompt, tmp_path):
    llama = make_llama()
    folder = tmp_path / "llama"
    llama.save_pretrained(folder)
    files = {file.name: sha256_file(file) for file in folder.iterdir()}
    write_record(folder / "manifest.json", {"settings": {"prompt": "x"}, "files": files})
    base = clip.base(folder)
    start = [Connector(), None, 0, "fold0", torch.float32, CPU]
    first = checkpoint.build(base, None, *start, tower=True)
    untouched = weights(first)
    run(first, samples, clip.pixels, prompt, stage(PARTS, rate=1e-3))
    about = {
        "prefix": "1", "split": "fold0", "seed": 0, "stages": [], "connector": Connector().model_dump(), "lora": None,
        **base.identity,
    }  # fmt: skip
    checkpoint.save(first, tmp_path / "first", about, "")
    assert checkpoint.VISION_FILE in read_json(tmp_path / "first" / "manifest.json")["files"]
    second = checkpoint.build(base, tmp_path / "first" / "manifest.json", *start)
    assert same(weights(second), weights(first)) and not same(weights(second), untouched)
    run(second, samples, clip.pixels, prompt, stage(("connector",), rate=1e-3))
    checkpoint.save(second, tmp_path / "second", about, "", tmp_path / "first" / "manifest.json")
    paths = [tmp_path / name / checkpoint.VISION_FILE for name in ("first", "second")]
    assert paths[0].samefile(paths[1]), "a frozen encoder is the parent's file"
    loaded = checkpoint.load(base, tmp_path / "second" / "manifest.json", torch.float32, CPU)
    assert same(weights(loaded), weights(second))
    fresh = checkpoint.build(base, tmp_path / "second" / "manifest.json", *start, init="random", tower=True)
    assert same(load_file(paths[1]), dict(fresh.vision.network.state_dict()))
    lost = checkpoint.Base(folder, base.hidden_size, base.vision_encoder)
    with pytest.raises(TriptychError, match="has trained the vision encoder, whose folder is not given"):
        checkpoint.load(lost, tmp_path / "second" / "manifest.json", torch.float32, CPU)


def test_regularisation_is_of_the_encoders_own_features(clip, samples, prompt):
    term = {"kind": "reconstruct", "weight": 0.5}
    rows = run(clip.model(), samples, clip.pixels, prompt, stage(PARTS, rate=1e-3, regularisation=term, epochs=2))
    assert 0 < rows[-1]["cosine_term"] < 2


def test_empty_slots_of_a_fixed_shape_change_nothing(clip, samples, prompt):
    model = clip.model()
    trained = set_trainable(model, PARTS)
    batch = pack(samples, clip.pixels, prompt, TOKENS, 4096)
    images, answers = len(batch.shown) + 2, len(batch.targets) + 3
    fixed = pack(samples, clip.pixels, prompt, TOKENS, shapes=[Shape(128 * 3, images, answers)])
    assert fixed.image_features().shape[0] == images and not fixed.image_features()[-2:].any()
    plain, padded = (model.project(one.image_features())[: len(batch.shown)] for one in (batch, fixed))
    assert torch.allclose(plain, padded, atol=1e-6)
    gradients = [torch.autograd.grad(one.square().sum(), list(trained.values())) for one in (plain, padded)]
    for name, ours, theirs in zip(trained, *gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4), name


def test_controls_show_pixels_too(clip):
    rows = [{"image_id": f"image{number}"} for number in range(3)]
    grey = blank(rows, clip.pixels, clip.folder, CPU).read(["blank", "blank"])
    assert grey.shape == clip.pixels(["image0", "image1"]).shape
    frozen = blank(rows, clip.features, clip.folder, CPU).read(["blank"])
    assert torch.allclose(clip.model().see(grey[:1]), frozen, atol=1e-5)
    assert torch.equal(
        image_encoder(clip.pixels, clip.folder, CPU)(clip.pixels.images(["image1"])), clip.pixels(["image1"])
    )


def test_what_the_encoder_keeps_is_counted_for_the_memory(clip, samples, prompt):
    model = clip.model()
    assert encoder_bytes(model, PassSize(100, 0, 0), 10) == 0
    set_trainable(model, PARTS)
    one = model.vision.kept_bytes()
    assert one > 0
    assert encoder_bytes(model, PassSize(100, 0, 0), 10) == 10 * one
    set_trainable(model, PARTS, 1)
    assert 0 < model.vision.kept_bytes() <= one


def test_other_images_or_another_encoder_are_refused(clip, world, tmp_path):
    write_images(tmp_path / "others", 4)
    with pytest.raises(TriptychError, match="its images are not those of the vision features"):
        Pixels(clip.features, tmp_path / "others", clip.folder)
    other = FolderEncoder(source="folder", folder=str(world / "models" / "clip"), layer=-1)
    prepare_model("vision_encoder", other, tmp_path, tmp_path / "other")
    with pytest.raises(TriptychError, match="is not the encoder that made the vision features"):
        Pixels(clip.features, clip.data, tmp_path / "other")
    with pytest.raises(TriptychError, match="image nowhere is not in the data set"):
        clip.pixels(["nowhere"])


def test_a_model_without_an_encoder_of_its_own_is_refused(samples, features, prompt):
    with pytest.raises(TriptychError, match="trains 'vision_encoder', but the model was built without one"):
        run(make_model(), samples, features, prompt, stage(PARTS))


def test_lora_and_the_encoder_train_together(clip, samples, prompt):
    model = clip.model(lora_model)
    model.vision.tuned = True
    before = weights(model)
    rows = run(model, samples, clip.pixels, prompt, stage(("lora", "vision_encoder"), rate=1e-2))
    after = weights(model)
    assert any("lora_A" in name and not torch.equal(before[name], after[name]) for name in after)
    assert any("patch_embedding" in name and not torch.equal(before[name], after[name]) for name in after)
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith("linear_"))
    assert len(rows) == 2
