"""The section of vision encoders in `docs/models.md`, from the list in the package and a tiny model of each kind."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
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
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from triptych.errors import TriptychError
from triptych.io.manifest import write_json
from triptych.model import vision
from triptych.model.encoders import ENCODERS, OPEN_CLIP, EncoderKind
from triptych.model.open_clip import CONFIG, TRUNK, WEIGHTS, convert_open_clip
from triptych.model.open_clip import SIZES as OF_TIMM

SIDE, PATCH = 32, 8  # pixels: 16 patches
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"image_size": SIDE, "patch_size": PATCH}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
TEXT |= {"max_position_embeddings": 8}

INTRODUCTION = """\
## Vision encoders

The tokens of a tiny random model of each kind are compared with plain transformers (`tests/model/test_encoders.py`),
and those of timm's ViT with a ViT that the test writes out (`tests/model/test_open_clip.py`). `model_type` is the key
in a model's `config.json`; the folder must contain its `preprocessor_config.json`, too. Of CLIP and SigLIP only the
vision tower is loaded. Any other model is refused in one line by the step that fetches models.

Only the tokens of patches reach the connector, as in LLaVA: `drop_class_token: true`, the default, drops all tokens
before them, class token and registers; they are counted, not guessed. With `false` all of them are kept. `layer: -2`
takes the output of the last layer but one, before any final normalisation.

What the processor of a published model does to an image that is not square is in the table; the setting `fit` changes
it: `pad` shows the whole image on the mean colour, `squash` changes its aspect ratio, and `crop` cuts off the border of
the longer side. The last column is the share of a 3 x 1 image that the encoder sees: with the processor alone, and with
each `fit`. The log of the encode step and the data audit state which share of the images' area is lost.
"""

NAMING = """
A model of the hub is named by its repository and the full commit id, which the hub shows under "Files and versions":

```yaml
models:
  vision_encoder: {source: hub, repo: facebook/dinov2-base, revision: <40 hexadecimal digits>}
  # or a folder, as below: {source: folder, folder: models/biomedclip}
```

A folder with `open_clip_config.json` and no `config.json` is in open_clip's layout. The model step writes its vision
tower as a ViT of transformers, with the size of images, mean, deviation and `resize_mode` (`shortest` or `squash`) of
that file; the text tower is left out. The tower must be a plain ViT of timm (`vit_tiny`, `vit_small`, `vit_base`,
`vit_large` or `vit_huge`, such as `vit_base_patch16_224`). Images are cropped as by open_clip, up to one pixel. For a
random `vit_base_patch16_224`, pixels and tokens were equal to those of open_clip 3.3.0 with timm 1.0.31.

### Weights that are published as a pickle

