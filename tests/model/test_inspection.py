"""The model step: a language model that could not be trained or asked is refused in one line; doubts are told."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import CACHE, PROMPT, WORDS, make_tokenizer
from models_page import tiny_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from triptych.config.models import FolderLanguageModel, PackageLanguageModel
from triptych.errors import TriptychError
from triptych.model import inspection
from triptych.model.architectures import ARCHITECTURES
from triptych.model.inspection import check_end, check_prompt, inspect_language_model
from triptych.model.prepare import prepare_model
from triptych.utils.terminal import SCREEN

SMOLLM2 = "<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
TINYLLAMA = "<s><|user|>\n<image>\n{question}</s>\n<|assistant|>\n"


@pytest.fixture
def llama(world, tmp_path):
    return shutil.copytree(world / "models" / "llama", tmp_path / "llama")


def prepare(folder, prompt=PROMPT):
    settings = FolderLanguageModel(source="folder", folder=str(folder), prompt=prompt)
    prepare_model("language_model", settings, folder.parent, folder.parent / "out")


def refused(folder, prompt=PROMPT) -> str:
    """The one line with which a folder is refused, without its path."""
    with pytest.raises(TriptychError) as caught:
        prepare(folder, prompt)
    [line] = str(caught.value).splitlines()
    assert str(folder) in line and len(line) < 600 and not (folder.parent / "out").exists()
    return line.replace(str(folder), "llama")


def change(folder, file="config.json", **facts):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


# Damaged folders


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_weights_that_are_cut_or_empty_are_one_line(llama, kept):
    path = llama / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert refused(llama).startswith("llama/model.safetensors: cannot be opened (SafetensorError: ")


def test_weights_without_a_tensor_or_with_another_shape_are_one_line(llama):
    tensors = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for other in (None, tensors[name][:, :-1].contiguous()):
        changed = {key: tensor for key, tensor in tensors.items() if key != name}
        changed |= {} if other is None else {name: other}
        save_file(changed, llama / "model.safetensors", metadata={"format": "pt"})
        assert "but the weights hold" in refused(llama)
        save_file(changed | {"spare": torch.zeros(9999)}, llama / "model.safetensors", metadata={"format": "pt"})
        assert "model.layers.1.mlp.up_proj.weight" in refused(llama) or "shape" in refused(llama)


def test_a_missing_shard_is_one_line(llama):
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(llama, max_shard_size="20KB")
    (llama / "model.safetensors").unlink()
    prepare(llama)
    shutil.rmtree(llama.parent / "out")
    sorted(llama.glob("model-*.safetensors"))[-1].unlink()
    assert refused(llama).startswith("llama")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_one_line(llama, value):
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    assert refused(llama).startswith("llama: the weights give no finite numbers")


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"hidden_size": 10**9}, "describes a model of"),
        ({"vocab_size": 10**10}, "describes a model of"),
        ({"intermediate_size": 10**6}, "describes a model of"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers, but the weights are"),
        ({"num_hidden_layers": 3}, "describes a model of"),
        ({"num_hidden_layers": 1}, None),  # a layer more than is used: as transformers has it
        ({"hidden_size": 10**30}, "no model has these sizes"),
        ({"hidden_size": -32}, "no model has these sizes"),
        ({"hidden_size": "32"}, "config.json: cannot be read"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"num_attention_heads": 3, "head_dim": None}, "config.json"),
        ({"vocab_size": 5}, "has a token 29, but the model 5 tokens"),
        ({"rope_parameters": {"rope_type": "planted"}}, "llama"),
        ({"max_position_embeddings": 0}, "config.json: a context of 0 tokens"),
        ({"model_type": "mistral", "sliding_window": 0}, "config.json: a sliding window of 0 tokens"),
        ({"model_type": "phi3", "sliding_window": -1}, "config.json: a sliding window of -1 tokens"),
        ({"model_type": "mistral", "sliding_window": None}, None),
    ],
)
def test_sizes_that_do_not_fit_are_one_line_and_take_no_memory(llama, facts, line):
    change(llama, **facts)
    if line is None:
        prepare(llama)
    else:
        assert line in refused(llama)


@pytest.mark.parametrize("text", ["", "{", "[]", '"llama"', "null", "{}", '{"model_type": 3}'])
def test_a_configuration_that_is_none_is_one_line(llama, text):
    for mark in ("", "\ufeff"):
        (llama / "config.json").write_text(mark + text)
        line = refused(llama)
        assert "llama/config.json: " in line and "delete" not in line, "it is the user's own"


def test_a_folder_without_a_configuration_is_one_line(llama):
    (llama / "config.json").unlink()
    assert refused(llama).startswith("llama/config.json: cannot be read (")


def test_a_missing_nested_or_damaged_tokenizer_is_one_line(llama):
    data = (llama / "tokenizer.json").read_text()
    (llama / "tokenizer").mkdir()
    (llama / "tokenizer.json").rename(llama / "tokenizer" / "tokenizer.json")
    assert refused(llama) == "llama: has no tokenizer; tokenizer.json must lie in this folder, beside config.json"
    for text in ("{}", json.dumps({"version": "1.0", "model": {"type": "BPE"}}), "[1]"):
        (llama / "tokenizer.json").write_text(text)
        assert refused(llama).startswith("llama: the tokenizer cannot be opened (")
    (llama / "tokenizer.json").write_text(data[: len(data) // 2])
    assert refused(llama).startswith("llama/tokenizer.json: not valid JSON")


def test_a_tokenizer_that_ends_no_answer_is_one_line(llama):
    change(llama, "tokenizer_config.json", eos_token=None)
    line = "llama: the tokenizer has no end token that the model has; set its eos_token"
    assert refused(llama) == line
    change(llama, "tokenizer_config.json", eos_token="<|finished|>")  # a new one, which the model has no row for
    assert refused(llama) == line


def test_a_tokenizer_may_have_control_tokens_that_the_model_lacks_but_no_prompt_may_use_them(llama):
    """As Gemma 3's has one for images, which its text models have no row for."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<|image|>", special=True)])
    tokenizer.save_pretrained(llama)
    prepare(llama)
    shutil.rmtree(llama.parent / "out")
    with pytest.raises(TriptychError, match=r"the model has no embedding of <\|image\|>"):
        prepare(llama, "<|image|> <image> {question}")


