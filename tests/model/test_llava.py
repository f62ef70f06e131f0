"""A pretrained LLaVA as the parent: its parts compute what transformers' own class computes, or it is refused."""

import json

import pytest
import torch
from conftest import HIDDEN, image_bytes
from llavas import PROMPT, base_of, prepare_llava, write_llava
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from triptych.config.models import LlavaModels
from triptych.config.stages import Connector, Lora
from triptych.data.images import decode
from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.model import checkpoint
from triptych.model.connector import CONNECTOR_FILE
from triptych.model.language_model import load_tokenizer
from triptych.model.llava import PROJECTOR, _describe
from triptych.model.packing import pack
from triptych.model.tokens import Sample, prompt_tokens

CPU = torch.device("cpu")
PUBLISHED = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
ANSWERS = ("red on the left", "no", "MRI")


def logits_of_both(llava, models):
    """Logits of a few answers to a question on an image: of the parts in Triptych, and of transformers' own class."""
    encoder, base = base_of(models)
    model = checkpoint.build(base, None, Connector(), None, 0, "fold0", torch.float32, CPU).eval()
    tokenizer = load_tokenizer(models / "language_model")
    prompt, question = prompt_tokens(tokenizer, PROMPT), "what colour is the square ?"
    picture = decode(image_bytes("green", "right"))
    tokens = encoder.tokens(encoder.preprocess([picture]))
    samples = [Sample(text, "", prompt.encode_question(question), prompt.encode_answer(text)) for text in ANSWERS]
    batch = pack(samples, lambda _: tokens, prompt, tokens.shape[1], 4096)
    found = model.answer_logits(batch)
    plain = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(llava)
    for index, (sample, text) in enumerate(zip(samples, ANSWERS, strict=True)):
        inputs = processor(images=picture, text=PROMPT.replace("{question}", question) + text, return_tensors="pt")
        with torch.inference_mode():
            expected = plain(**inputs).logits[0, -len(sample.answer) :]
        yield found[batch.target_samples == index], expected


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, 4),  # as LLaVA-1.5: layer -2, without the class token
        ({"vision_feature_layer": -1}, 4),
        ({"vision_feature_layer": 1, "vision_feature_select_strategy": "full"}, 5),
        ({"text": {"tie_word_embeddings": True}}, 4),
        ({"dtype": torch.float16}, 4),  # as LLaVA-1.5 is published
        ({"text": {"num_key_value_heads": 1}, "tower": {"hidden_act": "gelu", "num_hidden_layers": 3}}, 4),
    ],
)
def test_the_parts_give_the_logits_of_transformers(tmp_path, settings, tokens):
    llava = write_llava(tmp_path / "llava", **settings)
    models = prepare_llava(tmp_path / "models", llava)
    encoder, _ = base_of(models)
    assert encoder.tokens(torch.zeros(1, 3, 32, 32)).shape[1] == tokens
    for found, expected in logits_of_both(llava, models):
        assert torch.allclose(found, expected, atol=1e-5)
        assert expected.std() > 0.1


@pytest.mark.parametrize("layout", ["published", "shards"])
def test_both_namings_of_tensors_and_several_files_are_read(tmp_path, layout):
    """As llava-hf/llava-1.5-7b-hf is published; transformers 5 names tensors otherwise, and is read as well."""
    llava = write_llava(tmp_path / "llava")
    weights = load_file(llava / "model.safetensors")
    published = [name for name in weights if name.startswith("language_model.model.")]
    renamed = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    renamed |= {"vision_tower.": "model.vision_tower.", "multi_modal_projector.": "model.multi_modal_projector."}
    names = dict(zip(weights, weights, strict=True))
    for old, new in renamed.items() if published else [(new, old) for old, new in renamed.items()]:
        names |= {name: new + name.removeprefix(old) for name in names if name.startswith(old)}
    (llava / "model.safetensors").unlink()
    if layout == "published":
        save_file({names[name]: tensor for name, tensor in weights.items()}, llava / "model.safetensors")
    else:
        where = {
            name: f"model-0000{1 + (index % 3)}-of-00003.safetensors" for index, name in enumerate(sorted(weights))
        }
        for file in {*where.values()}:
            save_file({name: weights[name] for name in weights if where[name] == file}, llava / file)
        index = {"metadata": {}, "weight_map": where}
        (llava / "model.safetensors.index.json").write_text(json.dumps(index))
        (llava / "stray.safetensors").write_bytes(b"not read by transformers either")
    models = prepare_llava(tmp_path / "models", llava)
    for found, expected in logits_of_both(llava, models):
        assert torch.allclose(found, expected, atol=1e-5)


