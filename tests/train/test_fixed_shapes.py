"""What a training does on a GPU, computed on the CPU: fixed shapes, attention in tiles, numbers read late."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from conftest import FEATURES, ROOT, WORDS, make_model, make_questions
from counting import READS, Recorder
from models_page import tiny_model
from safetensors.torch import load_file
from slake_lengths import slake_like
from trainings import FP32, FULL_LORA, KEY, InterruptedAfterCalls, lora_model, same, stage, weights
from triptych.config.runtime import Runtime
from triptych.config.stages import Connector, Regularisation
from triptych.errors import TriptychError
from triptych.model.connector import build_connector
from triptych.model.flex import is_flex
from triptych.model.packing import Shape, split_by_image
from triptych.model.tokens import tokenise
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.train.autosave import Interrupted
from triptych.train.buckets import MOST_SHAPES, choose_shapes, size_of
from triptych.train.route import CPU, GPU
from triptych.train.sampling import epoch_batches
from triptych.train.trainer import STEP_TOKENS, Trainer

COMPILE = torch.nn.Module.compile
COMPILED = Runtime(compile="always")


@pytest.fixture(autouse=True)
def _on_a_cpu(flex_on_cpu, monkeypatch):
    """Layers are traced whole, but not translated to C++, which has no backward pass for attention in tiles."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(COMPILE, backend="aot_eager"))
    torch._dynamo.reset()


@pytest.fixture
def many(prompt):
    """Enough questions for steps of several lengths."""
    return tokenise(make_questions(images=30, seed=8), prompt)


def trained_on(route, samples, features, prompt, settings, model=None, autosaver=None, runtime=COMPILED):
    """Train; gives the trainer and the metrics of all epochs."""
    model = model or lora_model()
    trainer = Trainer(model, samples, samples[::3], features, prompt, settings, FP32, 0, KEY, autosaver, runtime, route)
    trainer.setup()
    return trainer, list(trainer.run())