# Architectures


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "falcon", "bloom", "qwen3_moe", "bert"])
def test_an_architecture_that_is_not_supported_is_one_line(llama, kind):
    CONFIG_MAPPING[kind]().save_pretrained(llama)
    line = refused(llama)
    assert line.startswith(
        f"llama/config.json: model_type: {kind} is no language model that is supported (llama, mistral"
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_supported_architecture_is_taken(tmp_path, kind):
    tiny_model(kind, 5, vocab_size=len(WORDS)).save_pretrained(tmp_path / "text")
    make_tokenizer().save_pretrained(tmp_path / "text")
    prepare(tmp_path / "text")
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_quantised_weights_and_attention_to_both_sides_are_one_line(llama):
    plain = (llama / "config.json").read_text()
    change(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    assert refused(llama) == "llama/config.json: the weights are quantised, which is not supported; take the plain ones"
    for facts in ({"is_causal": False}, {"use_bidirectional_attention": True}):
        (llama / "config.json").write_text(plain)
        change(llama, **facts)
        assert "attention is not causal" in refused(llama)


def test_a_model_that_does_not_fit_into_memory_is_opened_but_not_computed(llama, monkeypatch, capsys):
    monkeypatch.setattr(inspection, "free_memory", lambda device: 1000)
    prepare(llama)
    assert "not computed: the weights take 0.0 GB, of 0.0 GB free memory" in capsys.readouterr().out


# Prompts


@pytest.fixture
def smollm2(tokenizer):
    """Marks as SmolLM2's, among the words of the toy tokenizer."""
    marks = [AddedToken(mark, special=True, normalized=False) for mark in ("<|im_start|>", "<|im_end|>", "<s>")]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = "<|im_start|>user {{ content }}<|im_end|><|im_start|>assistant"
    return tokenizer


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        (r"user\n<image> {question}", "holds a backslash and the letter n; in YAML, write it in double quotes"),
        (r"user <image> {question}\tassistant", "holds a backslash and the letter t"),
        (
            TINYLLAMA,
            r"does not know <\|user\|>, <\|assistant\|>, .* its own chat template has <\|im_start\|>, <\|im_end\|>",
        ),
        ("<image>{question}<end_of_turn>", "does not know <end_of_turn>"),
        ("[INST] <image>{question} [/INST]", r"does not know \[INST\], \[/INST\]"),
        ("<|im_start|>user <image>{question}<|im_stop|>", r"does not know <\|im_stop\|>"),
    ],
)
def test_a_prompt_of_another_model_is_one_line(smollm2, prompt, line):
    with pytest.raises(TriptychError, match=rf"^models.language_model.prompt: .*{line}"):
        check_prompt(smollm2, prompt, 100)