Triptych opens safetensors alone. If a repository has only `pytorch_model.bin`, look for a revision with safetensors
(often a pull request of the hub's converter) or convert a copy, once. A CLIP such as PubMedCLIP: download
`config.json`, `preprocessor_config.json` and `pytorch_model.bin` (`hf download <repository> <files> --revision <commit>
--local-dir models/pubmedclip`), then run in Triptych's environment:

```python
from transformers import CLIPVisionModel

CLIPVisionModel.from_pretrained("models/pubmedclip").save_pretrained("models/pubmedclip")
```

BiomedCLIP (commit `9f341de24bfb00180f1b847274256e9b65a3a32e`): download `open_clip_config.json` and
`open_clip_pytorch_model.bin` into `models/biomedclip`, then:

```python
import torch
from safetensors.torch import save_file

weights = torch.load("models/biomedclip/open_clip_pytorch_model.bin", map_location="cpu", weights_only=True)
tower = {name: tensor.contiguous() for name, tensor in weights.items() if name.startswith("visual.")}
save_file(tower, "models/biomedclip/open_clip_model.safetensors")
```
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
        case "vit":
            model = ViTModel(ViTConfig(**SIZES))
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
    elif kind == "vit":
        processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
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


def open_clip_tensors(size: str = "tiny", side: int = SIDE, patch: int = 16) -> dict[str, torch.Tensor]:
    """Random tensors of a CLIP whose vision tower is a ViT of timm, by the names of open_clip."""
    width, layers, _ = OF_TIMM[size]
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + (side // patch) ** 2, width)}
    matrices = {"patch_embed.proj": (width, 3, patch, patch), "norm": (width,)}
    for layer in range(layers):
        parts = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": (width,)}
        parts |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        matrices |= {f"blocks.{layer}.{part}": shape for part, shape in parts.items()}
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    drawn = torch.Generator().manual_seed(2)
    tensors = {}
    for name, shape in shapes.items():
        # Small embeddings show a wrong epsilon; normalisation and MLP work in their usual range.
        scale = 0.05 if name.startswith("blocks") else 0.001
        middle = 1 if "norm" in name and name.endswith("weight") else 0
        tensors[TRUNK + name] = middle + scale * torch.randn(shape, generator=drawn)
    # What a text tower and the projections would be.
    return tensors | {
        "visual.head.proj.weight": torch.ones(8, width),
        "text.proj": torch.ones(2),
        "logit_scale": torch.ones(()),
    }


def write_open_clip(folder: Path, preprocess: dict | None = None, **vision_cfg: object) -> Path:
    """Save a model in open_clip's layout, with the configuration of BiomedCLIP but for the size."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "image_size": SIDE,
    }
    model = {"embed_dim": 8, "vision_cfg": {**tower, "timm_proj": "linear", **vision_cfg}, "text_cfg": {}}
    colours = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    write_json(folder / CONFIG, {"model_cfg": model, "preprocess_cfg": colours if preprocess is None else preprocess})
    save_file(open_clip_tensors(), folder / WEIGHTS)
    return folder


def settings_of(folder: Path, **changes: object) -> dict:
    """Settings of an encoder in a folder."""
    return {"source": "folder", "folder": str(folder), "layer": -2, "drop_class_token": True, **changes}


def rows() -> list[list[str]]:
    """Kinds of one name, which share a row."""
    names = dict.fromkeys(known.name for known in ENCODERS.values())
    return [[kind for kind, known in ENCODERS.items() if known.name == name] for name in names]


def shares(folder: Path, before: str) -> str:
    """What is seen of an image of 3 x 1, in words, after a check of what the list says of tokens (`before`)."""
    seen = []
    for fit in (None, "pad", "squash", "crop"):
        encoder = vision.load_pretrained(folder, settings_of(folder, fit=fit), torch.device("cpu"))
        seen.append(f"{fit or 'alone'} {100 * encoder.visible(300, 100):.0f} %")
    kept = vision.load_pretrained(folder, settings_of(folder, drop_class_token=False), torch.device("cpu"))
    pixels = kept.preprocess([Image.new("RGB", (SIDE, SIDE))])
    if (kept.tokens(pixels).shape[1] == encoder.tokens(pixels).shape[1]) != (before == "none"):
        raise TriptychError(f"{folder.name}: has not the tokens before its patches that the list says")
    return ", ".join(seen)


def row(known: EncoderKind, types: str, seen: str) -> str:
    """A row of the table."""
    return f"| {' | '.join([known.name, types, known.examples, known.before, known.images, seen])} |"


def vision_encoders() -> Iterator[str]:
    """The section, line by line."""
    with tempfile.TemporaryDirectory() as temporary:
        yield from section(Path(temporary))


def section(temporary: Path) -> Iterator[str]:
    """The same, with tiny models in the folder `temporary`."""
    yield INTRODUCTION
    yield "| encoder | `model_type` | examples | tokens before the patches | image that is not square | seen of 3 x 1 |"
    yield "|---|---|---|---|---|---|"
    for kinds in rows():
        known = ENCODERS[kinds[0]]
        seen = [shares(write_encoder(kind, temporary / kind), known.before) for kind in kinds]
        if any(share != seen[0] for share in seen):
            raise TriptychError(f"{', '.join(kinds)}: differ in what they see, and need rows of their own")
        types = ", ".join(f"`{kind}`" for kind in kinds)
        yield row(known, types, seen[0])
    folder = write_open_clip(temporary / "open_clip")
    convert_open_clip(folder)
    yield row(OPEN_CLIP, f"`{CONFIG}`", shares(folder, OPEN_CLIP.before))
    yield "| EfficientNet-Lite0 | packaged | `source: package` | none | squashed to a square | as `fit` says |"
    yield NAMING
