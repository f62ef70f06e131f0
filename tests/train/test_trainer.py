"""The trainer: stages that train nothing or blindly, the choice of an epoch, states, batches built ahead."""

from dataclasses import replace

import pytest
import torch
from conftest import TOKENS, make_model, make_questions
from torch.nn import functional
from trainings import FP32, KEY, InterruptedAfterCalls, lora_model, no_features, run, same, stage, weights
from triptych.config.stages import Stage
from triptych.errors import TriptychError
from triptych.model.packing import NO_TARGET, pack
from triptych.model.tokens import tokenise
from triptych.train.autosave import Autosaver, Interrupted
from triptych.train.trainer import Trainer, train
from triptych.train.validation import chosen_epoch, score_answers, smoothed
from triptych.utils.prefetch import map_ahead


def test_a_stage_that_trains_nothing_measures_once_and_changes_nothing(samples, features, prompt, tmp_path):
    model = lora_model()
    before = weights(model)
    nothing = Stage(data="toy", train=[])
    rows = run(model, samples, features, prompt, nothing, Autosaver(tmp_path / "last", {}, 10))
    assert [row["epoch"] for row in rows] == [0] and rows[0]["validation_loss"] > 0
    assert same(before, weights(model)) and not any(parameter.requires_grad for parameter in model.parameters())
    again = run(model, samples, features, prompt, nothing, Autosaver(tmp_path / "last", {}, 10))
    assert again == rows, "the saved measurement is taken up"


# Blindness


def test_a_blind_stage_reads_no_features_and_trains_lora_alone(samples, prompt):
    model = lora_model()
    before = weights(model)
    rows = run(model, samples, no_features, prompt, stage(("lora",), blind=True, epochs=3))
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]
    assert [row["token_norm_ratio"] for row in rows] == [None] * 4
    assert model.blind


def test_a_blind_loss_is_that_of_the_text_alone(samples, prompt):
    model = make_model()
    model.blind = True
    batch = pack(samples, no_features, prompt, 0)
    total = 0.0
    for sample in samples:
        text = torch.tensor([[*prompt.before_image, *sample.text]])
        logits = model.language_model(text).logits[0, -len(sample.answer) - 1 : -1]
        total += functional.cross_entropy(logits, torch.tensor(sample.answer), reduction="sum").item()
    loss = functional.cross_entropy(model.answer_logits(batch), batch.targets, reduction="sum")
    assert loss.item() == pytest.approx(total, rel=1e-5)


# The choice of an epoch


def row(accuracy, loss):
    return {"validation_accuracy": accuracy, "validation_loss": loss}


def test_the_best_epoch_has_the_most_exact_matches_then_the_lowest_loss_then_comes_first():
    rows = [row(0.9, 0.1), row(0.5, 2.0), row(0.6, 1.5), row(0.6, 1.2), row(0.6, 1.2), row(0.3, 0.5)]
    assert chosen_epoch(rows, "best") == 3, "epoch 0 is not trained, and is no choice"
    assert chosen_epoch(rows, "last") == 5
    assert chosen_epoch(rows[:1], "best") == chosen_epoch(rows[:1], "last") == 0


SELECTED = {
    "epochs": 8,
    "lr_schedule": "constant",
    "select": "best",
    "regularisation": {"kind": "reconstruct", "weight": 0.5},
}


@pytest.fixture
def held_out(prompt):
    return tokenise(make_questions(images=6, seed=9), prompt)


def test_a_checkpoint_can_hold_the_best_epoch(samples, held_out, features, prompt):
    model = lora_model()
    settings = stage(("connector", "lora"), rate=1e-1, **SELECTED)
    states = [weights(model)]
    epochs = train(model, samples, held_out, features, prompt, settings, FP32, 0, ["fold0", "2"])
    rows = []
    for metrics in epochs:
        rows.append(metrics)
        states.append(weights(model))
    best = chosen_epoch(rows, "best")
    assert 0 < best < 8, "the comparison needs a best epoch before the last"
    assert same(weights(model), states[1 + best]) and not same(weights(model), states[-1])
    last = lora_model()
    plain = stage(("connector", "lora"), rate=1e-1, **{**SELECTED, "select": "last"})
    assert run(last, samples, features, prompt, plain, validation=held_out) == rows
    assert same(weights(last), states[-1])


@pytest.mark.parametrize("calls", [7, 25])  # between two stops: within an epoch, and several epochs
def test_a_stopped_training_chooses_the_same_epoch_to_the_bit(calls, samples, held_out, features, prompt, tmp_path):
    settings = stage(("connector", "lora"), rate=1e-1, **SELECTED)
    undisturbed = lora_model(dropout=0.05)
    rows = run(undisturbed, samples, features, prompt, settings, validation=held_out)
    assert chosen_epoch(rows, "best") < 8, "the weights of an epoch before the last must come through"
    attempts, found = 0, None
    while found is None:
        attempts += 1
        model = lora_model(dropout=0.05)
        try:
            autosaver = InterruptedAfterCalls(tmp_path / "last", calls)
            found = run(model, samples, features, prompt, settings, autosaver, held_out)
        except Interrupted:
            assert attempts < 50
    assert attempts > 1
    assert found == rows and same(weights(model), weights(undisturbed))


