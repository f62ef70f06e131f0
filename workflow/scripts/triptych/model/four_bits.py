"""A language model whose linear layers are kept in 4 bits (QLoRA, arXiv 2305.14314), by bitsandbytes."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.utils.optional import why_no_4_bits

MARK = "is_loaded_in_4bit"  # by which peft knows such a model


def load_quantise(folder: Path) -> str | None:
    """Read how the language model that `prepare_model` wrote is quantised: `nf4`, or None for not at all."""
    return read_json(folder / "manifest.json")["settings"].get("quantise")


def quantise(network: PreTrainedModel, kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Move a frozen language model to its device, with the linear layers of the decoder in 4 bits.

    Moving turns them to 4 bits; adapters come after it, because those of DoRA start from the weights as they then are.
    Embeddings, norms and output layer keep their dtype.

    Args:
        network: on the CPU.
        kind: of the 4 bits: `nf4`.
        dtype: of matrix products, into which weights are turned where they are used.
        device: of the model.

    Raises:
        TriptychError: bitsandbytes is not installed, or the device is no GPU.
    """
    if obstacle := why_no_4_bits(device.type):
        raise TriptychError(f"models.language_model.quantise: {obstacle}")
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(network.model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                options = {"compress_statistics": True, "quant_type": kind}
                sizes = layer.in_features, layer.out_features, layer.bias is not None
                small = Linear4bit(*sizes, compute_dtype=dtype, device="meta", **options)
                small.weight = Params4bit(layer.weight.data, requires_grad=False, module=small, **options)
                small.bias = layer.bias
                setattr(parent, name, small)
    setattr(network, MARK, True)
    network.to(device)


def in_four_bits(network: nn.Module) -> bool:
    """Tell whether a language model's linear layers are of 4 bits."""
    return getattr(network, MARK, False)


def numbers(parameter: nn.Parameter) -> int:
    """Count the numbers of a parameter, of which one in 4 bits holds two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
