"""Command: write a checkpoint as a folder that plain transformers loads, with its processor and a model card.

Two layouts. With a CLIP or SigLIP encoder the folder is a standard `LlavaForConditionalGeneration`. The packaged
encoder and the connector that pools have no class in transformers; then language model, connector and encoder lie side
by side, and `load` puts them together. In both, the LoRA is merged, or lies beside the base as a peft adapter.
"""

import argparse
import copy
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from triptych import checkpoint
from triptych.hardware import Precision, attention_kind, best_device, compute_dtype, mixed_precision
from triptych.model import language_model, vision
from triptych.model.batch import Sample, prompt_tokens
from triptych.model.vlm import CONNECTOR_FILE, Linear, VisionLanguageModel, build_connector
from triptych.predict import generate
from triptych.settings import Connector, Evaluation, Stage
from triptych.shards import encoder_hashes
from triptych.sources.packages import PACKAGES
from triptych.storage import (
    TriptychError,
    atomic_directory,
    canonical_json,
    read_json,
    require_files,
    run_step,
    sha256_file,
    write_json,
    write_text,
)

MARK = "triptych.json"  # tells an export from other folders; written last
IMAGE_TOKEN = "<image>"
MAX_NEW_TOKENS = Evaluation().max_new_tokens
CPU = torch.device("cpu")
# Texts by which the exported tokenizer is compared with the one that the checkpoint was trained with.
PROBES = (
    "",
    " ",
    "Is it red?",
    "what colour is the square ?",
    " two\nlines ",
    "Größe: 12,5 µm — où?",
    "<b>x</b> \t 图",
)
UNKNOWN = "not stated"


def export(source: Path, models: Path, data: Sequence[Path], out: Path, adapter: bool) -> str:
    """Write one checkpoint into the folder `out`; equal inputs give equal bytes.

    Args:
        source: folder of the checkpoint.
        models: folder of the base models, as `prepare_model` wrote them; of several, those that the checkpoint names.
        data: folders of prepared data sets, for the model card.
        out: folder to write; an earlier export there is replaced.
        adapter: keep the LoRA apart, as a peft adapter in `adapter/`, instead of merging it.

    Returns:
        The layout: `llava` or `triptych`.

    Raises:
        TriptychError: the checkpoint or a base model is damaged, they do not belong together, `out` is another kind of
            folder, or the models have no such form.
    """
    refuse_strangers(out)
    manifest = read_json(source / checkpoint.MANIFEST)
    models = base_models(models, manifest)
    language = models.language_model
    require_files(language, read_json(language / checkpoint.MANIFEST)["files"], f"delete {language} and run again")
    encoder = vision.load(models.vision_encoder, CPU)
    base = checkpoint.Base(models.language_model, encoder.hidden_size, encoder_hashes(models.vision_encoder))
    dtype = AutoConfig.from_pretrained(models.language_model).dtype or torch.float32
    model = checkpoint.load(base, source / checkpoint.MANIFEST, dtype, CPU)
    if adapter and not model.has_lora:
        raise TriptychError(f"{source}: has no LoRA, so there is no adapter to write; leave out --adapter")
    if model.has_lora and "lm_head" in manifest["lora"]["target_modules"]:
        raise TriptychError(f"{source}: its LoRA adapts the output layer, for which no export is written")
    if model.blind:
        raise TriptychError(f"{source}: is a blind control, which is shown no picture; export another schedule")
    without_class = [
        f"{role}, {kind}"
        for role, kind, own in (
            ("encoder", "EfficientNet-Lite0", encoder_settings(models)["source"] == "package"),
            ("connector", manifest["connector"]["kind"], manifest["connector"]["kind"] == "pooled-mlp"),
        )
        if own
    ]
    layout = "triptych" if without_class else "llava"
    with atomic_directory(out) as folder:
        write = {"llava": write_llava, "triptych": write_triptych}[layout]
        write(model, models, adapter, folder)
        how = how_to_load(without_class, language_model.load_prompt(models.language_model), adapter)
        write_text(folder / "README.md", model_card(layout, how, manifest, source, models, data, adapter, folder))
        facts = {
            "layout": layout,
            "prompt": language_model.load_prompt(models.language_model),
            "connector": manifest["connector"],
            "checkpoint": sha256_file(source / checkpoint.MANIFEST),
            "code": checkpoint.code_version(),
            "files": {name: sha256_file(folder / name) for name in files_below(folder)},
        }
        write_json(folder / MARK, facts)
    return layout


