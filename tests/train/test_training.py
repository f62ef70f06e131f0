"""The guards of training: gradients arrive, frozen parts stay, rates matter, eight samples can be learnt by heart."""

from contextlib import nullcontext
from functools import partial
from itertools import groupby

import pytest
import torch
from conftest import TOKENS, make_model, make_questions
from trainings import (
    FULL_LORA,
    run,
    stage,
)
from triptych.config.stages import Lora
from triptych.errors import TriptychError
from triptych.evaluate.generate import generate
from triptych.model.packing import pack
from triptych.model.tokens import Sample, tokenise
from triptych.model.vlm import add_lora
from triptych.train.guards import GradientGuard, check_finite, check_norm_ratio, frozen_hash
from triptych.train.parameters import set_trainable
from triptych.train.sampling import epoch_batches
from triptych.train.trainer import train
from triptych.train.validation import score_samples


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


PARTS = [("connector",), ("connector", "lora"), ("lora",), ("connector", "language_model"), ("language_model",)]


@pytest.mark.parametrize("parts", PARTS)
def test_what_trains_changes_and_what_is_frozen_stays_bit_for_bit(model, samples, features, prompt, parts):
    if "lora" in parts:
        model.language_model = add_lora(model.language_model, Lora(), seed=5)
    before = snapshot(model)
    trained = set_trainable(model, parts)
    run(model, samples, features, prompt, stage(parts))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained), name


def test_a_connector_that_gets_no_gradient_stops_the_training(model, samples, features, prompt, monkeypatch):
    project = model.project
    # The original's defect: the projection was detached, and months of runs trained nothing.
    monkeypatch.setattr(type(model), "project", lambda self, x: project(x).detach().requires_grad_())
    with pytest.raises(TriptychError, match=r"no gradient reaches connector\.linear_1\.bias"):
        run(model, samples, features, prompt, stage())


def test_a_tensor_that_does_not_move_stops_the_training(model):
    parameters = {"w": torch.nn.Parameter(torch.ones(3))}
    guard = GradientGuard(parameters)
    optimiser = torch.optim.SGD(parameters.values(), lr=1e-3)
    for _ in range(2):
        parameters["w"].grad = torch.ones(3)
        guard.check_gradients()
        if guard.seen == 1:
            with pytest.raises(TriptychError, match="w did not change"):
                guard.check_change(optimiser)
        else:
            guard.check_change(optimiser)


@pytest.mark.parametrize(("size", "stops"), [(1.0, False), (1e-3, True), (0.0, True)])
def test_a_tensor_whose_numbers_cannot_show_a_rate_that_is_rising_may_stay(size, stops):
    """As norms, which are 1, in the first steps of a language model's warm-up."""
    parameters = {"w": torch.nn.Parameter(torch.full((3,), size))}
    guard = GradientGuard(parameters)
    optimiser = torch.optim.SGD(parameters.values(), lr=1e-8)
    parameters["w"].grad = torch.ones(3)
    guard.check_gradients()
    guard.check_change(optimiser)
    with pytest.raises(TriptychError, match="w did not change") if stops else nullcontext():
        guard.check_change(optimiser)


def test_a_gradient_that_is_not_finite_stops_the_training():
    parameters = {"w": torch.nn.Parameter(torch.ones(3))}
    parameters["w"].grad = torch.tensor([1.0, float("nan"), 0.0])
    with pytest.raises(TriptychError, match="w: its gradient is not finite"):
        GradientGuard(parameters).check_gradients()


def test_two_learning_rates_give_two_losses(samples, features, prompt):
    losses = []
    for rate in (1e-2, 1e-4):
        losses.append(run(make_model(), samples, features, prompt, stage(rate=rate, epochs=2))[-1]["validation_loss"])
    assert losses[0] != losses[1]


def test_the_same_run_twice_gives_the_same_numbers(samples, features, prompt):
    first = run(make_model(), samples, features, prompt, stage(epochs=2))
    assert run(make_model(), samples, features, prompt, stage(epochs=2)) == first


def test_eight_samples_are_learnt_by_heart(model, features, prompt):
    samples = tokenise(make_questions(images=4, seed=3), prompt)[:8]
    model.language_model = add_lora(model.language_model, FULL_LORA, seed=5)
    rows = run(model, samples, features, prompt, stage(("connector", "lora"), rate=3e-2, epochs=150, batch_size=8))
    assert rows[0]["validation_accuracy"] < 0.5
    assert rows[-1]["validation_accuracy"] == 1.0
    model.eval()
    answers, _ = generate(model, samples, features, prompt, max_new_tokens=6)
    assert [(*answer, prompt.end) for answer in answers] == [sample.answer for sample in samples]


def test_teacher_forced_accuracy_is_exact_match_of_greedy_answers(model, samples, features, prompt):
    model.language_model = add_lora(model.language_model, FULL_LORA, seed=5)
    rows = run(model, samples, features, prompt, stage(("connector", "lora"), rate=3e-2, epochs=30, batch_size=8))
    model.eval()
    answers, _ = generate(model, samples, features, prompt, max_new_tokens=6)
    exact = [(*answer, prompt.end) == sample.answer for answer, sample in zip(answers, samples, strict=True)]
    assert 0 < sum(exact) < len(exact), "the comparison needs right and wrong answers"
    assert rows[-1]["validation_accuracy"] == pytest.approx(sum(exact) / len(exact))


