"""Kinds of connectors: pooling, tensor names, room for their image tokens."""

import pytest
import torch
from conftest import FEATURES, HIDDEN, TOKENS, make_features, make_model, make_questions
from textbook import unpacked_loss
from torch.nn import functional
from trainings import CONNECTORS, FULL_LORA, run, same, stage
from triptych.errors import TriptychError
from triptych.model.connector import build_connector, pool_tokens
from triptych.model.packing import pack
from triptych.model.tokens import tokenise
from triptych.model.vlm import add_lora
from triptych.train.parameters import set_trainable


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
    for settings in CONNECTORS:
        model = make_model(connector=settings)
        seen = model.project(torch.randn(3, 16, FEATURES))
        assert seen.shape == (3, model.image_tokens(torch.zeros(1, 16, FEATURES)), HIDDEN)
        found[settings.kind] = (seen.shape[1], sorted(model.connector.state_dict()))
    llava = ["linear_1.bias", "linear_1.weight", "linear_2.bias", "linear_2.weight"]
    assert found == {"mlp2x_gelu": (16, llava), "linear": (16, ["bias", "weight"]), "pooled-mlp": (4, llava)}


@pytest.mark.parametrize("kind", CONNECTORS[1:])
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


@pytest.mark.parametrize("room", [TOKENS - 1, TOKENS + 1, 1])
def test_room_for_another_number_of_image_tokens_is_an_error(model, samples, features, prompt, room):
    with pytest.raises(TriptychError, match=f"images have {TOKENS} tokens, the batch has room for {room}"):
        model.answer_logits(pack(samples, features, prompt, room))


@pytest.mark.parametrize("kind", CONNECTORS[1:])  # the default kind does so in test_training
def test_each_kind_learns_eight_samples_by_heart(kind, features, prompt):
    samples = tokenise(make_questions(images=4, seed=3), prompt)[:8]
    model = make_model(connector=kind)
    model.language_model = add_lora(model.language_model, FULL_LORA, seed=5)
    rows = run(model, samples, features, prompt, stage(("connector", "lora"), rate=3e-2, epochs=150, batch_size=8))
    assert rows[0]["validation_accuracy"] < 0.5 and rows[-1]["validation_accuracy"] == 1.0


def test_fresh_weights_of_every_kind_depend_on_the_seed_alone():
    for kind in CONNECTORS:
        first, again, other = (build_connector(kind, FEATURES, HIDDEN, seed).state_dict() for seed in (1, 1, 2))
        assert same(first, again) and not same(first, other)
