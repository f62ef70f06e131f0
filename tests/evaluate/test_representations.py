"""What probes read: hidden states at the image tokens with known answers, their names, references and recorded jobs."""

import json

import numpy as np
import pytest
import torch
from conftest import make_features, make_model, toy_config
from triptych.config.evaluation import Probe
from triptych.config.jobs import ProbeJob
from triptych.config.stages import Lora
from triptych.config.study import load_study
from triptych.evaluate import representations
from triptych.evaluate.probe import fit_and_answer
from triptych.evaluate.representations import Sketch, average, hidden_states, probe_inputs
from triptych.io.manifest import canonical_json
from triptych.model.vlm import add_lora

IMAGES = [f"image{number}" for number in range(representations.AT_ONCE_BEHIND + 3)]


def with_lora(seed=5):
    """The tiny model with adapters that do something."""
    model = make_model()
    model.language_model = add_lora(model.language_model, Lora(rank=2, alpha=8), 1)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    return model.eval().requires_grad_(False)


def by_hand(model, prompt, layer, words=()):
    """The same from one run of the decoder over an image with words behind it."""
    look_up, found = make_features(), []
    for image in IMAGES:
        tokens = model.project(look_up([image]))
        before = model.embed(torch.tensor([list(prompt.before_image)]))
        after = model.embed(torch.tensor([list(words)], dtype=torch.long))
        run = model.decoder(inputs_embeds=torch.cat([before, tokens, after], 1), output_hidden_states=True)
        states = run.last_hidden_state if layer == "last" else run.hidden_states[1]  # of two layers
        found.append(states[0, before.shape[1] : before.shape[1] + tokens.shape[1]].mean(0).numpy())
    return np.array(found)


def hooks_of(model):
    return [len(module._forward_hooks) for module in (model.decoder, *model.decoder.layers)]


@pytest.mark.parametrize("layer", ["middle", "last"])
def test_hidden_states_are_those_at_the_image_whatever_is_asked(prompt, layer):
    model = with_lora()
    by_hand(model, prompt, layer)  # transformers adds hooks of its own at the first such run
    hooks = hooks_of(model)
    found = hidden_states(model, make_features(), prompt, IMAGES, layer, average)
    assert np.allclose(found, by_hand(model, prompt, layer), atol=1e-4)
    assert np.allclose(found, by_hand(model, prompt, layer, words=(3, 5, 7)), atol=1e-4)
    with model.language_model.disable_adapter():
        without = hidden_states(model, make_features(), prompt, IMAGES, layer, average)
    assert np.allclose(without, hidden_states(make_model(), make_features(), prompt, IMAGES, layer, average), atol=1e-4)
    assert not np.allclose(found, without, atol=0.05)
    assert hooks_of(model) == hooks


def study(world, layers, **settings):
    config = toy_config(world)
    config["stages"]["3blind"] = {**config["stages"]["3"], "train": ["lora"], "blind": True}
    config["stages"]["3blind"]["learning_rate"] = {"lora": 1e-2}
    config["schedules"].append(["3blind"])
    config["evaluation"]["probe"] |= {"layers": layers, **settings}
    return load_study(config)


def test_every_connector_that_an_image_is_seen_through_has_states_with_lora_and_without(world):
    plain, both = study(world, []).grid, study(world, ["middle", "last"]).grid
    assert list(plain.representations) == ["pre-projection", "random-connector", *plain.prefixes]
    added = list(both.representations)[len(plain.representations) :]
    lora = ["2-3", "1-2-3"]
    for layer in ("middle", "last"):
        names = {f"{name}_{layer}" for name in ("random-connector", "1", "2", "1-2", *lora)}
        names |= {f"{name}_{layer}-no-lora" for name in lora}
        assert {name for name in added if layer in name} == names
    references = {name: both.reference(name) for name in added}
    assert references["1-2-3_last"] == references["1-2-3_last-no-lora"] == "1_last"
    assert references["1_middle"] == references["2-3_middle-no-lora"] == "random-connector_middle"
    assert references["random-connector_last"] is None


def test_a_further_layer_probes_nothing_else_again(world):
    plain, both = study(world, []), study(world, ["last"])
    for name in plain.grid.representations:
        text = ProbeJob.of(plain, name, 0).text()
        assert text == ProbeJob.of(both, name, 0).text()
        told = json.loads(text)
        assert set(told) == {"representation", "seed", "connector", "probe"}, "as finished studies recorded it"
        assert text == canonical_json({**told, "probe": {"hidden": 8, "rare": 2, "seeds": 1}})
    jobs = [json.loads(ProbeJob.of(both, name, 0).text()) for name in ("1-2-3_last", "1-2-3_last-no-lora")]
    assert [(job["layer"], job["lora"]) for job in jobs] == [("last", True), ("last", False)]


def test_all_tokens_at_one_width_tell_places_apart_which_a_mean_cannot():
    generator = torch.Generator().manual_seed(0)
    signal = torch.zeros(200, 9, 32)
    left = torch.arange(200) % 2 == 0
    signal[left, 0] = 1.0  # the same token on the left or on the right of the image
    signal[~left, 8] = 1.0
    tokens = signal + 0.1 * torch.randn(signal.shape, generator=generator)
    settings = Probe(seeds=2, tokens="all")
    inputs = probe_inputs(Sketch(16, 2)(tokens).numpy(), settings, 16)
    assert [found.shape for found in inputs] == [(200, 16)] * 2 and not np.allclose(*inputs)
    labels = [["left"] if at else ["right"] for at in left]
    for found, right in ((inputs[0], True), (probe_inputs(average(tokens).numpy(), Probe(seeds=1), 16)[0], False)):
        said = fit_and_answer("linear", found[:100], labels[:100], found[100:], True, 8, 0)
        share = sum(answer == label for answer, label in zip(said, labels[100:], strict=True)) / 100
        assert share == 1 if right else 0.3 < share < 0.7
    parts = torch.cat([Sketch(16, 2)(tokens[:70]), Sketch(16, 2)(tokens[70:])])
    assert torch.allclose(parts, Sketch(16, 2)(tokens), atol=1e-5), "an image's does not depend on its neighbours"


def test_all_tokens_keep_distances_whatever_their_number():
    generator = torch.Generator().manual_seed(1)
    for places in (1, 12, 49):
        tokens = torch.randn(20, places, 40, generator=generator)
        before, after = (
            torch.cdist(x, x)[~torch.eye(20, dtype=bool)] for x in (tokens.flatten(1), Sketch(512, 1)(tokens))
        )
        assert ((after / before) - 1).abs().max() < 0.2 and abs((after / before).mean() - 1) < 0.02


def test_all_tokens_are_another_job_and_the_mean_is_the_one_that_was(world):
    mean, every = study(world, []), study(world, [], tokens="all")
    told = [json.loads(ProbeJob.of(one, "1-2", 0).text())["probe"] for one in (mean, every)]
    assert "tokens" not in told[0] and told[1] == {**told[0], "tokens": "all"}
