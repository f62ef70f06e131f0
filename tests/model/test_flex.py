"""Batches of fixed shape, and attention in tiles, which a GPU computes and whose textbook is one row per question."""

import numpy as np
import pytest
import torch
from conftest import TOKENS, make_features, make_model, make_questions
from test_packing import VARIANTS, with_lora
from textbook import unpacked_loss
from torch.nn import functional
from triptych.errors import TriptychError
from triptych.model.flex import FLEX
from triptych.model.packing import NO_TARGET, Shape, fitting, pack
from triptych.model.tiles import TILE, find_tiles
from triptych.model.tokens import tokenise
from triptych.train.parameters import set_trainable

SHAPES = [Shape(256, 3, 40), Shape(512, 20, 200), Shape(1024, 40, 400)]


@pytest.fixture(autouse=True)
def _on_a_cpu(flex_on_cpu):
    """Attention in tiles is computed on the CPU, by the code that torch keeps for checking."""


@pytest.mark.parametrize("part", [None, *VARIANTS, "language_model"])
@pytest.mark.parametrize(("tokens", "images"), [(4, 5), (9, 20), (150, 3), (4, 1)])
def test_loss_and_gradients_equal_the_unpacked_ones_whatever_lies_in_empty_slots(prompt, part, tokens, images):
    model = make_model(FLEX)
    if part in VARIANTS:
        model, part = with_lora(model, part), "lora"
    trained = set_trainable(model, ["connector", part] if part else ["connector"])
    features = make_features(tokens)
    samples = tokenise(make_questions(images=images, seed=1), prompt)
    batch = pack(samples, features, prompt, tokens, shapes=SHAPES)
    assert len(batch.shown) > images and batch.tokens.shape[1] in (256, 512, 1024)
    batch.features[~batch.shown] = torch.nan
    logits = model.answer_logits(batch)
    loss = functional.cross_entropy(logits, batch.targets, ignore_index=NO_TARGET)
    gradients = torch.autograd.grad(loss, list(trained.values()))
    model.decoder.config._attn_implementation = "sdpa"
    plain = unpacked_loss(model, samples, features, prompt)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    expected = torch.autograd.grad(plain, list(trained.values()))
    for name, ours, theirs in zip(trained, gradients, expected, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm() + 1e-8, name


@pytest.mark.parametrize("seed", range(6))
def test_tiles_are_those_of_the_dense_mask(prompt, seed):
    generator = np.random.default_rng(seed)
    tokens = int(generator.choice([0, 4, 140, 300]))
    samples = tokenise(make_questions(images=int(generator.integers(1, 12)), seed=seed), prompt)
    batch = pack(samples, make_features(tokens), prompt, tokens, shapes=[Shape(4096, 12, 400)])
    mask = batch.attention_mask()[0, 0]
    tiled = mask.view(4096 // TILE, TILE, 4096 // TILE, TILE).transpose(1, 2)
    some, every = tiled.any(-1).any(-1), tiled.all(-1).all(-1)
    found = {}
    for kind in ("partial", "full", "any"):
        for of, name in (("queries", kind), ("keys", kind + " transposed")):
            count = getattr(batch.tiles, f"{kind}_of_{of}_count")[0, 0]
            order = getattr(batch.tiles, f"{kind}_of_{of}")[0, 0]
            found[name] = torch.zeros_like(some)
            for row, (many, numbers) in enumerate(zip(count, order, strict=True)):
                found[name][row, numbers[:many].long()] = True
    assert (found["any"] | ~some).all(), "no pair is left out"
    assert (~found["full"] | every).all(), "no pair is added"
    assert torch.equal(found["any"], found["partial"] | found["full"]) and not (found["partial"] & found["full"]).any()
    assert all(torch.equal(found[kind], found[kind + " transposed"].T) for kind in ("partial", "full", "any"))
    real = (batch.blocks[0] >= 0).view(-1, TILE).any(-1)
    extra = (found["any"] & ~some & real[:, None]).sum()
    assert extra <= 0.1 * some.sum() + 2, "hardly a tile is computed for nothing"
    if tokens == 300:
        assert found["full"].any()


def test_a_block_without_a_prefix_has_no_full_tile():
    blocks = np.zeros(512, int)
    segments = np.repeat([1, 2], 256)
    tiles = find_tiles(blocks, segments)
    assert tiles.full_of_queries_count.sum() == 0
    assert tiles.any_of_queries_count[0, 0].tolist() == [1, 2, 1, 2]


def test_a_batch_takes_the_first_shape_that_it_fits_in(features, prompt):
    assert fitting(SHAPES, Shape(256, 3, 40)) == SHAPES[0] and fitting(SHAPES, Shape(256, 4, 40)) == SHAPES[1]
    assert fitting(SHAPES, Shape(10, 1, 41)) == SHAPES[1] and fitting(SHAPES, Shape(513, 1, 1)) == SHAPES[2]
    with pytest.raises(TriptychError, match="fits in none"):
        pack(tokenise(make_questions(images=200, seed=0), prompt), features, prompt, TOKENS, shapes=SHAPES)


@pytest.mark.parametrize("shapes", [(), SHAPES])
def test_a_batch_goes_to_a_device_in_one_copy_and_is_the_same_there(features, prompt, shapes):
    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
            return function(*args, **(kwargs or {}))

    samples = tokenise(make_questions(images=5, seed=3), prompt)
    batch = pack(samples, lambda ids: features(ids).bfloat16(), prompt, TOKENS, shapes=shapes)
    joined = batch.joined(pinned=False)
    for one, other in zip(batch._flat(), joined._flat(), strict=True):
        assert (
            one.dtype == other.dtype
            and torch.equal(one, other)
            and other.data_ptr() % 64 == joined.buffer.data_ptr() % 64
        )
    with Copies() as copies:
        there = joined.to(torch.device("meta"))
    assert copies.count == 1
    assert [tensor.shape for tensor in there._flat()] == [tensor.shape for tensor in batch._flat()]
    assert (there.tiles is None) == (not shapes)
