"""No code of a model runs: it is refused in the model step, and no loader would import it."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import PROMPT, ROOT
from triptych.config.models import FolderEncoder, FolderLanguageModel
from triptych.errors import TriptychError
from triptych.evaluate import probe
from triptych.model import language_model, prepare, vision
from triptych.model.checkpoint import Base

PLANTED = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\nfrom transformers import *\n"
CLASSES = {
    "config.json": {"AutoConfig": "LlamaConfig", "AutoModelForCausalLM": "LlamaForCausalLM", "AutoModel": "CLIPModel"},
    "tokenizer_config.json": {"AutoTokenizer": [None, "PreTrainedTokenizerFast"]},
    "preprocessor_config.json": {"AutoImageProcessor": "CLIPImageProcessor"},
    "processor_config.json": {"AutoProcessor": "CLIPProcessor"},
}


def plant(folder, file, module="planted", unknown=True):
    """A module in a model's folder that leaves a mark where it is imported, and a file that names it."""
    mark = folder / "MARK"
    (folder / "planted.py").write_text(PLANTED.format(mark=str(mark)))
    path = folder / file
    facts = json.loads(path.read_text()) if path.exists() else {}

    def named(value):
        return [one and f"{module}.{one}" for one in value] if isinstance(value, list) else f"{module}.{value}"

    facts["auto_map"] = {name: named(value) for name, value in CLASSES[file].items()}
    if unknown:  # what transformers has itself, it takes without asking
        facts |= {"model_type": "planted"} if file == "config.json" else {}
        facts |= {"tokenizer_class": "Planted"} if file == "tokenizer_config.json" else {}
        facts |= {"image_processor_type": "Planted"} if file == "preprocessor_config.json" else {}
    path.write_text(json.dumps(facts))
    return mark


@pytest.fixture
def models(world, tmp_path):
    shutil.copytree(world / "models", tmp_path / "models")
    return tmp_path / "models"


def settings_of(role, folder):
    return (
        FolderLanguageModel(source="folder", folder=str(folder), prompt=PROMPT)
        if role == "language_model"
        else FolderEncoder(source="folder", folder=str(folder))
    )


@pytest.mark.parametrize(
    ("role", "name", "file"),
    [
        ("language_model", "llama", "config.json"),
        ("language_model", "llama", "tokenizer_config.json"),
        ("language_model", "llama", "processor_config.json"),
        ("vision_encoder", "clip", "config.json"),
        ("vision_encoder", "clip", "preprocessor_config.json"),
    ],
)
@pytest.mark.parametrize("module", ["planted", "someone/else--planted"])
@pytest.mark.parametrize("unknown", [True, False])
def test_a_model_that_names_code_is_refused_in_one_line(models, tmp_path, role, name, file, module, unknown):
    mark = plant(models / name, file, module, unknown)
    with pytest.raises(TriptychError) as caught:
        prepare.prepare_model(role, settings_of(role, models / name), tmp_path, tmp_path / "out")
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{models / name / file}: auto_map names code of the model's own")
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_code_deep_in_a_file_and_a_kernel_are_refused_and_a_word_of_the_vocabulary_is_not(models, tmp_path):
    path = models / "llama" / "config.json"
    plain = json.loads(path.read_text())
    for facts, line in [
        ({"text_config": [{"auto_map": {"AutoConfig": "x.Y"}}]}, "auto_map names code"),
        ({"attn_implementation": "someone/kernel"}, "names code of a repository, someone/kernel"),
        ({"attn_implementation": {"text_config": "someone/kernel"}}, "names code of a repository"),
    ]:
        path.write_text(json.dumps(plain | facts))
        with pytest.raises(TriptychError, match=line):
            prepare.prepare_model(
                "language_model", settings_of("language_model", models / "llama"), tmp_path, tmp_path / "out"
            )
    path.write_text(json.dumps(plain))
    (models / "llama" / "vocab.json").write_text(json.dumps({"auto_map": 3}))
    prepare.prepare_model("language_model", settings_of("language_model", models / "llama"), tmp_path, tmp_path / "out")


LOADERS = {
    "config": ("config.json", "llama", lambda folder: language_model.load(folder, torch.float32, "eager")),
    "model": ("config.json", "clip", vision.load_tower),
    "hidden size": ("config.json", "llama", lambda folder: probe.text_width(Base(folder, 1, {}))),
    "tokenizer": ("tokenizer_config.json", "llama", language_model.load_tokenizer),
    "image processor": (
        "preprocessor_config.json",
        "clip",
        lambda folder: vision.load_pretrained(folder, {"drop_class_token": True, "layer": -2}, torch.device("cpu")),
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("unknown", [True, False])
def test_no_loader_imports_a_planted_module(models, monkeypatch, loader, unknown):
    """Even of a folder that never went through the model step, and though someone says yes to any question."""
    file, name, load = LOADERS[loader]
    mark = plant(models / name, file, unknown=unknown)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    try:
        load(models / name)
    except (ValueError, OSError):
        assert unknown
    assert not mark.exists() and not asked


def test_every_loader_says_that_it_trusts_no_code():
    """The only exception reads an adapter that Triptych wrote, for a model that is loaded already."""
    found = []
    for path in [*(ROOT / "workflow/scripts/triptych").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "from_pretrained":
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                found.append((ast.unparse(call.func.value), said.get("trust_remote_code")))
    assert {trust for loader, trust in found if loader != "PeftModel"} == {"False"} and len(found) > 6


def test_a_step_reads_no_answer_from_its_standard_input():
    code = (
        "import subprocess, sys\nfrom triptych.errors import run_step\n"
        "run_step(lambda: print([sys.stdin.read(), subprocess.run(['cat'], capture_output=True).stdout]))"
    )
    told = subprocess.run([sys.executable, "-c", code], input="y\n" * 9, capture_output=True, text=True)
    assert told.stdout == "['', b'']\n", told.stderr
