"""The hand-over between stages: strict, checked, and never a silent fresh start."""

import json

import pytest
import torch
from conftest import FEATURES
from safetensors.torch import load_file, save_file
from triptych.config.models import FolderLanguageModel
from triptych.config.stages import Connector, Lora
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, sha256_file, write_json
from triptych.model import checkpoint
from triptych.model.checkpoint import load_trained, trained_state
from triptych.model.prepare import prepare_model
from triptych.train.parameters import set_trainable


@pytest.fixture
def base(config, tmp_path):
    settings = FolderLanguageModel(**config["models"]["language_model"])
    prepare_model("language_model", settings, tmp_path, tmp_path / "language_model")
    return checkpoint.Base(tmp_path / "language_model", FEATURES, {"model.safetensors": "1" * 64})


def build(base, parent=None, lora=None, seed=0, split="fold0"):
    return checkpoint.build(base, parent, Connector(), lora, seed, split, torch.float32, torch.device("cpu"))


def save(model, base, folder, lora=None, seed=0):
    manifest = {"seed": seed, "split": "fold0", "connector": Connector().model_dump()}
    manifest |= {"lora": lora and lora.model_dump(), **base.identity}
    checkpoint.save(model, folder, manifest, '{"epoch": 0}\n')
    return folder / "manifest.json"


def equal(first, second):
    return all(torch.equal(tensor, second[file][name]) for file, part in first.items() for name, tensor in part.items())


def test_a_child_starts_from_its_parents_weights(base, tmp_path):
    parent = build(base)
    with torch.no_grad():
        parent.connector.linear_1.weight.add_(1)
    path = save(parent, base, tmp_path / "parent")
    child = build(base, path)
    assert equal(trained_state(parent), trained_state(child))
    assert not equal(trained_state(build(base)), trained_state(child))


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_adapters_are_handed_on_and_new_ones_start_fresh(base, tmp_path, variant):
    lora = Lora(rank=2, alpha=4, **variant)
    connector_only = save(build(base), base, tmp_path / "stage2")
    stage3 = build(base, connector_only, lora)
    assert stage3.has_lora
    with torch.no_grad():
        for name, parameter in stage3.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(0.5)
    path = save(stage3, base, tmp_path / "stage3", lora)
    assert equal(trained_state(stage3), trained_state(build(base, path)))
    tokens = torch.arange(6)[None]
    loaded = checkpoint.load(base, path, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        ours, theirs = loaded.decoder(tokens).last_hidden_state, stage3.eval().decoder(tokens).last_hidden_state
    assert torch.equal(ours, theirs)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def tuned(base):
    """A model whose language model has been trained."""
    model = build(base)
    set_trainable(model, ["connector", "language_model"])
    with torch.no_grad():
        for weight in model.own_weights().values():
            weight.add_(0.01 * torch.randn_like(weight))
    return model


def test_a_tuned_language_model_is_one_file_of_its_weights(base, tmp_path):
    model = tuned(base)
    path = save(model, base, tmp_path / "tuned")
    found = load_file(tmp_path / "tuned" / "language_model.safetensors")
    assert found.keys() == dict(model.network.named_parameters()).keys() and "lm_head.weight" not in found, "tied"
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    child = build(base, path, Lora(rank=2))
    assert child.tuned and child.has_lora and not child.tuning
    assert equal(trained_state(model), trained_state(child))
    with torch.inference_mode():
        states = [one.eval().decoder(torch.arange(6)[None]).last_hidden_state for one in (model, child, build(base))]
    assert torch.equal(states[0], states[1]) and not torch.allclose(states[0], states[2], atol=1e-3)
    again = save(build(base), base, tmp_path / "tuned")
    assert sorted(read_json(again)["files"]) == ["connector.safetensors", "metrics.jsonl"]
    assert not (tmp_path / "tuned" / "language_model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda t: t.update(extra=torch.ones(1)), "extra is not part of this model"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"model\.norm\.weight has shape \(3,\), not"),
    ],
)
def test_a_wrong_tensor_of_a_tuned_language_model_is_an_error_that_names_it(base, tmp_path, change, message):
    path = save(tuned(base), base, tmp_path / "tuned")
    tamper(path, change, "language_model.safetensors")
    with pytest.raises(TriptychError, match=message):
        build(base, path)


