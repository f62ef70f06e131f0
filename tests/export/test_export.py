"""Exports: plain transformers gives the answers that Triptych gives; nothing else is written over or made up."""

import contextlib
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CACHE, PROMPT, ROOT, image_bytes, make_llama, make_tokenizer
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from triptych.config.models import FolderEncoder, FolderLanguageModel, PackageEncoder
from triptych.config.stages import Connector, Lora, Stage
from triptych.data.images import decode
from triptych.errors import TriptychError
from triptych.evaluate.generate import generate
from triptych.export import load
from triptych.export.base_models import base_models
from triptych.export.tokenizer import image_tokenizer, same_ids
from triptych.export.write import export
from triptych.features.shards import encoder_hashes
from triptych.io.manifest import read_json, sha256_file, write_json
from triptych.model import checkpoint, vision
from triptych.model.language_model import load_tokenizer
from triptych.model.prepare import prepare_model
from triptych.model.tokens import Sample, prompt_tokens
from vision_encoders import write_encoder

PLAIN = Connector()
CPU = torch.device("cpu")
NEW_TOKENS = 6
QUESTIONS = ["what colour is the square ?", "is it red ?", "where is it ?", "what modality is this ?"]
IMAGES = [("red", "left"), ("green", "right"), ("blue", "left"), ("yellow", "right")]
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CHAT = "<|user|>\nLook: <image>\n{question}<|end|>\n<|assistant|> "
TEXT = [*QUESTIONS, "user assistant Look at this: the square is red, green, blue or yellow; left or right. yes no"] * 4


def pictures() -> list[Image.Image]:
    return [decode(image_bytes(*facts, number=number)) for number, facts in enumerate(IMAGES)]


def prepare(folder, encoder, language_model, prompt=PROMPT):
    """The two base models as the workflow puts them below `models/`."""
    settings = encoder if isinstance(encoder, PackageEncoder) else FolderEncoder(source="folder", **encoder)
    prepare_model("vision_encoder", settings, CACHE, folder / "vision_encoder")
    settings = FolderLanguageModel(source="folder", folder=str(language_model), prompt=prompt)
    prepare_model("language_model", settings, CACHE, folder / "language_model")
    return folder


def save_checkpoint(folder, models, lora=None, connector=PLAIN, blind=False, tuned=False):
    """A checkpoint whose answers depend on image and question, with the manifest that a training writes."""
    encoder = vision.load(models / "vision_encoder", CPU)
    base = checkpoint.Base(models / "language_model", encoder.hidden_size, encoder_hashes(models / "vision_encoder"))
    model = checkpoint.build(base, None, connector, lora, 0, "fold0", torch.float32, CPU)
    model.tuned = tuned
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("connector") or "lora_B" in name:
                parameter.normal_(std=0.4)
            elif "magnitude" in name:
                parameter *= 1 + 0.3 * torch.randn_like(parameter)
            elif tuned and "lora_" not in name:
                parameter.requires_grad_().add_(0.1 * torch.randn_like(parameter))
    stage = Stage(data="medical", train=["connector"], learning_rate={"connector": 1e-2}, epochs=1)
    manifest = {
        "prefix": "2-3", "split": "fold0", "seed": 0, "connector": connector.model_dump(),
        "stages": [{"2": stage.model_dump()}, {"3": stage.model_dump()}], "lora": lora and lora.model_dump(),
        "parent": None, "data": {"questions.parquet": "1" * 64}, "features": {}, "precision": "float32",
        "samples": {"train": 20, "validation": 5}, "blind": blind, "epoch": 1, **base.identity,
    }  # fmt: skip
    row = {"validation_loss": 1.25, "validation_accuracy": 0.5, "validation_samples": 5}
    metrics = "".join(json.dumps({"epoch": epoch, **row}) + "\n" for epoch in range(6))
    checkpoint.save(model, folder, manifest, metrics)
    return folder


