"""The section of vision encoders in `docs/models.md`, from the list in the package and a tiny model of each kind."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from triptych.errors import TriptychError
from triptych.io.manifest import write_json
from triptych.model import vision
from triptych.model.encoders import ENCODERS

SIDE, PATCH = 32, 8  # pixels: 16 patches
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"image_size": SIDE, "patch_size": PATCH}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
TEXT |= {"max_position_embeddings": 8}

INTRODUCTION = """\
## Vision encoders

The tokens of a tiny random model of each kind are compared with plain transformers (`tests/model/test_encoders.py`).
`model_type` is the key in a model's `config.json`; the folder must contain its `preprocessor_config.json`, too. Any
other model is refused in one line by the step that fetches models. `drop_class_token: true` drops all tokens before the
patches; they are counted, not guessed. What the processor of a published model does to an image that is not square is
in the table; the setting `fit` changes it: `pad` shows the whole image on the mean colour, `squash` changes its aspect
ratio, and `crop` cuts off the border of the longer side. The last column is the share of a 3 x 1 image that the encoder
sees: with the processor alone, and with each `fit`. The log of the encode step and the data audit state which share of
the images' area is lost.
"""


def tiny_encoder(kind: str) -> PreTrainedModel:
    """A tiny model of a kind, with the same random weights at every call."""
    torch.manual_seed(1)
    text = {**TEXT, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    match kind:
        case "clip":
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=16))
        case "siglip":
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=SIZES))
        case "clip_vision_model":
            model = CLIPVisionModel(CLIPVisionConfig(**SIZES))
        case "siglip_vision_model":
            model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
        case "dinov2":
            model = Dinov2Model(Dinov2Config(**SIZES))
        case "dinov2_with_registers":
            model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4))
        case "dinov3_vit":
            model = DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=4))
    for parameter in model.parameters():  # some begin as zeros, which would hide where a token came from
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def write_encoder(kind: str, folder: Path) -> Path:
    """Save a tiny model with a processor as the published ones of its kind have it."""
    tiny_encoder(kind).save_pretrained(folder)
    if kind.startswith("clip"):
        processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    elif kind.startswith("siglip"):
        processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    elif kind == "dinov3_vit":
        size = {"height": SIDE, "width": SIDE}
        write_json(
            folder / "preprocessor_config.json", {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": size}
        )
        return folder
    else:
        crop = {"height": SIDE, "width": SIDE}
        processor = BitImageProcessor(size={"shortest_edge": SIDE * 8 // 7}, crop_size=crop)
    processor.save_pretrained(folder)
    return folder


def settings_of(folder: Path, **changes: object) -> dict:
    """Settings of an encoder in a folder."""
    return {"source": "folder", "folder": str(folder), "layer": -2, "drop_class_token": True, **changes}


def rows() -> list[list[str]]:
    """Kinds of one name, which share a row."""
    names = dict.fromkeys(known.name for known in ENCODERS.values())
    return [[kind for kind, known in ENCODERS.items() if known.name == name] for name in names]


def shares(kind: str) -> str:
    """What is seen of an image of 3 x 1, in words, after a check of what the list says of tokens."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, seen = write_encoder(kind, Path(temporary)), []
        for fit in (None, "pad", "squash", "crop"):
            encoder = vision.load_pretrained(folder, settings_of(folder, fit=fit), torch.device("cpu"))
            seen.append(f"{fit or 'alone'} {100 * encoder.visible(300, 100):.0f} %")
        kept = vision.load_pretrained(folder, settings_of(folder, drop_class_token=False), torch.device("cpu"))
        pixels = kept.preprocess([Image.new("RGB", (SIDE, SIDE))])
        if (kept.tokens(pixels).shape[1] == encoder.tokens(pixels).shape[1]) != (ENCODERS[kind].before == "none"):
            raise TriptychError(f"{kind}: has not the tokens before its patches that the list says")
    return ", ".join(seen)


def vision_encoders() -> Iterator[str]:
    """The section, line by line."""
    yield INTRODUCTION
    yield "| encoder | `model_type` | examples | tokens before the patches | image that is not square | seen of 3 x 1 |"
    yield "|---|---|---|---|---|---|"
    for kinds in rows():
        known = ENCODERS[kinds[0]]
        seen = [shares(kind) for kind in kinds]
        if any(share != seen[0] for share in seen):
            raise TriptychError(f"{', '.join(kinds)}: differ in what they see, and need rows of their own")
        types = ", ".join(f"`{kind}`" for kind in kinds)
        yield f"| {' | '.join([known.name, types, known.examples, known.before, known.images, seen[0]])} |"
    yield "| EfficientNet-Lite0 | packaged | `source: package` | none | squashed to a square | as `fit` says |"
    yield ""
