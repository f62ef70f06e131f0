"""Compiled layers."""

import os
from functools import partialmethod

import pytest
import torch
from conftest import make_model, make_questions
from trainings import (
    lora_model,
    stage,
    weights,
)
from triptych.config.runtime import Runtime
from triptych.errors import TriptychError
from triptych.model.flex import is_flex
from triptych.model.tokens import tokenise
from triptych.train.compilation import compile_layers, parameter_tokens
from triptych.train.route import CPU, GPU
from triptych.train.trainer import train


def test_compiled_layers_give_the_same_numbers(samples, features, prompt, capsys, monkeypatch):
    held_out = tokenise(make_questions(images=6, seed=9), prompt)
    traced = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # all of it but the C++ compiler's minute
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    results = []
    torch._dynamo.utils.counters.clear()
    for setting in ("auto", "always"):  # auto: so small a training is not worth it
        torch._dynamo.reset()
        model = lora_model()
        settings = stage(("connector", "lora"), rate=3e-3, epochs=2, batch_size=3)
        rest = [features, prompt, settings, "fp32", 0, ["2"]]
        rows = list(train(model, samples, held_out, *rest, runtime=Runtime(compile=setting)))
        results.append((rows, weights(model)))
        assert ("layers are compiled\n" in capsys.readouterr().out) == (setting == "always")
    (rows, plain), (compiled_rows, compiled) = results
    for row, other in zip(rows, compiled_rows, strict=True):
        for name in ("validation_loss", "train_loss", "gradient_norm_max"):
            assert other[name] == (row[name] and pytest.approx(row[name], rel=1e-3))
    assert plain.keys() == compiled.keys(), "no tensor has another name"
    assert all(torch.allclose(compiled[name], tensor, atol=2e-3) for name, tensor in plain.items())
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 6, "layers and shapes share what is compiled"


def test_compiling_needs_a_compiler_and_enough_work(samples, monkeypatch):
    model = make_model()
    assert parameter_tokens(model, samples, 5, 2) == 2 * parameter_tokens(model, samples, 5, 1)
    assert parameter_tokens(model, samples, 6, 1) - parameter_tokens(model, samples, 5, 1) == 4 * sum(
        parameter.numel() for parameter in model.decoder.parameters()
    )
    none = "the language model's layers are not compiled"
    assert compile_layers("never", model, 10**18, 10**6, CPU) == none
    assert compile_layers("auto", model, 10**9, 10**6, CPU) == none
    assert compile_layers("auto", model, 10**18, 100, GPU) == none, "too few steps for its start"
    monkeypatch.setenv("CXX", "no-such-compiler")
    for route in (CPU, GPU):
        assert compile_layers("auto", model, 10**18, 10**6, route).startswith(f"{none}: there is no C++ compiler")
        with pytest.raises(TriptychError, match="there is no C"):
            compile_layers("always", model, 0, 0, route)
    assert not is_flex(model.decoder)


def test_a_model_that_drops_attention_weights_is_not_computed_in_tiles():
    model = make_model()
    model.decoder.config.attention_dropout = 0.1
    assert "drops attention weights" in compile_layers("auto", model, 0, 10**6, GPU)
    with pytest.raises(TriptychError, match="attention_dropout"):
        compile_layers("always", model, 0, 0, GPU)


@pytest.mark.parametrize(("mode", "kept"), [(0o700, True), (0o755, True), (0o777, False), (0o775, False)])
def test_what_is_compiled_is_kept_where_only_its_user_can_write(tmp_path, monkeypatch, mode, kept):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored at the end
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder = tmp_path / "triptych-compiled"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **settings: None)
    monkeypatch.setattr("triptych.train.compilation._obstacle", lambda model, route: None)
    compile_layers("always", make_model(), 0, 0, GPU)
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (str(folder) if kept else None)
