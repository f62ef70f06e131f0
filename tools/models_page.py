"""The page of supported models, `docs/models.md`, from the list in the package and tiny models of each architecture."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from triptych.errors import run_step
from triptych.io.atomic import write_text
from triptych.model.architectures import ARCHITECTURES

INTRODUCTION = """\
# Supported models

Made by `make schema`; a test fails where it is out of date. What is not listed is refused in one line in the step that
fetches models, and so is a folder that names code of its own (`auto_map`), quantised weights, a prompt that does not
fit the tokenizer, and damaged files.
"""

LANGUAGE_MODELS = """\
## Language models

Of each architecture a tiny random model is built, with and without a sliding window, and compared with plain
transformers, one question at a time: logits and gradients of packed rows, greedy answers, and the answers of an export
(`tests/model/test_architectures.py`, `tests/export/test_export_architectures.py`). `model_type` is the key in a model's
`config.json`. Windows are those of its layers, and stay what they are in packed rows. The layers are what
`lora.target_modules` may name.
"""

TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": True,
}
OWN = {  # what only one architecture has
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma2": {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    "gemma3_text": {"query_pre_attn_scalar": 1, "final_logit_softcapping": 2.0, "tie_word_embeddings": False},
}


def tiny_config(kind: str, window: int | None = None, **settings: object) -> PreTrainedConfig:
    """The configuration of a tiny model, with a window in its first layer or, where all are alike, in all."""
    types = ["full_attention" if window is None else "sliding_attention", "full_attention"]
    windows = {
        "none": {},
        "every layer": {"sliding_window": window},
        "by layer": {"use_sliding_window": window is not None, "sliding_window": window or 64, "layer_types": types},
    }[ARCHITECTURES[kind].windows]
    return CONFIG_MAPPING[kind](**{**TINY, **windows, **OWN.get(kind, {}), **settings})


def tiny_model(kind: str, window: int | None = None, attention: str = "eager", **settings: object) -> PreTrainedModel:
    """A tiny model of an architecture, with the same random weights at every call."""
    torch.manual_seed(1)
    config = tiny_config(kind, window, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval().requires_grad_(False)


def language_models() -> Iterator[str]:
    """The section of language models."""
    yield LANGUAGE_MODELS
    yield "| architecture | `model_type` | examples | sliding window | layers |"
    yield "|---|---|---|---|---|"
    for kind, architecture in ARCHITECTURES.items():
        found = dict.fromkeys(
            name.rsplit(".", 1)[-1]
            for name, module in tiny_model(kind).model.named_modules()
            if isinstance(module, nn.Linear)
        )
        layers = ", ".join(f"`{name}`" for name in found)
        windows = {"none": "none", "every layer": "of all layers", "by layer": "layer by layer"}[architecture.windows]
        yield f"| {architecture.name} | `{kind}` | {architecture.examples} | {windows} | {layers} |"
    yield ""


SECTIONS = [language_models]


def page() -> str:
    """The page as Markdown."""
    return "\n".join([INTRODUCTION, *(line for section in SECTIONS for line in section())]).rstrip() + "\n"


def main() -> None:
    """Write the page of supported models."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path, help="file to write")
    write_text(parser.parse_args().file, page())


if __name__ == "__main__":
    run_step(main)
