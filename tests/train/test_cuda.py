"""What must hold on a GPU, against the same on a CPU. The other tests run there too, on whichever device is found."""

import pytest
import torch
from conftest import FEATURES, HIDDEN, TOKENS, make_llama, make_questions
from textbook import unpacked_loss
from trainings import FP32, FULL_LORA, InterruptedAfterCalls, same, stage, weights
from transformers import LlamaConfig, LlamaForCausalLM
from triptych.config.runtime import Runtime
from triptych.config.stages import Connector, FeatureSettings, Lora
from triptych.evaluate.fixed_shapes import READ_EVERY
from triptych.evaluate.generate import generate
from triptych.evaluate.ready import make_ready
from triptych.features.encode import encode
from triptych.features.store import Features
from triptych.model.connector import build_connector
from triptych.model.packing import Shape, pack
from triptych.model.tokens import tokenise
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.train.activation_checkpointing import activation_bytes
from triptych.train.autosave import Interrupted
from triptych.train.compilation import compile_layers
from triptych.train.parameters import set_trainable
from triptych.train.route import GPU
from triptych.train.trainer import Trainer, train
from triptych.utils.device import attention_kind, best_device, compute_dtype, free_memory, mixed_precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here that torch can use")

CPU = torch.device("cpu")
WIDTH, SIDE = 64, 12  # of the larger model's vision features, which are SIDE x SIDE tokens an image
KEY = ["fold0", "3"]


@pytest.fixture
def device() -> torch.device:
    return best_device()


