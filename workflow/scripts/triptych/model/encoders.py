"""The vision encoders that Triptych reads as transformers computes them; each is tested, and all others are refused."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from triptych.errors import TriptychError
from triptych.io.manifest import read_json


@dataclass(frozen=True)
class EncoderKind:
    """What an encoder puts before the patches, and what its images go through.

    Attributes:
        name: as people call it.
        examples: models of the hub.
        before: tokens before those of the patches; `drop_class_token` leaves all of them out.
        images: what the published processors do to an image that is not square.
        plain_export: whether transformers' LLaVA class can hold it.
    """

    name: str
    examples: str
    before: str
    images: str
    plain_export: bool = True


_CLIP = (
    "CLIP",
    "openai/clip-vit-base-patch32, openai/clip-vit-large-patch14-336, flaviagiammarino/pubmed-clip-vit-base-patch32",
    "a class token",
)
_SIGLIP = ("SigLIP, SigLIP 2 of fixed resolution", "google/siglip-base-patch16-224, google/siglip2-base-patch16-256")
_CROPPED, _SQUASHED = "the border of the longer side is cropped", "squashed to a square"
ENCODERS = {  # by transformers' `model_type`
    "clip": EncoderKind(*_CLIP, _CROPPED),
    "clip_vision_model": EncoderKind(*_CLIP, _CROPPED),
    "siglip": EncoderKind(*_SIGLIP, "none", _SQUASHED),
    "siglip_vision_model": EncoderKind(*_SIGLIP, "none", _SQUASHED),
    "vit": EncoderKind("ViT", "google/vit-base-patch16-224-in21k", "a class token", _SQUASHED, plain_export=False),
    "dinov2": EncoderKind("DINOv2", "facebook/dinov2-base", "a class token", f"{_CROPPED}, and an eighth of both"),
    "dinov2_with_registers": EncoderKind(
        "DINOv2 with registers", "facebook/dinov2-with-registers-base", "a class token, four registers",
        f"{_CROPPED}, and an eighth of both", plain_export=False,
    ),
    "dinov3_vit": EncoderKind(
        "DINOv3 (ViT)", "facebook/dinov3-vitb16-pretrain-lvd1689m", "a class token, four registers", _SQUASHED,
        plain_export=False,
    ),
}  # fmt: skip
OPEN_CLIP = EncoderKind(  # which becomes a `vit`: `model/open_clip.py`
    "ViT of timm, in open_clip's layout", "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "a class token",
    _CROPPED, plain_export=False,
)  # fmt: skip


def encoder_kind(folder: Path) -> EncoderKind:
    """Look up the kind of the encoder in a folder.

    Raises:
        TriptychError: it is not supported.
    """
    path = folder / "config.json"
    config = read_json(path)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if isinstance(model_type, str) and model_type in ENCODERS:
        return ENCODERS[model_type]
    more = " (of any resolution, NaFlex; take one of fixed resolution)" if str(model_type).startswith("siglip2") else ""
    raise TriptychError(
        f"{path}: model_type {model_type!r} is no vision encoder that is supported{more} ({', '.join(ENCODERS)}); "
        "docs/models.md has examples of each"
    )


def tokens_before_patches(tokens: int, pixels: torch.Tensor, tower: PreTrainedModel) -> int:
    """Count the tokens that are not patches (class token, registers), which all supported encoders put first.

    Args:
        tokens: number that the encoder gives for an image.
        pixels: (B, 3, H, W).
        tower: the encoder.

    Raises:
        TriptychError: there are fewer tokens than patches.
    """
    side = tower.config.patch_size
    patches = (pixels.shape[-2] // side) * (pixels.shape[-1] // side)
    if tokens < patches:
        raise TriptychError(
            f"the encoder gives {tokens} tokens for {patches} patches: none can be told to be a class token"
        )
    return tokens - patches
