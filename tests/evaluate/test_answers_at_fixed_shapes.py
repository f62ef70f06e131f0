"""Answers at fixed shapes, as a GPU computes them, forced on whichever device there is."""

from collections import Counter
from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from conftest import FEATURES, HIDDEN, ROOT, WORDS, make_llama, make_model, make_questions
from models_page import tiny_model
from triptych.config.stages import Connector, Lora
from triptych.errors import TriptychError
from triptych.evaluate import fixed_shapes
from triptych.evaluate.generate import generate, run_prefixes
from triptych.evaluate.ready import WORTHWHILE, AdaptedLinear, make_ready, simplify_adapters
from triptych.model.attention import BLOCKWISE
from triptych.model.connector import build_connector
from triptych.model.tokens import tokenise
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.utils.device import mixed_precision

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CPU = torch.device("cpu")


def adapted(network=None, **variant):
    """The toy model with adapters that matter; fresh ones change nothing."""
    settings = Lora(rank=4, alpha=6, target_modules=LAYERS, **variant)
    network = add_lora(network or make_llama(BLOCKWISE), settings, seed=5).eval()
    torch.manual_seed(6)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
            elif "magnitude" in name:
                parameter *= 1 + 0.1 * torch.randn_like(parameter)
    connector = build_connector(Connector(), FEATURES, HIDDEN, seed=3)
    return VisionLanguageModel(connector, network).eval().requires_grad_(False)


@pytest.fixture
def many(prompt):
    return tokenise(make_questions(images=12, seed=4), prompt)


@pytest.fixture
def ending(many, features, prompt):
    """The prompt with an end token that the toy model says soon: with its own, no answer ends."""
    answers, _ = generate(make_model("sdpa"), many, features, prompt, 20, fixed_shapes=False)
    early = Counter(token for answer in answers for token in set(answer[:6]))
    return replace(prompt, end=early.most_common(1)[0][0])


