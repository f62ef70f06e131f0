"""Compilation of the language model's layers: faster steps, after a start that takes about a minute."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils._triton import has_triton

from triptych.config.base import Precision, Switch
from triptych.errors import TriptychError, message_of, out_of_memory
from triptych.model.architectures import supported_attention
from triptych.model.flex import use_flex
from triptych.model.four_bits import in_four_bits
from triptych.model.packing import Batch
from triptych.model.tokens import Sample
from triptych.model.vlm import VisionLanguageModel, has_dora
from triptych.train.buckets import MOST_SHAPES
from triptych.train.route import Route
from triptych.utils.device import attention_kind, mixed_precision

# Parameters of the layers times tokens that pass through them, above which compiling pays on a CPU. Measured on one
# core with ten layers of 3.5 million parameters in bf16 and 480 tokens a step: 0.34 s become 0.22, with LoRA 0.43
# become 0.26, so 7e-12 s are saved for each; about 45 s are spent once. This is twice what makes up for them.
WORTHWHILE = 1.3e13

# Steps on a GPU. Not measured: reckoned from the kernels that compiling saves in each (10 to 50 ms) and from about 15 s
# for each shape, which later jobs find compiled.
WORTHWHILE_STEPS = 500


def parameter_tokens(model: VisionLanguageModel, samples: Sequence[Sample], prefix_tokens: int, epochs: int) -> int:
    """Multiply the parameters of the decoder's layers by the tokens of a training, a measure of its work.

    Args:
        model: whose decoder is meant.
        samples: of one epoch.
        prefix_tokens: length of an image's shared prefix.
        epochs: number of epochs.
    """
    tokens = prefix_tokens * len({sample.image_id for sample in samples}) + sum(len(one.text) for one in samples)
    return epochs * tokens * sum(parameter.numel() for parameter in model.decoder.parameters())


def compile_layers(setting: Switch, model: VisionLanguageModel, work: int, steps: int, route: Route) -> str:
    """Have the decoder's layers compiled at their first use, where the setting or the work says so.

    Layers are alike, so that one of them is compiled for all. On a CPU shapes are dynamic, so that it is done once. On
    a GPU it is done for each of the few fixed shapes, with attention in tiles.

    Args:
        setting: `auto` compiles where there is a compiler and enough to compute: on a CPU, more work than WORTHWHILE;
            on a GPU, as many steps as WORTHWHILE_STEPS.
        model: on its device.
        work: from `parameter_tokens`.
        steps: of the training.
        route: how the device computes.

    Returns:
        The choice in words.

    Raises:
        TriptychError: the setting is `always`, and layers or compiler are missing.
    """
    enough = steps >= WORTHWHILE_STEPS if route.fixed_shapes else work > WORTHWHILE
    if setting == "never" or (setting == "auto" and not enough):
        return "the language model's layers are not compiled"
    if obstacle := _obstacle(model, route):
        if setting == "always":
            raise TriptychError(f"runtime.compile: {obstacle}; use auto or never")
        return f"the language model's layers are not compiled: {obstacle}"
    if route.fixed_shapes:
        use_flex(model.decoder)
        compile_for_each_shape(model, 4 * MOST_SHAPES)  # for training, and one of them for validation
    else:
        for layer in model.decoder.layers:
            layer.compile(dynamic=True)
    return "the language model's layers are compiled"


def compile_for_each_shape(model: VisionLanguageModel, most: int) -> None:
    """Have the decoder's layers compiled at their first use with each shape, for at most `most` shapes and uses."""
    _keep_compiled()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, most)
    for layer in model.decoder.layers:
        layer.compile(fullgraph=True, dynamic=False)


def undo_compilation(model: VisionLanguageModel) -> None:
    """Have the decoder's layers computed as they are written again."""
    for layer in model.decoder.layers:
        layer._compiled_call_impl = None


def compiled_layers_work(setting: Switch, model: VisionLanguageModel, batch: Batch, precision: Precision) -> bool:
    """Compute one pass with compiled layers of fixed shapes; where that fails, layers are as they were again.

    Raises:
        TriptychError: it fails, and the setting is `always`.
        Exception: memory runs out: layers as they are need more.
    """
    device = next(model.parameters()).device
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), mixed_precision(precision, device):
            model.answer_logits(batch.to(device)).sum().backward()
        return True
    except Exception as error:  # compilers, drivers and processors fail in many ways
        if out_of_memory(error):
            raise
        why = f"the language model's layers cannot be compiled here ({message_of(error)})"
        if setting == "always":
            raise TriptychError(f"runtime.compile: {why}; use auto or never") from error
        print(f"{why}; they are not", flush=True)
        config = model.decoder.config
        config._attn_implementation = supported_attention(config, attention_kind(device))
        undo_compilation(model)
        return False
    finally:
        for parameter in model.parameters():
            parameter.grad = None


def _obstacle(model: VisionLanguageModel, route: Route) -> str | None:
    """Find what stands against compiling the layers for training, in words."""
    if route.fixed_shapes and getattr(model.decoder.config, "attention_dropout", 0):
        return "this language model drops attention weights (attention_dropout)"
    if route.fixed_shapes and has_dora(model.language_model):
        return "peft's DoRA cannot be compiled"
    return obstacle_to_compiling(model)


def obstacle_to_compiling(model: VisionLanguageModel) -> str | None:
    """Find what stands against compiling the layers, whatever they compute, in words."""
    if getattr(model.decoder, "layers", None) is None:
        return "this language model has no list of layers that Triptych knows"
    if in_four_bits(model.network):
        return "layers of 4 bits are not compiled"
    return _missing_compiler(next(model.parameters()).device)


def _missing_compiler(device: torch.device) -> str | None:
    """Find what is missing to compile for a device, in words."""
    on_cpu = device.type == "cpu"
    if not on_cpu and not has_triton():
        return "torch has no Triton for this GPU"
    variable, program = ("CXX", "g++") if on_cpu else ("CC", "gcc")
    if not shutil.which(os.environ.get(variable, program)):
        return f"there is no C{'++' if on_cpu else ''} compiler ({program}, or what {variable} names)"
    return None


def _keep_compiled() -> None:
    """Have torch keep what it compiles where later jobs find it, on whichever machine of a cluster they run.

    The folder is this user's own: torch runs what it finds there, so that nobody else may write to it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych-compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return  # torch then uses a folder of its own, on this machine
    if state.st_uid == os.getuid() and not state.st_mode & 0o022:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