def triptych_answers(source, models, prompt=PROMPT):
    """Token ids of Triptych's own answers in fp32, to every question about every image."""
    encoder = vision.load(models / "vision_encoder", CPU)
    base = checkpoint.Base(models / "language_model", encoder.hidden_size, encoder_hashes(models / "vision_encoder"))
    model = checkpoint.load(base, source / "manifest.json", torch.float32, CPU)
    pieces = prompt_tokens(load_tokenizer(models / "language_model"), prompt)
    tokens = encoder.tokens(encoder.preprocess(pictures()))
    samples = [
        Sample("", str(image), pieces.encode_question(question), ())
        for image in range(len(IMAGES))
        for question in QUESTIONS
    ]
    answers, _ = generate(model, samples, lambda names: tokens[[int(name) for name in names]], pieces, NEW_TOKENS)
    assert len(set(map(tuple, answers))) > 3, "answers must differ for the comparison to mean something"
    return answers


def plain_answers(folder, prompt=PROMPT, adapter=False):
    """Token ids of what plain transformers answers, without the end token, in the same order."""
    processor = LlavaProcessor.from_pretrained(folder)
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    if adapter:
        model = PeftModel.from_pretrained(model, folder / "adapter")
    end = processor.tokenizer.eos_token_id
    answers = []
    for image in pictures():
        for question in QUESTIONS:
            inputs = processor(images=image, text=prompt.replace("{question}", question), return_tensors="pt")
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0].tolist()
            tokens = tokens[inputs["input_ids"].shape[1] :]
            answers.append(tokens[: tokens.index(end)] if end in tokens else tokens)
    return answers


@pytest.fixture
def models(world, tmp_path):
    return prepare(tmp_path / "models", {"folder": str(world / "models" / "clip")}, world / "models" / "llama")


@pytest.fixture
def trained(models, tmp_path):
    return save_checkpoint(tmp_path / "checkpoint", models, Lora(rank=2, alpha=4))


def byte_level_bpe() -> PreTrainedTokenizerFast:
    """As GPT-2's and SmolLM2's: byte-level BPE with special tokens."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def sentencepiece_like(scheme: str) -> PreTrainedTokenizerFast:
    """As Llama's: a mark for spaces, a start token before every text.

    Args:
        scheme: "normalizer" as in Llama 2; "first" and "always" as the newer files say where the mark goes.
    """
    tokenizer = Tokenizer(token_models.BPE(unk_token="<unk>", fuse_unk=True))
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )


def write_llama(folder, tokenizer, dtype=torch.float32):
    """A tiny Llama for a tokenizer, with an output layer of its own and a few rows to spare."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # the rows to spare belong to no token; training makes sure that none is an answer
        model.lm_head.weight[len(tokenizer) :] = model.lm_head.weight.mean(dim=0)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_clip(folder):
    """Both towers, as CLIP folders on the hub hold them."""
    torch.manual_seed(2)
    text = {**TINY, "vocab_size": 50, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**TINY, "image_size": 32, "patch_size": 8})).save_pretrained(
        folder
    )
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def write_siglip(folder):
    torch.manual_seed(2)
    SiglipVisionModel(SiglipVisionConfig(**TINY, image_size=32, patch_size=16)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("variant", [{"use_rslora": True}, {"use_dora": True}, {"use_rslora": True, "use_dora": True}])
def test_variants_of_lora_are_exported(models, tmp_path, adapter, variant):
    source = save_checkpoint(tmp_path / "checkpoint", models, Lora(rank=2, alpha=4, **variant))
    export(source, models, [], tmp_path / "out", adapter)
    assert plain_answers(tmp_path / "out", adapter=adapter) == triptych_answers(source, models)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("DoRA" in card, "rsLoRA" in card) == ("use_dora" in variant, "use_rslora" in variant)


@pytest.mark.parametrize("adapter", [False, True])
def test_plain_transformers_gives_the_same_answers(models, trained, tmp_path, adapter):
    assert export(trained, models, [], tmp_path / "out", adapter) == "llava"
    expected = triptych_answers(trained, models)
    assert plain_answers(tmp_path / "out", adapter=adapter) == expected
    if adapter:
        assert plain_answers(tmp_path / "out") != expected, "the base alone must not have the LoRA in it"


def test_a_checkpoint_without_lora_is_exported_too(models, tmp_path):
    source = save_checkpoint(tmp_path / "checkpoint", models)
    export(source, models, [], tmp_path / "out", False)
    assert plain_answers(tmp_path / "out") == triptych_answers(source, models)
    with pytest.raises(TriptychError, match="has no LoRA"):
        export(source, models, [], tmp_path / "other", True)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tuned_language_model_is_exported_in_fp32(world, tmp_path, lora, adapter, dtype):
    llama = write_llama(tmp_path / "llama", make_tokenizer(), dtype)
    models = prepare(tmp_path / "models", {"folder": str(world / "models" / "clip")}, llama)
    source = save_checkpoint(tmp_path / "checkpoint", models, lora, tuned=True)
    if adapter and not lora:
        return
    export(source, models, [], tmp_path / "out", adapter)
    assert plain_answers(tmp_path / "out", adapter=adapter) == triptych_answers(source, models)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if "language_model" in name} == {torch.float32}
    assert "language model's own weights" in (tmp_path / "out" / "README.md").read_text()


