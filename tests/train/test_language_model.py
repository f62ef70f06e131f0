"""Trainings of the language model's own weights: in bf16 beside fp32 weights, resumed to the bit, by any optimiser."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import TOKENS, make_model, make_questions
from torch.nn import functional
from trainings import FP32, FULL_LORA, KEY, InterruptedAfterCalls, no_features, run, same, stage, weights
from triptych.config.runtime import Runtime
from triptych.errors import TriptychError
from triptych.model.packing import pack
from triptych.model.tokens import tokenise
from triptych.model.vlm import add_lora
from triptych.train.autosave import Interrupted
from triptych.train.optimizer import make_optimiser
from triptych.train.parameters import set_trainable
from triptych.train.route import CPU
from triptych.train.trainer import Trainer

BOTH = ("connector", "language_model")
ALONE = ("language_model",)


@pytest.fixture
def held_out(prompt):
    return tokenise(make_questions(images=6, seed=9), prompt)


def trainer_of(model, samples, features, prompt, settings, precision=FP32, route=CPU, autosaver=None, held_out=None):
    rest = [features, prompt, settings, precision, 0, KEY, autosaver, Runtime(), route]
    trainer = Trainer(model, samples, held_out or samples, *rest)
    trainer.setup()
    return trainer


def untied(model):
    """The same model with an output layer of its own."""
    text = model.language_model
    text.config.tie_word_embeddings = False
    text.lm_head.weight = torch.nn.Parameter(text.lm_head.weight.detach().clone())
    return model


@pytest.mark.parametrize("make", [make_model, lambda: untied(make_model())], ids=["tied", "untied"])
def test_every_weight_trains_and_a_tied_output_layer_stays_tied(make, samples, features, prompt):
    model = make()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    run(model, samples, features, prompt, stage(ALONE, rate=1e-3))
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {name for name in before if name.startswith("language_model.")}
    head, embeddings = (getattr(model.network, f"get_{what}_embeddings")().weight for what in ("output", "input"))
    assert (head is embeddings) == (make is make_model)


@pytest.mark.parametrize("step_tokens", [8192, 60])  # steps in one pass, in several
@pytest.mark.parametrize("make", [make_model, lambda: untied(make_model())], ids=["tied", "untied"])
def test_in_bf16_the_model_computes_in_bf16_and_fp32_weights_are_updated(
    make, samples, features, prompt, monkeypatch, step_tokens
):
    """The textbook's mixed precision: a model in bf16, its gradients turned to fp32, AdamW on weights in fp32."""
    monkeypatch.setattr("triptych.train.trainer.STEP_TOKENS", step_tokens)
    settings = stage(BOTH, rate=1e-3, batch_size=8, clip_norm=None)
    model, masters = make(), make()
    trainer = trainer_of(model, samples, features, prompt, settings, "bf16")
    trained = set_trainable(masters, BOTH)
    optimiser, schedule = make_optimiser(trained, settings, trainer.steps)
    for step in trainer._steps_of(1):
        tokens = sum(len(sample.answer) for sample in step)
        for own in trainer._passes(step, 0):
            low = copy.deepcopy(masters)
            for weight in low.language_model.parameters():  # not buffers: positions turn by angles in fp32
                weight.data = weight.data.bfloat16()
            batch = pack(own, features, prompt, TOKENS)
            with torch.autocast("cpu", torch.bfloat16):
                logits = low.answer_logits(batch)
            (functional.cross_entropy(logits, batch.targets, reduction="sum") / tokens).backward()
            for name, one in low.named_parameters():
                gradient = one.grad.float()
                trained[name].grad = gradient if trained[name].grad is None else trained[name].grad + gradient
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    list(trainer.run())
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    for name, one in model.named_parameters():
        assert torch.equal(one, trained[name]), name