class BaseModels(NamedTuple):
    """Folders of the two base models of a checkpoint."""

    language_model: Path
    vision_encoder: Path


def base_models(models: Path, manifest: dict) -> BaseModels:
    """The models that a checkpoint's manifest names, among those of a study, which ablations may add to.

    Raises:
        TriptychError: two language models differ in their prompt only, so that it does not say which.
    """
    found = []
    for role in BaseModels._fields:
        folders = [path.parent for path in sorted(models.glob(f"{role}*/{checkpoint.MANIFEST}"))]
        fitting = [folder for folder in folders if _hashes(folder, role) == manifest[role]]
        if len(fitting) > 1:
            names = " and ".join(folder.name for folder in fitting)
            raise TriptychError(
                f"{models}: {names} differ in their prompt only; link the one you mean, as {role}, and the vision "
                "encoder into a folder of their own, and give that as --models"
            )
        found.append(fitting[0] if fitting else models / role)
    return BaseModels(*found)


def _hashes(folder: Path, role: str) -> dict[str, str]:
    return encoder_hashes(folder) if role == "vision_encoder" else read_json(folder / checkpoint.MANIFEST)["files"]


def encoder_settings(models: BaseModels) -> dict:
    """Settings of the vision encoder, as its manifest has them."""
    return read_json(models.vision_encoder / checkpoint.MANIFEST)["settings"]


def files_below(folder: Path) -> list[str]:
    """Names of all files below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refuse_strangers(out: Path) -> None:
    """Let an export be written where there is nothing, or an earlier export with nothing added.

    Raises:
        TriptychError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    known = {*read_json(out / MARK)["files"], MARK} if (out / MARK).is_file() else set()
    others = sorted({*files_below(out)} - known) if out.is_dir() else [out.name]
    if others or not known:
        told = f"holds {others[0]}, which" if others else "holds what"
        raise TriptychError(f"{out}: {told} no export has written; name another folder, or empty this one")


# The trained part


def plain_language_model(model: VisionLanguageModel, adapter: bool, inside: str, folder: Path) -> PreTrainedModel:
    """The language model without LoRA around it: merged, or written into `folder/adapter` and taken off.

    Merged layers are kept in fp32, as they were trained: rounding to bf16 would lose a part of what was learnt.

    Args:
        model: as the checkpoint has it.
        adapter: write the LoRA instead of merging it.
        inside: where the exported model will hold the decoder: `model.<inside>`, with a dot at its end, or empty.
        folder: of the export.
    """
    wrapped = model.language_model
    if not model.has_lora:
        return wrapped
    if adapter:
        write_adapter(wrapped, inside, folder / "adapter")
        return wrapped.unload()
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            layer.get_base_layer().float()
    return wrapped.merge_and_unload(safe_merge=True)