def on(device, precision="fp32"):
    """The toy model with adapters, as `checkpoint.build` would make it for a device."""
    # Heads of 16 numbers, the fewest that FlexAttention takes on a GPU.
    network = make_llama(attention_kind(device), heads=HIDDEN // 16).to(compute_dtype(precision, device))
    connector = build_connector(Connector(), FEATURES, HIDDEN, seed=3)
    return VisionLanguageModel(connector, add_lora(network, FULL_LORA, 5)).to(device)


def larger(device, tokenizer):
    """A model with heads and rows of usual sizes, on which the GPU's own kernels of attention are used, in bf16."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    config._attn_implementation = attention_kind(device)
    network = LlamaForCausalLM(config).eval().requires_grad_(False).to(compute_dtype("auto", device))
    network = add_lora(network, Lora(rank=8, alpha=16, dropout=0.1), seed=5)
    return VisionLanguageModel(build_connector(Connector(), WIDTH, 256, seed=3), network).to(device)


def larger_features(image_ids):
    seeds = [sum(map(ord, name)) for name in image_ids]
    return torch.stack([torch.randn(SIDE**2, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_a_gpu_is_found_and_says_what_is_free(device):
    assert device.type == "cuda" and device.index is not None and attention_kind(device) == "sdpa"
    before = free_memory(device)
    taken = torch.empty(10**9, dtype=torch.uint8, device=device)
    assert 0.9e9 < before - free_memory(device) < 1.2e9
    del taken  # kept by torch's cache, and free all the same
    assert abs(before - free_memory(device)) < 0.1e9


def test_packed_rows_have_the_loss_and_gradients_of_single_questions(device, prompt, features):
    samples = tokenise(make_questions(images=30, seed=2), prompt)
    found = []
    for where in (device, CPU):
        model = on(where)
        batch = pack(samples, features, prompt, TOKENS).to(where)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        loss = torch.nn.functional.cross_entropy(model.answer_logits(batch), batch.targets)
        loss.backward()
        found.append([loss.detach().cpu(), *(one.grad.cpu() for one in trained)])
    for gpu, cpu in zip(*found, strict=True):
        assert torch.allclose(gpu, cpu, rtol=1e-3, atol=1e-5)
    single = unpacked_loss(on(CPU), samples, features, prompt)
    assert float(found[0][0]) == pytest.approx(float(single), rel=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_attention_in_tiles_has_the_loss_and_gradients_of_single_questions(device, prompt, features, lora):
    """Compiled for each shape, with nonsense in empty slots."""
    torch._dynamo.reset()
    samples = tokenise(make_questions(images=30, seed=2), prompt)
    model = on(device)
    trained = set_trainable(model, ["connector", "lora"] if lora else ["connector"])
    assert compile_layers("always", model, 0, 0, GPU) == "the language model's layers are compiled"
    for shapes in ([Shape(1024, 40, 300)], [Shape(1536, 31, 200)]):
        batch = pack(samples, features, prompt, TOKENS, shapes=shapes, pinned=True)
        batch.features[~batch.shown] = torch.nan
        loss = torch.nn.functional.cross_entropy(model.answer_logits(batch.to(device)), batch.targets.to(device))
        found = torch.autograd.grad(loss, list(trained.values()))
        plain = on(CPU)
        single = unpacked_loss(plain, samples, features, prompt)
        expected = torch.autograd.grad(
            single, list(set_trainable(plain, ["connector", "lora"] if lora else ["connector"]).values())
        )
        assert float(loss) == pytest.approx(float(single), rel=1e-4)
        for name, gpu, cpu in zip(trained, found, expected, strict=True):
            assert (gpu.cpu() - cpu).norm() < 1e-3 * cpu.norm() + 1e-7, name


def test_steps_between_two_readings_wait_for_nothing(device, tokenizer, prompt):
    """torch itself raises where the host would wait."""
    samples = tokenise(make_questions(images=200, seed=6), prompt)
    settings = stage(("connector", "lora"), rate=1e-3, epochs=1, batch_size=8)
    torch._dynamo.reset()
    runtime = Runtime(compile="always")
    trainer = Trainer(
        larger(device, tokenizer),
        samples,
        samples[:8],
        larger_features,
        prompt,
        settings,
        "auto",
        0,
        KEY,
        None,
        runtime,
    )
    trainer.setup()
    step = trainer.train_step

    def watched(*arguments):
        number = trainer.progress.step + len(trainer.unread)
        waits = number % 16 == 15 or number < 32  # readings, the guards of the start, and what is compiled
        torch.cuda.set_sync_debug_mode("default" if waits else "error")
        step(*arguments)
        torch.cuda.set_sync_debug_mode("default")

    trainer.train_step = watched
    try:
        assert len(list(trainer.run())) == 2 and trainer.progress.step > 40
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_a_training_gives_what_it_gives_on_a_cpu(device, samples, features, prompt, compiled):
    settings = stage(("connector", "lora"), rate=3e-3, epochs=2)
    runtime = Runtime(compile=compiled)
    torch._dynamo.reset()
    gpu = list(train(on(device), samples, samples, features, prompt, settings, FP32, 0, KEY, runtime=runtime))
    cpu = list(train(on(CPU), samples, samples, features, prompt, settings, FP32, 0, KEY))
    for row, other in zip(gpu, cpu, strict=True):
        for name in ("validation_loss", "train_loss", "gradient_norm_max", "token_norm_ratio"):
            assert row[name] == (other[name] and pytest.approx(other[name], rel=5e-3)), name


def test_bf16_trains_what_fp32_trains(device, samples, features, prompt):
    settings = stage(("connector", "lora"), epochs=3)
    losses = {}
    for precision in ("fp32", "bf16"):
        model = on(device, precision)
        rows = list(train(model, samples, samples, features, prompt, settings, precision, 0, KEY))
        losses[precision] = rows[-1]["validation_loss"]
        assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


@pytest.mark.parametrize(("checkpointing", "compiled"), [("never", "never"), ("always", "never"), ("never", "always")])
def test_a_stopped_training_ends_as_if_it_had_not(device, tokenizer, prompt, tmp_path, checkpointing, compiled):
    """With the same bits where attention is compiled; else its backward pass may add up in any order."""
    samples = tokenise(make_questions(images=40, seed=6), prompt)
    settings = stage(("connector", "lora"), rate=1e-3, epochs=2, batch_size=16)

    def attempt(autosaver):
        model = larger(device, tokenizer)
        runtime = Runtime(gradient_checkpointing=checkpointing, compile=compiled)
        rows = train(model, samples, samples, larger_features, prompt, settings, "auto", 0, KEY, autosaver, runtime)
        return list(rows), weights(model)

    rows, undisturbed = attempt(None)
    attempts, found = 0, None
    while found is None:
        attempts += 1
        try:
            found = attempt(InterruptedAfterCalls(tmp_path / "last", 5))
        except Interrupted:
            assert attempts < 50
    assert attempts > 2
    if compiled == "always":
        assert found[0] == rows and same(found[1], undisturbed)
    for row, other in zip(found[0], rows, strict=True):
        assert row["validation_loss"] == pytest.approx(other["validation_loss"], rel=0.01)


def test_the_memory_of_a_pass_is_estimated(device, tokenizer, prompt):
    samples = tokenise(make_questions(images=200, seed=6), prompt)
    model = larger(device, tokenizer).train()
    batch = pack(samples, larger_features, prompt, SIDE**2).to(device)
    with mixed_precision("auto", device):
        model.answer_logits(batch).sum().backward()  # kernels' own room is taken by now
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = model.answer_logits(batch)
        used = torch.cuda.memory_allocated() - before
        assert kept.requires_grad
    size = (batch.tokens.numel(), batch.tokens.shape[1], len(batch.targets))
    assert 0.7 < activation_bytes(model, size, 2) / used < 1.6


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_answers_are_those_of_a_cpu(device, features, prompt, compiled):
    torch._dynamo.reset()
    samples = tokenise(make_questions(images=12, seed=4), prompt)
    on_gpu, on_cpu = on(device).eval(), on(CPU).eval()
    assert "at fixed shapes; adapters are merged" in make_ready(on_gpu, compiled, 0)
    for some in (samples, samples[:5]):
        gpu, gpu_likelihood = generate(on_gpu, some, features, prompt, 20)
        cpu, cpu_likelihood = generate(on_cpu, some, features, prompt, 20)
        assert gpu == cpu and len(set(map(tuple, gpu))) > 3
        assert gpu_likelihood == pytest.approx(cpu_likelihood, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_answers_in_bf16_are_as_likely_as_on_a_cpu(device, tokenizer, prompt, compiled):
    """Of single tokens: rounding may choose another one, after which answers go apart."""
    torch._dynamo.reset()
    samples = tokenise(make_questions(images=40, seed=6), prompt)
    found = []
    for where in (device, CPU):
        model = larger(where, tokenizer).eval().requires_grad_(False).bfloat16()
        make_ready(model, compiled, 0)
        with mixed_precision("bf16", where):
            found.append(generate(model, samples, larger_features, prompt, 1))
    (gpu, gpu_likelihood), (cpu, cpu_likelihood) = found
    assert sum(one == other for one, other in zip(gpu, cpu, strict=True)) > 0.9 * len(samples)
    assert gpu_likelihood == pytest.approx(cpu_likelihood, abs=0.05)


def test_a_token_of_an_answer_waits_for_nothing(device, features, prompt):
    samples = tokenise(make_questions(images=12, seed=4), prompt)
    model, calls = on(device).eval(), []
    make_ready(model, "never", 0)

    def watch(*_):
        calls.append(None)
        steady = (
            4 <= len(calls) <= READ_EVERY + 1
        )  # behind two calls for images, one for questions; up to the first read
        torch.cuda.set_sync_debug_mode("error" if steady else "default")

    hook = model.decoder.register_forward_pre_hook(watch)
    try:
        generate(model, samples, features, prompt, READ_EVERY + 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        hook.remove()
    assert len(calls) > READ_EVERY + 2


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
def test_features_are_those_of_a_cpu_and_the_same_stored_or_computed(device, image_sets, dtype, tolerance):
    paths = image_sets / "data" / "general-30", image_sets / "models" / "vision_encoder"
    ids = [f"image{number}" for number in (3, 29, 0)]
    found = []
    for number, (where, budget) in enumerate([(CPU, 100), (device, 100), (device, 0)]):
        out = image_sets / f"features-{number}" / "general-30"
        encode(*paths, out, FeatureSettings(dtype=dtype, budget_gb=budget), where, 8)
        found.append(Features(out)(ids))
    cpu, stored, computed = found
    assert torch.allclose(stored, cpu, atol=tolerance, rtol=tolerance)
    assert torch.allclose(computed, stored, atol=tolerance, rtol=tolerance)
