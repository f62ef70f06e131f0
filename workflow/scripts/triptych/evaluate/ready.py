"""Makes a loaded model ready to answer: adapters in few operations and, at fixed shapes, layers compiled.

It answers the same, and can be neither trained nor saved any more.
"""

import torch
from peft.tuners.lora import Linear
from torch import nn

from triptych.config.base import Switch
from triptych.errors import TriptychError, message_of, out_of_memory
from triptych.evaluate.fixed_shapes import at_fixed_shapes, run_prefixes_at_fixed_shapes
from triptych.model.four_bits import in_four_bits
from triptych.model.vlm import VisionLanguageModel
from triptych.train.compilation import compile_for_each_shape, obstacle_to_compiling, undo_compilation

SHAPES = 64  # that a layer is compiled for at most: numbers of rows and of a question's tokens, and kinds of layers

# Tokens, each of a whole batch, above which compiling pays; from counts, and not measured on a GPU. Compiled, a token
# of TinyLlama's with adapters has about 900 kernels less to start, which takes about 4 ms; compiling takes 40 s once.
WORTHWHILE = 10_000


class AdaptedLinear(nn.Module):
    """A linear layer with its adapter, x (..., I) -> (..., O): three matrix products, and of DoRA one by numbers.

    DoRA multiplies each row of the updated weight by its trained length over the length that it has. What that factor
    differs from 1 by is applied to the layer's own output, as that is close to 0, where bf16 is fine enough.
    """

    def __init__(self, adapted: Linear, dtype: torch.dtype):
        """Take over a layer from peft, its one adapter in `dtype`."""
        super().__init__()
        [name] = adapted.active_adapters
        self.layer = adapted.get_base_layer()
        down, up = adapted.lora_A[name].weight, adapted.lora_B[name].weight * adapted.scaling[name]
        shift = unshifted = None
        if name in adapted.lora_magnitude_vector:
            factor = adapted.lora_magnitude_vector[name].weight / (self.layer.weight.float() + up @ down).norm(dim=1)
            up, shift = factor[:, None] * up, (factor - 1).to(dtype)
            bias = self.layer.bias  # which DoRA leaves alone
            unshifted = torch.zeros_like(shift) if bias is None else (bias.float() * (1 - factor)).to(dtype)
        self.register_buffer("down", down.to(dtype))
        self.register_buffer("up", up.to(dtype))
        self.register_buffer("shift", shift)
        self.register_buffer("unshifted", unshifted)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer's output with what the adapter adds."""
        own, within = self.layer(x), nn.functional.linear(x, self.down)
        if self.shift is not None:
            shifted = torch.addcmul(self.unshifted, own, self.shift)
            added = torch.addmm(shifted.flatten(0, -2), within.flatten(0, -2), self.up.t())
            return own + added.view(own.shape)
        return torch.addmm(own.flatten(0, -2), within.flatten(0, -2), self.up.t()).view(own.shape)


def make_ready(model: VisionLanguageModel, compiled: Switch, tokens: int, fixed_shapes: bool | None = None) -> str:
    """Make a model ready to answer.

    Args:
        model: in evaluation mode, on its device.
        compiled: the setting `runtime.compile`; `auto` compiles for more tokens than WORTHWHILE.
        tokens: how many will be computed at most, each for a whole batch.
        fixed_shapes: whether they are; None: as suits the device.

    Returns:
        A line that says what was done.

    Raises:
        TriptychError: `compiled` is `always`, and layers cannot be compiled.
    """
    device = next(model.parameters()).device
    adapters = simplify_adapters(model) if model.has_lora else "no adapters"
    if not at_fixed_shapes(fixed_shapes, device):
        return adapters
    if compiled == "never" or (compiled == "auto" and tokens <= WORTHWHILE):
        layers = f"layers are not compiled (runtime.compile: {compiled})"
    elif obstacle := obstacle_to_compiling(model) or compile_for_answers(model):
        if compiled == "always":
            raise TriptychError(f"runtime.compile: {obstacle}; use auto or never")
        layers = f"layers are not compiled ({obstacle})"
    else:
        layers = "layers are compiled"
    return f"answers at fixed shapes; {adapters}; {layers}"


def simplify_adapters(model: VisionLanguageModel) -> str:
    """Have adapters cost little in a model that only answers; says how.

    In fp32 they are added to the weights, which changes the last bits of answers' probabilities. In bf16 the sums would
    be rounded to 8 bits, which loses a part of what small adapters add: there they stay beside the weights.
    """
    dtype = model.language_model.get_input_embeddings().weight.dtype
    if in_four_bits(model.network):
        return "adapters stay beside the weights, which are in 4 bits"
    if dtype == torch.float32:
        model.language_model.merge_adapter()
        return "adapters are merged"
    for parent in list(model.language_model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear):
                setattr(parent, name, AdaptedLinear(layer, dtype))
    return "adapters stay beside the weights"


@torch.inference_mode()
def compile_for_answers(model: VisionLanguageModel) -> str:
    """Have the decoder's layers compiled at their first use, once for each shape; layers that are alike share it.

    The shortest prefix is run to see whether it works; if not, layers are as they were, and the text says why.
    """
    device = next(model.parameters()).device
    compile_for_each_shape(model, SHAPES)
    try:
        run_prefixes_at_fixed_shapes(model, model.embed(torch.zeros(1, 1, dtype=torch.long, device=device)))
    except Exception as error:  # compilers, drivers and processors fail in many ways
        if out_of_memory(error):
            raise
        undo_compilation(model)
        return f"layers cannot be compiled here: {message_of(error)}"
    return ""