def test_a_linear_connector_fits_into_llava_as_well(models, tmp_path):
    source = save_checkpoint(tmp_path / "checkpoint", models, connector=Connector(kind="linear"))
    assert export(source, models, [], tmp_path / "out", False) == "llava"
    assert plain_answers(tmp_path / "out") == triptych_answers(source, models)


def test_a_blind_control_is_not_exported(models, tmp_path):
    source = save_checkpoint(tmp_path / "checkpoint", models, blind=True)
    with pytest.raises(TriptychError, match="is a blind control"):
        export(source, models, [], tmp_path / "out", False)


@pytest.mark.parametrize(
    ("write", "settings", "tokens"),
    [
        (write_clip, {"layer": -1}, 16),
        (write_clip, {"drop_class_token": False}, 17),
        (write_siglip, {}, 4),
        (partial(write_encoder, "dinov2"), {}, 16),
        (partial(write_encoder, "dinov2"), {"drop_class_token": False}, 17),
    ],
)
def test_other_encoders_and_layers(world, tmp_path, write, settings, tokens):
    encoder = {"folder": str(write(tmp_path / "encoder")), **settings}
    models = prepare(tmp_path / "models", encoder, world / "models" / "llama")
    source = save_checkpoint(tmp_path / "checkpoint", models, Lora(rank=2))
    export(source, models, [], tmp_path / "out", False)
    assert read_json(tmp_path / "out" / "config.json")["image_seq_length"] == tokens
    assert plain_answers(tmp_path / "out") == triptych_answers(source, models)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("vit", {}), ("dinov2_with_registers", {}), ("dinov3_vit", {}), ("clip", {"fit": "pad"})],
)
def test_what_transformers_has_no_class_for_is_exported_with_its_own_loader(world, tmp_path, kind, settings):
    encoder = {"folder": str(write_encoder(kind, tmp_path / "encoder")), **settings}
    models = prepare(tmp_path / "models", encoder, world / "models" / "llama")
    source = save_checkpoint(tmp_path / "checkpoint", models, Lora(rank=2))
    assert export(source, models, [], tmp_path / "out", False) == "triptych"
    answer = load(tmp_path / "out", device=CPU)
    words = [answer(image, question, NEW_TOKENS) for image in pictures() for question in QUESTIONS]
    tokenizer = load_tokenizer(models / "language_model")
    expected = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in triptych_answers(source, models)]
    assert words == expected


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("make", [byte_level_bpe, lambda: sentencepiece_like("first")], ids=["bytes", "start-token"])
def test_subword_tokenizers_and_a_base_in_bf16(world, tmp_path, make, adapter):
    """What is trained stays in fp32 in the folder, so that nothing is lost where it is loaded as fp32."""
    llama = write_llama(tmp_path / "llama", make(), torch.bfloat16)
    models = prepare(tmp_path / "models", {"folder": str(world / "models" / "clip")}, llama, CHAT)
    source = save_checkpoint(tmp_path / "checkpoint", models, Lora(rank=2))
    export(source, models, [], tmp_path / "out", adapter)
    assert plain_answers(tmp_path / "out", CHAT, adapter) == triptych_answers(source, models, CHAT)
    stored = {str(tensor.dtype) for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert stored == {"torch.bfloat16", "torch.float32"}
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "make",
    [
        make_tokenizer,
        byte_level_bpe,
        *(lambda scheme=scheme: sentencepiece_like(scheme) for scheme in ("normalizer", "first", "always")),
    ],
    ids=["words", "bytes", "normalizer", "first", "always"],
)
@pytest.mark.parametrize("prompt", [PROMPT, CHAT, "<image>{question}", " <image>\n\n{question} .\nA: "])
def test_the_exported_tokenizer_reads_whole_prompts_as_pieces(make, prompt, tmp_path):
    ours = make()
    image_tokenizer(ours, prompt, 3).save_pretrained(tmp_path)
    found = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = [*QUESTIONS, "Is the <user> here ?", "  two  spaces", "näïve 12µm\t", "left\n\nright "]
    assert same_ids(ours, found, prompt, 3, texts)
    assert found.convert_tokens_to_ids("<image>") == len(ours)
    assert {token: found.get_vocab()[token] for token in ours.get_vocab()} == ours.get_vocab()
    for text in texts:
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert found.decode(ids, skip_special_tokens=True) == ours.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_that_cannot_give_the_same_ids_is_refused():
    """The mark goes before the first text only, and the prompt has a special token on either side of the image."""
    ours = sentencepiece_like("first")
    ours.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    with pytest.raises(TriptychError, match="other ids than its two parts"):
        image_tokenizer(ours, "<|user|>look<image>and {question}", 3)


