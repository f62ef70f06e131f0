"""Tiny random models of transformers' `LlavaForConditionalGeneration`, for tests."""

from pathlib import Path

import torch
from conftest import FEATURES, HIDDEN, WORDS, make_tokenizer
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from triptych.config.models import FolderLlava, LlavaModels
from triptych.features.shards import encoder_hashes
from triptych.model import checkpoint, vision
from triptych.model.prepare import prepare_model

PROMPT = "user <image> {question} assistant "
CPU = torch.device("cpu")
ROWS = len(WORDS) + 3  # of the embedding: more than the tokenizer has, as in LLaVA-1.5


def write_llava(
    folder: Path,
    tower: dict | None = None,
    text: dict | None = None,
    dtype: torch.dtype = torch.float32,
    **settings,
) -> Path:
    """A tiny LLaVA with its processor, whose image token is the tokenizer's last.

    Args:
        folder: to write.
        tower: settings of the vision tower beside its sizes.
        text: settings of the language model beside its sizes.
        dtype: of all weights.
        settings: of the whole.
    """
    torch.manual_seed(4)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2}
    vision = CLIPVisionConfig(
        **{
            "hidden_size": FEATURES,
            "intermediate_size": 32,
            "image_size": 32,
            "patch_size": 16,
            **sizes,
            **(tower or {}),
        }
    )
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 64, "max_position_embeddings": 256, **sizes}
    words = {"vocab_size": ROWS, "eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None}
    llama = LlamaConfig(**{**sizes, **words, **(text or {})})
    config = LlavaConfig(
        vision_config=vision, text_config=llama, **{"image_token_index": len(WORDS), "image_seq_length": 4, **settings}
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # so that the answers depend on the image
        for weight in model.model.multi_modal_projector.parameters():
            weight.normal_(std=0.4)
    model.to(dtype).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        num_additional_image_tokens=1,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token="<image>",
    ).save_pretrained(folder)
    return folder


def prepare_llava(folder: Path, llava: Path, **settings) -> Path:
    """Both parts of a LLaVA, as the workflow puts them below `models/`."""
    models = LlavaModels(llava=FolderLlava(source="folder", folder=str(llava), prompt=PROMPT, **settings))
    for role in ("vision_encoder", "language_model"):
        prepare_model(role, getattr(models, role), folder, folder / role)
    return folder


def base_of(models: Path) -> tuple[vision.Encoder, checkpoint.Base]:
    """The encoder of prepared models, and what checkpoints start from."""
    encoder = vision.load(models / "vision_encoder", CPU)
    hashes = encoder_hashes(models / "vision_encoder")
    return encoder, checkpoint.Base(models / "language_model", encoder.hidden_size, hashes)