def test_a_step_in_pieces_is_the_step_in_one(samples, features, prompt, monkeypatch):
    whole = run(make_model(), samples, features, prompt, stage(epochs=2, batch_size=8))
    monkeypatch.setattr("triptych.train.trainer.STEP_TOKENS", 1)  # every image alone
    pieces = run(make_model(), samples, features, prompt, stage(epochs=2, batch_size=8))
    for name in ("train_loss", "validation_loss", "gradient_norm_max"):
        assert pieces[-1][name] == pytest.approx(whole[-1][name], rel=1e-4)


def test_a_number_that_is_not_finite_at_the_last_step_is_not_saved(model, samples, features, prompt, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def poisoned(parameters, norm):
        calls.append(1)
        return clip(parameters, norm) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", poisoned)
    with pytest.raises(TriptychError, match="step 2: the gradient's norm is nan"):
        run(model, samples, features, prompt, stage())


def test_bf16_trains_what_fp32_trains(samples, features, prompt):
    from triptych.model.vlm import VisionLanguageModel

    rows = {}
    for precision in ("fp32", "bf16"):
        model = make_model()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model = VisionLanguageModel(model.connector, add_lora(model.language_model.to(dtype), Lora(dropout=0.0), 5))
        settings = stage(("connector", "lora"), epochs=3)
        key = ["fold0", "3"]
        rows[precision] = list(train(model, samples, samples, features, prompt, settings, precision, 0, key))
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        assert trained == {torch.float32}, "what trains is fp32 whatever the frozen weights are"
    losses = [row["validation_loss"] for row in rows["fp32"]]
    assert losses[-1] < losses[0]
    assert [row["validation_loss"] for row in rows["bf16"]] == pytest.approx(losses, rel=0.05)


def test_validation_does_not_depend_on_its_batches(model, samples, features, prompt):
    to_batch = partial(pack, features=features, prompt=prompt, image_tokens=TOKENS)
    whole = score_samples(model, [samples], to_batch, "fp32")
    parts = score_samples(model, [samples[start : start + 3] for start in range(0, len(samples), 3)], to_batch, "fp32")
    assert parts.mean_loss == pytest.approx(whole.mean_loss, rel=1e-5)
    assert (parts.exact, parts.samples, parts.tokens) == (whole.exact, whole.samples, whole.tokens)


def test_frozen_hash_sees_one_bit(model):
    set_trainable(model, ["connector"])
    before = frozen_hash(model)
    with torch.no_grad():
        model.connector.linear_1.weight[0, 0] += 1
    assert frozen_hash(model) == before, "what trains is not part of it"
    with torch.no_grad():
        next(model.language_model.parameters()).view(-1)[7] += 1e-6
    assert frozen_hash(model) != before


def test_a_loss_that_is_not_finite_names_the_questions():
    with pytest.raises(TriptychError, match=r"step 7.*q1, q2"):
        check_finite("the loss", float("nan"), 7, ["q1", "q2"])


def test_a_projection_out_of_scale_is_an_error():
    check_norm_ratio(1.0)
    with pytest.raises(TriptychError, match="diverged"):
        check_norm_ratio(1e5)


def test_a_part_that_the_model_lacks_is_an_error(model):
    with pytest.raises(TriptychError, match="no such part"):
        set_trainable(model, ["lora"])


def test_batches_have_the_asked_size_and_cover_every_sample_once(samples):
    batches = epoch_batches(samples, 3, seed=0, key=["fold0", "2", "1"])
    assert {len(batch) for batch in batches[:-1]} <= {3}
    assert sorted(s.question_id for batch in batches for s in batch) == sorted(s.question_id for s in samples)
    other = epoch_batches(samples, 3, seed=0, key=["fold0", "2", "2"])
    assert [s.question_id for b in other for s in b] != [s.question_id for b in batches for s in b]
    backwards = epoch_batches(samples[::-1], 3, seed=0, key=["fold0", "2", "1"])
    assert backwards == batches, "the order of the table does not matter"


@pytest.mark.parametrize("most", [1, 2, 3, 100, None])
def test_so_many_questions_of_an_image_follow_each_other(most):
    samples = [Sample(str(number), f"image{number % 6}", (1,), (2,)) for number in range(42)]
    batches = epoch_batches(samples, 5, 0, ["fold0", "3", "1"], most)
    assert [len(batch) for batch in batches] == [5] * 8 + [2]
    ordered = [sample for batch in batches for sample in batch]
    assert sorted(ordered, key=lambda one: int(one.question_id)) == samples
    runs = [len(list(same)) for _, same in groupby(ordered, key=lambda one: one.image_id)]
    if most in (100, None):
        assert runs == [7] * 6
    else:
        # Of seven questions, one remains; two groups of an image may meet by chance.
        assert len(runs) > 42 / most / 2 and min(runs) == 1 and max(runs) <= 3 * most
        other = epoch_batches(samples[::-1], 5, 0, ["fold0", "3", "1"], most)
        assert other == batches, "the order of the table does not matter"


def test_by_default_the_order_is_that_of_whole_images(samples):
    assert epoch_batches(samples, 3, 0, ["a"]) == epoch_batches(samples, 3, 0, ["a"], None)
