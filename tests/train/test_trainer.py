"""The options of a stage: what trains and how, connector kinds, regularisation, blindness, the choice of an epoch."""

import json
import signal
from functools import partialmethod

import pytest
import torch
from conftest import FEATURES, HIDDEN, TOKENS, make_features, make_inputs, make_model, make_questions
from safetensors.torch import load_file
from test_training import FP32, FULL_LORA, stage
from textbook import unpacked_loss
from torch.nn import functional
from triptych.config.stages import Connector, Lora, Regularisation, Stage, Training
from triptych.errors import TriptychError
from triptych.evaluate import predict
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.model import checkpoint
from triptych.model.attention import BLOCKWISE, row_tokens
from triptych.model.checkpoint import trained_state
from triptych.model.connector import Mlp, build_connector, pool_tokens
from triptych.model.packing import pack
from triptych.model.tokens import tokenise
from triptych.model.vlm import add_lora
from triptych.train import __main__ as command
from triptych.train.activation_checkpointing import activation_bytes, largest_pass
from triptych.train.autosave import Keeper, Paused
from triptych.train.compilation import choose_compilation, planned_work
from triptych.train.guards import SPIKE_LEAST_STEPS, spike_ratio
from triptych.train.optimizer import learning_rate_factor, make_optimiser
from triptych.train.parameters import as_table, describe, set_trainable
from triptych.train.progress import Progress
from triptych.train.regularisation import build_head, cosine_term
from triptych.train.trainer import train
from triptych.train.validation import chosen_epoch
from triptych.utils.device import best_device
from triptych.utils.prefetch import map_ahead

KINDS = [Connector(), Connector(kind="linear"), Connector(kind="pooled-mlp", pool=2)]
TERMS = ["reconstruct", "self-distillation"]


def run(model, samples, features, prompt, settings, keeper=None, validation=None):
    validation = samples if validation is None else validation
    return list(train(model, samples, validation, features, prompt, settings, FP32, 0, ["fold0", "2"], keeper))


def lora_model(connector=None, dropout=0.0):
    model = make_model(connector=connector)
    model.language_model = add_lora(model.language_model, Lora(rank=2, alpha=4, dropout=dropout), seed=5)
    return model