def write_adapter(wrapped: PeftModel, inside: str, folder: Path) -> None:
    """Write the LoRA as peft reads it, for a model that holds the decoder as `model.<inside>`."""
    start = "base_model.model.model."
    tensors = {
        f"{start}{inside}{name.removeprefix(start)}": tensor.detach().contiguous()
        for name, tensor in get_peft_model_state_dict(wrapped).items()
    }
    config = copy.deepcopy(wrapped.peft_config["default"])
    # A pattern of whole names: names alone would also match the layers of a vision tower, and are saved in any order.
    layers = "|".join(map(re.escape, sorted(config.target_modules)))
    config.target_modules = rf"model\.{re.escape(inside)}.*\.({layers})"
    config.inference_mode = True
    config.base_model_name_or_path = None  # it is the folder above, wherever that is
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def greedy(end: int, pad: int | None, never: Sequence[int] = ()) -> GenerationConfig:
    """How Triptych answers: the likeliest token each time, up to the end token."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=end if pad is None else pad,
        suppress_tokens=list(never) or None,
    )


# Layout `llava`


def write_llava(model: VisionLanguageModel, models: BaseModels, adapter: bool, folder: Path) -> None:
    """Write a `LlavaForConditionalGeneration` with its processor.

    Every tensor keeps the dtype of its base model; what was trained is fp32. Loaded as fp32 nothing is lost, and by
    default transformers loads all in the language model's dtype.

    Raises:
        TriptychError: the models do not fit into that class, or the tokenizer not into its processor.
    """
    prompt = language_model.load_prompt(models.language_model)
    settings = encoder_settings(models)
    tower = vision.load_tower(models.vision_encoder)
    dropped = vision.class_tokens(settings, tower.config.model_type)
    strategy = "default" if dropped else "full"
    image_processor = AutoImageProcessor.from_pretrained(models.vision_encoder)
    pixels = image_processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    count = states[settings["layer"]].shape[1]
    patches = (pixels.shape[-2] // tower.config.patch_size) * (pixels.shape[-1] // tower.config.patch_size)

    tokenizer = image_tokenizer(language_model.load_tokenizer(models.language_model), prompt, count - dropped)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=tower.config.patch_size,
        num_additional_image_tokens=count - patches,
        vision_feature_select_strategy=strategy,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template(prompt),
    ).save_pretrained(folder)

    inside = "language_model."
    text = plain_language_model(model, adapter, inside, folder)
    head = text.get_output_embeddings()
    activation, projector = as_projector(model.connector)
    config = LlavaConfig(
        vision_config=copy.deepcopy(tower.config),
        text_config=copy.deepcopy(text.config),
        image_token_index=image_id,
        image_seq_length=count - dropped,
        projector_hidden_act=activation,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=settings["layer"],
    )
    rows = max(head.weight.shape[0], image_id + 1)
    config.text_config.vocab_size = rows
    state = {
        **{f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()},
        **{f"model.multi_modal_projector.{name}": tensor for name, tensor in projector.items()},
        **{f"model.{inside}{name}": tensor for name, tensor in text.model.state_dict().items()},
        **{f"lm_head.{name}": tensor for name, tensor in head.state_dict().items()},
    }
    embeddings = f"model.{inside}embed_tokens.weight"
    tied = text.get_input_embeddings().weight is head.weight
    state[embeddings] = with_rows(text.get_input_embeddings().weight, rows)
    state["lm_head.weight"] = state[embeddings] if tied else with_rows(head.weight, rows)
    with torch.device("meta"):
        whole = LlavaForConditionalGeneration(config)
    try:
        whole.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise TriptychError(
            f"{models.language_model.parent}: {text.config.model_type} and {tower.config.model_type} do not fit into "
            f"transformers' LlavaForConditionalGeneration ({str(error).splitlines()[-1].strip()})"
        ) from None
    whole.tie_weights()
    whole.generation_config = greedy(tokenizer.eos_token_id, tokenizer.pad_token_id, [image_id])
    whole.save_pretrained(folder)
    # Saving has set the dtype to that of the first tensor.
    for part in (config, config.text_config, config.vision_config):
        part.dtype = text.get_input_embeddings().weight.dtype
        part._name_or_path = ""  # where the base models lay
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)


def as_projector(connector: nn.Module) -> tuple[str, dict[str, torch.Tensor]]:
    """Activation and tensors of LLaVA's projector, two layers, that computes what the connector computes."""
    if not isinstance(connector, Linear):
        return "gelu", dict(connector.state_dict())
    second = {"linear_2.weight": torch.eye(len(connector.bias)), "linear_2.bias": torch.zeros_like(connector.bias)}
    return "linear", {f"linear_1.{name}": tensor for name, tensor in connector.state_dict().items()} | second