# States


class Captured(Exception):
    """The state that was asked for is there."""


class CapturesState:
    """Stands where the autosaver does: takes the state at a call, and ends the training."""

    def __init__(self, calls):
        self.calls = calls

    def load(self):
        return None

    def save(self, state):
        pass

    def save_if_due(self, state_dict, place):
        self.calls -= 1
        if self.calls == 0:
            self.state = state_dict()
            raise Captured


@pytest.mark.parametrize("calls", [1, 6, 22])  # in the first validation, within an epoch, in a later one
def test_a_state_dict_in_a_fresh_trainer_continues_to_the_same_bits(calls, samples, held_out, features, prompt):
    settings = stage(("connector", "lora"), rate=1e-1, **SELECTED)

    def trainer_of(autosaver=None):
        model = lora_model(dropout=0.05)
        trainer = Trainer(model, samples, held_out, features, prompt, settings, FP32, 0, KEY, autosaver)
        trainer.setup()
        return trainer

    undisturbed = trainer_of()
    rows = list(undisturbed.run())
    captures = CapturesState(calls)
    stopped = trainer_of(captures)
    with pytest.raises(Captured):
        list(stopped.run())
    fresh = trainer_of()
    torch.manual_seed(99)
    fresh.load_state_dict(captures.state)
    assert fresh.progress == stopped.progress
    assert list(fresh.run()) == rows and same(weights(fresh.model), weights(undisturbed.model))


# Batches built ahead of time


def in_turn(function, items, threads):
    return (function(item) for item in items)


def test_batches_built_ahead_are_those_built_in_turn(samples, held_out, features, prompt, monkeypatch):
    monkeypatch.setattr("triptych.train.trainer.STEP_TOKENS", 60)  # some steps in one piece, some in several
    results = []
    for how in (map_ahead, in_turn):
        for module in ("trainer", "validation"):
            monkeypatch.setattr(f"triptych.train.{module}.map_ahead", how)
        model = lora_model(dropout=0.1)
        settings = stage(("connector", "lora"), epochs=3)
        results.append((run(model, samples, features, prompt, settings, validation=held_out), weights(model)))
    (rows, ahead), (expected, turn) = results
    assert rows == expected and same(ahead, turn)


def test_an_error_in_a_batch_built_ahead_stops_the_training(samples, features, prompt):
    def lost(image_ids):
        if "image3" in image_ids and len(image_ids) < 4:
            raise TriptychError("image3 has no vision features")
        return features(image_ids)

    with pytest.raises(TriptychError, match="image3 has no vision features"):
        run(make_model(), samples, lost, prompt, stage(batch_size=2))


def test_smoothed_labels_are_torchs_and_leave_metrics_and_validation_alone(samples, features, prompt):
    batch = pack(samples, features, prompt, TOKENS)
    logits = torch.randn(len(batch.targets), 30)
    wanted = functional.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=0.3)
    loss_sum, _ = score_answers(logits, batch, len(samples))
    assert smoothed(loss_sum, logits, batch, 0.3).item() == pytest.approx(wanted.item(), rel=1e-6)
    empty = replace(batch, targets=torch.where(torch.arange(len(batch.targets)) == 1, NO_TARGET, batch.targets))
    wanted = functional.cross_entropy(logits, empty.targets, reduction="sum", label_smoothing=0.3)
    loss_sum, _ = score_answers(logits, empty, len(samples))
    assert smoothed(loss_sum, logits, empty, 0.3).item() == pytest.approx(wanted.item(), rel=1e-6)

    plain, soft = (
        run(make_model(), samples, features, prompt, stage(epochs=2, label_smoothing=share)) for share in (0.0, 0.3)
    )
    assert plain[0] == soft[0], "before training"
    assert plain[2]["validation_loss"] != soft[2]["validation_loss"]


@pytest.mark.parametrize("norm", [0.01, 1.0, None])
def test_gradients_are_clipped_at_the_norm_of_the_stage(norm, samples, features, prompt, monkeypatch):
    seen = []

    class Recording(torch.optim.AdamW):
        def step(self, *arguments, **options):
            gradients = [one.grad for group in self.param_groups for one in group["params"]]
            seen.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    rows = run(make_model(), samples, features, prompt, stage(clip_norm=norm, batch_size=100))
    before = rows[1]["gradient_norm_mean"]
    assert before > 0.01
    assert seen == pytest.approx([min(before, norm or before)], rel=1e-4)


def test_settings_that_came_later_are_in_no_record_at_their_default():
    assert {"clip_norm", "label_smoothing"}.isdisjoint(stage().model_dump(by_alias=True))
    changed = stage(clip_norm=None, label_smoothing=0.1).model_dump(by_alias=True)
    assert changed["clip_norm"] is None and changed["label_smoothing"] == 0.1
