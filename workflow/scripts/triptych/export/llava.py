"""Layout `llava`: a standard `LlavaForConditionalGeneration`."""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import (
    BaseImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

from triptych.errors import TriptychError
from triptych.export.base_models import BaseModels, encoder_settings
from triptych.export.tokenizer import IMAGE_TOKEN, chat_template, image_tokenizer
from triptych.export.trained import greedy, plain_language_model
from triptych.model import language_model, vision
from triptych.model.connector import Linear
from triptych.model.encoders import tokens_before_patches
from triptych.model.preprocessing import load_image_processor
from triptych.model.vlm import VisionLanguageModel

INSIDE = "language_model."  # where LLaVA holds the decoder, below `model.`


class ImageTokens(NamedTuple):
    """Tokens that a vision tower gives for an image.

    Attributes:
        all: states of the layer that is read.
        class_tokens: of these, class tokens, which the model leaves out.
        patches: places of the grid.
    """

    all: int
    class_tokens: int
    patches: int

    @property
    def shown(self) -> int:
        """Tokens that the language model sees."""
        return self.all - self.class_tokens

    @property
    def strategy(self) -> str:
        """What transformers calls it to leave out class tokens, or not."""
        return "default" if self.class_tokens else "full"


def write_llava(model: VisionLanguageModel, models: BaseModels, adapter: bool, folder: Path) -> None:
    """Write a `LlavaForConditionalGeneration` with its processor.

    Every tensor keeps the dtype of its base model; what was trained is fp32. Loaded as fp32 nothing is lost, and by
    default transformers loads all in the language model's dtype.

    Raises:
        TriptychError: the models do not fit into that class, or the tokenizer not into its processor.
    """
    settings = encoder_settings(models)
    tower = model.vision.network if model.vision else vision.load_tower(models.vision_encoder)
    image_processor = load_image_processor(models.vision_encoder)
    tokens = count_tokens(tower, image_processor, settings)
    processor = llava_processor(models, tower, image_processor, tokens)
    processor.save_pretrained(folder)
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    text = plain_language_model(model, adapter, INSIDE, folder)
    activation, projector = as_projector(model.connector)
    config = LlavaConfig(
        vision_config=copy.deepcopy(tower.config),
        text_config=copy.deepcopy(text.config),
        image_token_index=image_id,
        image_seq_length=tokens.shown,
        projector_hidden_act=activation,
        vision_feature_select_strategy=tokens.strategy,
        vision_feature_layer=settings["layer"],
    )
    config.text_config.vocab_size = max(text.get_output_embeddings().weight.shape[0], image_id + 1)
    state = llava_state(tower, projector, text, config.text_config.vocab_size)
    with torch.device("meta"):
        whole = LlavaForConditionalGeneration(config)
    try:
        whole.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise TriptychError(
            f"{models.language_model.parent}: {text.config.model_type} and {tower.config.model_type} do not fit into "
            f"transformers' LlavaForConditionalGeneration ({str(error).splitlines()[-1].strip()})"
        ) from None
    whole.tie_weights()
    whole.generation_config = greedy(tokenizer.eos_token_id, tokenizer.pad_token_id, [image_id])
    whole.save_pretrained(folder)
    save_config(config, text.get_input_embeddings().weight.dtype, folder)


def count_tokens(tower: nn.Module, image_processor: BaseImageProcessor, settings: dict) -> ImageTokens:
    """Return the tokens that a tower gives for an image, from one blank image."""
    pixels = image_processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    patches = (pixels.shape[-2] // tower.config.patch_size) * (pixels.shape[-1] // tower.config.patch_size)
    found = states[settings["layer"]].shape[1]
    class_tokens = tokens_before_patches(found, pixels, tower) if settings["drop_class_token"] else 0
    return ImageTokens(found, class_tokens, patches)


def llava_processor(
    models: BaseModels, tower: nn.Module, image_processor: BaseImageProcessor, tokens: ImageTokens
) -> LlavaProcessor:
    """Return the processor, whose tokenizer reads whole prompts as Triptych reads their pieces."""
    prompt = language_model.load_prompt(models.language_model)
    return LlavaProcessor(
        image_processor,
        image_tokenizer(language_model.load_tokenizer(models.language_model), prompt, tokens.shown),
        patch_size=tower.config.patch_size,
        num_additional_image_tokens=tokens.all - tokens.patches,
        vision_feature_select_strategy=tokens.strategy,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template(prompt),
    )


def llava_state(
    tower: nn.Module, projector: dict[str, torch.Tensor], text: PreTrainedModel, rows: int
) -> dict[str, torch.Tensor]:
    """Return all tensors by LLaVA's names, with embeddings and output layer of `rows` rows (tied where they were)."""
    head, embeddings = text.get_output_embeddings(), text.get_input_embeddings()
    state = {
        **{f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()},
        **{f"model.multi_modal_projector.{name}": tensor for name, tensor in projector.items()},
        **{f"model.{INSIDE}{name}": tensor for name, tensor in text.model.state_dict().items()},
        **{f"lm_head.{name}": tensor for name, tensor in head.state_dict().items()},
    }
    longer = with_rows(embeddings.weight, rows)
    state[f"model.{INSIDE}embed_tokens.weight"] = longer
    state["lm_head.weight"] = longer if embeddings.weight is head.weight else with_rows(head.weight, rows)
    return state


def save_config(config: LlavaConfig, dtype: torch.dtype, folder: Path) -> None:
    """Write the configuration again: saving the model has set the dtype to that of its first tensor."""
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype
        part._name_or_path = ""  # the path of the base model's folder
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)


def as_projector(connector: nn.Module) -> tuple[str, dict[str, torch.Tensor]]:
    """Return activation and tensors of LLaVA's projector, two layers, which compute what the connector computes."""
    if not isinstance(connector, Linear):
        return "gelu", dict(connector.state_dict())
    second = {"linear_2.weight": torch.eye(len(connector.bias)), "linear_2.bias": torch.zeros_like(connector.bias)}
    return "linear", {f"linear_1.{name}": tensor for name, tensor in connector.state_dict().items()} | second


def with_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Return an embedding matrix (V, H) with new rows at its end, up to `rows`: the mean of the others.

    As a row of the output layer, the mean gives a new token the mean of all logits, which is never the largest.
    """
    weight = weight.detach()
    mean = weight.double().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])