def weights(model):
    return {name: tensor.clone() for part in trained_state(model).values() for name, tensor in part.items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# What trains, at what rate


def test_a_stage_that_trains_nothing_measures_once_and_changes_nothing(samples, features, prompt, tmp_path):
    model = lora_model()
    before = weights(model)
    nothing = Stage(data="toy", train=[])
    rows = run(model, samples, features, prompt, nothing, Keeper(tmp_path / "last", {}, 10))
    assert [row["epoch"] for row in rows] == [0] and rows[0]["validation_loss"] > 0
    assert same(before, weights(model)) and not any(parameter.requires_grad for parameter in model.parameters())
    again = run(model, samples, features, prompt, nothing, Keeper(tmp_path / "last", {}, 10))
    assert again == rows, "the saved measurement is taken up"


def test_every_part_has_its_own_rate_decay_and_schedule():
    settings = Stage(
        data="toy",
        train=["connector", "lora"],
        learning_rate={"connector": 1e-3, "lora": 1e-4},
        weight_decay={"connector": 0.1, "lora": 0.0},
        warmup={"connector": 0.5, "lora": 0.0},
        schedule={"connector": "linear", "lora": "constant"},
        epochs=1,
    )
    model = lora_model()
    trained = set_trainable(model, settings.train)
    optimiser, schedule = make_optimiser(trained, settings, steps=10)
    by_part = dict(zip(("connector", "lora"), optimiser.param_groups, strict=True))
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(trained)
    assert any(parameter is model.connector.linear_1.weight for parameter in by_part["connector"]["params"])
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.step()
    connector, lora = zip(*rates, strict=True)
    assert connector == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
    assert lora == pytest.approx([1e-4] * 10)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_every_schedule_rises_first(kind):
    factors = [learning_rate_factor(step, 100, 0.1, kind) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0 == max(factors)
    assert factors[-1] == 1.0 if kind == "constant" else factors[-1] < 0.02
    assert factors[55] == pytest.approx({"cosine": 0.5, "linear": 0.5, "constant": 1.0}[kind], abs=0.01)


def test_one_value_is_that_value_for_every_part(samples, features, prompt):
    results = []
    for values in (0.01, {"connector": 0.01, "lora": 0.01}):
        model = lora_model(dropout=0.1)
        run(model, samples, features, prompt, stage(("connector", "lora"), weight_decay=values, warmup=values))
        results.append(weights(model))
    assert same(*results)


# Kinds of connectors


def test_pooling_averages_the_squares_of_the_grid():
    tokens = torch.randn(2, 36, 5)
    pooled = pool_tokens(tokens, 3)
    grid = tokens.view(2, 6, 6, 5)
    assert pooled.shape == (2, 4, 5)
    for place, (row, column) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        square = grid[:, row : row + 3, column : column + 3]
        assert torch.allclose(pooled[:, place], square.mean((1, 2)), atol=1e-6)


def test_a_grid_that_cannot_be_pooled_is_an_error():
    with pytest.raises(TriptychError, match="50 vision tokens are no square grid"):
        pool_tokens(torch.zeros(1, 50, 2), 2)
    with pytest.raises(TriptychError, match="2 does not divide 7, the side of the grid"):
        pool_tokens(torch.zeros(1, 49, 2), 2)


def test_tensor_names_and_image_tokens_of_each_kind():
    found = {}
    for settings in KINDS:
        model = make_model(connector=settings)
        seen = model.project(torch.randn(3, 16, FEATURES))
        assert seen.shape == (3, model.image_tokens(torch.zeros(1, 16, FEATURES)), HIDDEN)
        found[settings.kind] = (seen.shape[1], sorted(model.connector.state_dict()))
    llava = ["linear_1.bias", "linear_1.weight", "linear_2.bias", "linear_2.weight"]
    assert found == {"mlp2x_gelu": (16, llava), "linear": (16, ["bias", "weight"]), "pooled-mlp": (4, llava)}


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("tokens", [4, 16])
def test_packing_leaves_room_for_the_tokens_of_each_kind(kind, tokens, samples, prompt):
    features, model = make_features(tokens), make_model(connector=kind)
    trained = set_trainable(model, ["connector"])
    batch = pack(samples, features, prompt, model.image_tokens(features(["image0"])))
    packed = functional.cross_entropy(model.answer_logits(batch), batch.targets)
    plain = unpacked_loss(model, samples, features, prompt)
    assert packed.item() == pytest.approx(plain.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, list(trained.values())) for loss in (packed, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm() + 1e-8


def test_too_little_room_for_image_tokens_is_an_error(model, samples, features, prompt):
    with pytest.raises((RuntimeError, IndexError)):
        model.answer_logits(pack(samples, features, prompt, TOKENS - 1))


@pytest.mark.parametrize("kind", KINDS[1:])  # the default kind does so in test_training
def test_each_kind_learns_eight_samples_by_heart(kind, features, prompt):
    samples = tokenise(make_questions(images=4, seed=3), prompt)[:8]
    model = make_model(connector=kind)
    model.language_model = add_lora(model.language_model, FULL_LORA, seed=5)
    rows = run(model, samples, features, prompt, stage(("connector", "lora"), rate=3e-2, epochs=150, batch_size=8))
    assert rows[0]["validation_accuracy"] < 0.5 and rows[-1]["validation_accuracy"] == 1.0


# Regularisation


@pytest.mark.parametrize("kind", TERMS)
def test_weight_zero_is_no_regularisation_to_the_bit(kind, samples, features, prompt):
    results = []
    for term in (Regularisation(), Regularisation(kind=kind, weight=0.0)):
        model = lora_model(dropout=0.1)
        rows = run(model, samples, features, prompt, stage(("connector", "lora"), epochs=2, regularisation=term))
        results.append((rows, weights(model)))
    (plain_rows, plain), (zero_rows, zero) = results
    assert plain_rows == zero_rows and same(plain, zero)
    assert plain_rows[-1]["cosine_term"] is None


@pytest.mark.parametrize("connector", KINDS)
@pytest.mark.parametrize("kind", TERMS)
def test_the_term_is_one_minus_the_cosine_by_hand(kind, connector):
    model = make_model(connector=connector)
    features = torch.randn(3, TOKENS, FEATURES)
    head = build_head(Regularisation(kind=kind, weight=1.0), model, features, seed=7)
    image = model.project(features)
    term = cosine_term(kind, model, head, features, image)
    shown = features.mean(1, keepdim=True) if connector.pool else features
    expected = 0.0
    for picture in range(3):
        cosines = []
        for place in range(image.shape[1]):
            one, other = head(image[picture, place]), (shown if kind == "reconstruct" else image)[picture, place]
            cosines.append((one @ other / (one.norm() * other.norm())).item())
        expected += 1 - sum(cosines) / len(cosines)
    assert term.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", TERMS)
def test_a_regularised_training_lowers_the_term_and_drops_its_layer(kind, samples, features, prompt, capsys, tmp_path):
    terms, states = [], []
    for weight in (1e-6, 3.0):
        model = make_model()
        names = weights(model).keys()
        settings = stage(epochs=20, regularisation={"kind": kind, "weight": weight})
        keeper = Keeper(tmp_path / str(weight), {}, 10)
        rows = run(model, samples, features, prompt, settings, keeper)
        terms.append([row["cosine_term"] for row in rows[1:]])
        states.append(keeper.load().tensors)
        assert weights(model).keys() == names and not hasattr(model, "head")
    assert terms[1][-1] < 0.7 * terms[1][0] and terms[1][-1] < terms[0][-1]
    head = build_head(Regularisation(kind=kind, weight=1.0), make_model(), features(["image0"]), seed=0)
    count = sum(parameter.numel() for parameter in head.parameters())
    assert f"regularisation {count:>15,} {0:>15}" in capsys.readouterr().out
    expected = {f"weight/regularisation.{name}" for name in head.state_dict()}
    assert expected == {name for name in states[0] if name.startswith("weight/regularisation.")}
    assert any(name.startswith("optimiser/regularisation.") for name in states[0])


@pytest.mark.parametrize("kind", TERMS)
def test_a_regularised_step_in_pieces_is_the_step_in_one(kind, samples, features, prompt, monkeypatch):
    settings = stage(epochs=2, batch_size=8, regularisation={"kind": kind, "weight": 1.0})
    whole = run(make_model(), samples, features, prompt, settings)
    monkeypatch.setattr("triptych.train.trainer.STEP_TOKENS", 1)
    pieces = run(make_model(), samples, features, prompt, settings)
    for name in ("cosine_term", "train_loss", "gradient_norm_max"):
        assert pieces[-1][name] == pytest.approx(whole[-1][name], rel=1e-4)
    assert 0.5 < whole[1]["cosine_term"] < 1.5, "the mean over images, of which random ones are at right angles"


def test_a_layer_that_gets_no_gradient_is_noticed(samples, features, prompt, monkeypatch):
    term = cosine_term
    monkeypatch.setattr("triptych.train.trainer.cosine_term", lambda *given: term(*given).detach())
    settings = stage(regularisation={"kind": "reconstruct", "weight": 1.0})
    with pytest.raises(TriptychError, match=r"no gradient reaches regularisation\.bias, regularisation\.weight"):
        run(make_model(), samples, features, prompt, settings)


def test_what_a_regularisation_adds_has_the_connectors_rate(features):
    model = make_model()
    settings = stage(rate=5e-3, weight_decay={"connector": 0.1}, regularisation={"kind": "reconstruct", "weight": 1})
    head = build_head(settings.regularisation, model, features(["image0"]), seed=0)
    added = {f"regularisation.{name}": parameter for name, parameter in head.named_parameters()}
    optimiser, _ = make_optimiser(set_trainable(model, ["connector"]) | added, settings, 10)
    connector, regularisation = optimiser.param_groups
    assert regularisation["initial_lr"] == connector["initial_lr"] == 5e-3
    assert regularisation["weight_decay"] == connector["weight_decay"] == 0.1


# Blindness


def no_features(image_ids):
    raise AssertionError("vision features were read")


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


class Interrupted(Keeper):
    """A keeper that is told to stop after some questions."""

    def __init__(self, folder, questions):
        super().__init__(folder, {}, 10)
        self.questions = questions

    def ask(self, capture, place):
        self.questions -= 1
        if self.questions == 0:
            self._signal = "SIGTERM"
        super().ask(capture, place)


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


@pytest.mark.parametrize("questions", [7, 25])  # between two stops: within an epoch, and several epochs
def test_a_stopped_training_chooses_the_same_epoch_to_the_bit(questions, samples, held_out, features, prompt, tmp_path):
    settings = stage(("connector", "lora"), rate=1e-1, **SELECTED)
    undisturbed = lora_model(dropout=0.05)
    rows = run(undisturbed, samples, features, prompt, settings, validation=held_out)
    assert chosen_epoch(rows, "best") < 8, "the weights of an epoch before the last must come through"
    attempts, found = 0, None
    while found is None:
        attempts += 1
        model = lora_model(dropout=0.05)
        try:
            keeper = Interrupted(tmp_path / "last", questions)
            found = run(model, samples, features, prompt, settings, keeper, held_out)
        except Paused:
            assert attempts < 50
    assert attempts > 1
    assert found == rows and same(weights(model), weights(undisturbed))


# Spikes, and what is printed


def test_a_spike_is_told_from_noise():
    generator = torch.Generator().manual_seed(0)
    losses = (2 + 0.2 * torch.randn(400, generator=generator)).tolist()
    progress = Progress()
    for loss in losses:
        progress.end_step(loss, 1.0, None)
    assert max(progress.spike_ratios) < 1, "noise makes no spikes"
    assert len(progress.spike_ratios) == 400 - SPIKE_LEAST_STEPS
    falling = Progress()
    for step in range(400):
        falling.end_step(5 * 0.98**step, 1.0, None)
    assert max(falling.spike_ratios) < 1, "neither does learning"


def test_spikes_are_counted_and_said(capsys):
    progress = Progress()
    for step in range(100):
        progress.end_step(8.0 if step in (40, 41, 70) else 2.0 + 0.01 * (step % 5), 1.0, None)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].strip() for line in said] == ["step 40", "step 41", "step 70"]
    assert "the loss is 8.0000, 3.7" in said[0]
    progress.learnt.samples = progress.learnt.tokens = 1
    metrics = progress.end_epoch(progress.learnt, 1.0)
    assert metrics["loss_spikes"] == 3
    assert metrics["loss_spike_ratio_max"] == pytest.approx(8 / (2.02 + 6 * 0.02), rel=0.02)
    assert not progress.spike_ratios and len(progress.recent) == 64, "the window goes on, the counts begin anew"


def test_losses_of_nothing_are_no_spikes():
    assert spike_ratio(9.0, [1.0] * (SPIKE_LEAST_STEPS - 1)) is None
    assert spike_ratio(0.1, [0.0] * SPIKE_LEAST_STEPS) < 1 < spike_ratio(0.2, [0.0] * SPIKE_LEAST_STEPS)


def test_the_start_says_what_trains_and_what_is_frozen(samples, features, prompt, capsys):
    run(lora_model(), samples, features, prompt, stage(("lora",), epochs=2))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["part", "trained", "frozen"],
        ["connector", "0", "1,600"],
        ["language", "model", "0", "19,552"],
        ["lora", "448", "0"],
    ]
    assert lines[4] == f"{2 * -(-len(samples) // 4)} steps of 4 samples in 2 epochs; 4 image tokens a picture"
    run(lora_model(), samples, None, prompt, stage(("lora",), blind=True))
    assert "in 1 epochs; no images" in capsys.readouterr().out


