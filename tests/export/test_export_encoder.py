"""Exports of checkpoints that have trained the vision encoder: in both layouts, with its trained weights in fp32."""

import pytest
import torch
from conftest import PROMPT
from safetensors.torch import load_file
from test_export import CPU, NEW_TOKENS, QUESTIONS, pictures, plain_answers, prepare, save_checkpoint, write_clip
from triptych.config.models import PackageEncoder
from triptych.config.stages import Connector, Lora
from triptych.evaluate.generate import generate
from triptych.export import load
from triptych.export.write import export
from triptych.features.shards import encoder_hashes
from triptych.io.manifest import read_json
from triptych.model import checkpoint, vision
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import Sample, prompt_tokens
from vision_encoders import write_encoder


def with_encoder(folder, models, lora=None):
    """A checkpoint with an encoder whose weights have moved; with its answers' token ids."""
    hidden = vision.load(models / "vision_encoder", CPU).hidden_size
    identity = hidden, encoder_hashes(models / "vision_encoder")
    base = checkpoint.Base(models / "language_model", *identity, "fp32", models / "vision_encoder")
    manifest = read_json(save_checkpoint(folder / "frozen", models) / "manifest.json")
    start = Connector(), lora, 0, "fold0", torch.float32, CPU
    model = checkpoint.build(base, folder / "frozen" / "manifest.json", *start, tower=True)
    torch.manual_seed(6)
    with torch.no_grad():
        for name, weight in model.vision.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
        for weight in [] if lora else model.vision.network.parameters():
            weight.requires_grad_().add_(0.2 * weight.std().nan_to_num() * torch.randn_like(weight))
    model.vision.tuned = lora is None
    about = {name: value for name, value in manifest.items() if name not in ("files", "code", "self")}
    about["lora"] = lora and lora.model_dump()
    metrics = (folder / "frozen" / "metrics.jsonl").read_text()
    checkpoint.save(model, folder / "tuned", about, metrics)
    return folder / "tuned", model


def own_answers(model, models):
    tokenizer = load_tokenizer(models / "language_model")
    pieces = prompt_tokens(tokenizer, load_prompt(models / "language_model"))
    pixels = vision.load(models / "vision_encoder", CPU).preprocess(pictures())
    samples = [
        Sample("", str(image), pieces.encode_question(question), ()) for image in range(4) for question in QUESTIONS
    ]
    model = model.eval().requires_grad_(False)
    answers, _ = generate(model, samples, lambda names: pixels[[int(name) for name in names]], pieces, NEW_TOKENS)
    return answers


def test_llava_holds_the_trained_encoder(world, tmp_path):
    models = prepare(tmp_path / "models", {"folder": str(write_clip(tmp_path / "encoder"))}, world / "models" / "llama")
    source, model = with_encoder(tmp_path, models)
    assert export(source, models, [], tmp_path / "out", False) == "llava"
    answers = plain_answers(tmp_path / "out", PROMPT)
    assert answers == own_answers(model, models)
    export(tmp_path / "frozen", models, [], tmp_path / "other", False)
    assert plain_answers(tmp_path / "other", PROMPT) != answers
    assert "a trained vision encoder" in (tmp_path / "out" / "README.md").read_text()
    assert "a frozen vision encoder" in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}])
def test_adapters_of_the_encoder_are_merged(world, tmp_path, variant):
    models = prepare(tmp_path / "models", {"folder": str(write_clip(tmp_path / "encoder"))}, world / "models" / "llama")
    lora = Lora(rank=2, alpha=4, dropout=0.0, vision_target_modules=["q_proj", "fc2"], **variant)
    source, model = with_encoder(tmp_path, models, lora)
    assert not (source / checkpoint.VISION_FILE).exists()
    export(source, models, [], tmp_path / "out", False)
    answers = plain_answers(tmp_path / "out", PROMPT)
    assert answers == own_answers(model, models)
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    export(tmp_path / "frozen", models, [], tmp_path / "other", False)
    assert plain_answers(tmp_path / "other", PROMPT) != answers


@pytest.mark.parametrize("kind", ["vit", "dinov3_vit", "package"])
def test_the_own_layout_holds_the_trained_encoder(world, tmp_path, kind):
    settings = PackageEncoder(source="package", image_size=32)
    encoder = settings if kind == "package" else {"folder": str(write_encoder(kind, tmp_path / "encoder"))}
    models = prepare(tmp_path / "models", encoder, world / "models" / "llama")
    source, model = with_encoder(tmp_path, models)
    assert export(source, models, [], tmp_path / "out", False) == "triptych"
    answer = load(tmp_path / "out", device=CPU)
    words = [answer(image, question, NEW_TOKENS) for image in pictures() for question in QUESTIONS]
    tokenizer = load_tokenizer(models / "language_model")
    expected = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in own_answers(model, models)]
    assert words == expected
    trained = load_file(source / checkpoint.VISION_FILE)
    stored = load_file(tmp_path / "out" / "vision_encoder" / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == sum(tensor.numel() for tensor in trained.values())
