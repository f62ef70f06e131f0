"""How many kernels and host reads does one token of answers take, on the route of a GPU? Counted, so a CPU will do.

    python benchmarks/count_answering.py

A model of 22 layers, as TinyLlama-1.1B has, tiny in width, with adapters on all linear layers, in bf16; its layers are
compiled. A compiled layer's kernels are the calls in the code that torch's inductor writes for it: matrix products,
attention, and loops into which it fuses the rest. All other operations are counted as they are dispatched, without
those that only change how a tensor is seen.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from unittest.mock import patch

import torch
from torch import nn
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.graph import GraphLowering
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import LlamaConfig, LlamaForCausalLM
from triptych.config.base import Switch
from triptych.config.stages import Connector, Lora
from triptych.evaluate.fixed_shapes import READ_EVERY
from triptych.evaluate.generate import generate
from triptych.evaluate.ready import compile_layers, simplify_adapters
from triptych.model.connector import build_connector
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.utils.device import mixed_precision

LAYERS, WIDTH, IMAGE_TOKENS, VOCABULARY, END = 22, 64, 4, 300, 2
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEADY = 4  # the decoder's call that is counted, up to the next: images, questions, then a call for each token
CALL = re.compile(r"\b(extern_kernels\.\w+|torch\.ops\.[\w.]+|cpp_fused\w*|triton_\w+)\(")
NO_KERNEL = {"view", "_unsafe_view", "_reshape_alias", "alias", "as_strided", "detach", "expand", "lift_fresh"}
NO_KERNEL |= {"permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind"}
NO_KERNEL |= {"unsqueeze", "unflatten", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive"}


class Written(Exception):
    """Inductor has written its code, which need not be compiled to be counted."""


class Counted(TorchDispatchMode):
    """Counts operations by name while it is `on`; of compiled layers, the kernels that inductor makes of them."""

    def __init__(self):
        super().__init__()
        self.on = False
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count one operation."""
        if self.on:
            self.found[function._schema.name.split("::")[1]] += 1
        return function(*args, **(kwargs or {}))

    def compile(self, layer: nn.Module, **options: bool) -> None:
        """Take the place of `Module.compile`: with this mode instead of inductor, and hidden from Dynamo."""
        compiled = torch.compile(layer._call_impl, backend=self._backend, **options)

        def call(*args: object, **kwargs: object) -> object:
            with _disable_current_modes():
                return compiled(*args, **kwargs)

        layer._compiled_call_impl = call

    def _backend(self, graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable:
        kernels: list[int] = []

        def compute(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
            if self.on and not kernels:
                kernels.append(kernels_of(graph, arguments))
            self.found["compiled"] += sum(kernels) if self.on else 0
            return graph.forward(*arguments)

        return compute


def kernels_of(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> int:
    """Count the kernels that inductor makes of a graph."""
    written = []

    def stop(code: str) -> None:
        written.append(code)
        raise Written

    alone = patch.object(CppScheduling, "ready_to_flush", lambda _: True)  # one function for each loop, as on a GPU
    with patch.object(GraphLowering, "save_output_code", stop), alone, suppress(Exception):
        torch._inductor.compile(graph, list(inputs))
    [code] = written
    return len(CALL.findall(code.split("def call(")[1].split("def benchmark")[0]))


def build() -> VisionLanguageModel:
    """The tiny model, with adapters on all linear layers, in bf16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS}
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=2, vocab_size=VOCABULARY)
    network = LlamaForCausalLM(config).eval().requires_grad_(False).to(torch.bfloat16)
    network = add_lora(network, Lora(rank=8, alpha=16, dropout=0.05, target_modules=ALL_LINEAR), seed=0)
    return VisionLanguageModel(build_connector(Connector(), WIDTH, WIDTH, 0), network).eval().requires_grad_(False)


def count_answering(compiled: Switch = "always") -> dict[str, int]:
    """Count kernels and host reads of a token in the middle of an answer, for a whole batch.

    Args:
        compiled: `never` counts what there is without a compiler.
    """
    model, counted = build(), Counted()
    torch._dynamo.reset()
    simplify_adapters(model)
    with patch.object(nn.Module, "compile", lambda layer, **options: counted.compile(layer, **options)):
        if compiled != "never":
            compile_layers(model)
    samples = [Sample(str(row), str(row // 4), tuple(range(10, 20 + row)), ()) for row in range(16)]
    prompt = PromptTokens((1, 3), tuple, tuple, END)

    def answer() -> None:
        with mixed_precision("bf16", torch.device("cpu")):
            generate(model, samples, lambda names: features[: len(names)], prompt, READ_EVERY, fixed_shapes=True)

    features = torch.randn(len(samples), IMAGE_TOKENS, WIDTH)
    answer()  # compiles
    calls = []

    def watch(*_: object) -> None:
        calls.append(None)
        counted.on = len(calls) == STEADY

    hook = model.decoder.register_forward_pre_hook(watch)
    with counted:
        answer()
    hook.remove()
    torch._dynamo.reset()
    kernels = sum(number for name, number in counted.found.items() if name not in NO_KERNEL | READS)
    return {"kernels_per_token": kernels, "host_reads_per_token": sum(counted.found[name] for name in READS)}


if __name__ == "__main__":
    print(json.dumps(count_answering()))
