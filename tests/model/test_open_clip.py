"""Models in open_clip's layout: the vision tower as a ViT of transformers, against a ViT written out here."""

import json
import re

import pytest
import torch
from conftest import ROOT
from hub import REVISION, Hub
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from triptych.config.models import FolderEncoder, HubEncoder
from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.model import vision
from triptych.model.open_clip import CONFIG, SIZES, WEIGHTS
from triptych.model.prepare import prepare_model
from vision_encoders import SIDE, open_clip_tensors, tiny_encoder, write_encoder, write_open_clip

CPU = torch.device("cpu")
PATCH, HEADS, LAYERS = 16, 3, 12  # of vit_tiny_patch16_224


def textbook(pixels: torch.Tensor, state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The hidden states (B, 1 + N, D) of a ViT (Dosovitskiy et al., 2021), in fp64, from tensors named as timm does."""
    state = {name.removeprefix("visual.trunk."): tensor.double() for name, tensor in state.items()}

    def linear(name, values):
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, values):
        centred = values - values.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    images = pixels.double()
    rows = [
        images[:, :, y : y + PATCH, x : x + PATCH].flatten(1)
        for y in range(0, images.shape[2], PATCH)
        for x in range(0, images.shape[3], PATCH)
    ]
    patches = torch.stack(rows, dim=1) @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    hidden = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], dim=1) + state["pos_embed"]
    states = [hidden]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        mixed = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", hidden))
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in mixed.split(192, dim=-1))
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        hidden = hidden + linear(f"{block}.attn.proj", (weights @ value).transpose(1, 2).flatten(2))
        inner = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", hidden))
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))  # GELU
        hidden = hidden + linear(f"{block}.mlp.fc2", inner)
        states.append(hidden)
    return states


def settings(folder, **changes) -> FolderEncoder:
    return FolderEncoder(source="folder", folder=str(folder), **changes)


def prepared(folder, out, **changes) -> vision.Encoder:
    prepare_model("vision_encoder", settings(folder, **changes), out, out)
    return vision.load(out, CPU)


def image(width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


@pytest.mark.parametrize("layer", [0, -2, -1])
def test_the_tokens_are_those_of_a_vit_written_out(layer, tmp_path):
    encoder = prepared(write_open_clip(tmp_path / "clip"), tmp_path / "out", layer=layer)
    pixels = encoder.preprocess([image(), image(70, 40)])
    tokens, expected = encoder.tokens(pixels), textbook(pixels, open_clip_tensors())[layer][:, 1:]
    assert tokens.shape == (2, 4, 192) and encoder.hidden_size == 192
    assert (tokens - expected).abs().max() < 1e-5 * expected.abs().max()
    assert expected.std(dim=1).min() > 1e-3, "patches differ, so that their order is seen"


def test_the_class_token_is_kept_where_the_setting_says_so(tmp_path):
    encoder = prepared(write_open_clip(tmp_path / "clip"), tmp_path / "out", drop_class_token=False)
    pixels = encoder.preprocess([image()])
    assert torch.allclose(
        encoder.tokens(pixels).double(), textbook(pixels, open_clip_tensors())[-2], rtol=1e-5, atol=1e-4
    )


def test_only_the_vision_tower_is_left_and_equal_input_gives_equal_files(tmp_path):
    source = write_open_clip(tmp_path / "clip")
    (source / "vocab.txt").write_text("a word")
    for out in ("one", "two"):
        prepare_model("vision_encoder", settings(source), tmp_path, tmp_path / out)
    one, two = (read_json(tmp_path / out / "manifest.json") for out in ("one", "two"))
    assert one == two and set(one["files"]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    kept = load_file(tmp_path / "one" / "model.safetensors")
    tower = {name: part for name, part in open_clip_tensors().items() if name.startswith("visual.trunk.")}
    assert sum(part.numel() for part in kept.values()) == sum(part.numel() for part in tower.values())
    assert {path.name for path in source.iterdir()} == {CONFIG, WEIGHTS, "vocab.txt"}, "the source is as it was"


def test_weights_keep_their_dtype(tmp_path):
    source = write_open_clip(tmp_path / "clip")
    save_file({name: part.bfloat16() for name, part in open_clip_tensors().items()}, source / WEIGHTS)
    prepare_model("vision_encoder", settings(source), tmp_path, tmp_path / "out")
    assert {part.dtype for part in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert vision.load_tower(tmp_path / "out").dtype == torch.bfloat16


# Images


def resized(shown: Image.Image, side, resample) -> torch.Tensor:
    values = torch.frombuffer(bytearray(shown.resize(side, resample).tobytes()), dtype=torch.uint8)
    return values.view(side[1], side[0], 3).permute(2, 0, 1).float() / 255


def normalised(values, mean, deviation) -> torch.Tensor:
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


CLIP_MEAN, CLIP_DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def test_images_are_resized_cropped_and_normalised_as_the_configuration_says(tmp_path):
    """The shorter side to the encoder's, the middle, and the mean and deviation of the file, or open_clip's own."""
    shown = image(96, 64)
    middle = resized(shown, (48, 32), Image.Resampling.BICUBIC)[:, :, 8:40]
    expected = normalised(middle, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    colours = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    encoder = prepared(write_open_clip(tmp_path / "clip", colours), tmp_path / "one")
    assert torch.allclose(encoder.preprocess([shown])[0], expected, atol=1e-5)
    assert encoder.visible(96, 64) == pytest.approx(2 / 3)
    encoder = prepared(write_open_clip(tmp_path / "clip", {}), tmp_path / "two")
    assert torch.allclose(encoder.preprocess([shown])[0], normalised(middle, CLIP_MEAN, CLIP_DEVIATION), atol=1e-5)


def test_images_may_be_squashed_and_resized_in_another_way(tmp_path):
    shown = image(96, 64)
    facts = {"resize_mode": "squash", "interpolation": "bilinear", "mean": 0.5, "std": 0.25, "size": [SIDE, SIDE]}
    encoder = prepared(write_open_clip(tmp_path / "clip", facts), tmp_path / "out")
    expected = normalised(resized(shown, (SIDE, SIDE), Image.Resampling.BILINEAR), [0.5] * 3, [0.25] * 3)
    assert torch.allclose(encoder.preprocess([shown])[0], expected, atol=1e-5) and encoder.visible(96, 64) == 1


# From the hub


def hub_encoder() -> HubEncoder:
    return HubEncoder(source="hub", repo="some/biomedclip", revision=REVISION)


def test_a_model_of_the_hub_is_converted_and_the_cache_stays_as_it_is(tmp_path):
    source = write_open_clip(tmp_path / "clip")
    files = {path.name: path.read_bytes() for path in source.iterdir()} | {"example_data/of.json": b"{}"}
    with Hub({"some/biomedclip": files}):
        prepare_model("vision_encoder", hub_encoder(), tmp_path / "cache", tmp_path / "first")
    prepare_model("vision_encoder", hub_encoder(), tmp_path / "cache", tmp_path / "second")  # no hub
    first, second = (read_json(tmp_path / out / "manifest.json") for out in ("first", "second"))
    assert first == second and set(first["files"]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    pixels = torch.randn(1, 3, SIDE, SIDE)
    expected = textbook(pixels, open_clip_tensors())[-2][:, 1:]
    found = vision.load(tmp_path / "second", CPU).tokens(pixels)
    assert functional.l1_loss(found.double(), expected) < 1e-4


def test_biomedclip_as_it_is_published_has_only_a_pickle(tmp_path):
    source = write_open_clip(tmp_path / "clip")
    files = {CONFIG: (source / CONFIG).read_bytes(), "open_clip_pytorch_model.bin": b"a pickle"}
    said = f"some/biomedclip has no safetensors at {REVISION}, only open_clip_pytorch_model.bin, which is never opened"
    with Hub({"some/biomedclip": files}) as hub, pytest.raises(TriptychError, match=re.escape(said)) as error:
        prepare_model("vision_encoder", hub_encoder(), tmp_path / "cache", tmp_path / "out")
    assert "convert a copy once, as docs/models.md shows" in str(error.value) and "\n" not in str(error.value)
    assert not hub.asked("open_clip_pytorch_model.bin") and not (tmp_path / "out").exists()


def blocks_of_the_page() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_says_how_pickles_are_converted(tmp_path, monkeypatch):
    """The two programs of docs/models.md, on models as PubMedCLIP and BiomedCLIP are published."""
    monkeypatch.chdir(tmp_path)
    of_clip, of_open_clip = blocks_of_the_page()
    clip, biomed = write_encoder("clip", tmp_path / "models" / "pubmedclip"), tmp_path / "models" / "biomedclip"
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    exec(of_clip, {})
    pixels = torch.randn(1, 3, SIDE, SIDE)
    expected = tiny_encoder("clip").vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(prepared(clip, tmp_path / "one").tokens(pixels), expected[:, 1:], atol=1e-6)
    torch.save(load_file(write_open_clip(biomed) / WEIGHTS), biomed / "open_clip_pytorch_model.bin")
    (biomed / WEIGHTS).unlink()
    exec(of_open_clip, {})
    found = prepared(biomed, tmp_path / "two").tokens(pixels)
    assert torch.allclose(found.double(), textbook(pixels, open_clip_tensors())[-2][:, 1:], atol=1e-4)


# What does not fit


def other_tensors(change):
    def apply(folder):
        state = open_clip_tensors()
        change(state)
        save_file(state, folder / WEIGHTS)

    return apply


def without_one(state):
    del state["visual.trunk.blocks.3.mlp.fc1.bias"]


def with_another(state):
    state["visual.trunk.blocks.0.ls1.gamma"] = torch.ones(192)


def with_a_norm_before(state):
    state["visual.trunk.norm_pre.weight"] = torch.ones(192)


def wider(state):
    state["visual.trunk.blocks.0.attn.qkv.weight"] = torch.ones(100, 192)


def one_layer_more(state):
    state["visual.trunk.blocks.12.norm1.weight"] = torch.ones(192)


def native(state):
    for name in [name for name in state if name.startswith("visual.")]:
        state[name.replace("visual.trunk.", "visual.transformer.")] = state.pop(name)


def truncated(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def no_weights(folder):
    (folder / WEIGHTS).rename(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (other_tensors(without_one), "layers.3.mlp.fc1.bias has the shape None, and (768,) in the ViT"),
        (other_tensors(with_another), "visual.trunk.blocks.0.ls1.gamma is no tensor of a plain ViT of timm"),
        (other_tensors(with_a_norm_before), "visual.trunk.norm_pre.weight is no tensor of a plain ViT of timm"),
        (other_tensors(wider), "layers.0.attention.k_proj.weight has the shape"),
        (other_tensors(one_layer_more), "layers.12.layernorm_before.weight has the shape (192,), and None in the ViT"),
        (other_tensors(native), "has the shape None"),
        (truncated, "the model of open_clip cannot be read (SafetensorError"),
        (no_weights, f"has {CONFIG} but no {WEIGHTS}"),
    ],
)
def test_weights_that_are_no_plain_vit_are_refused_in_one_line(damage, said, tmp_path):
    damage(write_open_clip(tmp_path / "clip"))
    refuse(tmp_path, said)


def refuse(tmp_path, said):
    with pytest.raises(TriptychError, match=re.escape(said)) as error:
        prepare_model("vision_encoder", settings(tmp_path / "clip"), tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert str(error.value).startswith(str(tmp_path / "clip")), "the file that the user has"


@pytest.mark.parametrize(
    ("vision_cfg", "said"),
    [
        ({"timm_model_name": "vit_base_patch16_clip_224"}, "'vit_base_patch16_clip_224') is no plain ViT of timm"),
        ({"timm_model_name": "convnext_base"}, "(timm_model_name 'convnext_base') is no plain ViT"),
        ({"timm_model_name": None, "layers": 12, "width": 768}, "(timm_model_name None) is no plain ViT"),
        ({"timm_model_name": 7}, "(timm_model_name 7) is no plain ViT"),
        ({"timm_model_kwargs": {"use_naflex": True}}, "is no plain ViT of timm"),
        (
            {"timm_model_name": "vit_small_patch16_224"},
            "embeddings.cls_token has the shape (1, 1, 192), and (1, 1, 384)",
        ),
        (
            {"timm_model_name": "vit_tiny_patch8_224"},
            "projection.weight has the shape (192, 3, 16, 16), and (192, 3, 8, 8)",
        ),
        ({"image_size": 48}, "position_embeddings has the shape (1, 5, 192), and (1, 10, 192)"),
        ({"image_size": [32, 48]}, "image_size: [32, 48] is no multiple of the patch, 16"),
        ({"image_size": 40}, "image_size: 40 is no multiple of the patch, 16"),
        ({"image_size": "32"}, "image_size: '32' is no multiple of the patch, 16"),
    ],
)
def test_towers_that_are_no_plain_vit_are_refused_in_one_line(vision_cfg, said, tmp_path):
    write_open_clip(tmp_path / "clip", **vision_cfg)
    refuse(tmp_path, said)


@pytest.mark.parametrize(
    ("preprocess", "said"),
    [
        ({"resize_mode": "longest"}, "preprocess_cfg.resize_mode: 'longest' is not supported, only shortest, squash"),
        ({"interpolation": "lanczos"}, "preprocess_cfg.interpolation: 'lanczos' is not supported"),
        ({"mode": "L"}, "preprocess_cfg.mode: 'L' is not supported, only RGB"),
        ({"size": 224}, "preprocess_cfg.size: 224 is not supported, only 32"),
        ({"mean": [0.1, 0.2]}, "preprocess_cfg.mean: [0.1, 0.2] is not three numbers"),
        ({"std": [0, 1, 1]}, "preprocess_cfg.std: [0, 1, 1] is not three numbers"),
        ({"mean": ["a", 1, 1]}, "preprocess_cfg.mean: ['a', 1, 1] is not three numbers"),
        (["mean"], "preprocess_cfg: missing or no mapping"),
    ],
)
def test_images_that_are_prepared_in_another_way_are_refused_in_one_line(preprocess, said, tmp_path):
    write_open_clip(tmp_path / "clip", preprocess)
    refuse(tmp_path, said)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model_cfg": 1}', '{"model_cfg": {"vision_cfg": null}}', "{"])
def test_configurations_of_another_shape_are_refused_in_one_line(text, tmp_path):
    (write_open_clip(tmp_path / "clip") / CONFIG).write_text(text)
    refuse(tmp_path, str(tmp_path / "clip" / CONFIG))


def test_a_folder_with_both_layouts_is_read_in_that_of_transformers(tmp_path):
    source = write_open_clip(tmp_path / "clip")
    prepare_model("vision_encoder", settings(source), tmp_path, tmp_path / "both")
    (tmp_path / "both" / CONFIG).write_text(json.dumps({"model_cfg": "not read"}))
    encoder = prepared(tmp_path / "both", tmp_path / "out")
    assert encoder.tokens(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 4, 192)


def test_every_size_has_heads_of_one_width():
    assert all(width % heads == 0 for width, _, heads in SIZES.values())
