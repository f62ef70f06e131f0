"""Models in open_clip's layout, such as BiomedCLIP: the vision tower, a ViT of timm, becomes a ViT of transformers."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import ViTConfig, ViTModel

from triptych.errors import TriptychError
from triptych.io.manifest import read_json, write_json
from triptych.model.preprocessing import PROCESSOR

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TRUNK = "visual.trunk."
NAME = re.compile(r"vit_(tiny|small|base|large|huge)_patch(\d+)_\d+(?:\.\w+)?")
SIZES = {  # width, layers, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# Names of timm's ViT and of transformers'; those of a layer are below `blocks.<n>` and `layers.<n>`.
PARTS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
LAYER_PARTS = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
TENSOR = re.compile(re.escape(TRUNK) + r"(?:blocks\.(?P<layer>\d+)\.)?(?P<part>.+?)(?P<kind>\.weight|\.bias)?")
# Where a configuration says nothing, open_clip takes these.
IMAGE_SIZE, MEAN, DEVIATION = 224, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
RESAMPLE = {"bicubic": 3, "bilinear": 2, "random": 3}  # as Pillow numbers them; random only while training


def is_open_clip(folder: Path) -> bool:
    """Tell whether a folder has a model in open_clip's layout alone."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def convert_open_clip(folder: Path) -> None:
    """Replace the files of a folder by the vision tower, as `save_pretrained` of transformers writes a ViT.

    Raises:
        TriptychError: the tower is not a plain ViT of timm, or its images are prepared in another way.
    """
    config, processor = read_config(folder / CONFIG)
    tower = load_trunk(folder / WEIGHTS, config)
    for path in list(folder.iterdir()):  # second names of files in the cache, which are not to be written to
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tower.save_pretrained(folder)
    write_json(folder / PROCESSOR, processor)


def read_config(path: Path) -> tuple[ViTConfig, dict]:
    """Read what open_clip's configuration says of the vision tower and of its images.

    Returns:
        The ViT's configuration, and that of an image processor of transformers.

    Raises:
        TriptychError: a value is missing, of another kind, or not supported.
    """
    facts = read_json(path)
    vision = _section(path, _section(path, facts, "model_cfg"), "vision_cfg")
    name, side = vision.get("timm_model_name"), vision.get("image_size", IMAGE_SIZE)
    found = NAME.fullmatch(str(name))
    if not found or vision.get("timm_model_kwargs"):
        raise TriptychError(
            f"{path}: model_cfg.vision_cfg: the vision tower (timm_model_name {name!r}) is no plain ViT of timm, such "
            "as vit_base_patch16_224; other models of open_clip are read in the layout of transformers alone"
        )
    side = side[0] if isinstance(side, list) and side == side[:1] * 2 else side
    (width, layers, heads), patch = SIZES[found[1]], int(found[2])
    if not isinstance(side, int) or not 0 < patch <= side or side % patch:
        raise TriptychError(f"{path}: model_cfg.vision_cfg.image_size: {side!r} is no multiple of the patch, {patch}")
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=side,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    preprocessing = _section(path, facts, "preprocess_cfg") if facts.get("preprocess_cfg") else {}
    return config, _processor(path, preprocessing, side)


def _section(path: Path, facts: Any, key: str) -> dict:
    value = facts.get(key) if isinstance(facts, dict) else None
    if not isinstance(value, dict):
        raise TriptychError(f"{path}: {key}: missing or no mapping; fetch the model again")
    return value


def _processor(path: Path, facts: dict, side: int) -> dict:
    """What open_clip does to an image of a study, as the configuration of an image processor of transformers."""
    mode, resample = facts.get("resize_mode") or "shortest", facts.get("interpolation") or "bicubic"
    for key, value, known in (
        ("size", facts.get("size") or side, (side, [side, side], [3, side, side])),
        ("mode", facts.get("mode") or "RGB", ("RGB",)),
        ("resize_mode", mode, ("shortest", "squash")),
        ("interpolation", resample, tuple(RESAMPLE)),
    ):
        if value not in known:
            raise TriptychError(
                f"{path}: preprocess_cfg.{key}: {value!r} is not supported, only {', '.join(map(str, known))}"
            )
    square = {"height": side, "width": side}
    fitting = {"do_center_crop": True, "size": {"shortest_edge": side}, "crop_size": square}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": RESAMPLE[resample],
        **(fitting if mode == "shortest" else {"do_center_crop": False, "size": square}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _three(path, "mean", facts, MEAN),
        "image_std": _three(path, "std", facts, DEVIATION),
    }


def _three(path: Path, key: str, facts: dict, default: list[float]) -> list[float]:
    """A number for each colour, as the configuration gives it: three, or one for all."""
    value = facts.get(key) or default
    numbers = value if isinstance(value, list) else [value] * 3
    least = 0 if key == "mean" else 1e-6
    if len(numbers) != 3 or not all(isinstance(number, int | float) and least <= number <= 1 for number in numbers):
        raise TriptychError(f"{path}: preprocess_cfg.{key}: {value!r} is not three numbers between {least} and 1")
    return numbers


def load_trunk(path: Path, config: ViTConfig) -> ViTModel:
    """Load the vision tower of open_clip's weights as a ViT of transformers, in its stored dtype.

    Raises:
        TriptychError: there are no such weights, or they are not those of the ViT that the configuration names.
    """
    if not path.is_file():
        raise TriptychError(f"{path.parent}: has {CONFIG} but no {WEIGHTS}; docs/models.md says how to make it")
    state: dict[str, torch.Tensor] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118, it is no dict
            if name.startswith(TRUNK):
                state |= _renamed(path, name, file.get_tensor(name))
    with torch.device("meta"):
        tower = ViTModel(config, add_pooling_layer=False)
    wanted, found = ({name: tuple(part.shape) for name, part in parts.items()} for parts in (tower.state_dict(), state))
    for name in sorted({**wanted, **found}):
        if wanted.get(name) != found.get(name):
            raise TriptychError(
                f"{path}: {name} has the shape {found.get(name)}, and {wanted.get(name)} in the ViT that {CONFIG} "
                "names; they do not belong together"
            )
    tower.load_state_dict(state, assign=True)
    return tower


def _renamed(path: Path, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of timm's ViT by the names of transformers; queries, keys and values are one tensor in timm.

    Copies, so that the file is no longer needed.
    """
    layer, part, kind = TENSOR.fullmatch(name).group("layer", "part", "kind")
    if layer is not None and part == "attn.qkv":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"layers.{layer}.attention.{letter}_proj{kind}": third.clone() for letter, third in parts}
    known = (PARTS if layer is None else LAYER_PARTS).get(part)
    if known is None:
        raise TriptychError(f"{path}: {name} is no tensor of a plain ViT of timm, which alone is supported")
    return {f"{known if layer is None else f'layers.{layer}.{known}'}{kind or ''}": tensor.clone()}
