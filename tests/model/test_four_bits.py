"""A language model in 4 bits: what is asked of bitsandbytes, by a stand-in for it, and what is refused without it."""

import sys
from types import ModuleType

import pytest
import torch
from conftest import TOKENS, make_llama, make_model
from textbook import unpacked_loss
from torch import nn
from trainings import FULL_LORA, run, stage
from triptych.errors import TriptychError
from triptych.evaluate.ready import make_ready
from triptych.export.write import export
from triptych.io.manifest import sha256_file, write_record
from triptych.model import checkpoint, four_bits
from triptych.model.four_bits import in_four_bits, numbers, quantise
from triptych.model.packing import pack
from triptych.model.vlm import add_lora
from triptych.train.compilation import compile_layers
from triptych.train.parameters import count_parameters, set_trainable
from triptych.train.route import CPU as ROUTE

CPU = torch.device("cpu")


class Params4bit(nn.Parameter):
    """Keeps what it is given, and the options."""

    def __new__(cls, data, requires_grad=True, **options):
        found = nn.Parameter.__new__(cls, data, requires_grad)
        found.options = options
        return found


class Linear4bit(nn.Linear):
    """A linear layer that rounds its weights coarsely, in place of 4 bits."""

    def __init__(self, inputs, outputs, bias, compute_dtype, device, **options):
        super().__init__(inputs, outputs, bias, device=device)
        self.compute_dtype, self.options = compute_dtype, options

    def forward(self, x):
        step = self.weight.abs().max() / 7
        return nn.functional.linear(x, (self.weight / step).round() * step, self.bias)


@pytest.fixture
def stand_in(monkeypatch):
    """bitsandbytes as it is called here, and a CPU that counts as a GPU for it."""
    package, layers = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.nn")
    layers.Linear4bit, layers.Params4bit, package.nn = Linear4bit, Params4bit, layers
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", layers)
    monkeypatch.setattr(four_bits, "why_no_4_bits", lambda device: None)
    for name in ("is_bnb_available", "is_bnb_4bit_available"):  # of peft, which would import more of it
        monkeypatch.setattr(f"peft.tuners.lora.model.{name}", lambda: False)


def test_linear_layers_of_the_decoder_alone_are_turned(stand_in):
    network, plain = make_llama(), make_llama()
    before = {name: one.clone() for name, one in network.named_parameters()}
    quantise(network, "nf4", torch.bfloat16, CPU)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Linear4bit)}
    expected = {name for name, layer in plain.named_modules() if type(layer) is nn.Linear and name != "lm_head"}
    assert set(layers) == expected and len(expected) == 14
    for layer in layers.values():
        assert layer.compute_dtype == torch.bfloat16
        assert layer.options == {"compress_statistics": True, "quant_type": "nf4"}
        assert layer.weight.options == {"module": layer, **layer.options}, "double quantisation, and where it belongs"
        assert not layer.weight.requires_grad
    assert all(torch.equal(one, before[name]) for name, one in network.named_parameters())
    assert type(network.lm_head) is nn.Linear and network.lm_head.weight is network.model.embed_tokens.weight
    assert in_four_bits(network) and not in_four_bits(plain) and network.is_loaded_in_4bit, "peft asks for this"


def test_what_is_in_4_bits_counts_as_what_it_holds():
    parameter = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    assert numbers(parameter) == 8
    parameter.quant_state = type("QuantState", (), {"shape": torch.Size([4, 4])})()
    assert numbers(parameter) == 16
    assert count_parameters([("language_model.x", parameter)]) == {"language_model": {"trained": 0, "frozen": 16}}


def test_the_connector_trains_in_front_of_it(stand_in, samples, features, prompt):
    model = make_model()
    quantise(model.language_model, "nf4", torch.float32, CPU)
    rows = run(model, samples, features, prompt, stage(rate=1e-2, epochs=3))
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]
    with pytest.raises(TriptychError, match="trains 'language_model', whose weights are in 4 bits"):
        set_trainable(model, ["language_model"])


def test_its_layers_are_neither_compiled_nor_merged(stand_in, monkeypatch):
    model = make_model()
    model.language_model = add_lora(model.language_model, FULL_LORA, seed=0)
    setattr(model.network, four_bits.MARK, True)
    merged = []
    monkeypatch.setattr(type(model.language_model), "merge_adapter", lambda self: merged.append(1), raising=False)
    for compiled in ("auto", "never"):
        said = make_ready(model, compiled, 10**9, fixed_shapes=True)
        assert "adapters stay beside the weights, which are in 4 bits" in said and "layers are not compiled" in said
    assert not merged
    with pytest.raises(TriptychError, match=r"runtime\.compile: layers of 4 bits are not compiled"):
        make_ready(model, "always", 1, fixed_shapes=True)
    assert "layers of 4 bits are not compiled" in compile_layers("auto", model, 1e18, 10**9, ROUTE)
    with pytest.raises(TriptychError, match=r"runtime\.compile: layers of 4 bits are not compiled"):
        compile_layers("always", model, 1e18, 10**9, ROUTE)


