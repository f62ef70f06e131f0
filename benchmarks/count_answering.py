"""How many kernels and host reads does one token of answers take, on the route of a GPU? Counted, so a CPU will do.

    python benchmarks/count_answering.py

A model of 22 layers, as TinyLlama-1.1B has, tiny in width, with adapters on all linear layers, in bf16; its layers are
compiled. `counting.py` says what counts.
"""

import json

import torch
from counting import Recorder, compiled_graphs
from transformers import LlamaConfig, LlamaForCausalLM
from triptych.config.base import Switch
from triptych.config.stages import Connector, Lora
from triptych.evaluate.fixed_shapes import READ_EVERY
from triptych.evaluate.generate import generate
from triptych.evaluate.ready import compile_for_answers, simplify_adapters
from triptych.model.connector import build_connector
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.utils.device import mixed_precision

LAYERS, WIDTH, IMAGE_TOKENS, VOCABULARY, END = 22, 64, 4, 300, 2
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEADY = 4  # the decoder's call that is counted, up to the next: images, questions, then a call for each token


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
    model, recorder = build(), Recorder()
    simplify_adapters(model)
    samples = [Sample(str(row), str(row // 4), tuple(range(10, 20 + row)), ()) for row in range(16)]
    prompt = PromptTokens((1, 3), tuple, tuple, END)
    features = torch.randn(len(samples), IMAGE_TOKENS, WIDTH)
    calls = []

    def answer() -> None:
        with mixed_precision("bf16", torch.device("cpu")):
            generate(model, samples, lambda names: features[: len(names)], prompt, READ_EVERY, fixed_shapes=True)

    def watch(*_: object) -> None:
        calls.append(None)
        recorder.on = len(calls) == STEADY

    with compiled_graphs(recorder):
        if compiled != "never":
            compile_for_answers(model)
            answer()
        hook = model.decoder.register_forward_pre_hook(watch)
        recorder.on = False
        with recorder:
            answer()
        hook.remove()
    sums = recorder.counts.sums()
    return {f"{name}_per_token": sums[name] for name in ("kernels", "host_reads")}


if __name__ == "__main__":
    print(json.dumps(count_answering()))