def test_the_new_token_is_never_an_answer(models, trained, tmp_path):
    export(trained, models, [], tmp_path / "out", False)
    config = read_json(tmp_path / "out" / "config.json")
    token = config["image_token_index"]
    assert token == len(make_tokenizer()) and config["text_config"]["vocab_size"] == token + 1
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[:token], make_llama().get_input_embeddings().weight)
    assert model.lm_head.weight is weight
    logits = torch.randn(1000, weight.shape[1]) @ weight.T
    assert (logits.argmax(-1) != token).all()
    assert model.generation_config.suppress_tokens == [token]


def test_the_chat_template_gives_the_prompt(world, tmp_path):
    prompt = "a'b\"\\ {{ x }} 😀\n<image>\n{question} {% y %}\n"
    models = prepare(
        tmp_path / "models", {"folder": str(world / "models" / "clip")}, world / "models" / "llama", prompt
    )
    export(save_checkpoint(tmp_path / "checkpoint", models), models, [], tmp_path / "out", False)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    said = [{"type": "image", "image": pictures()[0]}, {"type": "text", "text": "is it red ?"}]
    chat = [{"role": "user", "content": said}]
    text = prompt.replace("{question}", "is it red ?")
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == text
    ours = processor(images=pictures()[0], text=text)["input_ids"]
    assert processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ] == ours  # fmt: skip
    with pytest.raises(Exception, match="one question about one image"):
        processor.apply_chat_template([*chat, *chat])


