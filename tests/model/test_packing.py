"""Shared-prefix packing gives the loss and gradients of one row per question."""

import random

import pytest
import torch
from conftest import PROMPT, TOKENS, make_features, make_model, make_questions
from textbook import unpacked_loss
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triptych.config.stages import Lora
from triptych.model.attention import BLOCKWISE
from triptych.model.packing import PADDING, PREFIX, TEXT, pack, place, split_by_image
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.model.vlm import add_lora
from triptych.train.parameters import set_trainable

VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "both": {"use_rslora": True, "use_dora": True},
}


def with_lora(model, variant="lora"):
    """Adapters that matter: a fresh one changes nothing."""
    model.language_model = add_lora(model.language_model, Lora(dropout=0.0, **VARIANTS[variant]), seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
            elif "magnitude" in name:
                parameter *= 1 + 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa", BLOCKWISE])  # plain; what GPUs and what CPUs use
@pytest.mark.parametrize("row_tokens", [1, 64, 4096])  # a row an image, some images a row, all in one row
@pytest.mark.parametrize("part", [None, *VARIANTS, "language_model"])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_equal_the_unpacked_ones(features, prompt, part, seed, row_tokens, attention):
    model = make_model(attention)
    if part in VARIANTS:
        model, part = with_lora(model, part), "lora"
    trained = set_trainable(model, ["connector", part] if part else ["connector"])
    samples = tokenise(make_questions(images=5, seed=seed), prompt)
    batch = pack(samples, features, prompt, TOKENS, row_tokens)
    packed = functional.cross_entropy(model.answer_logits(batch), batch.targets)
    packed_gradients = torch.autograd.grad(packed, list(trained.values()))
    plain = unpacked_loss(model, samples, features, prompt)
    plain_gradients = torch.autograd.grad(plain, list(trained.values()))
    assert packed.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, ours, theirs in zip(trained, packed_gradients, plain_gradients, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm() + 1e-8, name


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("tokens", [1, 9, 50])  # of an image; 50 images' tokens fill a row by themselves
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_random_data_in_random_pieces_equals_the_unpacked(prompt, seed, tokens, lora):
    chance = random.Random(f"{seed} {tokens} {lora}")
    model = with_lora(make_model()) if lora else make_model()
    trained = set_trainable(model, ["connector", "lora"] if lora else ["connector"])
    features = make_features(tokens)
    samples = tokenise(make_questions(images=chance.randint(1, 8), seed=seed), prompt)
    chance.shuffle(samples)
    answer_tokens = sum(len(sample.answer) for sample in samples)
    loss = torch.zeros(())
    pieces = split_by_image(samples, len(prompt.before_image) + tokens, chance.choice([1, 100, 10_000]))
    for piece in pieces:
        batch = pack(piece, features, prompt, tokens, chance.choice([1, 100, 10_000]))
        loss = loss + functional.cross_entropy(model.answer_logits(batch), batch.targets, reduction="sum")
    assert sorted(sample.question_id for piece in pieces for sample in piece) == sorted(s.question_id for s in samples)
    plain = unpacked_loss(model, samples, features, prompt)
    gradients = [torch.autograd.grad(value, list(trained.values())) for value in (loss / answer_tokens, plain)]
    assert (loss / answer_tokens).item() == pytest.approx(plain.item(), rel=1e-4)
    for name, ours, theirs in zip(trained, *gradients, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm() + 1e-8, name


class Written(TorchDispatchMode):
    """Counts the numbers that operations write."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        places = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        for one in tree_leaves(found):
            if torch.is_tensor(one) and (function._schema.is_mutable or one.untyped_storage().data_ptr() not in places):
                self.numbers += one.numel()
        return found


def test_a_row_of_many_images_costs_what_its_blocks_cost(features, prompt):
    def cost(images):
        model = make_model(BLOCKWISE)
        [row, *_] = make_questions(images=1, seed=0)
        rows = [{**row, "question_id": number, "image_id": f"image{number}"} for number in range(images)]
        batch = pack(tokenise(rows, prompt), lambda names: features(["image0"] * len(names)), prompt, TOKENS, 10**6)
        assert len(batch.tokens) == 1, "one row"
        with Written() as written:
            functional.cross_entropy(model.answer_logits(batch), batch.targets).backward()
        return written.numbers

    one, few, many = cost(1), cost(8), cost(64)
    assert (many - one) / (few - one) == pytest.approx(63 / 7, rel=0.02), "each further image costs as much"


@pytest.mark.parametrize("attention", ["eager", "sdpa", BLOCKWISE])
@pytest.mark.parametrize("size", [1e4, 1e9])
def test_absurd_neighbours_change_no_bit(features, prompt, attention, size):
    model = with_lora(make_model(attention))
    trained = set_trainable(model, ["connector", "lora"])
    rows = make_questions(images=3, seed=1)
    victims = [row["image_id"] != "image1" for row in rows]
    # A neighbour in the row with absurd features, and one of the same image with absurd words, as long as before.
    absurd = [dict(row) for row in rows]
    own = min(index for index, row in enumerate(rows) if row["image_id"] == "image2")
    assert rows[own + 1]["image_id"] == "image2", "one of its own image comes after it"
    absurd[own]["question"] = " ".join(["yes"] * len(rows[own]["question"].split()))
    victims[own] = False

    def look_up(image_ids):
        factors = torch.tensor([size if name == "image1" else 1.0 for name in image_ids])
        return features(image_ids) * factors[:, None, None]

    results = []
    for data, source in ((rows, features), (absurd, look_up)):
        batch = pack(tokenise(data, prompt), source, prompt, TOKENS)
        assert len(batch.tokens) < 3, "images share rows"
        logits = model.answer_logits(batch)
        assert logits.isfinite().all()
        chosen = torch.tensor(victims)[batch.target_samples]
        loss = functional.cross_entropy(logits[chosen], batch.targets[chosen])
        results.append((logits[chosen], *torch.autograd.grad(loss, list(trained.values()))))
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("image", ["x", "another"])
def test_a_poisoned_neighbour_changes_nothing(model, features, prompt, image):
    rows = [{"question_id": "a", "image_id": "x", "question": "what colour is it ?", "answer": "red"}]
    neighbour = {"question_id": "b", "image_id": image, "question": "MRI CT MRI CT left right yes", "answer": "no no"}
    alone = model.answer_logits(pack(tokenise(rows, prompt), features, prompt, TOKENS))
    batch = pack(tokenise([neighbour, *rows], prompt), features, prompt, TOKENS)
    assert len(batch.tokens) == 1, "both stand in one row"
    beside = model.answer_logits(batch)[batch.target_samples == 1]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_only_answer_tokens_are_targets_and_the_end_stands_once(tokenizer, prompt, samples, features):
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end  # so masking by token id would lose the end token
    batch = pack(samples, features, prompt, TOKENS)
    assert len(batch.targets) == sum(len(sample.answer) for sample in samples)
    for index, sample in enumerate(samples):
        targets = batch.targets[batch.target_samples == index].tolist()
        assert targets == list(sample.answer)
        assert targets.count(end) == 1 and targets[-1] == end
    # What stands one place after a target's column is the target itself: no shift is off by one,
    # and it belongs to a sample, never to an image prefix or to padding.
    after = (batch.target_rows, batch.target_columns + 1)
    assert torch.equal(batch.tokens[after], batch.targets)
    assert (batch.segments[after] > PREFIX).all() and (batch.blocks[after] != PADDING).all()


def test_positions_go_on_from_the_prefix_for_every_question(samples, prompt, features):
    batch = pack(samples, features, prompt, TOKENS)
    prefix = len(prompt.before_image) + TOKENS
    found = 0
    for block in range(len(batch.features)):
        inside = batch.blocks == block
        assert batch.positions[inside & (batch.segments == PREFIX)].tolist() == list(range(prefix))
        for segment in range(1, int(batch.segments[inside].max()) + 1):
            positions = batch.positions[inside & (batch.segments == segment)]
            assert positions.tolist() == list(range(prefix, prefix + len(positions)))
            found += 1
    assert found == len(samples)


def test_image_tokens_lie_where_the_batch_says(model, samples, prompt, features):
    batch = pack(samples, features, prompt, TOKENS)
    before = len(prompt.before_image)
    for block in range(len(batch.features)):
        place = (batch.image_index >= block * TOKENS) & (batch.image_index < (block + 1) * TOKENS)
        assert batch.positions[place].tolist() == list(range(before, before + TOKENS))
        assert (batch.segments[place] == PREFIX).all() and (batch.blocks[place] == block).all()
    assert (batch.image_index != TEXT).sum() == len(batch.features) * TOKENS


def test_blocks_are_placed_once_and_rows_are_filled():
    lengths = [30, 200, 120, 90, 60, 500]
    rows = place(lengths, 300)
    assert sorted(block for row in rows for block in row) == list(range(6))
    assert [sum(lengths[block] for block in row) for row in rows] == [500, 500]
    assert place([10], 300) == [[0]]


def test_the_question_may_hold_any_text(tokenizer):
    prompt = prompt_tokens(tokenizer, PROMPT)
    assert prompt.encode_question("what is {question} ?")  # braces in data are data