@pytest.mark.parametrize(  # steps in one pass, in several
    ("kind", "step_tokens"), [("none", 8192), ("reconstruct", 200), ("self-distillation", 8192)]
)
def test_a_gpus_route_trains_what_a_cpus_trains(many, features, prompt, monkeypatch, kind, step_tokens):
    monkeypatch.setattr("triptych.train.trainer.STEP_TOKENS", step_tokens)
    term = Regularisation(kind=kind, weight=0.0 if kind == "none" else 0.5)
    settings = stage(("connector", "lora"), rate=3e-3, epochs=2, batch_size=12, regularisation=term)
    plain, rows = trained_on(CPU, many, features, prompt, settings, runtime=Runtime(compile="never"))
    fixed, found = trained_on(GPU, many, features, prompt, settings)
    assert is_flex(fixed.model.decoder) and not is_flex(plain.model.decoder)
    for row, other in zip(rows, found, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert other[name] == (value and pytest.approx(value, rel=2e-3)), name
    for name, tensor in weights(plain.model).items():
        assert torch.allclose(weights(fixed.model)[name], tensor, atol=2e-3), name


def dora_in(dtype):
    """The toy model with DoRA, its frozen weights in a dtype."""
    model = make_model()
    settings = FULL_LORA.model_copy(update={"use_dora": True})
    for weight in model.language_model.parameters():  # not buffers: positions turn by angles in fp32
        weight.data = weight.data.to(dtype)
    model.language_model = add_lora(model.language_model, settings, seed=5)
    return model


@pytest.mark.parametrize("compiled", ["never", "auto"])
def test_dora_is_trained_on_a_gpus_route_as_peft_computes_it(many, features, prompt, monkeypatch, capsys, compiled):
    settings = stage(("connector", "lora"), rate=3e-3, epochs=2, batch_size=12)
    plain, rows = trained_on(
        CPU, many, features, prompt, settings, dora_in(torch.float32), runtime=Runtime(compile="never")
    )
    monkeypatch.setattr("triptych.train.compilation.WORTHWHILE_STEPS", 0)
    model, runtime = dora_in(torch.float32), Runtime(compile=compiled)
    fixed, found = trained_on(GPU, many, features, prompt, settings, model, runtime=runtime)
    assert not is_flex(fixed.model.decoder)
    assert ("not compiled: peft's DoRA cannot be" in capsys.readouterr().out) == (compiled == "auto")
    with pytest.raises(TriptychError, match=r"runtime\.compile: peft's DoRA cannot be compiled; use auto or never"):
        trained_on(GPU, many, features, prompt, settings, dora_in(torch.float32))
    for row, other in zip(rows, found, strict=True):
        assert other["validation_loss"] == pytest.approx(row["validation_loss"], rel=2e-3)
    before = weights(dora_in(torch.float32))
    for name, tensor in weights(plain.model).items():
        assert torch.allclose(weights(fixed.model)[name], tensor, atol=2e-3), name
        assert "magnitude" not in name or not torch.equal(tensor, before[name])


def test_in_bf16_dora_divides_by_lengths_in_fp32(many, features, prompt):
    """Otherwise a fresh one would already change what the model says."""
    settings = stage(("connector", "lora"), rate=3e-3, epochs=1, batch_size=12)
    results = []
    for route in (CPU, replace(CPU, copied_adapters=True)):
        model = dora_in(torch.bfloat16)
        rest = [prompt, settings, "bf16", 0, KEY, None, Runtime(), route]
        trainer = Trainer(model, many, many[::3], features, *rest)
        trainer.setup()
        results.append((list(trainer.run()), weights(model)))
    (rows, plain), (found, copied) = results
    assert rows == found and same(plain, copied)


def test_a_graph_for_each_shape_and_one_for_validation_and_none_after_the_first_epoch(many, features, prompt, tmp_path):
    graphs = []

    class Counts(InterruptedAfterCalls):
        def save(self, state):
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    torch._dynamo.utils.counters.clear()
    settings = stage(("connector", "lora"), epochs=3, batch_size=12)
    trainer, _ = trained_on(GPU, many, features, prompt, settings, autosaver=Counts(tmp_path, 10**6))
    assert graphs[0] == 2, "the pass that tries, and the validation at the start"
    assert graphs[1] <= len(trainer.shapes) + 1 and graphs[1:] == [graphs[1]] * 3
    assert len(trainer.shapes) > 1


@pytest.mark.parametrize("calls", [4, 9])
def test_a_stopped_training_ends_with_the_same_bits(many, features, prompt, tmp_path, calls):
    """Calls that stop it lie between two readings, before and after lengths that differ, and in validations."""
    settings = stage(("connector", "lora"), rate=1e-3, epochs=3, batch_size=12)
    undisturbed, rows = trained_on(GPU, many, features, prompt, settings, lora_model(dropout=0.1))
    assert len(undisturbed.shapes) > 1
    attempts = 0
    while True:
        attempts += 1
        assert attempts < 60
        try:
            autosaver = InterruptedAfterCalls(tmp_path / "last", calls)
            resumed, found = trained_on(GPU, many, features, prompt, settings, lora_model(dropout=0.1), autosaver)
            break
        except Interrupted:
            continue
    assert attempts > 2
    assert found == rows and same(weights(resumed.model), weights(undisturbed.model))


@pytest.mark.parametrize("step_tokens", [8192, 200])  # steps in one pass, in several
@pytest.mark.parametrize("parts", [("connector", "lora"), ("connector",), ("lora",)])
def test_copies_of_adapters_change_no_bit(many, features, prompt, monkeypatch, step_tokens, parts):
    monkeypatch.setattr("triptych.train.trainer.STEP_TOKENS", step_tokens)
    settings = stage(parts, rate=3e-3, epochs=2, batch_size=12)
    results = []
    for route in (CPU, replace(CPU, copied_adapters=True)):
        model = make_model()
        model.language_model = add_lora(model.language_model.to(torch.bfloat16), FULL_LORA, seed=5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        rest = [prompt, settings, "bf16", 0, KEY, None, Runtime(), route]
        trainer = Trainer(model, many, many[::3], features, *rest)
        trainer.setup()
        results.append((list(trainer.run()), weights(model)))
        assert all(one.dtype == torch.float32 for name, one in model.named_parameters() if "lora_" in name)
        assert len(trainer.copies._copies) == (0 if route == CPU else 2 * 7 * len(model.decoder.layers))
    (rows, plain), (found, copied) = results
    assert rows == found and same(plain, copied)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_named_late_and_changes_no_weight(many, features, prompt, monkeypatch, what):
    settings = stage(("connector", "lora"), rate=1e-2, epochs=1, batch_size=4)
    reference = Trainer(lora_model(), many, many[:3], features, prompt, settings, FP32, 0, KEY, None, COMPILED, GPU)
    reference.setup()
    bad = 5
    forward, update = Trainer._forward, Trainer._update_weights
    before, after = {}, {}

    def poisoned_forward(trainer, batch):
        logits, cosine = forward(trainer, batch)
        if len(trainer.unread) == bad and what == "loss":
            logits = logits * torch.tensor(float("nan"))
        return logits, cosine

    def poisoned_update(trainer, step):
        number = len(trainer.unread)
        if number == bad and what == "gradient":
            next(iter(trainer.trained.values())).grad.view(-1)[0] = float("inf")
        if number == bad:
            before.update(weights(trainer.model))
        update(trainer, step)
        if number == bad:
            after.update(weights(trainer.model))
            step_ids.extend(step.question_ids)

    step_ids = []
    monkeypatch.setattr(Trainer, "_forward", poisoned_forward)
    monkeypatch.setattr(Trainer, "_update_weights", poisoned_update)
    with pytest.raises(TriptychError, match=f"step {bad}: the {'loss' if what == 'loss' else 'gradient'}") as error:
        list(reference.run())
    assert step_ids and all(question in str(error.value) for question in step_ids)
    assert same(before, after) and all(torch.isfinite(tensor).all() for tensor in weights(reference.model).values())
    assert reference.progress.step == 0, "nothing of the block is recorded"


def test_steps_between_two_readings_read_nothing(many, features, prompt, monkeypatch):
    step = Trainer.train_step
    found = {}

    def watched(trainer, samples, passes, batches):
        number = trainer.progress.step + len(trainer.unread)
        with (recorder := Recorder()):
            step(trainer, samples, passes, batches)
        found[number] = recorder.counts.operations[Recorder.OTHER].keys() & READS, recorder.counts.host_reads.total()

    monkeypatch.setattr(Trainer, "train_step", watched)
    settings = stage(("connector", "lora"), epochs=1, batch_size=4)
    model = make_model()
    model.language_model = add_lora(model.language_model, FULL_LORA, seed=5)
    # Layers are not compiled, because a compiled one is not watched; it holds no reading, or it would not be whole.
    trained_on(GPU, many, features, prompt, settings, model, runtime=Runtime(compile="never"))
    assert len(found) > 18
    steady = [reads for number, reads in found.items() if number >= 2 and number % 16 != 15]
    # On a CPU, the optimiser itself reads the number of steps; on a GPU, that stays there.
    assert all(names <= {"_local_scalar_dense"} and number <= 1 for names, number in steady), steady


@pytest.mark.parametrize(("image_tokens", "batch_size"), [(576, 16), (49, 16), (144, 8), (576, 64)])
def test_few_shapes_waste_little_on_slakes_lengths(image_tokens, batch_size):
    samples = slake_like([2] * 9, 2)
    prefix = image_tokens + 8
    epochs = [
        [
            size_of(part, prefix)
            for step in epoch_batches(samples, batch_size, 0, [*KEY, str(epoch)])
            for part in split_by_image(step, prefix, STEP_TOKENS)
        ]
        for epoch in (1, 2, 3)
    ]
    shapes = choose_shapes(epochs, [])
    assert len(shapes) <= MOST_SHAPES and shapes == sorted(shapes, key=lambda shape: shape.tokens)
    for epoch in epochs:
        taken = [next(shape for shape in shapes if shape.tokens >= size.tokens) for size in epoch]
        for size, shape in zip(epoch, taken, strict=True):
            assert size.images <= shape.images and size.answers <= shape.answers
        waste = sum(shape.tokens for shape in taken) / sum(size.tokens for size in epoch) - 1
        assert waste <= (0.06 if image_tokens == 576 else 0.15), waste
    assert {shape.tokens for shape in shapes} == {
        next(shape.tokens for shape in shapes if shape.tokens >= size.tokens) for size in epochs[0]
    }


def test_every_shape_is_needed_in_the_first_epoch():
    epochs = [[Shape(100, 1, 5), Shape(300, 2, 9)], [Shape(900, 3, 2), Shape(600, 2, 2)]]
    assert choose_shapes(epochs, [Shape(200, 9, 9)]) == [Shape(128, 1, 5), Shape(1024, 9, 9)]
    assert choose_shapes([[Shape(100, 1, 5)]], [Shape(2000, 1, 5)]) == [Shape(2048, 1, 5)]


def test_two_processes_train_what_one_trains(tmp_path):
    results = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        places = [ROOT / "workflow/scripts", ROOT / "tests"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places))}
        done = subprocess.run(
            [*command, ROOT / "tests/trained_by_two.py", out], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results.append((json.loads((out / "rows.json").read_text()), load_file(out / "weights.safetensors")))
    (rows, alone), (found, together) = results
    for row, other in zip(rows, found, strict=True):
        for name, value in row.items():
            assert other[name] == (value and pytest.approx(value, rel=2e-3)), name
    assert all(torch.allclose(together[name], tensor, atol=2e-3) for name, tensor in alone.items())


@pytest.mark.parametrize("setting", ["auto", "always"])
def test_layers_that_cannot_be_compiled_are_found_before_the_training(
    many, features, prompt, monkeypatch, capsys, setting
):
    def broken(graph, inputs):
        raise RuntimeError("no such processor")

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(COMPILE, backend=broken))
    monkeypatch.setattr("triptych.train.compilation.WORTHWHILE_STEPS", 0)
    settings = stage(("connector", "lora"), epochs=1, batch_size=12)
    if setting == "always":
        with pytest.raises(TriptychError, match=r"cannot be compiled here .*no such processor"):
            trained_on(GPU, many, features, prompt, settings)
        return
    trainer, rows = trained_on(GPU, many, features, prompt, settings, runtime=Runtime(compile="auto"))
    assert "cannot be compiled here" in capsys.readouterr().out
    assert not is_flex(trainer.model.decoder) and trainer.shapes == []
    _, expected = trained_on(CPU, many, features, prompt, settings, runtime=Runtime(compile="never"))
    assert rows[-1]["validation_loss"] == pytest.approx(expected[-1]["validation_loss"], rel=1e-3)