def run_card(folder, place):
    """Run the code of a model card on an image in `place`; gives what it prints."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (place / "image.png").write_bytes(image_bytes("red", "left"))
    code = code.replace("path/to/this/folder", str(folder)).replace("What is shown?", QUESTIONS[0])
    said = io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(said):
        exec(code, {})
    return said.getvalue()


@pytest.mark.parametrize("adapter", [False, True])
def test_the_card_says_how_to_load_and_what_it_is(models, trained, tmp_path, adapter):
    data = tmp_path / "medical"
    counts = {"images": {"train": 4}, "questions": {"train": 12}}
    facts = {"settings": {"source": "slake-folder", "folder": "/secret"}, "counts": counts}
    write_json(data / "manifest.json", {**facts, "files": {"questions.parquet": "1" * 64}})
    (data / "card.md").write_text("licence of the images")
    export(trained, models, [data], tmp_path / "out", adapter)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("# 2-3, fold0, seed 0", "Not for clinical use", "slake-folder", "train 12", "1" * 64, "see data/"):
        assert text in card
    for text in ("| 1 | 1.2500 | 0.5000 | 5 |", "| language model | llama | a local folder | not stated |", "rank 2"):
        assert text in card
    assert "weights are those of epoch 1" in card and "| 2 | 1.2500" not in card
    assert checkpoint.code_version() in card
    assert (tmp_path / "out" / "data" / "medical.md").read_text() == "licence of the images"
    front_matter = ModelCard(card).data
    assert (front_matter.library_name, front_matter.pipeline_tag) == ("transformers", "image-text-to-text")
    assert front_matter.tags == ["triptych", "llava"] and front_matter.base_model is None
    answer = triptych_answers(trained, models)[0]
    longest = load_tokenizer(models / "language_model").decode(answer, skip_special_tokens=True)
    assert run_card(tmp_path / "out", tmp_path).startswith(longest)


def test_data_that_the_checkpoint_was_not_trained_on_is_refused(models, trained, tmp_path):
    with pytest.raises(TriptychError, match="was trained on medical only"):
        export(trained, models, [tmp_path / "other"], tmp_path / "out", False)
    facts = {"settings": {"source": "x"}, "counts": {"images": {}, "questions": {}}, "files": {}}
    write_json(tmp_path / "medical" / "manifest.json", facts)
    with pytest.raises(TriptychError, match="is not the data that the checkpoint was trained on"):
        export(trained, models, [tmp_path / "medical"], tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("adapter", [False, True])
def test_equal_inputs_give_equal_bytes_and_name_no_place(models, trained, tmp_path, adapter):
    export(trained, models, [], tmp_path / "one", adapter)
    command = [sys.executable, "-m", "triptych.cli", "export", "--checkpoint", trained, "--models", models]
    command += ["--adapter"] if adapter else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow" / "scripts"), "PYTHONHASHSEED": "1"}
    subprocess.run([*command, "--out", tmp_path / "two"], env=environment, check=True, capture_output=True)
    first, second = everything(tmp_path / "one"), everything(tmp_path / "two")
    facts = [json.loads(files.pop(Path("triptych.json"))) for files in (first, second)]
    assert first == second
    # The code's version may differ where somebody edits the code while this runs.
    assert {**facts[0], "code": ""} == {**facts[1], "code": ""}
    assert all(str(tmp_path).encode() not in data and str(ROOT).encode() not in data for data in first.values())
    assert not [name for name in first if name.suffix in (".bin", ".pt", ".pth", ".pkl", ".py")]
    assert facts[0]["files"] == {str(name): sha256_file(tmp_path / "one" / name) for name in first}


def test_only_an_earlier_export_is_replaced(models, trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(trained, models, [], out, False)
    export(trained, models, [], out, True)
    assert (out / "adapter").is_dir()
    export(trained, models, [], out, False)
    assert not (out / "adapter").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(TriptychError, match=r"contains notes\.txt, which is not part of an export"):
        export(trained, models, [], out, False)
    with pytest.raises(TriptychError, match="is not part of an export"):
        export(trained, models, [], models, False)
    (out / "notes.txt").unlink()
    (out / "README.md").write_text("mine")
    with pytest.raises(TriptychError, match=r"contains README\.md, which was changed after it was written"):
        export(trained, models, [], out, False)
    assert (out / "README.md").read_text() == "mine" and (models / "language_model" / "manifest.json").exists()


@pytest.mark.parametrize("file", ["checkpoint/connector", "models/language_model/model", "models/vision_encoder/model"])
def test_nothing_damaged_is_exported(models, trained, tmp_path, file):
    path = tmp_path / f"{file}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TriptychError, match=r"safetensors: (differs from the hash|missing or changed)"):
        export(trained, models, [], tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_models_of_another_study_are_refused(models, trained, tmp_path, world):
    llama = write_llama(tmp_path / "llama", make_tokenizer())
    other = prepare(tmp_path / "other", {"folder": str(world / "models" / "clip")}, llama)
    with pytest.raises(TriptychError, match="trained with another language model"):
        export(trained, other, [], tmp_path / "out", False)


def test_of_the_models_of_ablations_those_of_the_checkpoint_are_taken(models, trained, tmp_path, world):
    clip, llama = world / "models" / "clip", world / "models" / "llama"
    other = prepare(tmp_path / "other", {"folder": str(clip), "layer": -1}, llama, "assistant <image> {question} ")
    (other / "vision_encoder").rename(models / "vision_encoder+last")
    manifest = read_json(trained / "manifest.json")
    assert base_models(models, manifest).vision_encoder == models / "vision_encoder"
    manifest["vision_encoder"] = encoder_hashes(models / "vision_encoder+last")
    assert base_models(models, manifest).vision_encoder == models / "vision_encoder+last"
    (other / "language_model").rename(models / "language_model+asked")
    assert base_models(models, manifest).language_model == models / "language_model"
    manifest["prompt"] = "assistant <image> {question} "
    assert base_models(models, manifest).language_model == models / "language_model+asked"


# The packaged encoder, which has no class in transformers


@pytest.fixture
def packaged(world, tmp_path):
    return prepare(tmp_path / "models", PackageEncoder(source="package", image_size=32), world / "models" / "llama")


@pytest.mark.parametrize("adapter", [False, True])
def test_the_packaged_encoder_is_exported_with_its_own_loader(packaged, tmp_path, adapter):
    source = save_checkpoint(tmp_path / "checkpoint", packaged, Lora(rank=2))
    out = tmp_path / "out"
    assert export(source, packaged, [], out, adapter) == "triptych"
    tokenizer = load_tokenizer(packaged / "language_model")
    expected = [
        tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in triptych_answers(source, packaged)
    ]
    answer = load(out, device=CPU)
    asked = [(image, question) for image in pictures() for question in QUESTIONS]
    assert [answer(*pair, max_new_tokens=NEW_TOKENS) for pair in asked] == expected
    AutoModelForCausalLM.from_pretrained(out / "language_model")
    assert (out / "adapter" / "adapter_model.safetensors").exists() == adapter
    assert "Apache-2.0" in (out / "README.md").read_text()
    assert run_card(out, tmp_path).startswith(expected[0])
    assert all(str(tmp_path).encode() not in data for data in everything(out).values())


def test_a_connector_that_pools_has_its_own_loader_too(world, tmp_path):
    encoder = {"folder": str(write_clip(tmp_path / "encoder"))}
    models = prepare(tmp_path / "models", encoder, world / "models" / "llama")
    source = save_checkpoint(tmp_path / "checkpoint", models, Lora(rank=2), Connector(kind="pooled-mlp", pool=2))
    assert export(source, models, [], tmp_path / "out", False) == "triptych"
    tokenizer = load_tokenizer(models / "language_model")
    expected = [
        tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in triptych_answers(source, models)
    ]
    answer = load(tmp_path / "out", device=CPU)
    asked = [(image, question) for image in pictures() for question in QUESTIONS]
    assert [answer(*pair, max_new_tokens=NEW_TOKENS) for pair in asked] == expected
    assert "no class for its connector, pooled-mlp" in (tmp_path / "out" / "README.md").read_text()
    assert all(str(tmp_path).encode() not in data for data in everything(tmp_path / "out").values())


def test_a_changed_export_is_not_loaded(packaged, tmp_path):
    source = save_checkpoint(tmp_path / "checkpoint", packaged)
    export(source, packaged, [], tmp_path / "out", False)
    file = tmp_path / "out" / "connector.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(TriptychError, match=r"connector\.safetensors: missing or changed"):
        load(tmp_path / "out")


def test_a_llava_folder_is_left_to_transformers(models, trained, tmp_path):
    export(trained, models, [], tmp_path / "out", False)
    with pytest.raises(TriptychError, match="load it with transformers"):
        load(tmp_path / "out")
