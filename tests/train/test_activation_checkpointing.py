"""Memory of a pass, and layers that are computed again."""

import pytest
import torch
from conftest import TOKENS, make_model, make_questions
from trainings import (
    lora_model,
    same,
    stage,
    weights,
)
from triptych.config.runtime import Runtime
from triptych.config.stages import Lora
from triptych.model.attention import BLOCKWISE, row_tokens
from triptych.model.packing import pack
from triptych.model.tokens import tokenise
from triptych.model.vlm import add_lora
from triptych.train.activation_checkpointing import activation_bytes, largest_pass
from triptych.train.parameters import set_trainable
from triptych.train.trainer import train


def autograd_bytes(model, batch):
    """What a forward pass leaves for the backward one, besides parameters."""
    kept = {}
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.answer_logits(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("attention", ["eager", "sdpa", BLOCKWISE])
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"], ["q_proj", "down_proj"], "dora", "language model"])
def test_the_memory_of_a_pass_is_estimated(attention, targets, features, prompt):
    model = make_model(attention)
    if targets == "language model":
        set_trainable(model, ["connector", "language_model"])
    elif targets:
        kind = {"use_dora": True} if targets == "dora" else {"target_modules": targets}
        model.language_model = add_lora(model.language_model, Lora(**kind), seed=5)
    samples = tokenise(make_questions(images=24), prompt)
    batch = pack(samples, features, prompt, TOKENS, row_tokens(model.decoder))
    model.train()
    together = batch.tokens.shape[1]
    if attention == BLOCKWISE:
        lengths = torch.bincount(batch.blocks.flatten()).double()
        together = round(float(lengths.square().sum() / lengths.sum()))
    size = (batch.tokens.numel(), together, len(batch.targets))
    ratio = activation_bytes(model, size, 4) / autograd_bytes(model, batch)
    assert 0.9 < ratio < 1.3, ratio
    bound = largest_pass(samples, 1 + TOKENS, len(samples), 10**6, model)
    assert bound[0] >= batch.tokens.numel() and bound[2] >= len(batch.targets)
    least = activation_bytes(model, size, 4)
    for place in range(3):
        more = tuple(number + 100 * (place == index) for index, number in enumerate(size))
        assert activation_bytes(model, more, 4) > least


@pytest.mark.parametrize("parts", [("connector",), ("connector", "lora")])
def test_layers_computed_again_give_the_same_bits(parts, samples, features, prompt, capsys, monkeypatch):
    results = []
    for memory, setting in ((10**12, "auto"), (10**12, "always"), (1000, "auto"), (10**12, "never")):
        monkeypatch.setattr("triptych.train.activation_checkpointing.free_memory", lambda device: memory)  # noqa: B023
        model = lora_model(dropout=0.1) if "lora" in parts else make_model()
        rest = [features, prompt, stage(parts, epochs=2), "fp32", 0, ["2"]]
        runtime = Runtime(gradient_checkpointing=setting)
        rows = list(train(model, samples, samples, *rest, runtime=runtime))
        results.append((rows, weights(model)))
        model.train()
        assert model.decoder.is_activation_checkpointing == (memory == 1000 or setting == "always")
    for rows, found in results[1:]:
        assert rows == results[0][0] and same(found, results[0][1])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("activations take about ")]
    assert ["checkpointing" in line for line in said] == [False, True, True, False]
    assert all("of 1000.0 GB free; they are kept" in line for line in (said[0], said[3]))