def with_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """An embedding matrix (V, H) with new rows at its end, up to `rows`: the mean of the others.

    As an output that gives a new token the mean of all logits: never the likeliest.
    """
    weight = weight.detach()
    mean = weight.double().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def image_tokenizer(tokenizer: PreTrainedTokenizerBase, prompt: str, count: int) -> PreTrainedTokenizerFast:
    """The tokenizer with <image> added, which gives for a whole prompt the ids that Triptych gives for its pieces.

    No id of the given tokenizer changes, and nothing is added at the start or the end.

    Args:
        tokenizer: the language model's.
        prompt: text of one turn.
        count: image tokens of a picture.

    Raises:
        TriptychError: no way was found to get the same ids.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TriptychError("the language model's tokenizer has no tokenizer.json form, which the export needs")
    as_is = json.loads(backend.to_str())
    for facts in (as_is, _start_everywhere(as_is)):
        found = _with_image_token(Tokenizer.from_str(json.dumps(facts)), tokenizer)
        if same_ids(tokenizer, found, prompt, count):
            return found
    raise TriptychError(
        "the language model's tokenizer reads a prompt with <image> in it unlike its two parts; "
        "no tokenizer that transformers could use gives the ids that the model was trained on"
    )


def _with_image_token(backend: Tokenizer, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    backend.no_padding()
    backend.no_truncation()
    found = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        add_bos_token=False,  # prompts are read without a start token, in training as well
        add_eos_token=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
    )
    if found.pad_token is None:
        found.pad_token = found.eos_token
    # Not normalised, and without the spaces beside it: the text on both sides is read as if it stood alone.
    found.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False, lstrip=False, rstrip=False)])
    return found


def _start_everywhere(facts: dict) -> dict:
    """The same tokenizer, where a mark that stands for "start of text" also goes before text that follows <image>."""
    text = json.dumps(facts["pre_tokenizer"])
    return {
        **facts,
        "pre_tokenizer": json.loads(text.replace('"prepend_scheme": "first"', '"prepend_scheme": "always"')),
    }


def same_ids(
    ours: PreTrainedTokenizerBase,
    found: PreTrainedTokenizerBase,
    prompt: str,
    count: int,
    texts: Iterable[str] = PROBES,
) -> bool:
    """Tell whether `found` reads whole prompts as Triptych reads their pieces with `ours`."""
    pieces = prompt_tokens(ours, prompt)
    image = [found.convert_tokens_to_ids(IMAGE_TOKEN)] * count
    return all(
        found(prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * count).replace("{question}", text))["input_ids"]
        == [*pieces.before_image, *image, *pieces.encode_question(text)]
        for text in texts
    )


def chat_template(prompt: str) -> str:
    """The prompt as a chat template, for one user message with one picture and one question."""
    before, after = (ascii(part) for part in prompt.split("{question}"))
    # No space or line end of the template's own may get into the prompt.
    return (
        "{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}"
        "{{- raise_exception('this model answers one question about one picture') -}}{%- endif -%}"
        f"{{{{- {before} -}}}}"
        "{%- if messages[0]['content'] is string -%}{{- messages[0]['content'] -}}{%- else -%}"
        "{%- for part in messages[0]['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
        "{%- endif -%}"
        f"{{{{- {after} -}}}}"
    )


# Layout `triptych`


def write_triptych(model: VisionLanguageModel, models: BaseModels, adapter: bool, folder: Path) -> None:
    """Write language model and tokenizer in transformers' format, and connector and encoder beside them."""
    save_file(dict(model.connector.state_dict()), folder / CONNECTOR_FILE)
    encoder = folder / "vision_encoder"
    files = read_json(models.vision_encoder / checkpoint.MANIFEST)["files"]
    for name in files:
        (encoder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(models.vision_encoder / name, encoder / name)
    settings = encoder_settings(models)
    if "folder" in settings:
        settings["folder"] = Path(settings["folder"]).name  # the rest says where it lay
    write_json(encoder / checkpoint.MANIFEST, {"settings": settings, "files": files})
    text = plain_language_model(model, adapter, "", folder)
    tokenizer = language_model.load_tokenizer(models.language_model)
    text.generation_config = greedy(tokenizer.eos_token_id, tokenizer.pad_token_id)
    text.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")


class Answerer:
    """Answers questions about pictures with an export of layout `triptych`."""

    def __init__(self, folder: Path, precision: Precision, device: torch.device):
        """Put the parts together; see `load`."""
        facts = read_json(folder / MARK)
        self.precision, self.device = precision, device
        self.encoder = vision.load(folder / "vision_encoder", device)
        dtype = compute_dtype(precision, device)
        network = language_model.load(folder / "language_model", dtype, attention_kind(device))
        hidden = network.get_input_embeddings().weight.shape[1]
        if (folder / "adapter").is_dir():
            network = PeftModel.from_pretrained(network, folder / "adapter")
        connector = build_connector(Connector.model_validate(facts["connector"]), self.encoder.hidden_size, hidden, 0)
        connector.load_state_dict(load_file(folder / CONNECTOR_FILE), strict=True)
        self.model = VisionLanguageModel(connector, network).to(device).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "language_model")
        self.prompt = prompt_tokens(self.tokenizer, facts["prompt"])

    @torch.inference_mode()
    def __call__(self, picture: Image.Image, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The greedy answer to one question about one picture."""
        pixels = self.encoder.preprocess([picture.convert("RGB")])
        tokens = self.encoder.tokens(pixels.to(self.device)).float()
        sample = Sample("", "", self.prompt.encode_question(question), ())
        with mixed_precision(self.precision, self.device):
            [answer], _ = generate(self.model, [sample], lambda _: tokens, self.prompt, max_new_tokens)
        return self.tokenizer.decode(answer, skip_special_tokens=True).strip()


def load(folder: Path | str, precision: Precision = "fp32", device: torch.device | None = None) -> Answerer:
    """Load an export that transformers has no class for; call what it gives with a picture and a question.

    Args:
        folder: that `export` wrote.
        precision: fp32, bf16, or auto for bf16 where the hardware has it.
        device: where to run; None for the GPU if there is one.

    Raises:
        TriptychError: not such an export, or a file is missing or changed.
    """
    folder = Path(folder)
    facts = read_json(folder / MARK)
    if facts["layout"] != "triptych":
        raise TriptychError(f"{folder}: load it with transformers, as its README.md says")
    for name, expected in facts["files"].items():
        if name.endswith((".safetensors", ".json")) and (
            not (folder / name).is_file() or sha256_file(folder / name) != expected
        ):
            raise TriptychError(f"{folder / name}: missing or changed since it was exported; export again")
    return Answerer(folder, precision, device or best_device())


# Model card


def model_card(
    layout: str,
    how: Sequence[str],
    manifest: dict,
    source: Path,
    models: BaseModels,
    data: Sequence[Path],
    adapter: bool,
    folder: Path,
) -> str:
    """Text of README.md; the data sets' own cards are copied into `folder`.

    Raises:
        TriptychError: a folder of `data` is not one that the checkpoint was trained on.
    """
    bases = {
        role: read_json(getattr(models, role) / checkpoint.MANIFEST)["settings"]
        for role in ("language_model", "vision_encoder")
    }
    stages = [(name, stage) for entry in manifest["stages"] for name, stage in entry.items()]
    hub = [f"- {settings['repo']}" for settings in bases.values() if settings["source"] == "hub"]
    lines = [
        "---",
        f"library_name: {'transformers' if layout == 'llava' else 'triptych'}",
        "pipeline_tag: image-text-to-text",
        "license: other",
        *(["base_model:", *hub] if hub else []),
        "tags: [triptych, llava]",
        "---",
        "",
        f"# {manifest['prefix']}, {manifest['split']}, seed {manifest['seed']}",
        "",
        "A vision-language model: a frozen vision encoder, a trained connector and a language model, trained in stages "
        f"by Triptych {manifest['code']}.",
        "",
        "**For research. Not for clinical use:** it is no medical device, its answers may be wrong, and nobody has "
        "checked it for diagnosis or treatment.",
        "",
        "## How to load it",
        "",
        *how,
        "",
        "## Training",
        "",
        f"Schedule {manifest['prefix']}; split {manifest['split']}; seed {manifest['seed']}; "
        f"precision {manifest['precision']}.",
        "",
        *_stages(stages),
        "",
        f"The last stage: {manifest['samples']['train']} training and {manifest['samples']['validation']} validation "
        "samples.",
        *_lora_lines(manifest, adapter),
        "",
        "## Validation",
        "",
        "The last stage; epoch 0 is the state before it. The weights are those of epoch "
        f"{manifest.get('epoch', UNKNOWN)}. Accuracy is the share of answers that greedy decoding gets right to the "
        "letter.",
        "",
        *_metrics(source / "metrics.jsonl", manifest.get("epoch")),
        "",
        "## Data",
        "",
        *_data(manifest, stages, data, folder),
        "",
        "## Base models",
        "",
        *_table(
            ["part", "model", "revision", "licence"],
            [[role.replace("_", " "), *_base_model(settings)] for role, settings in bases.items()],
        ),
        "",
        "This folder holds their weights. Their licences, and those of the data, hold for it.",
        "",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def how_to_load(without_class: Sequence[str], prompt: str, adapter: bool) -> list[str]:
    """Lines of the model card that load the folder and answer a question.

    Args:
        without_class: parts of the model that transformers has no class for.
        prompt: text of one turn.
        adapter: the LoRA is a peft adapter.
    """
    if without_class:
        return [
            f"transformers has no class for its {' and its '.join(without_class)}, so Triptych's own loader puts it "
            "together (with `PYTHONPATH=workflow/scripts` in a clone of Triptych). `language_model/` alone is a plain "
            "transformers folder.",
            "",
            "```python",
            "from PIL import Image",
            "from triptych.export import load",
            "",
            'answer = load("path/to/this/folder")',
            'print(answer(Image.open("picture.png"), "What is shown?"))',
            "```",
        ]
    return [
        "```python",
        "from PIL import Image",
        *(["from peft import PeftModel"] if adapter else []),
        "from transformers import AutoProcessor, LlavaForConditionalGeneration",
        "",
        'folder = "path/to/this/folder"',
        "processor = AutoProcessor.from_pretrained(folder)",
        'model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="float32")',
        *(['model = PeftModel.from_pretrained(model, f"{folder}/adapter")'] if adapter else []),
        f"prompt = {prompt!r}.replace({'{question}'!r}, 'What is shown?')",
        'inputs = processor(images=Image.open("picture.png").convert("RGB"), text=prompt, return_tensors="pt")',
        'tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]',
        "print(processor.decode(tokens, skip_special_tokens=True).strip())",
        "```",
    ]


def _stages(stages: list[tuple[str, dict]]) -> list[str]:
    """A table of the stages; in its last column, every setting that is not the default."""
    shown = {"data", "train", "learning_rate", "epochs", "batch_size"}
    defaults = Stage.model_construct(data="", train=[]).model_dump()
    rows = []
    for name, stage in stages:
        rates = ", ".join(f"{part} {rate:g}" for part, rate in sorted(stage["learning_rate"].items()))
        others = {key: value for key, value in stage.items() if key not in shown and value != defaults.get(key)}
        trains, more = ", ".join(stage["train"]) or "nothing", canonical_json(others) if others else ""
        rows.append([name, stage["data"], trains, rates, stage["epochs"] or "", stage["batch_size"], more])
    return _table(["stage", "data set", "trains", "learning rate", "epochs", "batch size", "further settings"], rows)


def _lora_lines(manifest: dict, adapter: bool) -> list[str]:
    if not manifest["lora"]:
        return []
    lora = manifest["lora"]
    where = "in `adapter/`, for peft" if adapter else "merged into the language model"
    return [
        "",
        f"LoRA: rank {lora['rank']}, alpha {lora['alpha']}, on {', '.join(lora['target_modules'])}; {where}.",
    ]


def _metrics(path: Path, kept: int | None) -> list[str]:
    """A table of the last epochs' validation, and that of the epoch whose weights were kept."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    names = ["validation_loss", "validation_accuracy", "validation_samples"]
    cells = [
        [row["epoch"], *(f"{row[name]:.4f}" if isinstance(row[name], float) else row[name] for name in names)]
        for position, row in enumerate(rows)
        if row["epoch"] == kept or position >= len(rows) - 3
    ]
    return _table(["epoch", "loss", "accuracy", "samples"], cells)


def _data(manifest: dict, stages: list[tuple[str, dict]], data: Sequence[Path], folder: Path) -> list[str]:
    """A table of the data sets, and their files' hashes; what is not known is said to be so."""
    names = list(dict.fromkeys(stage["data"] for _, stage in stages))
    given = {path.name: path for path in data}
    if strangers := sorted(given.keys() - set(names)):
        raise TriptychError(f"--data {given[strangers[0]]}: the checkpoint was trained on {', '.join(names)} only")
    last = stages[-1][1]["data"]
    rows, hashes = [], []
    for name in names:
        source = pictures = questions = card = UNKNOWN
        files = manifest["data"] if name == last else {}
        if name in given:
            facts = read_json(given[name] / checkpoint.MANIFEST)
            if name == last and facts["files"] != manifest["data"]:
                raise TriptychError(f"--data {given[name]}: is not the data that the checkpoint was trained on")
            files, settings, counts = facts["files"], facts["settings"], facts["counts"]
            source = " ".join(str(settings[key]) for key in ("source", "repo", "revision") if settings.get(key))
            pictures, questions = (
                ", ".join(f"{part} {number}" for part, number in sorted(counts[kind].items()))
                for kind in ("images", "questions")
            )
            if (given[name] / "card.md").is_file():
                card = f"see data/{name}.md"
                (folder / "data").mkdir(exist_ok=True)
                shutil.copyfile(given[name] / "card.md", folder / "data" / f"{name}.md")
        rows.append([name, source, pictures, questions, card])
        hashes += [f"- {name}/{file}: `{digest}`" for file, digest in sorted(files.items())]
    head = ["data set", "source", "pictures", "questions or captions", "licence"]
    return [
        *_table(head, rows),
        "",
        f"SHA-256 of the tables (of {last}: as in training; of others: as at the export):",
        "",
        *hashes,
    ]


def _base_model(settings: dict) -> tuple[str, str, str]:
    """Name, revision and licence, as far as the settings tell."""
    match settings["source"]:
        case "package":
            package = PACKAGES[settings["package"]]
            return package.purpose, f"package {package.name} {package.version}", package.licence
        case "hub":
            return settings["repo"], settings["revision"], UNKNOWN
        case _:
            return Path(settings["folder"]).name, "a local folder", UNKNOWN


def main() -> None:
    """Write a checkpoint as a folder for transformers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--models", type=Path, required=True, help="folder of language_model/ and vision_encoder/")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of its data sets, for the model card")
    parser.add_argument("--adapter", action="store_true", help="keep the LoRA as a peft adapter instead of merging it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    layout = export(arguments.checkpoint, arguments.models, arguments.data, arguments.out, arguments.adapter)
    loader = "transformers" if layout == "llava" else "triptych.export.load"
    print(f"{arguments.checkpoint} -> {arguments.out}, for {loader}; see its README.md")


if __name__ == "__main__":
    run_step(main)
