"""Generation with a shared prefix gives what plain one-at-a-time generation gives."""

import pytest
import torch
from conftest import make_model, make_questions
from triptych.model.batch import prompt_tokens, tokenise
from triptych.predict import generate
from triptych.settings import Connector

NEW_TOKENS = 6


def plain(model, sample, features, prompt):
    """`generate` of transformers on one question: no shared cache, no padding."""
    text = model.embed(torch.tensor([list(sample.question)]))
    before = model.embed(torch.tensor([list(prompt.before_image)], dtype=torch.long))
    image = [] if model.blind else [model.project(features([sample.image_id]))]
    embeddings = torch.cat([before, *image, text], dim=1)
    tokens = model.language_model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=prompt.end,
        pad_token_id=prompt.end,
    )[0].tolist()
    return tokens[: tokens.index(prompt.end)] if prompt.end in tokens else tokens


@pytest.fixture
def many(prompt):
    return tokenise(make_questions(images=12, seed=4), prompt)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("connector", [Connector(), Connector(kind="linear"), Connector(kind="pooled-mlp", pool=2)])
def test_answers_equal_plain_generation_at_any_batch_size(attention, connector, many, features, prompt):
    check_answers(make_model(attention, connector), many, features, prompt)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("before", ["user", ""])
def test_a_blind_model_answers_without_features(attention, before, tokenizer):
    model = make_model(attention)
    model.blind = True
    prompt = prompt_tokens(tokenizer, f"{before} <image> {{question}} assistant ")
    many = tokenise(make_questions(images=12, seed=4), prompt)
    check_answers(model, many, None, prompt, different=2)


def check_answers(model, many, features, prompt, different=3):
    expected = [plain(model, sample, features, prompt) for sample in many]
    assert len(set(map(tuple, expected))) > different, "answers must differ for the comparison to mean something"
    for size in (1, 7, 64):
        answers = []
        for start in range(0, len(many), size):
            answers += generate(model, many[start : start + size], features, prompt, NEW_TOKENS)
        assert answers == expected, f"batch size {size}"


def test_length_is_bounded_by_the_setting_alone(model, many, features, prompt):
    longer = generate(model, many, features, prompt, 4)
    shorter = generate(model, many, features, prompt, 2)
    assert max(map(len, longer)) <= 4
    assert shorter == [answer[:2] for answer in longer]
