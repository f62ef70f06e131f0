"""Models of random weights, on which speed does not depend: nothing is read from a disk or fetched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from llava import SEED, TINYLLAMA, CachedTower, settings_of
from slake_lengths import slake_like
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration
from triptych.config.stages import Lora, Stage
from triptych.model.connector import build_connector
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel, add_lora

IMAGE_TOKEN, END = 3, 2
AFTER_QUESTION = (1,) * 9
PROMPT = PromptTokens((1,) * 8, lambda text: AFTER_QUESTION, lambda text: (), END)
CAPTION = 40  # tokens


@dataclass(frozen=True)
class Size:
    """Sizes of a measurement.

    Attributes:
        image_tokens: of an image.
        width: of its features.
        llama: settings of the language model that differ from TinyLlama-1.1B's.
    """

    image_tokens: int = 576
    width: int = 1024  # CLIP-L
    llama: dict[str, int] = field(default_factory=dict)

    @property
    def config(self) -> LlamaConfig:
        """The language model's."""
        return LlamaConfig(**TINYLLAMA | self.llama)


NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
NARROW |= {"vocab_size": 300}
FULL = Size()
TINY = Size(4, 16, {**NARROW, "num_hidden_layers": 2})


def settings_for(name: str, **changes: Any) -> tuple[Stage, Lora | None]:
    """A stage of config/config.yaml, and the adapters that it trains."""
    settings = settings_of("tinyllama")
    stage = settings.stages[name].model_copy(update=changes)
    return stage, settings.lora if "lora" in stage.train else None


def random_model(
    size: Size, lora: Lora | None, device: torch.device, dtype: torch.dtype = torch.bfloat16, attention: str = "sdpa"
) -> VisionLanguageModel:
    """Triptych's model as `checkpoint.build` makes it: connector and adapters in fp32, the rest frozen in `dtype`."""
    torch.manual_seed(SEED)
    config = size.config
    config._attn_implementation = attention
    with torch.device(device):
        network = LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype)
    if lora:
        network = add_lora(network, lora, seed=SEED)
    connector = build_connector(settings_of("tinyllama").connector, size.width, config.hidden_size, seed=SEED)
    return VisionLanguageModel(connector, network).to(device)


def random_llava(size: Size, lora: Lora | None, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """transformers' LLaVA model with the same trained parts, whose tower passes on features computed before."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    vision = CLIPVisionConfig(
        hidden_size=size.width, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16, image_size=28
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=size.config,
        image_token_id=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
    )
    with torch.device(device):
        model = LlavaForConditionalGeneration(config).requires_grad_(False).to(dtype)
    model.config.use_cache = False
    model.model.vision_tower = CachedTower()
    projector = model.model.multi_modal_projector.float()
    if lora:
        layers = rf".*language_model.*\.({'|'.join(lora.target_modules)})"
        options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
        model = get_peft_model(model, LoraConfig(**options, target_modules=layers, task_type="CAUSAL_LM"))
    projector.requires_grad_(True)
    return model


def questions(size: Size) -> list[Sample]:
    """Random words in SLAKE's numbers and lengths."""
    return slake_like(AFTER_QUESTION, END, (IMAGE_TOKEN + 1, size.config.vocab_size))


def captions(size: Size, number: int) -> list[Sample]:
    """One caption for each image."""
    draw = torch.Generator().manual_seed(SEED)
    words = torch.randint(IMAGE_TOKEN + 1, size.config.vocab_size, (number, CAPTION), generator=draw).tolist()
    return [Sample(f"c{row}", f"c{row}", (1,), (*own, END)) for row, own in enumerate(words)]


def random_features(size: Size, dtype: torch.dtype = torch.float32) -> Callable[[Sequence[str]], torch.Tensor]:
    """The function from image ids to features (R, N, D), which are those of one image of 32."""
    draw = torch.Generator().manual_seed(SEED)
    stored = torch.randn(32, size.image_tokens, size.width, generator=draw).to(dtype)
    return lambda image_ids: stored[[int(name.lstrip("c")) % 32 for name in image_ids]]