def test_the_table_counts_by_name():
    counts = describe([("regularisation.weight", torch.nn.Parameter(torch.ones(3, 4)))])
    assert counts == {"regularisation": {"trained": 12, "frozen": 0}}
    assert as_table(counts).splitlines()[1].split() == ["regularisation", "12", "0"]


# Batches ahead of time, and layers computed again


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


def test_a_fault_in_a_batch_built_ahead_stops_the_training(samples, features, prompt):
    def lost(image_ids):
        if "image3" in image_ids and len(image_ids) < 4:
            raise TriptychError("image3 has no vision features")
        return features(image_ids)

    with pytest.raises(TriptychError, match="image3 has no vision features"):
        run(make_model(), samples, lost, prompt, stage(batch_size=2))


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
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"], ["q_proj", "down_proj"]])
def test_the_memory_of_a_pass_is_estimated(attention, targets, features, prompt):
    model = make_model(attention)
    if targets:
        model.language_model = add_lora(model.language_model, Lora(target_modules=targets), seed=5)
    samples = tokenise(make_questions(images=24), prompt)
    batch = pack(samples, features, prompt, TOKENS, row_tokens(model.decoder))
    model.train()
    together = batch.tokens.shape[1]
    if attention == BLOCKWISE:
        lengths = torch.bincount(batch.blocks.flatten()).double()
        together = round(float(lengths.square().sum() / lengths.sum()))
    size = (batch.tokens.numel(), together, len(batch.targets))
    ratio = activation_bytes(model, size, 4) / autograd_bytes(model, batch)
    assert 0.9 < ratio < 1.3
    bound = largest_pass(samples, 1 + TOKENS, len(samples), 10**6, model)
    assert bound[0] >= batch.tokens.numel() and bound[2] >= len(batch.targets)
    least = activation_bytes(model, size, 4)
    for place in range(3):
        more = tuple(number + 100 * (place == index) for index, number in enumerate(size))
        assert activation_bytes(model, more, 4) > least