def test_fresh_weights_depend_on_seed_and_split_alone(base):
    first = trained_state(build(base))
    torch.manual_seed(99)
    assert equal(first, trained_state(build(base)))
    assert not equal(first, trained_state(build(base, seed=1)))
    assert not equal(first, trained_state(build(base, split="fold1")))


def tamper(path, change, name="connector.safetensors"):
    """Change a checkpoint's tensors, and make its manifest agree."""
    file = path.parent / name
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    manifest = read_json(path)
    manifest["files"][name] = sha256_file(file)
    write_json(path, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("linear_2.bias"), r"linear_2\.bias is missing"),
        (lambda t: t.update(extra=torch.ones(1)), "extra is not part of this model"),
        (lambda t: t.update({"linear_2.bias": torch.ones(3)}), r"linear_2\.bias has shape \(3,\), not \(32,\)"),
    ],
)
def test_a_wrong_tensor_is_an_error_that_names_it(base, tmp_path, change, message):
    path = save(build(base), base, tmp_path / "parent")
    tamper(path, change)
    with pytest.raises(TriptychError, match=message):
        build(base, path)


def test_a_missing_file_is_an_error(base, tmp_path, model):
    with pytest.raises(TriptychError, match=r"connector\.safetensors: the parent checkpoint has no such file"):
        load_trained(model, tmp_path)


def test_a_changed_byte_is_noticed(base, tmp_path):
    path = save(build(base), base, tmp_path / "parent")
    weights = path.parent / "connector.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(TriptychError, match=r"connector\.safetensors: differs from the hash"):
        build(base, path)
    weights.unlink()
    with pytest.raises(TriptychError, match="missing, though manifest"):
        build(base, path)


def test_another_language_model_or_seed_is_noticed(base, tmp_path):
    path = save(build(base), base, tmp_path / "parent")
    with pytest.raises(TriptychError, match="trained with seed 0, not 1"):
        build(base, path, seed=1)
    original = path.read_text()
    for role in ("language_model", "vision_encoder"):
        manifest = json.loads(original)
        del manifest["seal"]
        manifest[role]["model.safetensors"] = "0" * 64
        path.write_text(json.dumps(manifest))
        with pytest.raises(TriptychError, match=f"another {role.replace('_', ' ')}"):
            build(base, path)
    path.write_text(original)
    write_json(file := base.language_model / "manifest.json", {**read_json(file), "settings": {"prompt": "other"}})
    with pytest.raises(TriptychError, match="another prompt"):
        build(base, path)


def test_a_language_model_with_a_missing_tensor_is_refused(base):
    file = base.language_model / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "up_proj" in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(TriptychError, match=r"model\.safetensors: differs from the hash in manifest\.json; delete"):
        build(base)
    manifest = base.language_model / "manifest.json"
    files = read_json(manifest)["files"] | {file.name: sha256_file(file)}
    write_json(manifest, {**read_json(manifest), "files": files})
    with pytest.raises(TriptychError, match=f"the weights lack {name}"):
        build(base)


def test_a_misspelt_target_of_lora_is_refused(base):
    with pytest.raises(TriptychError, match="no layer v_porj; it has down_proj"):
        build(base, lora=Lora(target_modules=["q_proj", "v_porj"]))


def test_a_checkpoint_holds_no_pickle(base, tmp_path):
    path = save(build(base, lora=Lora(rank=2)), base, tmp_path / "stage", Lora(rank=2))
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["adapter.safetensors", "connector.safetensors", "manifest.json", "metrics.jsonl"]
    assert set(read_json(path)["files"]) == set(names) - {"manifest.json"}


def test_saving_again_leaves_nothing_of_the_old_checkpoint(base, tmp_path):
    save(build(base, lora=Lora(rank=2)), base, tmp_path / "stage", Lora(rank=2))
    path = save(build(base), base, tmp_path / "stage")
    assert not (path.parent / "adapter.safetensors").exists()
    assert "adapter.safetensors" not in read_json(path)["files"]
