"""Gradient checkpointing: whether layers keep their activations for the backward pass, or compute them again."""

from collections.abc import Sequence
from typing import NamedTuple

from peft.tuners.lora import LoraLayer
from torch import nn

from triptych.config.base import Switch
from triptych.errors import TriptychError
from triptych.model.attention import BLOCKWISE, is_blockwise
from triptych.model.flex import is_flex
from triptych.model.packing import ROW_TOKENS
from triptych.model.tiles import TILE
from triptych.model.tokens import Sample, by_image
from triptych.model.vlm import VisionLanguageModel, has_dora
from triptych.utils.device import free_memory

USABLE_MEMORY = 0.8  # of the free memory; the rest is for what the estimate leaves out


class PassSize(NamedTuple):
    """Size of one forward and backward pass: tokens, tokens that attention sees at once, and answer tokens."""

    tokens: int
    attended: int
    answers: int


def largest_pass(
    samples: Sequence[Sample], prefix_tokens: int, batch_size: int, step_tokens: int, model: VisionLanguageModel
) -> PassSize:
    """Bound the size of any pass over the samples from above.

    Args:
        samples: of the training.
        prefix_tokens: length of an image's shared prefix.
        batch_size: samples of a step.
        step_tokens: tokens of a pass, where an image has no more by itself.
        model: whose decoder computes.
    """
    texts = sorted((len(sample.text) for sample in samples), reverse=True)[:batch_size]
    answers = sorted((len(sample.answer) for sample in samples), reverse=True)[:batch_size]
    images = by_image(samples).values()
    block = prefix_tokens + max(sum(len(samples[index].text) for index in indices) for indices in images)
    tokens = min(len(texts) * prefix_tokens + sum(texts), max(step_tokens, block))
    if is_blockwise(model.decoder):
        return PassSize(tokens, block, min(tokens, sum(answers)))
    if is_flex(model.decoder):
        return PassSize(-(-tokens // TILE) * TILE, 0, min(tokens, sum(answers)))  # no mask, no weights
    row = max(ROW_TOKENS, block)
    return PassSize(-(-tokens // row) * row, row, min(tokens, sum(answers)))


def activation_bytes(model: VisionLanguageModel, size: PassSize, width: int) -> int:
    """Estimate the memory that a forward pass keeps for the backward pass, in bytes.

    Of each layer, what frozen layers must keep, counted in numbers a token: 4 times the hidden size in the compute
    dtype, and 2.5 times in fp32 (norms); 3 times the feed-forward size; before each adapter, its input, twice
    (dropout), once in fp32; behind one of DoRA, both outputs; before each linear layer that trains, its input, where
    other layers have not kept it; and, with plain attention, its weights, one for each head and token of the row, in
    fp32 and, where it is another, in the compute dtype; with blockwise attention, in that alone, for each token of the
    block. Once, the mask. Of the output head, three fp32 numbers for each answer token and word.

    Args:
        model: whose decoder computes.
        size: of the pass.
        width: bytes of a number of the compute dtype.
    """
    tokens, attended, answers = size
    config = model.language_model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", 4 * hidden)
    layer = hidden * (4 * width + 10) + 3 * width * inner
    if model.tuning:
        layer += width * (3 * hidden + inner)
    if config._attn_implementation == "eager":
        layer += config.num_attention_heads * attended * (4 if width == 4 else 4 + width)
    elif config._attn_implementation == BLOCKWISE:
        layer += config.num_attention_heads * attended * width
    adapted = [m for name, m in model.language_model.named_modules() if name.endswith(".lora_A.default")]
    adapters = (4 + width) * sum(module.in_features for module in adapted if isinstance(module, nn.Linear))
    scaled = [module for module in model.language_model.modules() if isinstance(module, LoraLayer) and has_dora(module)]
    adapters += 2 * width * sum(module.out_features for module in scaled)
    return tokens * (layers * layer + adapters + width * attended) + answers * config.vocab_size * (12 + width)


def encoder_bytes(model: VisionLanguageModel, size: PassSize, prefix_tokens: int) -> int:
    """Measure what a vision encoder that trains keeps of a pass's images for the backward pass, in bytes.

    One image is computed for it. The encoder's layers are never computed again in the backward pass.
    """
    training = model.vision is not None and model.vision.trains
    return size.tokens // prefix_tokens * model.vision.kept_bytes() if training else 0


def configure_checkpointing(
    setting: Switch, model: VisionLanguageModel, size: PassSize, width: int, reserved: float = 0
) -> str:
    """Switch gradient checkpointing of the decoder on or off; gives the choice in words.

    Args:
        setting: `auto` switches it on where the estimate is above 0.8 of the device's free memory.
        model: on its device.
        size: of the largest pass.
        width: bytes of a number of the compute dtype.
        reserved: bytes of the free memory that gradients, optimiser and a vision encoder that trains will take.

    Raises:
        TriptychError: the setting is `always`, and this language model does not support it.
    """
    network = model.network
    device = next(model.parameters()).device
    needed, free = activation_bytes(model, size, width), free_memory(device) - reserved
    supported = network.supports_gradient_checkpointing
    if setting == "always" and not supported:
        raise TriptychError(
            "runtime.gradient_checkpointing: this language model does not support it; use auto or never"
        )
    on = setting == "always" or (setting == "auto" and supported and needed > USABLE_MEMORY * free)
    if on:
        network.activation_checkpointing_enable({"use_reentrant": False})
    elif supported:
        network.activation_checkpointing_disable()
    chosen = "they are computed again in the backward pass (gradient checkpointing)" if on else "they are kept"
    return f"activations take about {needed / 1e9:.2g} GB of {free / 1e9:.1f} GB free; {chosen}"
