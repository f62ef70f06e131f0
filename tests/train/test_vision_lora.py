"""LoRA on the vision encoder: what trains, textbook gradients, checkpoints, and encoders without layers for it."""

import copy

import pytest
import torch
from conftest import TOKENS, make_llama, make_model, make_questions
from safetensors.torch import load_file
from test_vision_encoder import Seen, clip  # noqa: F401  (fixture)
from textbook import unpacked_loss
from torch.nn import functional
from trainings import InterruptedAfterCalls, run, same, stage, weights
from triptych.config.models import PackageEncoder
from triptych.config.stages import Connector, Lora
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, sha256_file, write_record
from triptych.model import checkpoint
from triptych.model.packing import pack
from triptych.model.tokens import tokenise
from triptych.model.tower import VISION_ADAPTER_FILE, VISION_FILE
from triptych.train.autosave import Interrupted
from triptych.train.parameters import count_parameters, set_trainable

CPU = torch.device("cpu")
PARTS = ("connector", "lora")
LORA = Lora(rank=2, alpha=4, dropout=0.0, vision_target_modules=["q_proj", "fc1"])


def adapted(seen, lora=LORA, seed=5):
    model = seen.model(make_model)
    model.vision.adapt(lora, seed)
    return model


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_fresh_adapters_change_nothing_and_gradients_are_the_textbooks(clip, prompt, variant):  # noqa: F811
    model = adapted(clip, LORA.model_copy(update=variant))
    pixels = clip.pixels(["image0", "image1"])
    assert torch.allclose(model.see(pixels), clip.model().see(pixels), atol=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert not torch.allclose(model.see(pixels), clip.model().see(pixels), atol=1e-3)
    trained = set_trainable(model, PARTS)
    # Of two blocks, tokens depend on the first alone: two factors of two layers there, and DoRA's lengths.
    kinds = 3 if variant.get("use_dora") else 2
    assert sum(name.startswith("vision.") for name in trained) == 2 * kinds
    assert all(".layers.0." in name for name in trained if name.startswith("vision."))
    samples = tokenise(make_questions(images=3), prompt)
    batch = pack(samples, clip.pixels, prompt, TOKENS)
    packed = functional.cross_entropy(model.answer_logits(batch), batch.targets)
    ours = torch.autograd.grad(packed, list(trained.values()))
    other = copy.deepcopy(model)
    network, parameters = other.vision.network, dict(other.named_parameters())

    def encoded(names):
        return network(pixel_values=clip.pixels(names), output_hidden_states=True).hidden_states[-2][:, 1:]

    loss = unpacked_loss(other, samples, encoded, prompt)
    theirs = torch.autograd.grad(loss, [parameters[name] for name in trained])
    assert packed.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, mine, textbook in zip(trained, ours, theirs, strict=True):
        assert (mine - textbook).norm() < 1e-3 * textbook.norm() + 1e-7, name


def test_a_merged_adapter_gives_the_same_tokens(clip):  # noqa: F811
    model, pixels = adapted(clip), clip.pixels(["image0", "image1"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    before = model.see(pixels)
    model.vision.merge()
    assert not model.vision.adapted and model.vision.network.state_dict().keys() == (
        clip.model().vision.network.state_dict().keys()
    )
    assert torch.allclose(model.see(pixels), before, atol=1e-5)


def test_a_stopped_training_ends_with_the_same_bits(clip, samples, prompt, tmp_path):  # noqa: F811
    settings = stage(PARTS, rate=1e-2, epochs=3)
    undisturbed = adapted(clip)
    counts = count_parameters(undisturbed.named_parameters())
    assert counts["lora"]["trained"] and counts["vision_encoder"]
    rows = run(undisturbed, samples, clip.pixels, prompt, settings)
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]
    found, attempts = None, 0
    while found is None:
        attempts += 1
        model = adapted(clip)
        try:
            found = run(model, samples, clip.pixels, prompt, settings, InterruptedAfterCalls(tmp_path / "last", 6))
        except Interrupted:
            assert attempts < 30
    assert attempts > 1 and found == rows and same(weights(model), weights(undisturbed))
    frozen = clip.model().vision.network.state_dict()
    after = {name.replace(".base_layer.", "."): one for name, one in model.vision.network.state_dict().items()}
    assert all(torch.equal(after[name], frozen[name]) for name in frozen)


def test_checkpoints_hold_the_adapters_alone_and_hand_them_on(clip, samples, prompt, tmp_path):  # noqa: F811
    make_llama().save_pretrained(tmp_path / "llama")
    files = {file.name: sha256_file(file) for file in (tmp_path / "llama").iterdir()}
    write_record(tmp_path / "llama" / "manifest.json", {"settings": {"prompt": "x"}, "files": files})
    base = clip.base(tmp_path / "llama")

    def built(parent, lora):
        path = parent and tmp_path / parent / "manifest.json"
        return checkpoint.build(base, path, Connector(), lora, 0, "fold0", torch.float32, CPU)

    def saved(model, name, parent=None):
        about = {"prefix": name, "split": "fold0", "seed": 0, "connector": Connector().model_dump()}
        about |= {"lora": LORA.model_dump(), **base.identity}
        checkpoint.save(model, tmp_path / name, about, "", parent and tmp_path / parent / "manifest.json")
        return set(read_json(tmp_path / name / "manifest.json")["files"])

    first = built(None, LORA)
    assert same(weights(first), weights(built(None, LORA))), "fresh adapters depend on the seed alone"
    run(first, samples, clip.pixels, prompt, stage(PARTS, rate=1e-2))
    assert saved(first, "first") >= {VISION_ADAPTER_FILE, "adapter.safetensors"}
    assert not (tmp_path / "first" / VISION_FILE).exists()
    held = load_file(tmp_path / "first" / VISION_ADAPTER_FILE)
    assert held and all(".lora_" in name for name in held)
    second = built("first", None)
    assert same(weights(second), weights(first))
    run(second, samples, clip.pixels, prompt, stage(("connector",), rate=1e-2))
    saved(second, "second", "first")
    assert same(load_file(tmp_path / "second" / VISION_ADAPTER_FILE), held)
    loaded = checkpoint.load(base, tmp_path / "second" / "manifest.json", torch.float32, CPU)
    pixels = clip.pixels(["image3"])
    assert torch.equal(loaded.see(pixels), second.see(pixels))
    assert not torch.allclose(loaded.see(pixels), clip.model().see(pixels), atol=1e-4)
    with pytest.raises(TriptychError, match="trains 'vision_encoder', which has adapters"):
        set_trainable(built("second", None), ["vision_encoder"])
    # An encoder that was trained first may get adapters, and its file is handed on as well.
    tuned = checkpoint.build(base, None, Connector(), None, 0, "fold0", torch.float32, CPU, tower=True)
    run(tuned, samples, clip.pixels, prompt, stage(("connector", "vision_encoder"), rate=1e-3))
    saved(tuned, "tuned")
    both = built("tuned", LORA)
    run(both, samples, clip.pixels, prompt, stage(PARTS, rate=1e-2))
    assert saved(both, "both", "tuned") >= {VISION_FILE, VISION_ADAPTER_FILE}
    assert (tmp_path / "both" / VISION_FILE).samefile(tmp_path / "tuned" / VISION_FILE)
    again = built("both", None)
    assert same(weights(again), weights(both)) and torch.equal(again.see(pixels), both.see(pixels))


def test_layers_that_are_not_there_are_named(clip, tmp_path):  # noqa: F811
    wrong = LORA.model_copy(update={"vision_target_modules": ["query", "q_proj"]})
    with pytest.raises(TriptychError, match="has no linear layer query that tokens depend on; it has fc1, fc2, k_proj"):
        adapted(clip, wrong)
    convolutional = Seen(tmp_path / "package", PackageEncoder(source="package", image_size=32), "bf16")
    with pytest.raises(TriptychError, match=r"has no linear layer _fc that .*; it has none: train vision_encoder inst"):
        adapted(convolutional, LORA.model_copy(update={"vision_target_modules": ["_fc"]}))
