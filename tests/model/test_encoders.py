"""Every supported vision encoder: its tokens against plain transformers, and what becomes of an image's border."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    BeitConfig,
    BeitModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    ViTConfig,
    ViTForImageClassification,
)
from triptych.config.models import FolderEncoder, HubEncoder, PackageEncoder
from triptych.errors import TriptychError
from triptych.features import encode, shards
from triptych.model import vision
from triptych.model.encoders import ENCODERS
from triptych.model.prepare import prepare_model
from triptych.model.preprocessing import fitted
from vision_encoders import PATCH, SIDE, settings_of, tiny_encoder, write_encoder

CPU = torch.device("cpu")
PATCHES = (SIDE // PATCH) ** 2
BEFORE = {"clip": 1, "clip_vision_model": 1, "siglip": 0, "siglip_vision_model": 0, "dinov2": 1}
BEFORE |= {"vit": 1, "dinov2_with_registers": 5, "dinov3_vit": 5}


def loaded(kind, folder, **settings):
    write_encoder(kind, folder)
    return vision.load_pretrained(folder, settings_of(folder, **settings), CPU)


def photo(width: int = 40, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("layer", [-1, -2, 0])
@pytest.mark.parametrize("kind", ENCODERS)
def test_tokens_are_the_patches_of_plain_transformers(kind, layer, tmp_path):
    encoder = loaded(kind, tmp_path, layer=layer)
    pixels = encoder.preprocess([photo(), photo(60, 33)])
    plain = tiny_encoder(kind)
    plain = getattr(plain, "vision_model", plain)
    states = plain(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert torch.allclose(encoder.tokens(pixels), states[layer][:, BEFORE[kind] :], atol=1e-6)
    assert encoder.tokens(pixels).shape == (2, PATCHES, 16) and encoder.hidden_size == 16
    kept = vision.load_pretrained(tmp_path, settings_of(tmp_path, layer=layer, drop_class_token=False), CPU)
    assert kept.tokens(pixels).shape[1] == PATCHES + BEFORE[kind]


@pytest.mark.parametrize("kind", [kind for kind, before in BEFORE.items() if before])
def test_what_is_dropped_is_no_patch(kind, tmp_path):
    """The tokens before the patches do not depend on the image where nothing was mixed yet; patches do."""
    kept = loaded(kind, tmp_path, layer=0, drop_class_token=False)
    one, other = (kept.tokens(kept.preprocess([image])) for image in (photo(), Image.new("RGB", (40, 40), "red")))
    same = [torch.equal(one[0, place], other[0, place]) for place in range(one.shape[1])]
    assert same == [True] * BEFORE[kind] + [False] * PATCHES


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "dinov3_vit"])
def test_pixels_are_those_of_the_published_processor(kind, tmp_path):
    encoder = loaded(kind, tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for image in (photo(), photo(90, 41), photo(33, 100)):
        expected = processor(images=image, return_tensors="pt")["pixel_values"]
        assert torch.equal(encoder.preprocess([image]), expected)


def test_dinov3_scales_resizes_and_normalises(tmp_path):
    encoder = loaded("dinov3_vit", tmp_path)
    image = photo(70, 50)
    values = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    values = functional.interpolate(values, (SIDE, SIDE), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (values - mean[:, None, None]) / deviation[:, None, None]
    assert torch.allclose(encoder.preprocess([image]), expected, atol=1e-6)


# What is loaded of a folder


def without(folder, part):
    """Take the tensors out of a folder's weights whose names contain `part`."""
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if part not in name}, path)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_two_towers_only_that_of_images_is_loaded(kind, tmp_path, capfd):
    whole = loaded(kind, tmp_path)
    without(tmp_path, "text_model")
    pixels = whole.preprocess([photo()])
    assert torch.equal(
        vision.load_pretrained(tmp_path, settings_of(tmp_path), CPU).tokens(pixels), whole.tokens(pixels)
    )
    assert "UNEXPECTED" not in "".join(capfd.readouterr()), "what is not loaded is no line of a log"
    without(tmp_path, "layers.0.mlp")
    with pytest.raises(TriptychError, match=r"the weights lack .*layers\.0\.mlp\.fc1\.bias"):
        vision.load_pretrained(tmp_path, settings_of(tmp_path), CPU)


