"""Regularisation of the connector: the term, its head, and what neither may change."""

import pytest
import torch
from conftest import FEATURES, TOKENS, make_model
from trainings import CONNECTORS, TERMS, lora_model, run, same, stage, weights
from triptych.config.stages import Regularisation
from triptych.errors import TriptychError
from triptych.train.autosave import Autosaver
from triptych.train.optimizer import make_optimiser
from triptych.train.parameters import set_trainable
from triptych.train.regularisation import build_head, cosine_term


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


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("kind", TERMS)
def test_the_term_is_one_minus_the_cosine_by_hand(kind, connector):
    model = make_model(connector=connector)
    features = torch.randn(3, TOKENS, FEATURES)
    head = build_head(Regularisation(kind=kind, weight=1.0), model, features, seed=7)
    image = model.project(features)
    # A fourth slot is empty, and holds nonsense.
    slots = torch.cat([features, torch.full_like(features[:1], 1e3)])
    term = cosine_term(kind, model, head, slots, model.project(slots), torch.tensor([True, True, True, False]))
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
        autosaver = Autosaver(tmp_path / str(weight), {}, 10)
        rows = run(model, samples, features, prompt, settings, autosaver)
        terms.append([row["cosine_term"] for row in rows[1:]])
        states.append(autosaver.load().tensors)
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
