"""Whether the language model's layers are compiled: faster steps, after a start that costs about a minute."""

import os
import shutil
from collections.abc import Sequence

from triptych.config.base import Switch
from triptych.errors import TriptychError
from triptych.model.tokens import Sample
from triptych.model.vlm import VisionLanguageModel

# Parameters of the layers times tokens that pass through them, above which compiling pays on a CPU. Measured on one
# core with ten layers of 3.5 million parameters in bf16 and 480 tokens a step: 0.34 s become 0.22, with LoRA 0.43
# become 0.26, so 7e-12 s are saved for each; about 45 s are spent once. This is twice what makes up for them.
WORTHWHILE = 1.3e13


def planned_work(model: VisionLanguageModel, samples: Sequence[Sample], prefix: int, epochs: int) -> int:
    """Parameters of the decoder's layers times tokens of a training, with an image prefix of `prefix` tokens."""
    tokens = prefix * len({sample.image_id for sample in samples}) + sum(len(sample.text) for sample in samples)
    return epochs * tokens * sum(parameter.numel() for parameter in model.decoder.parameters())


def choose_compilation(setting: Switch, model: VisionLanguageModel, work: int) -> bool:
    """Have each of the decoder's layers compiled at its first use; says whether.

    Layers are alike, so that one of them is compiled for all; shapes stay free, so that it is done once, and not for
    every length of rows again.

    Args:
        setting: `auto` compiles on a CPU, where there is a C++ compiler, a training of more work than WORTHWHILE.
        model: on its device.
        work: from `planned_work`.

    Raises:
        TriptychError: it is asked for, and cannot be done here.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    layers = getattr(model.decoder, "layers", None)
    lacking = "this language model's layers are not known" if layers is None else None
    if on_cpu and not shutil.which(os.environ.get("CXX", "g++")):
        lacking = "there is no C++ compiler (g++, or what CXX names)"
    if setting == "always" and lacking:
        raise TriptychError(f"training.compile: {lacking}; use auto or never")
    if lacking or not (setting == "always" or (setting == "auto" and on_cpu and work > WORTHWHILE)):
        return False
    for layer in layers:
        layer.compile(dynamic=True)
    return True