def test_an_image_processor_in_a_file_of_its_own_is_taken(tmp_path):
    llava = write_llava(tmp_path / "llava")
    inner = read_json(llava / "processor_config.json").pop("image_processor")
    inner["image_mean"] = [0.1, 0.2, 0.3]
    (llava / "preprocessor_config.json").write_text(json.dumps(inner))
    models = prepare_llava(tmp_path / "models", llava)
    assert read_json(models / "vision_encoder" / "preprocessor_config.json")["image_mean"] == [0.1, 0.2, 0.3]


def test_the_published_configuration_leaves_out_what_is_the_default(tmp_path):
    """Of llava-hf/llava-1.5-7b-hf, as its repository has it: most sizes of the language model are not in it."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    described = _describe(tmp_path / "config.json")
    assert (described.layer, described.drop_class_token, described.image_token) == (-2, True, 32000)
    text, tower = described.config.text_config, described.config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size, text.intermediate_size) == (
        4096,
        32,
        32064,
        11008,
    )
    assert (tower.hidden_size, tower.num_hidden_layers, tower.hidden_act) == (1024, 24, "quick_gelu")
    text.save_pretrained(tmp_path / "text")
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "num_attention_heads"}
    assert sizes <= read_json(tmp_path / "text" / "config.json").keys()  # by which a plan estimates


def edit(llava, **facts):
    path = llava / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (
            {"model_type": "llava_next"},
            "model_type: must be llava, as LlavaForConditionalGeneration has it, not 'llava_n",
        ),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act: must be gelu, not 'relu'"),
        ({"projector_hidden_act": "gelu_pytorch_tanh"}, "projector_hidden_act: must be gelu, not 'gelu_pytorch_tanh'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias: must be true, not False"),
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer: must be one number, because one layer"),
        ({"vision_feature_layer": -4}, "vision_feature_layer: -4 is none of the vision tower's 3 hidden states"),
        ({"vision_feature_layer": 3}, "vision_feature_layer: 3 is none of the vision tower's 3 hidden states"),
        ({"vision_feature_layer": True}, "vision_feature_layer: must be one number"),
        (
            {"vision_feature_select_strategy": "cls"},
            "vision_feature_select_strategy: must be default or full, not 'cls'",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights are not supported"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map names code"),
    ],
)
def test_what_is_not_computed_is_one_line_that_names_the_key(tmp_path, facts, line):
    llava = write_llava(tmp_path / "llava")
    edit(llava, **facts)
    with pytest.raises(TriptychError) as raised:
        prepare_llava(tmp_path / "models", llava)
    assert line in str(raised.value) and str(llava / "config.json") in str(raised.value)
    assert "\n" not in str(raised.value) and not list(tmp_path.glob("models/*/*"))


def test_an_image_token_that_is_not_the_mark_of_prompts_is_refused(tmp_path):
    llava = write_llava(tmp_path / "llava", image_token_index=3)
    with pytest.raises(
        TriptychError, match=r"config.json: image_token_index: is 3, but <image> is \d+ of the tokenizer"
    ):
        prepare_llava(tmp_path / "models", llava)


def test_a_tower_without_class_token_needs_the_strategy_full(tmp_path):
    llava = write_llava(tmp_path / "llava")
    facts = json.loads((llava / "config.json").read_text())
    tower = {key: value for key, value in facts["vision_config"].items() if key != "model_type"}
    edit(llava, vision_config={**tower, "model_type": "siglip_vision_model", "vision_use_head": False})
    weights = load_file(llava / "model.safetensors")
    start = next(name for name in weights if "patch_embedding" in name)
    prefix = start[: start.index("embeddings.")]
    weights[f"{prefix}embeddings.patch_embedding.bias"] = torch.zeros(16)
    weights[f"{prefix}embeddings.position_embedding.weight"] = torch.randn(4, 16)
    save_file(weights, llava / "model.safetensors")
    with pytest.raises(TriptychError, match="vision_feature_select_strategy: default leaves out the first token, but"):
        prepare_llava(tmp_path / "models", llava)
    edit(llava, vision_feature_select_strategy="full")
    models = prepare_llava(tmp_path / "models", llava)
    encoder, _ = base_of(models)
    assert encoder.tokens(torch.zeros(1, 3, 32, 32)).shape[1] == 4


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda w: w.pop(next(n for n in w if n.endswith("linear_2.bias"))),
            "linear_2.bias: has shape none, not (32,)",
        ),
        (
            lambda w: w.update({next(n for n in w if n.endswith("linear_1.weight")): torch.zeros(HIDDEN, 3)}),
            "multi_modal_projector.linear_1.weight: has shape (32, 3), not (32, 16)",
        ),
        (
            lambda w: w.update({next(n for n in w if n.endswith("linear_1.bias")): torch.full((HIDDEN,), torch.nan)}),
            "multi_modal_projector.linear_1.bias: is not finite",
        ),
        (lambda w: w.update(image_newline=torch.zeros(HIDDEN)), "image_newline is a tensor of no part of Llava"),
        (lambda w: [w.pop(n) for n in [*w] if "vision_tower" in n], "the weights hold no tensor of the vision encoder"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, change, line):
    llava = write_llava(tmp_path / "llava")
    weights = load_file(llava / "model.safetensors")
    change(weights)
    save_file(weights, llava / "model.safetensors")
    with pytest.raises(TriptychError) as raised:
        prepare_llava(tmp_path / "models", llava)
    assert line in str(raised.value) and str(llava) in str(raised.value)


def test_a_missing_shard_is_one_line(tmp_path):
    llava = write_llava(tmp_path / "llava")
    names = list(load_file(llava / "model.safetensors"))
    (llava / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (llava / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TriptychError, match=r"00001-of-00001\.safetensors: is missing; fetch or save"):
        prepare_llava(tmp_path / "models", llava)


def test_a_first_stage_starts_from_the_projector_and_names_the_model(tmp_path):
    models = prepare_llava(tmp_path / "models", write_llava(tmp_path / "llava"))
    _, base = base_of(models)
    own = load_file(models / "language_model" / PROJECTOR)
    starts = {
        init: checkpoint.build(base, None, Connector(), Lora(rank=2), 0, "fold0", torch.float32, CPU, init)
        for init in ("parent", "random")
    }
    first = starts["parent"].connector.state_dict()
    assert all(torch.equal(first[name], own[name]) for name in own) and first.keys() == own.keys()
    assert not torch.equal(starts["random"].connector.state_dict()["linear_1.weight"], own["linear_1.weight"])
    adapted = {name for name, _ in starts["parent"].language_model.named_parameters() if "lora_A" in name}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapted} == {"q_proj", "v_proj"}
    assert base.identity["llava"] == {"projector": base.identity["language_model"][PROJECTOR]}

    # The next stage has its parent's connector, not the projector.
    with torch.no_grad():
        starts["parent"].connector.linear_1.bias.add_(1)
    manifest = {"seed": 0, "split": "fold0", "connector": Connector().model_dump(), "lora": Lora(rank=2).model_dump()}
    checkpoint.save(starts["parent"], tmp_path / "2", {**manifest, **base.identity}, "")
    child = checkpoint.build(base, tmp_path / "2" / "manifest.json", Connector(), None, 0, "fold0", torch.float32, CPU)
    assert torch.equal(child.connector.linear_1.bias, own["linear_1.bias"] + 1)
    saved = load_file(tmp_path / "2" / CONNECTOR_FILE)
    assert torch.equal(saved["linear_1.bias"], own["linear_1.bias"] + 1)


def test_another_projector_is_another_parent(tmp_path):
    """Its weights are in the identity of every checkpoint that starts from it."""
    llava = write_llava(tmp_path / "llava")
    _, base = base_of(prepare_llava(tmp_path / "models", llava))
    model = checkpoint.build(base, None, Connector(), None, 0, "fold0", torch.float32, CPU)
    manifest = {"seed": 0, "split": "fold0", "connector": Connector().model_dump(), "lora": None, **base.identity}
    checkpoint.save(model, tmp_path / "2", manifest, "")
    weights = load_file(llava / "model.safetensors")
    [name] = [name for name in weights if name.endswith("linear_1.bias")]
    save_file({**weights, name: weights[name] + 1}, llava / "model.safetensors")
    _, other = base_of(prepare_llava(tmp_path / "others", llava))
    with pytest.raises(TriptychError, match="was trained with another language model"):
        checkpoint.load(other, tmp_path / "2" / "manifest.json", torch.float32, CPU)


def test_a_damaged_projector_is_noticed(tmp_path):
    models = prepare_llava(tmp_path / "models", write_llava(tmp_path / "llava"))
    _, base = base_of(models)
    path = models / "language_model" / PROJECTOR
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(TriptychError, match=PROJECTOR):
        checkpoint.build(base, None, Connector(), None, 0, "fold0", torch.float32, CPU)


def test_the_prompt_of_the_tower_is_no_part_of_it_nor_its_fit_of_the_language_model(tmp_path):
    settings = {"source": "folder", "folder": "x"}
    models = LlavaModels.model_validate({"llava": {**settings, "prompt": PROMPT, "fit": "pad"}})
    assert models.vision_encoder.model_dump() == {"part_of": "llava", **settings, "fit": "pad"}
    assert models.language_model.model_dump() == {"part_of": "llava", **settings, "prompt": PROMPT}