def test_the_encoder_of_a_classifier_is_loaded(tmp_path):
    write_encoder("vit", tmp_path)
    config = ViTConfig.from_pretrained(tmp_path)
    classifier = ViTForImageClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    encoder = vision.load_pretrained(tmp_path, settings_of(tmp_path, layer=-1), CPU)
    pixels = encoder.preprocess([photo()])
    expected = classifier.vit(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(encoder.tokens(pixels), expected[:, 1:], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "facts", "seen"),
    [
        ("clip", {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": SIDE, "do_center_crop": True}, 0.5),
        ("vit", {"feature_extractor_type": "ViTFeatureExtractor"}, 1),
        ("vit", {}, 1),
    ],
)
def test_processors_of_older_models_are_read(kind, facts, seen, tmp_path):
    """As those of PubMedCLIP and of ViT are published."""
    write_encoder(kind, tmp_path)
    common = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": SIDE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**common, **facts}))
    encoder = vision.load_pretrained(tmp_path, settings_of(tmp_path), CPU)
    assert encoder.visible(80, 40) == seen
    assert torch.equal(encoder.preprocess([Image.new("RGB", (80, 40), "white")]), torch.ones(1, 3, SIDE, SIDE))


# What becomes of the border


def marked(edge: str) -> Image.Image:
    """An image of 128 x 32 with a square at its left or right edge, as one looks like the other in the middle."""
    image = Image.new("RGB", (128, 32), (90, 90, 90))
    ImageDraw.Draw(image).rectangle((0, 8, 15, 23) if edge == "left" else (112, 8, 127, 23), fill="white")
    return image


@pytest.mark.parametrize(("fit", "seen"), [(None, False), ("crop", False), ("pad", True), ("squash", True)])
@pytest.mark.parametrize("kind", ["clip", "dinov2", "dinov2_with_registers"])
def test_a_border_is_seen_where_fit_says_so(kind, fit, seen, tmp_path):
    encoder = loaded(kind, tmp_path, fit=fit)
    left, right = (encoder.tokens(encoder.preprocess([marked(edge)])) for edge in ("left", "right"))
    assert torch.equal(left, right) != seen
    assert (encoder.visible(128, 32) == 1) == seen


@pytest.mark.parametrize(("fit", "seen"), [(None, True), ("crop", False), ("pad", True), ("squash", True)])
@pytest.mark.parametrize("kind", ["siglip", "vit", "dinov3_vit"])
def test_others_squash_and_crop_where_fit_says_so(kind, fit, seen, tmp_path):
    encoder = loaded(kind, tmp_path, fit=fit)
    left, right = (encoder.tokens(encoder.preprocess([marked(edge)])) for edge in ("left", "right"))
    assert torch.equal(left, right) != seen
    assert encoder.visible(128, 32) == (1.0 if seen else 0.25)


@pytest.mark.parametrize(("fit", "seen"), [(None, True), ("crop", False), ("pad", True), ("squash", True)])
def test_the_packaged_encoder_fits_images_as_well(fit, seen):
    settings = PackageEncoder(source="package", image_size=32, fit=fit).model_dump()
    side = (settings["image_size"],) * 2
    images = [fitted(marked(edge), fit or "squash", side, vision.GREY) for edge in ("left", "right")]
    assert (np.asarray(images[0]) != np.asarray(images[1])).any() == seen


def test_fitting_by_hand():
    image = photo(30, 10)
    padded = np.asarray(fitted(image, "pad", (10, 10), (1, 2, 3)))
    assert padded.shape == (30, 30, 3) and (padded[:10] == (1, 2, 3)).all() and (padded[20:] == (1, 2, 3)).all()
    assert np.array_equal(padded[10:20], np.asarray(image))
    assert np.array_equal(np.asarray(fitted(image, "crop", (10, 10), ())), np.asarray(image)[:, 10:20])
    assert fitted(image.rotate(90, expand=True), "crop", (9, 9), ()).size == (10, 10)
    assert fitted(image, "pad", (20, 10), (0, 0, 0)).size == (30, 15)
    assert fitted(Image.new("RGB", (6_000_000, 8)), "pad", (10, 10), (0, 0, 0)).size == (4096, 4096), (
        "in bounded memory"
    )


def test_padding_is_the_mean_colour(tmp_path):
    """Padded pixels are near zero, as the mean is after normalisation."""
    pixels = loaded("clip", tmp_path, fit="pad").preprocess([Image.new("RGB", (128, 32), "white")])[0]
    assert pixels[:, 0].abs().max() < 0.02 and pixels[:, SIDE // 2].min() > 1


def test_the_share_that_is_lost_is_what_the_crop_leaves_out(tmp_path):
    clip, dino = loaded("clip", tmp_path / "clip"), loaded("dinov2", tmp_path / "dino")
    assert clip.visible(128, 32) == 0.25 and clip.visible(32, 64) == 0.5 and clip.visible(50, 50) == 1
    scaled = SIDE * 8 // 7  # of the shorter side, of which the crop shows SIDE
    assert dino.visible(100, 100) == pytest.approx((SIDE / scaled) ** 2)
    assert dino.visible(200, 100) == pytest.approx((SIDE / scaled) ** 2 / 2)


def test_encoding_warns_of_borders_that_are_never_seen(tmp_path, capsys):
    rows = [{"width": 128, "height": 32}, {"width": 32, "height": 32}]
    encode.warn_of_unseen_borders(rows, loaded("clip", tmp_path / "clip"))
    said = capsys.readouterr().out
    assert (
        "warning: the border of 1 of 2 images is cropped" in said and "37.5 % of the area of all, 75.0 % of one" in said
    )
    encode.warn_of_unseen_borders(rows, loaded("clip", tmp_path / "padded", fit="pad"))
    encode.warn_of_unseen_borders(rows, loaded("siglip", tmp_path / "siglip"))
    assert not capsys.readouterr().out


def test_without_the_setting_nothing_that_is_recorded_changes(tmp_path):
    """Otherwise every finished study would encode and train again."""
    plain = HubEncoder(source="hub", repo="openai/clip-vit-base-patch32", revision="0" * 40)
    assert set(plain.model_dump()) == {"source", "repo", "revision", "layer", "drop_class_token"}
    write_encoder("clip", tmp_path / "clip")
    identities = []
    for fit in (None, "pad", "crop"):
        settings = FolderEncoder(source="folder", folder=str(tmp_path / "clip"), fit=fit)
        prepare_model("vision_encoder", settings, tmp_path, tmp_path / str(fit))
        identities.append(shards.encoder_hashes(tmp_path / str(fit))["settings"])
        assert vision.load(tmp_path / str(fit), CPU).visible(64, 32) == (1.0 if fit == "pad" else 0.5)
    assert len(set(identities)) == 3, "another way to fit images is another encoder"
    assert identities[0] == shards.sha256_json({"source": "folder", "layer": -2, "drop_class_token": True})


# What is refused


def test_encoders_that_are_not_supported_are_refused_in_one_line(tmp_path):
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BeitModel(BeitConfig(**tiny, image_size=32)).save_pretrained(tmp_path / "beit")
    Siglip2VisionModel(Siglip2VisionConfig(**tiny)).save_pretrained(tmp_path / "siglip2")
    for name, said in {
        "beit": "model_type 'beit' is no vision encoder",
        "siglip2": "NaFlex; take one of fixed",
    }.items():
        settings = FolderEncoder(source="folder", folder=str(tmp_path / name))
        with pytest.raises(TriptychError, match=said) as error:
            prepare_model("vision_encoder", settings, tmp_path, tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["pytorch_model.bin"], "has no .safetensors file, only pytorch_model.bin, which is never opened"),
        (["tf_model.h5", "a.bin"], "has no .safetensors file, only a.bin, tf_model.h5, which is never opened"),
        ([], "has no .safetensors file; name a folder"),
    ],
)
def test_a_folder_of_pickles_says_so(names, said, tmp_path):
    write_encoder("clip", tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    for name in names:
        (tmp_path / "clip" / name).write_bytes(b"not opened")
    with pytest.raises(TriptychError, match=re.escape(said)) as error:
        prepare_model(
            "vision_encoder", FolderEncoder(source="folder", folder=str(tmp_path / "clip")), tmp_path, tmp_path / "out"
        )
    assert "\n" not in str(error.value) and ("docs/models.md" in str(error.value)) == bool(names)


def broken_layer(folder):
    return {"layer": -4}


def broken_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return {}


def broken_sides(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "crop_size": {"height": 64, "width": 64}}))
    return {}


def no_processor(folder):
    (folder / "preprocessor_config.json").unlink()
    return {}


def any_size(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": False}))
    return {}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (broken_layer, "layer: -4 is none of the encoder's 3 hidden states"),
        (broken_weights, "cannot be used as an encoder"),
        (broken_sides, "cannot be used as an encoder .ValueError"),
        (no_processor, "has no preprocessor_config.json"),
        (any_size, "does not make all images one size"),
    ],
)
def test_faults_are_found_in_the_model_step(damage, said, tmp_path):
    folder = write_encoder("clip", tmp_path / "clip")
    settings = FolderEncoder(source="folder", folder=str(folder), **damage(folder))
    with pytest.raises(TriptychError, match=said) as error:
        prepare_model("vision_encoder", settings, tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)