def test_an_update_that_bf16_would_lose_is_kept(samples, features, prompt):
    model = make_model()
    before = {name: one.detach().clone() for name, one in model.network.named_parameters()}
    list(trainer_of(model, samples, features, prompt, stage(ALONE, rate=1e-6), "bf16").run())
    for name, one in model.network.named_parameters():
        assert not torch.equal(one, before[name]), name
    lost = [torch.equal(one.bfloat16(), before[name].bfloat16()) for name, one in model.network.named_parameters()]
    assert any(lost)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_training_ends_with_the_same_bits(
    samples, held_out, features, prompt, tmp_path, optimizer, precision
):
    settings = stage(BOTH, rate=1e-2, epochs=4, select="best", optimizer=optimizer, weight_decay=0.1)
    arguments = [samples, features, prompt, settings, precision, CPU]
    undisturbed = make_model()
    rows = list(trainer_of(undisturbed, *arguments, held_out=held_out).run())
    attempts, found = 0, None
    while found is None:
        attempts += 1
        model = make_model()
        try:
            autosaver = InterruptedAfterCalls(tmp_path / "last", 7)
            found = list(trainer_of(model, *arguments, autosaver, held_out).run())
        except Interrupted:
            assert attempts < 30
    assert attempts > 1
    assert found == rows and same(weights(model), weights(undisturbed))
    assert {"model.embed_tokens.weight", "model.norm.weight"} < weights(model).keys()


def test_adafactor_takes_the_steps_of_its_paper(samples, features, prompt):
    """The first one: the gradient over its factored size, at the rate times the weights' size (arXiv 1804.04235)."""
    settings = stage(ALONE, rate=1e-2, optimizer="adafactor", lr_schedule="constant", warmup_ratio=0.0)
    model = make_model()
    trained = set_trainable(model, ALONE)
    optimiser, _ = make_optimiser(trained, settings, 10)
    before = {name: one.detach().clone() for name, one in trained.items()}
    for one in trained.values():
        one.grad = torch.randn_like(one)
    optimiser.step()
    for name, one in trained.items():
        gradient, size = one.grad, before[name].square().mean().sqrt().clamp(min=1e-3)
        variance = gradient.square()
        if variance.dim() == 2:
            variance = variance.mean(1, keepdim=True) * variance.mean(0, keepdim=True) / variance.mean()
        update = gradient / variance.sqrt()
        update /= update.square().mean().sqrt().clamp(min=1)
        assert torch.allclose(one, before[name] - 1e-2 * size * update, rtol=1e-4, atol=1e-7), name
    kept = sum(value.numel() for state in optimiser.state.values() for value in state.values())
    assert kept < 0.2 * sum(one.numel() for one in trained.values())


@pytest.mark.parametrize("parts", [BOTH, ("connector", "lora")])
def test_adafactor_learns(samples, features, prompt, parts):
    model = make_model()
    if "lora" in parts:
        model.language_model = add_lora(model.language_model, FULL_LORA, seed=5)
    rows = run(model, samples, features, prompt, stage(parts, rate=3e-2, epochs=10, optimizer="adafactor"))
    assert rows[-1]["train_loss"] < 0.7 * rows[1]["train_loss"]


def test_with_another_optimiser_a_bad_step_changes_no_weight_on_a_gpus_route(samples, features, prompt, monkeypatch):
    route = replace(CPU, read_every=16, fused_optimiser=True)
    assert route.for_optimiser("adamw") == route
    settings = stage(ALONE, rate=1e-2, optimizer="adafactor")
    model = make_model()
    trainer = trainer_of(model, samples, features, prompt, settings, route=route)
    before = weights(model)
    forward = Trainer._forward
    monkeypatch.setattr(
        Trainer, "_forward", lambda self, batch: (forward(self, batch)[0] * torch.tensor(float("nan")), None)
    )
    with pytest.raises(TriptychError, match="step 0: the loss is nan"):
        list(trainer.run())
    assert same(before, weights(model))


@pytest.mark.parametrize(
    ("installed", "message"),
    [(False, "adamw-8bit needs bitsandbytes, which is not installed"), (True, "adamw-8bit needs a GPU")],
)
def test_eight_bits_need_a_package_and_a_gpu(samples, features, prompt, monkeypatch, installed, message):
    monkeypatch.setattr("triptych.utils.optional.find_spec", lambda name: installed or None)
    with pytest.raises(TriptychError, match=f"optimizer: {message}"):
        run(make_model(), samples, features, prompt, stage(ALONE, optimizer="adamw-8bit"))


def test_a_language_model_with_adapters_is_refused(samples, features, prompt):
    model = make_model()
    model.language_model = add_lora(model.language_model, FULL_LORA, seed=5)
    with pytest.raises(TriptychError, match="trains 'language_model', but an earlier one has trained LoRA on it"):
        run(model, samples, features, prompt, stage(ALONE))


def test_a_blind_stage_may_train_the_language_model(samples, prompt):
    rows = run(make_model(), samples, no_features, prompt, stage(ALONE, blind=True, epochs=3, rate=1e-3))
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]