@pytest.fixture
def traced(monkeypatch):
    """Compilation without the C++ compiler's minute."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def decoder_calls(model):
    """The shapes (R, Q) of what the decoder is given, as it is."""
    shapes = []

    def note(module, args, kwargs):
        given = kwargs.get("input_ids")
        shapes.append(tuple(given.shape if given is not None else kwargs["inputs_embeds"].shape[:2]))

    model.decoder.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def test_all_batches_share_few_shapes(many, features, prompt):
    model = make_model("sdpa")
    shapes = decoder_calls(model)
    for start, stop in [(0, 9), (3, 19), (2, 3), (0, 28), (9, 24)]:
        generate(model, many[start:stop], features, prompt, 6, fixed_shapes=True)
    assert set(shapes) == {(8, 5), *((rows, tokens) for rows in (16, 1, 32) for tokens in (32, 1))}
    long = replace(many[0], question=many[0].question * 6)
    found = generate(model, [long, many[1]], features, prompt, 6, fixed_shapes=True)
    assert shapes[-1] == (2, 1) and (2, 64) in shapes
    expected = generate(model, [long, many[1]], features, prompt, 6, fixed_shapes=False)
    assert found[0] == expected[0] and found[1] == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize("new_tokens", [1, 7, 8, 9, 40])
def test_an_answer_is_as_long_as_it_would_be(new_tokens, many, features, ending):
    answers, logprobs = generate(make_model("sdpa"), many, features, ending, new_tokens, fixed_shapes=False)
    found = generate(make_model("sdpa"), many, features, ending, new_tokens, fixed_shapes=True)
    assert found[0] == answers and found[1] == pytest.approx(logprobs, abs=1e-3)
    lengths = set(map(len, answers))
    assert max(lengths) == new_tokens and len(lengths) >= min(new_tokens, 4), "some end early, one never"


def test_the_end_of_all_answers_is_asked_for_every_few_tokens(many, features, ending):
    model, prompt = make_model("sdpa"), ending
    answers = generate(model, many, features, prompt, 64, fixed_shapes=False)[0]
    short = [sample for sample, answer in zip(many, answers, strict=True) if len(answer) < fixed_shapes.READ_EVERY]
    assert len(set(map(tuple, answers))) > 3 and len(short) > 3
    shapes = decoder_calls(model)
    generate(model, short, features, prompt, 64, fixed_shapes=True)
    assert sum(tokens == 1 for _, tokens in shapes) == fixed_shapes.READ_EVERY - 1, "the first is the question's"


def test_what_is_added_to_reach_a_shape_is_not_seen(many, features, prompt, monkeypatch):
    expected = generate(make_model("sdpa"), many[:5], features, prompt, 6, fixed_shapes=True)
    room = fixed_shapes._room

    def written(*arguments):
        return [(keys + 7, values - 9) for keys, values in room(*arguments)]

    monkeypatch.setattr(fixed_shapes, "_room", written)
    assert generate(make_model("sdpa"), many[:5], features, prompt, 6, fixed_shapes=True) == expected


def test_a_model_is_left_as_it_was(many, features, prompt):
    model = make_model(BLOCKWISE)
    expected = generate(model, many, features, prompt, 6, fixed_shapes=False)
    generate(model, many, features, prompt, 6, fixed_shapes=True)
    model.decoder.layers[1].mlp.forward = None
    with pytest.raises(TypeError):
        generate(model, many, features, prompt, 6, fixed_shapes=True)
    del model.decoder.layers[1].mlp.forward
    assert model.decoder.config._attn_implementation == BLOCKWISE
    assert not any(hasattr(layer.self_attn, "kept") for layer in model.decoder.layers)
    assert generate(model, many, features, prompt, 6, fixed_shapes=False) == expected


def test_an_images_prefix_depends_on_no_other_image(features, prompt):
    names = [f"image{number}" for number in range(11)]
    model = make_model("sdpa")
    together = run_prefixes(model, features, prompt, names, True)
    alone = run_prefixes(model, features, prompt, names[9:10], True)
    plain = run_prefixes(model, features, prompt, names, False)
    for one, other, usual in zip(together.layers, alone.layers, plain.layers, strict=True):
        assert torch.equal(one.keys[9:10], other.keys) and torch.equal(one.values[9:10], other.values)
        assert torch.allclose(one.keys, usual.keys, atol=1e-5) and torch.allclose(one.values, usual.values, atol=1e-5)


def test_layers_are_compiled_once_for_each_shape(many, features, prompt, traced):
    model = adapted()
    expected = generate(model, many, features, prompt, 12, fixed_shapes=False)
    assert make_ready(model, "always", 0, fixed_shapes=True).endswith("layers are compiled")
    for _ in range(2):  # as two views
        found = generate(model, many, features, prompt, 12, fixed_shapes=True)
        assert found[0] == expected[0] and found[1] == pytest.approx(expected[1], abs=1e-3)
        assert traced() == 4, "a trial, images, questions and tokens: all layers, batches and places share them"
    generate(model, many[:20], features, prompt, 9, fixed_shapes=True)
    found = generate(model, many[:16], features, prompt, 12, fixed_shapes=True)
    assert found[0] == expected[0][:16]


@pytest.mark.parametrize("kind", ["gemma2", "smollm3"])  # with windows, and without rotation
def test_layers_of_several_kinds_can_be_compiled(kind, many, features, prompt, traced):
    def build():
        network = tiny_model(kind, 4, vocab_size=len(WORDS))
        return VisionLanguageModel(build_connector(Connector(), FEATURES, HIDDEN, seed=3), network)

    compiled = build()
    make_ready(compiled, "always", 0, fixed_shapes=True)
    answers, logprobs = generate(compiled, many, features, prompt, 9, fixed_shapes=True)
    expected = generate(build(), many, features, prompt, 9, fixed_shapes=False)
    assert answers == expected[0] and logprobs == pytest.approx(expected[1], abs=1e-3)
    assert 4 <= traced() <= 8, "kinds of layers times shapes"


VARIANTS = [{}, {"use_rslora": True}, {"use_dora": True}]


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_are_merged_in_fp32(many, features, prompt, variant):
    plain, merged = adapted(**variant), adapted(**variant)
    assert simplify_adapters(merged) == "adapters are merged"
    expected = generate(plain, many, features, prompt, 9, fixed_shapes=True)
    found = generate(merged, many, features, prompt, 9, fixed_shapes=True)
    assert found[0] == expected[0] and found[1] == pytest.approx(expected[1], abs=1e-4)
    bare = adapted()
    bare.language_model.disable_adapter_layers()
    assert generate(bare, many, features, prompt, 9, fixed_shapes=True)[0] != expected[0], "they matter"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # qwen2 has biases
def test_adapters_in_bf16_are_no_less_exact_than_peft(kind, variant):
    networks = [tiny_model(kind, vocab_size=len(WORDS)) for _ in range(2)]
    exact, model = (adapted(network.to(torch.bfloat16), **variant) for network in networks)
    exact.language_model.double()
    x = torch.randn(3, 5, HIDDEN).bfloat16()
    for name in ("q_proj", "o_proj"):
        layer = getattr(model.decoder.layers[0].self_attn, name)
        expected = getattr(exact.decoder.layers[0].self_attn, name)(x.double())
        ours = AdaptedLinear(layer, torch.bfloat16)
        with mixed_precision("bf16", CPU), torch.inference_mode():
            found, usual = ours(x), layer(x)
        assert found.dtype == usual.dtype == torch.bfloat16
        more = 1.15 if "use_dora" in variant else 1.05  # DoRA's sum is rounded once more; peft has it in fp32
        assert (found - expected).norm() <= more * (usual - expected).norm() < 0.02 * expected.norm()
    assert simplify_adapters(model) == "adapters stay beside the weights"
    kept = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    assert len(kept) == len(LAYERS) * len(model.decoder.layers)


def test_what_is_not_wanted_or_not_possible_is_said(monkeypatch, traced):
    assert make_ready(adapted(), "always", 10**9) == "adapters are merged", "a CPU compiles nothing for answers"
    for setting, tokens, expected in [
        (
            "never",
            10**9,
            "answers at fixed shapes; adapters are merged; layers are not compiled (runtime.compile: never)",
        ),
        ("auto", WORTHWHILE, "layers are not compiled (runtime.compile: auto)"),
        ("auto", WORTHWHILE + 1, "layers are compiled"),
    ]:
        assert expected in make_ready(adapted(), setting, tokens, fixed_shapes=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = make_ready(make_model("sdpa"), "auto", WORTHWHILE + 1, fixed_shapes=True)
    assert "no adapters; layers are not compiled (there is no C++ compiler (g++, or what CXX names))" in said
    with pytest.raises(TriptychError, match=r"runtime\.compile: there is no C\+\+ compiler .*use auto or never"):
        make_ready(make_model("sdpa"), "always", 0, fixed_shapes=True)


def test_a_compiler_that_fails_is_said_and_answers_are_the_same(many, features, prompt, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("ptxas crashed\nand more")

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=broken))
    torch._dynamo.reset()
    model = make_model("sdpa")
    said = make_ready(model, "auto", WORTHWHILE + 1, fixed_shapes=True)
    assert "layers are not compiled (layers cannot be compiled here: " in said and "ptxas" in said and "\n" not in said
    found = generate(model, many, features, prompt, 6, fixed_shapes=True)
    assert found[0] == generate(make_model("sdpa"), many, features, prompt, 6, fixed_shapes=False)[0]
    with pytest.raises(TriptychError, match=r"runtime\.compile: layers cannot be compiled here"):
        make_ready(model, "always", 0, fixed_shapes=True)
    torch._dynamo.reset()


def test_a_token_takes_few_kernels_and_waits_for_nothing(monkeypatch):
    """Of TinyLlama's 22 layers with adapters on all linear ones; at growing shapes it takes 2,535 kernels."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from count_answering import count_answering

    found = count_answering()
    assert 22 * 25 < found["kernels_per_token"] <= 900
    assert found["host_reads_per_token"] == 0
    monkeypatch.setattr(fixed_shapes, "READ_EVERY", 1)
    uncompiled = count_answering("never")
    assert uncompiled["kernels_per_token"] > 2 * found["kernels_per_token"], "without a compiler"
    assert uncompiled["host_reads_per_token"] == 1, "a wait would be noticed"
