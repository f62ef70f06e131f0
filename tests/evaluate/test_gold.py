"""Log-probabilities of gold answers: packed together, they are those of one question at a time."""

from dataclasses import replace

import pytest
import torch
from conftest import make_model, make_questions
from triptych.evaluate import gold
from triptych.evaluate.generate import generate
from triptych.evaluate.gold import gold_logprobs
from triptych.model.attention import BLOCKWISE
from triptych.model.tokens import Sample, tokenise


@pytest.fixture
def many(prompt):
    return tokenise(make_questions(images=12, seed=4), prompt)


def plain(model, sample, features, prompt):
    """One question in one row, causal, without packing: the sum over the answer's tokens and its end."""
    before = model.embed(torch.tensor([list(prompt.before_image)], dtype=torch.long))
    image = [] if model.blind else [model.project(features([sample.image_id]))]
    words = model.embed(torch.tensor([[*sample.question, *sample.answer]]))
    hidden = model.decoder(inputs_embeds=torch.cat([before, *image, words], dim=1)).last_hidden_state
    scores = model.logits(hidden[0, -len(sample.answer) - 1 : -1]).log_softmax(-1)
    return scores[range(len(sample.answer)), list(sample.answer)].sum().item()


@pytest.mark.parametrize("attention", ["eager", "sdpa", BLOCKWISE])
@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("tokens", [1, 60, 2048])  # an image, a few, or all in one pass
def test_each_is_that_of_its_question_alone(attention, blind, tokens, many, features, prompt, monkeypatch):
    monkeypatch.setattr(gold, "PASS_TOKENS", tokens)
    model, usual = make_model(attention), make_model()
    model.blind = usual.blind = blind
    expected = [plain(usual, sample, features, prompt) for sample in many]
    assert len({round(value, 3) for value in expected}) > len(many) / 4 and max(expected) < 0
    found = gold_logprobs(model, many, no_features if blind else features, prompt, "fp32")
    assert found == pytest.approx(expected, abs=1e-4)
    assert gold_logprobs(model, many[::-1], None if blind else features, prompt, "fp32")[::-1] == pytest.approx(
        expected, abs=1e-4
    ), "the order of the samples is that of the numbers"


def no_features(names):
    raise AssertionError("a blind model is shown no image")


def test_where_the_answer_is_the_gold_one_its_log_probability_is_that_of_the_answer(model, many, features, prompt):
    answers, logprobs = generate(model, many, features, prompt, 6)
    said = [  # without an end where an answer is cut off
        replace(sample, answer=(*answer, *[prompt.end] * (len(answer) < 6)))
        for sample, answer in zip(many, answers, strict=True)
    ]
    assert gold_logprobs(model, said, features, prompt, "fp32") == pytest.approx(logprobs, abs=1e-4)


def test_an_empty_gold_answer_is_its_end_alone(model, features, prompt):
    [empty] = tokenise([{"question_id": "q", "image_id": "i", "question": "is it red ?", "answer": ""}], prompt)
    assert empty.answer == (prompt.end,)
    [found] = gold_logprobs(model, [empty], features, prompt, "fp32")
    assert found == pytest.approx(plain(model, empty, features, prompt), abs=1e-5)


def test_a_gold_answer_beyond_the_context_has_none_and_the_others_have_theirs(model, many, features, prompt):
    limit = model.decoder.config.max_position_embeddings
    long = Sample("long", many[1].image_id, many[1].question, (*[5] * limit, prompt.end))
    found = gold_logprobs(model, [many[0], long, *many[1:]], features, prompt, "fp32")
    assert found[1] is None
    assert [found[0], *found[2:]] == pytest.approx(gold_logprobs(model, many, features, prompt, "fp32"), abs=1e-4)
    assert gold_logprobs(model, [long], features, prompt, "fp32") == [None]