@pytest.mark.parametrize("parts", [("connector",), ("connector", "lora")])
def test_layers_computed_again_give_the_same_bits(parts, samples, features, prompt, capsys, monkeypatch):
    results = []
    for memory, setting in ((10**12, "auto"), (10**12, "always"), (1000, "auto"), (None, "never")):
        monkeypatch.setattr("triptych.train.activation_checkpointing.free_memory", lambda device: memory)  # noqa: B023
        model = lora_model(dropout=0.1) if "lora" in parts else make_model()
        training = Training(precision="fp32", gradient_checkpointing=setting)
        rows = list(train(model, samples, samples, features, prompt, stage(parts, epochs=2), training, 0, ["2"]))
        results.append((rows, weights(model)))
        model.train()
        assert model.decoder.is_activation_checkpointing == (memory == 1000 or setting == "always")
    for rows, found in results[1:]:
        assert rows == results[0][0] and same(found, results[0][1])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("activations take about ")]
    assert ["checkpointing" in line for line in said] == [False, True, True, False]
    assert "of 1000.0 GB free; they are kept" in said[0] and said[3].endswith("GB; they are kept")


def test_compiled_layers_give_the_same_numbers(samples, held_out, features, prompt, capsys, monkeypatch):
    traced = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # all of it but the C++ compiler's minute
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    results = []
    for setting in ("auto", "always"):  # auto: so small a training is not worth it
        torch._dynamo.reset()
        model = lora_model()
        training = Training(precision="fp32", compile=setting)
        settings = stage(("connector", "lora"), rate=3e-3, epochs=2, batch_size=3)
        rows = list(train(model, samples, held_out, features, prompt, settings, training, 0, ["2"]))
        results.append((rows, weights(model)))
        assert ("layers are compiled" in capsys.readouterr().out) == (setting == "always")
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
    assert planned_work(model, samples, 5, 2) == 2 * planned_work(model, samples, 5, 1)
    assert planned_work(model, samples, 6, 1) - planned_work(model, samples, 5, 1) == 4 * sum(
        parameter.numel() for parameter in model.decoder.parameters()
    )
    assert not choose_compilation("never", model, 10**18) and not choose_compilation("auto", model, 10**9)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not choose_compilation("auto", model, 10**18)
    with pytest.raises(TriptychError, match="there is no C"):
        choose_compilation("always", model, 0)


