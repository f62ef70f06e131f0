"""Every supported language model, compared with plain transformers, one question at a time and with plain attention."""

import pytest
import torch
from conftest import FEATURES, TOKENS, WORDS, make_questions
from models_page import tiny_config, tiny_model
from textbook import unpacked_loss
from torch.nn import functional
from transformers import CONFIG_MAPPING
from triptych.config.stages import Connector, Lora
from triptych.errors import TriptychError
from triptych.evaluate.generate import generate
from triptych.model.architectures import ARCHITECTURES, architecture, sliding_window, supported_attention
from triptych.model.attention import BLOCKWISE, layer_masks
from triptych.model.connector import build_connector
from triptych.model.flex import FLEX
from triptych.model.packing import NO_TARGET, Shape, pack
from triptych.model.tokens import Sample, tokenise
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.train.parameters import set_trainable

WINDOWS = [None, 4, 9]  # shorter than a prefix (5 tokens), and than a question behind it
CASES = [
    (kind, window)
    for kind, known in ARCHITECTURES.items()
    for window in (WINDOWS if known.windows != "none" else [None])
]
ATTENTION = ["eager", "sdpa", BLOCKWISE]
SHAPES = [Shape(256, 6, 60)]
FIXED = "at fixed shapes"  # as a GPU answers, whatever kind of attention trained
ALL_LAYERS = {"phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}


def joined(kind, window, attention="eager", lora=True):
    """A tiny model behind a connector, the same weights for every kind of attention."""
    kind_of_attention = supported_attention(tiny_config(kind), attention)
    text = tiny_model(kind, window, kind_of_attention, vocab_size=len(WORDS))
    model = VisionLanguageModel(build_connector(Connector(), FEATURES, 32, seed=3), text)
    if lora:  # adapters that matter: fresh ones change nothing
        layers = ALL_LAYERS.get(kind, ["q_proj", "v_proj", "down_proj"])
        model.language_model = add_lora(text, Lora(rank=2, alpha=4, dropout=0.0, target_modules=layers), seed=5)
        torch.manual_seed(6)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("part", ["lora", "language_model"])
@pytest.mark.parametrize("attention", [*ATTENTION, FLEX])
@pytest.mark.parametrize(("kind", "window"), CASES)
def test_packed_loss_and_gradients_are_those_of_plain_transformers(
    features, prompt, kind, window, attention, part, flex_on_cpu
):
    ours, plain = (joined(kind, window, how, part == "lora") for how in (attention, "eager"))
    trained = [set_trainable(model, ["connector", part]) for model in (ours, plain)]
    samples = tokenise(make_questions(images=4, seed=1), prompt)
    batch = pack(samples, features, prompt, TOKENS, 64, SHAPES if attention == FLEX else ())
    packed = functional.cross_entropy(ours.answer_logits(batch), batch.targets, ignore_index=NO_TARGET)
    unpacked = unpacked_loss(plain, samples, features, prompt)
    assert packed.item() == pytest.approx(unpacked.item(), rel=1e-5)
    gradients = [
        torch.autograd.grad(loss, list(named.values())) for loss, named in zip((packed, unpacked), trained, strict=True)
    ]
    for name, found, expected in zip(trained[0], *gradients, strict=True):
        assert (found - expected).norm() < 1e-4 * expected.norm() + 1e-7, name


@pytest.mark.parametrize(("kind", "window"), CASES)
def test_packed_logits_are_those_of_plain_transformers(features, prompt, kind, window):
    samples = tokenise(make_questions(images=5, seed=2), prompt)
    plain = joined(kind, window)
    for attention in ATTENTION:
        batch = pack(samples, features, prompt, TOKENS, 4096)
        found = joined(kind, window, attention).answer_logits(batch)
        for index, sample in enumerate(samples):
            inputs = [plain.embed(torch.tensor([prompt.before_image])), plain.project(features([sample.image_id]))]
            inputs = torch.cat([*inputs, plain.embed(torch.tensor([sample.text]))], dim=1)
            logits = plain.language_model(inputs_embeds=inputs).logits[0, -len(sample.answer) - 1 : -1]
            assert torch.allclose(found[batch.target_samples == index], logits, atol=1e-4), (attention, index)


@pytest.mark.parametrize("attention", [*ATTENTION, FIXED])
@pytest.mark.parametrize(("kind", "window"), CASES)
def test_greedy_answers_are_those_of_plain_transformers(features, prompt, kind, window, attention):
    fixed, attention = attention == FIXED, BLOCKWISE if attention == FIXED else attention
    samples = [Sample(s.question_id, s.image_id, s.question, ()) for s in tokenise(make_questions(images=5), prompt)]
    plain = joined(kind, window)
    answers, logprobs = generate(joined(kind, window, attention), samples, features, prompt, 9, fixed_shapes=fixed)
    assert len(set(map(tuple, answers))) > 1
    for sample, answer, logprob in zip(samples, answers, logprobs, strict=True):
        inputs = [plain.embed(torch.tensor([prompt.before_image])), plain.project(features([sample.image_id]))]
        inputs = torch.cat([*inputs, plain.embed(torch.tensor([sample.question]))], dim=1)
        expected = plain.language_model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            max_new_tokens=9,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        tokens = expected.sequences[0].tolist()
        scores = torch.cat(expected.scores).log_softmax(-1)
        assert answer == [token for token in tokens if token != prompt.end]
        assert logprob == pytest.approx(scores[range(len(tokens)), tokens].sum().item(), abs=1e-3)


@pytest.mark.parametrize(("kind", "window"), [case for case in CASES if case[1]])
def test_a_window_changes_what_is_computed(features, prompt, kind, window):
    """Otherwise the comparisons above would hold without any."""
    batch = pack(tokenise(make_questions(), prompt), features, prompt, TOKENS)
    without, within = (joined(kind, size, BLOCKWISE).answer_logits(batch) for size in (None, window))
    assert (without - within).abs().max() > 1e-2
    assert sliding_window(tiny_config(kind, window)) == window and sliding_window(tiny_config(kind)) is None


def test_a_window_that_no_sequence_fills_changes_no_bit(features, prompt):
    batch = pack(tokenise(make_questions(), prompt), features, prompt, TOKENS)
    without, within = (joined("mistral", size, BLOCKWISE).answer_logits(batch) for size in (None, 64))
    assert torch.equal(without, within)


def test_masks_of_an_architecture_without_windows_ignore_a_stray_key():
    allowed = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    distance = (torch.arange(6)[:, None] - torch.arange(6))[None, None]
    stray = tiny_config("llama", sliding_window=2)
    assert torch.equal(layer_masks(stray, allowed, distance, torch.float32) == 0, allowed)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "gemma3", "llava", "mamba"])
def test_other_architectures_are_refused(kind):
    with pytest.raises(TriptychError, match=f"{kind} is no language model that is supported .llama, mistral, "):
        architecture(CONFIG_MAPPING[kind]())