@pytest.fixture
def bases(tmp_path):
    """Folders of the same language model, as it is and in 4 bits."""
    for name, more in (("plain", {}), ("nf4", {"quantise": "nf4"})):
        make_llama().save_pretrained(tmp_path / name)
        files = {file.name: sha256_file(file) for file in (tmp_path / name).iterdir()}
        write_record(tmp_path / name / "manifest.json", {"settings": {"prompt": "x", **more}, "files": files})
    return {name: checkpoint.Base(tmp_path / name, 16, {}) for name in ("plain", "nf4")}


START = [checkpoint.Connector(), None, 0, "fold0", torch.float32, CPU]


@pytest.mark.parametrize("other", ["plain", "nf4"])
def test_a_checkpoint_belongs_to_its_bits(stand_in, bases, tmp_path, other):
    own = next(name for name in bases if name != other)
    model = checkpoint.build(bases[own], None, *START)
    assert in_four_bits(model.network) == (own == "nf4")
    about = {"prefix": "1", "split": "fold0", "seed": 0, "connector": START[0].model_dump(), **bases[own].identity}
    checkpoint.save(model, tmp_path / "first", about, "")
    manifest = tmp_path / "first" / "manifest.json"
    assert in_four_bits(checkpoint.load(bases[own], manifest, torch.float32, CPU).network) == (own == "nf4")
    words = {"plain": "in full precision", "nf4": "in 4 bits"}
    with pytest.raises(TriptychError, match=f"language model {words[own]}, and this one is {words[other]}; set models"):
        checkpoint.load(bases[other], manifest, torch.float32, CPU)


@pytest.mark.parametrize(("installed", "said"), [(False, "bitsandbytes, which is not installed"), (True, "a GPU")])
def test_without_package_or_gpu_it_is_one_error(bases, monkeypatch, installed, said):
    monkeypatch.setattr("triptych.utils.optional.find_spec", lambda name: installed or None)
    with pytest.raises(TriptychError, match=rf"^models\.language_model\.quantise: nf4 needs {said}"):
        checkpoint.build(bases["nf4"], None, *START)


def test_it_is_not_exported(bases, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "nf4").rename(tmp_path / "models" / "language_model")
    write_record(tmp_path / "models" / "vision_encoder" / "manifest.json", {"settings": {}, "files": {}})
    identity = checkpoint.Base(tmp_path / "models" / "language_model", 16, {}).identity
    assert identity["quantise"] == "nf4"
    write_record(tmp_path / "checkpoint" / "manifest.json", {**identity, "vision_encoder": {}, "files": {}})
    with pytest.raises(TriptychError, match="was trained on a language model in 4 bits"):
        export(tmp_path / "checkpoint", tmp_path / "models", [], tmp_path / "out", False)


@pytest.mark.parametrize("dora", [False, True])
def test_loss_and_gradients_are_those_of_the_rounded_weights(samples, features, prompt, monkeypatch, dora):
    """By bitsandbytes itself, where it is installed, which computes on a CPU, too; each question by itself."""
    real = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(four_bits, "why_no_4_bits", lambda device: None)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # a layout of other sizes
    lora = FULL_LORA.model_copy(update={"use_dora": dora})
    ours, theirs = make_model(), make_model()
    quantise(ours.language_model, "nf4", torch.float32, CPU)
    for name, layer in theirs.decoder.named_modules():
        if type(layer) is nn.Linear:
            weight = ours.decoder.get_submodule(name).weight
            layer.weight.data = real.functional.dequantize_4bit(weight.data, weight.quant_state)
    found = []
    for model, loss in ((ours, packed_loss), (theirs, unpacked_loss)):
        model.language_model = add_lora(model.language_model, lora, seed=5)
        torch.manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        trained = set_trainable(model, ["connector", "lora"])
        value = loss(model, samples, features, prompt)
        found.append(
            (value.item(), dict(zip(trained, torch.autograd.grad(value, list(trained.values())), strict=True)))
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, gradient in found[0][1].items():
        assert (gradient - found[1][1][name]).norm() < 1e-3 * found[1][1][name].norm() + 1e-7, name


def packed_loss(model, samples, features, prompt):
    batch = pack(samples, features, prompt, TOKENS)
    return nn.functional.cross_entropy(model.answer_logits(batch), batch.targets)