# On the command line


@pytest.fixture(scope="module")
def inputs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "inputs"
    make_inputs(world, folder)
    return folder


@pytest.fixture
def steps(inputs, tmp_path, monkeypatch):
    """Runs trainings and predictions in this process: name and stage in, the checkpoint's manifest out."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    places = [f"--{name}={inputs / name.replace('-', '_')}" for name in ("data", "features", "language-model")]
    lora = Lora(rank=2, alpha=4).model_dump()

    def run_stage(name, settings, parent=None):
        settings = Stage(data="toy", **settings).model_dump()
        job = {"prefix": name, "split": "shared", "seed": 4, "stage_name": name, "stage": settings}
        job |= {"connector": Connector().model_dump(), "training": {"precision": "fp32"}}
        job |= {"lora": lora if "lora" in settings["train"] else None}
        arguments = ["--job", json.dumps(job), *places, f"--out={tmp_path / name}"]
        arguments += ["--parent", str(parent)] if parent else []
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        command.main()
        return tmp_path / name / "manifest.json"

    def run_predict(manifest, view="held-out"):
        out = tmp_path / "answers.parquet"
        job = json.dumps({"precision": "fp32", "max_new_tokens": 4, "batch_size": 5, "view": view})
        told = [f"--job={job}", f"--vision-encoder={inputs / 'vision_encoder'}", f"--out={out}"]
        monkeypatch.setattr("sys.argv", ["x", f"--checkpoint={manifest}", *places, *told])
        predict.main()
        return read_table(out)

    yield run_stage, run_predict
    for number, handler in handlers.items():
        signal.signal(number, handler)


LORA = {"train": ["lora"], "learning_rate": {"lora": 1e-2}, "epochs": 1}
BOTH = {"train": ["connector", "lora"], "learning_rate": {"connector": 1e-2, "lora": 1e-2}, "epochs": 1}


def tensors(manifest):
    return {path.name: load_file(path) for path in manifest.parent.glob("*.safetensors")}


def test_a_stage_that_trains_nothing_passes_its_parent_on(steps):
    run_stage, _ = steps
    both = run_stage("both", BOTH)
    passed = run_stage("passed", {"train": []}, both)
    found, expected = tensors(passed), tensors(both)
    assert found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    manifest = read_json(passed)
    assert [list(stage) for stage in manifest["stages"]] == [["both"], ["passed"]]
    assert manifest["epoch"] == 0 and manifest["metrics"]["epoch"] == 0
    assert not list(passed.parent.glob("last/state-*"))


def test_a_fresh_connector_beside_the_parents_adapters(steps):
    run_stage, _ = steps
    both, fresh = run_stage("both", BOTH), run_stage("fresh", {"train": []})
    control = run_stage("control", {"train": [], "init": "random"}, both)
    found = tensors(control)
    assert same(found["connector.safetensors"], tensors(fresh)["connector.safetensors"])
    assert same(found["adapter.safetensors"], tensors(both)["adapter.safetensors"])
    assert not same(found["connector.safetensors"], tensors(both)["connector.safetensors"])
    frozen = run_stage("frozen", {**LORA, "init": "random"}, both)  # LoRA on a random frozen connector
    assert same(tensors(frozen)["connector.safetensors"], found["connector.safetensors"])
    assert not same(tensors(frozen)["adapter.safetensors"], found["adapter.safetensors"])


def test_a_blind_checkpoint_answers_blindly_by_itself(steps, monkeypatch, inputs):
    run_stage, run_predict = steps
    seeing = run_stage("seeing", {**BOTH, "select": "best", "epochs": 2})
    assert read_json(seeing)["epoch"] in (1, 2) and not read_json(seeing)["blind"]
    assert len(run_predict(seeing)) > 0
    monkeypatch.setattr("triptych.features.store.Features.__call__", no_features)
    blind = run_stage("blind", {**LORA, "blind": True}, seeing)
    assert read_json(blind)["blind"] and read_json(blind)["metrics"]["token_norm_ratio"] is None
    answers = run_predict(blind)
    asked = {}
    for answer in answers:
        asked.setdefault(answer["question"], set()).add(answer["prediction"])
    assert all(len(given) == 1 for given in asked.values()), "one answer to a question, whatever the image"
    features = read_json(inputs / "features" / "manifest.json")
    base = checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])
    assert checkpoint.load(base, blind, torch.float32, best_device()).blind


def test_with_another_image_or_none_the_same_questions_are_asked(steps):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", {**BOTH, "epochs": 2})
    answers = {view: run_predict(manifest, view) for view in ("held-out", "swapped", "blank")}
    asked = {view: [row["question_id"] for row in rows] for view, rows in answers.items()}
    assert asked["held-out"] == asked["swapped"] == asked["blank"]
    assert all(row["view"] == view for view, rows in answers.items() for row in rows)
    chances = {view: [row["logprob"] for row in rows] for view, rows in answers.items()}
    assert len({tuple(values) for values in chances.values()}) == 3, "each view shows something else"
    one_by_one = {}
    for row in answers["blank"]:
        one_by_one.setdefault(row["question"], set()).add(row["prediction"])
    assert all(len(given) == 1 for given in one_by_one.values()), "the same grey image for every question"


def test_a_killed_prediction_ends_with_the_same_records(steps, monkeypatch, capsys):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", {**BOTH, "epochs": 1})
    whole = run_predict(manifest)
    generate, calls = predict.generate, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "generate", killed)
        run_predict(manifest)
    capsys.readouterr()
    assert run_predict(manifest) == whole
    assert f"{min(10, len(whole))}/{len(whole)} questions" in capsys.readouterr().out.splitlines()[0]


def test_a_parent_with_another_connector_is_refused(steps, inputs):
    run_stage, _ = steps
    parent = run_stage("parent", {"train": []})
    features = read_json(inputs / "features" / "manifest.json")
    base = checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])
    pooled = Connector(kind="pooled-mlp", pool=2)
    with pytest.raises(TriptychError, match="was trained with another connector"):
        checkpoint.build(base, parent, pooled, None, 4, "shared", torch.float32, torch.device("cpu"))
    fresh = checkpoint.build(base, parent, pooled, None, 4, "shared", torch.float32, torch.device("cpu"), "random")
    assert isinstance(fresh.connector, Mlp) and fresh.connector.pool == 2


def test_fresh_weights_of_every_kind_depend_on_the_seed_alone():
    for kind in KINDS:
        first, again, other = (build_connector(kind, FEATURES, HIDDEN, seed).state_dict() for seed in (1, 1, 2))
        assert same(first, again) and not same(first, other)