@pytest.mark.parametrize(
    "prompt", [SMOLLM2, "Image: <image> Question: {question} <b>", "a < b <image> [1] {question} |>"]
)
def test_a_prompt_that_fits_raises_no_doubt(smollm2, prompt):
    assert check_prompt(smollm2, prompt, 100) == []


@pytest.mark.parametrize(
    ("template", "ends", "doubt"),
    [
        ("<|im_start|>{{ content }}<b>", [1, 2], "its chat template ends turns with <b>: where a schedule trains"),
        ("<|im_start|>{{ content }}<b>", 2, "ends turns with <b>"),
        ("<|im_start|>{{ content }}<a>{{ more }}<b>", [1, 2], None),  # as Llama 3.1's, which has several
        ("<|im_start|>{{ content }}", [1, 2], None),
        (None, [1, 2], None),
        ("<|im_start|>{{ content }}<b>", None, None),
    ],
)
def test_an_end_that_is_not_that_of_the_models_turns_is_told(tmp_path, template, ends, doubt):
    """As those of Gemma and Phi-3 are, whose tokenizers name the end of a text."""
    names = {1: "<a>", 2: "<b>"}
    known = SimpleNamespace(
        chat_template=template, eos_token="<a>", convert_ids_to_tokens=lambda ids: [names[one] for one in ids]
    )
    if ends is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    found = check_end(tmp_path, known)
    assert len(found) == (doubt is not None) and (not doubt or doubt in found[0])


def test_marks_that_a_chat_template_writes_as_text_are_the_models_own(smollm2):
    """As TinyLlama's are, which no token stands for."""
    smollm2.chat_template = "<|user|>\n{{ content }}</s>\n<|assistant|>\n"
    assert check_prompt(smollm2, TINYLLAMA, 100) == []


def test_marks_that_a_tokenizer_without_a_template_does_not_know_are_told(smollm2, llama, capsys, monkeypatch):
    smollm2.chat_template = None
    doubts = check_prompt(smollm2, TINYLLAMA, 100)
    assert [doubt.split()[1] for doubt in doubts] == ["<|user|>", "<|assistant|>"]
    with (llama.parent / "screen").open("w+") as screen:  # of the user, who does not read logs
        monkeypatch.setenv(SCREEN, str(screen.fileno()))
        prepare(llama, "<|user|> <image> {question}")
        said = screen.seek(0) or screen.read()
    assert said == capsys.readouterr().out
    assert said.startswith("warning: models.language_model.prompt: <|user|> is no token of this tokenizer")


def test_a_start_token_that_nothing_adds_is_told(smollm2):
    backend = smollm2.backend_tokenizer
    start = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    begins = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    for prompt in (SMOLLM2, "<image><s> {question}"):
        [doubt] = check_prompt(begins, prompt, 100)
        assert doubt.endswith("this tokenizer begins text with <s>; the prompt does not, and nothing adds it")
    assert check_prompt(begins, f"<s>{SMOLLM2}", 100) == []


def test_the_packaged_model_and_its_prompt_raise_no_doubt(tmp_path, capsys):
    prepare_model("language_model", PackageLanguageModel(source="package", prompt=SMOLLM2), CACHE, tmp_path / "out")
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(TriptychError, match=r"^models.language_model.prompt: .* does not know <s>, <\|user\|>, </s>"):
        inspect_language_model(tmp_path / "out", TINYLLAMA)