def test_memory_that_runs_out_is_no_fault_of_the_compiler(many, features, prompt, monkeypatch):
    """Layers that are not compiled need more."""

    def full(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(COMPILE, backend=full))
    monkeypatch.setattr("triptych.train.compilation.WORTHWHILE_STEPS", 0)
    settings = stage(("connector", "lora"), epochs=1, batch_size=12)
    with pytest.raises(Exception, match="out of memory"):
        trained_on(GPU, many, features, prompt, settings, runtime=Runtime(compile="auto"))


def test_without_compiled_layers_attention_is_one_that_the_architecture_supports(
    many, features, prompt, monkeypatch, capsys
):
    """On a GPU, torch's fused kernel cannot bound attention logits as Gemma 2 does; memory is reckoned anew."""

    def broken(graph, inputs):
        raise RuntimeError("no such processor")

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(COMPILE, backend=broken))
    monkeypatch.setattr("triptych.train.compilation.WORTHWHILE_STEPS", 0)
    monkeypatch.setattr("triptych.train.compilation.attention_kind", lambda device: "sdpa")
    text = tiny_model("gemma2", None, "eager", vocab_size=len(WORDS))
    connector = build_connector(Connector(), FEATURES, text.config.hidden_size, seed=3)
    model = VisionLanguageModel(connector, add_lora(text, FULL_LORA, 5))
    settings = stage(("connector", "lora"), epochs=1, batch_size=12)
    trainer, rows = trained_on(GPU, many, features, prompt, settings, model, runtime=Runtime(compile="auto"))
    assert trainer.model.decoder.config._attn_implementation == "eager" and rows[-1]["train_loss"] > 0
    estimates = [line for line in capsys.readouterr().out.splitlines() if line.startswith("activations take about")]
    assert len(estimates) == 2
    assert float(estimates[0].split()[3]) < float(estimates[1].split()[3]), "with weights of attention"
