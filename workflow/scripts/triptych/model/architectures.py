"""The language models that Triptych computes as transformers does; each is tested, and all others are refused."""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

from triptych.errors import TriptychError


@dataclass(frozen=True)
class Architecture:
    """What packing and answering must know of an architecture.

    Attributes:
        name: as people call it.
        examples: models that have it.
        windows: which layers look back on a sliding window alone, where the configuration gives one: none, every one,
            or those that it lists (`layer_types`).
        softcaps: the configuration may bound logits by a tanh.
    """

    name: str
    examples: str
    windows: Literal["none", "every layer", "by layer"] = "none"
    softcaps: bool = False


ARCHITECTURES = {  # by transformers' `model_type`
    "llama": Architecture("Llama", "Llama 2 and 3, TinyLlama, SmolLM2, Vicuna"),
    "mistral": Architecture("Mistral", "Mistral 7B; v0.1 has a window", windows="every layer"),
    "qwen2": Architecture("Qwen2", "Qwen2, Qwen2.5", windows="by layer"),
    "qwen3": Architecture("Qwen3", "Qwen3 (dense)", windows="by layer"),
    "smollm3": Architecture("SmolLM3", "SmolLM3", windows="by layer"),
    "phi3": Architecture("Phi-3", "Phi-3, Phi-3.5 and Phi-4 (text)", windows="every layer"),
    "gemma2": Architecture("Gemma 2", "Gemma 2", windows="by layer", softcaps=True),
    "gemma3_text": Architecture("Gemma 3, text", "Gemma 3 270M and 1B", windows="by layer", softcaps=True),
    "olmo2": Architecture("OLMo 2", "OLMo 2"),
}


def architecture(config: PreTrainedConfig) -> Architecture:
    """Look up the architecture of a language model.

    Raises:
        TriptychError: it is not supported.
    """
    if found := ARCHITECTURES.get(config.model_type):
        return found
    raise TriptychError(
        f"model_type: {config.model_type} is no language model that is supported ({', '.join(ARCHITECTURES)}); "
        "docs/models.md has examples of each"
    )


def sliding_window(config: PreTrainedConfig) -> int | None:
    """Give the tokens that one sees in layers with a window, itself included; None: no layer has one."""
    windows = architecture(config).windows
    if windows == "none" or (windows == "by layer" and "sliding_attention" not in config.layer_types):
        return None
    return config.sliding_window


def context_tokens(config: PreTrainedConfig) -> int:
    """Give the most tokens of a sequence that a model was made for.

    Beyond the original length, `longrope` turns all positions otherwise, which would depend on what shares a batch.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return config.max_position_embeddings


def head_size(config: PreTrainedConfig) -> int:
    """Give the width of one head of attention."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def final_softcap(config: PreTrainedConfig) -> float | None:
    """Give the bound c of the logits x, which become c * tanh(x / c); None: they have none."""
    return config.final_logit_softcapping if architecture(config).softcaps else None


def supported_attention(config: PreTrainedConfig, kind: str) -> str:
    """Give the kind of attention to use in place of `kind`: torch's fused kernel cannot bound attention logits."""
    bounded = architecture(config).softcaps and config.attn_logit_softcapping is not None
    return "eager" if kind == "sdpa" and bounded else kind
