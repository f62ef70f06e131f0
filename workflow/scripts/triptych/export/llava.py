"""Layout `llava`: a standard `LlavaForConditionalGeneration`."""

import copy
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from triptych.errors import TriptychError
from triptych.export.base_models import BaseModels, encoder_settings
from triptych.export.tokenizer import IMAGE_TOKEN, chat_template, image_tokenizer
from triptych.export.trained import greedy, plain_language_model
from triptych.model import language_model, vision
from triptych.model.connector import Linear
from triptych.model.vlm import VisionLanguageModel


def write_llava(model: VisionLanguageModel, models: BaseModels, adapter: bool, folder: Path) -> None:
    """Write a `LlavaForConditionalGeneration` with its processor.

    Every tensor keeps the dtype of its base model; what was trained is fp32. Loaded as fp32 nothing is lost, and by
    default transformers loads all in the language model's dtype.

    Raises:
        TriptychError: the models do not fit into that class, or the tokenizer not into its processor.
    """
    prompt = language_model.load_prompt(models.language_model)
    settings = encoder_settings(models)
    tower = vision.load_tower(models.vision_encoder)
    dropped = vision.class_tokens(settings, tower.config.model_type)
    strategy = "default" if dropped else "full"
    image_processor = AutoImageProcessor.from_pretrained(models.vision_encoder)
    pixels = image_processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    count = states[settings["layer"]].shape[1]
    patches = (pixels.shape[-2] // tower.config.patch_size) * (pixels.shape[-1] // tower.config.patch_size)

    tokenizer = image_tokenizer(language_model.load_tokenizer(models.language_model), prompt, count - dropped)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=tower.config.patch_size,
        num_additional_image_tokens=count - patches,
        vision_feature_select_strategy=strategy,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template(prompt),
    ).save_pretrained(folder)

    inside = "language_model."
    text = plain_language_model(model, adapter, inside, folder)
    head = text.get_output_embeddings()
    activation, projector = as_projector(model.connector)
    config = LlavaConfig(
        vision_config=copy.deepcopy(tower.config),
        text_config=copy.deepcopy(text.config),
        image_token_index=image_id,
        image_seq_length=count - dropped,
        projector_hidden_act=activation,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=settings["layer"],
    )
    rows = max(head.weight.shape[0], image_id + 1)
    config.text_config.vocab_size = rows
    state = {
        **{f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()},
        **{f"model.multi_modal_projector.{name}": tensor for name, tensor in projector.items()},
        **{f"model.{inside}{name}": tensor for name, tensor in text.model.state_dict().items()},
        **{f"lm_head.{name}": tensor for name, tensor in head.state_dict().items()},
    }
    embeddings = f"model.{inside}embed_tokens.weight"
    tied = text.get_input_embeddings().weight is head.weight
    state[embeddings] = with_rows(text.get_input_embeddings().weight, rows)
    state["lm_head.weight"] = state[embeddings] if tied else with_rows(head.weight, rows)
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
    # Saving has set the dtype to that of the first tensor.
    for part in (config, config.text_config, config.vision_config):
        part.dtype = text.get_input_embeddings().weight.dtype
        part._name_or_path = ""  # where the base models lay
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)


def as_projector(connector: nn.Module) -> tuple[str, dict[str, torch.Tensor]]:
    """Activation and tensors of LLaVA's projector, two layers, that computes what the connector computes."""
    if not isinstance(connector, Linear):
        return "gelu", dict(connector.state_dict())
    second = {"linear_2.weight": torch.eye(len(connector.bias)), "linear_2.bias": torch.zeros_like(connector.bias)}
    return "linear", {f"linear_1.{name}": tensor for name, tensor in connector.state_dict().items()} | second


def with_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """An embedding matrix (V, H) with new rows at its end, up to `rows`: the mean of the others.

    As an output that gives a new token the mean of all logits: never the likeliest.
    """
    weight = weight.detach()
    mean = weight.double().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])
