"""Turn the language model of a checkpoint into one that transformers and peft save."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel

from triptych.config.evaluation import Evaluation
from triptych.model.vlm import VisionLanguageModel

MAX_NEW_TOKENS = Evaluation().max_new_tokens


def plain_language_model(model: VisionLanguageModel, adapter: bool, inside: str, folder: Path) -> PreTrainedModel:
    """Return the language model without LoRA modules: merged, or written to `folder/adapter` and removed.

    Merged layers are kept in fp32, as they were trained: rounding to bf16 would lose a part of the update.

    Args:
        model: as the checkpoint has it.
        adapter: write the LoRA instead of merging it.
        inside: where the exported model will hold the decoder: `model.<inside>`, with a dot at its end, or empty.
        folder: of the export.
    """
    wrapped = model.language_model
    if not model.has_lora:
        return wrapped
    if adapter:
        write_adapter(wrapped, inside, folder / "adapter")
        return wrapped.unload()
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            layer.get_base_layer().float()
    return wrapped.merge_and_unload(safe_merge=True)


def write_adapter(wrapped: PeftModel, inside: str, folder: Path) -> None:
    """Write the LoRA in peft's format, for a model that holds the decoder as `model.<inside>`."""
    start = "base_model.model.model."
    tensors = {
        f"{start}{inside}{name.removeprefix(start)}": tensor.detach().contiguous()
        for name, tensor in get_peft_model_state_dict(wrapped).items()
    }
    config = copy.deepcopy(wrapped.peft_config["default"])
    # A pattern of whole names: names alone would also match the layers of a vision tower, and are saved in any order.
    layers = "|".join(map(re.escape, sorted(config.target_modules)))
    config.target_modules = rf"model\.{re.escape(inside)}.*\.({layers})"
    config.inference_mode = True
    config.base_model_name_or_path = None  # the folder above, wherever that is
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def greedy(end: int, pad: int | None, never: Sequence[int] = ()) -> GenerationConfig:
    """Return the settings of greedy decoding up to the end token, with which Triptych answers."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=end if pad is None else pad,
        suppress_tokens=list(never) or None,
    )
