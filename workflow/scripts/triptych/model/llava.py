"""A pretrained LLaVA taken apart: vision tower, language model and projector, each as Triptych reads it alone.

What its configuration says is honoured or refused: parts that computed something else would look like a worse model.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, LlavaConfig

from triptych.download.huggingface import MODEL_FILES
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, write_json
from triptych.model import vision
from triptych.model.code import refuse_code
from triptych.model.connector import CONNECTOR_FILE
from triptych.model.encoders import encoder_kind
from triptych.model.inspection import in_one_line, open_tokenizer
from triptych.model.preprocessing import PROCESSOR

PROJECTOR = f"projector/{CONNECTOR_FILE}"  # beside the language model, into whose embeddings it maps
IMAGE_TOKEN = "<image>"
SHARD_LIST = "model.safetensors.index.json"
PROCESSORS = "processor_config.json"  # in which transformers 5 saves the image processor, too
OF_THE_WHOLE = ("config.json", SHARD_LIST, PROCESSOR, PROCESSORS)  # files that are of no use to one part
# Names of tensors, as published and as transformers 5 saves them -> the part, and what its own names begin with.
PARTS = (
    (re.compile(r"(?:model\.)?vision_tower\."), "vision_encoder", ""),
    (re.compile(r"(?:model\.)?multi_modal_projector\."), "projector", ""),
    (re.compile(r"(?:language_model\.)?lm_head\."), "language_model", "lm_head."),
    (re.compile(r"language_model\.model\.|model\.language_model\."), "language_model", "model."),
)


class Described(NamedTuple):
    """What a LLaVA's configuration says.

    Attributes:
        config: as transformers reads it.
        layer: index of the hidden state of the vision tower that the projector reads.
        drop_class_token: the first token of that state is left out.
        image_token: id of the token that marks the place of an image.
    """

    config: LlavaConfig
    layer: int
    drop_class_token: bool
    image_token: int


def take_part(role: str, whole: Path, out: Path) -> dict[str, Any]:
    """Write one part of a LLaVA into the folder `out`, as a model of its own.

    Args:
        role: `vision_encoder`, or `language_model` with tokenizer and projector.
        whole: folder of the LLaVA, in the layout of `LlavaForConditionalGeneration`.
        out: folder to write.

    Returns:
        Settings of the part that the configuration decides: layer and class token of the encoder.

    Raises:
        TriptychError: a file is missing or damaged, or the configuration asks for what Triptych does not compute.
    """
    refuse_code(whole)
    described = _describe(whole / "config.json")
    out.mkdir()
    _write_weights(role, whole, out)
    if role == "vision_encoder":
        described.config.vision_config.dtype = torch.float32  # in which it is computed, whatever its files hold
        described.config.vision_config.save_pretrained(out)
        _write_processor(whole, out)
        _check_class_token(whole / "config.json", out, described)
        return {"layer": described.layer, "drop_class_token": described.drop_class_token}
    for pattern in MODEL_FILES:
        for path in whole.glob(pattern):
            if path.suffix != ".safetensors" and path.name not in OF_THE_WHOLE and path.is_file():
                shutil.copyfile(path, out / path.name)
    text = described.config.text_config
    text.dtype, text.tie_word_embeddings = text.dtype or described.config.dtype, described.config.tie_word_embeddings
    text.save_pretrained(out)
    _check_image_token(whole / "config.json", out, described)
    _check_projector(whole, out, described.config)
    return {}


def _describe(path: Path) -> Described:
    """Read a LLaVA's configuration.

    Raises:
        TriptychError: it is of another class, or a key asks for what Triptych does not compute.
    """
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.get("model_type") != "llava":
        found = facts.get("model_type") if isinstance(facts, dict) else None
        raise TriptychError(
            f"{path}: model_type: must be llava, as LlavaForConditionalGeneration has it, not {found!r} (LLaVA-NeXT, "
            "LLaVA-OneVision and liuhaotian/... are other layouts; on the hub, llava-hf has converted models)"
        )

    def value(key: str) -> Any:
        return facts.get(key, getattr(LlavaConfig, key))

    layer, strategy = value("vision_feature_layer"), value("vision_feature_select_strategy")
    for key, right, needed in (
        ("projector_hidden_act", value("projector_hidden_act") == "gelu", "gelu"),
        ("multimodal_projector_bias", value("multimodal_projector_bias") is True, "true"),
        ("vision_feature_select_strategy", strategy in ("default", "full"), "default or full"),
        ("vision_feature_layer", type(layer) is int, "one number, because one layer of the vision tower is read"),
    ):
        if not right:
            raise TriptychError(f"{path}: {key}: must be {needed}, not {value(key)!r}; choose another LLaVA")
    if facts.get("quantization_config"):
        raise TriptychError(f"{path}: quantization_config: quantised weights are not supported; take the plain ones")
    with in_one_line(f"{path}: cannot be read"):
        config = AutoConfig.from_pretrained(path.parent, trust_remote_code=False)
    depth = getattr(config.vision_config, "num_hidden_layers", 0)
    if not -depth - 1 <= layer <= depth:
        raise TriptychError(
            f"{path}: vision_feature_layer: {layer} is none of the vision tower's {depth + 1} hidden states"
        )
    return Described(config, layer, strategy == "default", config.image_token_index)


def _tensors(whole: Path) -> Iterator[tuple[Path, dict[str, tuple[str, str]]]]:
    """Give each file of weights that transformers would read, with its tensors: name -> part, and name there.

    Raises:
        TriptychError: a file is missing or damaged, or a tensor belongs to no part.
    """
    single, shards = whole / "model.safetensors", whole / SHARD_LIST
    listed = [] if single.is_file() or not shards.is_file() else read_json(shards).get("weight_map", {}).values()
    for name in sorted(set(listed)) or [single.name]:
        path = whole / Path(name).name
        if not path.is_file():
            raise TriptychError(f"{path}: is missing; fetch or save the model again")
        with in_one_line(f"{path}: cannot be opened"), safe_open(path, "pt") as file:
            names = list(file.keys())
        found = {}
        for tensor in names:
            matches = ((pattern.match(tensor), part, prefix) for pattern, part, prefix in PARTS)
            where = next(((part, prefix + tensor[match.end() :]) for match, part, prefix in matches if match), None)
            if where is None:
                raise TriptychError(f"{path}: {tensor} is a tensor of no part of LlavaForConditionalGeneration")
            found[tensor] = where
        yield path, found


def _write_weights(role: str, whole: Path, out: Path) -> None:
    """Write a part's tensors in their own dtypes, file by file; beside the language model the projector in fp32."""
    projector, kept, size = {}, [], 0
    for path, tensors in _tensors(whole):
        own = {}
        with in_one_line(f"{path}: cannot be read"), safe_open(path, "pt") as file:
            for name, (part, new) in tensors.items():
                if part == role:
                    own[new] = file.get_tensor(name)
                elif part == "projector" and role == "language_model":
                    projector[new] = file.get_tensor(name).float()
        if own:
            kept.append(sorted(own))
            size += sum(tensor.nbytes for tensor in own.values())
            save_file(own, out / f"{len(kept)}.safetensors", {"format": "pt"})
    if not kept:
        raise TriptychError(f"{whole}: the weights hold no tensor of the {role.replace('_', ' ')}")
    files = [f"model-{number:05}-of-{len(kept):05}.safetensors" for number in range(1, len(kept) + 1)]
    if len(kept) == 1:
        files = ["model.safetensors"]
    else:
        where = {name: file for file, names in zip(files, kept, strict=True) for name in names}
        write_json(out / SHARD_LIST, {"metadata": {"total_size": size}, "weight_map": where})
    for number, file in enumerate(files, 1):
        (out / f"{number}.safetensors").rename(out / file)
    if projector:
        (out / PROJECTOR).parent.mkdir()
        save_file(projector, out / PROJECTOR)


def _write_processor(whole: Path, out: Path) -> None:
    """Write the image processor as a file of its own, as which transformers 4 saves it.

    Raises:
        TriptychError: there is none.
    """
    if (whole / PROCESSOR).is_file():
        shutil.copyfile(whole / PROCESSOR, out / PROCESSOR)
        return
    found = read_json(whole / PROCESSORS).get("image_processor") if (whole / PROCESSORS).is_file() else None
    if not isinstance(found, dict):
        raise TriptychError(f"{whole}: has no {PROCESSOR}; save the processor into this folder, too")
    write_json(out / PROCESSOR, found)


def _check_class_token(path: Path, tower: Path, described: Described) -> None:
    """Refuse a tower before whose patches stands something else than the one token that `default` leaves out.

    Raises:
        TriptychError: it does, or the tower is not supported.
    """
    kind, counts = encoder_kind(tower), []
    with in_one_line(f"{path}: the vision tower cannot be used"), torch.inference_mode():
        for dropped in (False, True):
            settings = {"layer": described.layer, "drop_class_token": dropped}
            encoder = vision.load_pretrained(tower, settings, torch.device("cpu"))
            counts.append(encoder.tokens(encoder.preprocess([Image.new("RGB", (64, 48))])).shape[1])
    before = counts[0] - counts[1]
    if described.drop_class_token and before != 1:
        raise TriptychError(
            f"{path}: vision_feature_select_strategy: default leaves out the first token, but {kind.name} has {before} "
            "before its patches; a model of this tower needs full"
        )


def _check_image_token(path: Path, folder: Path, described: Described) -> None:
    """Refuse a model whose image stands for another token than <image>, at which prompts are split.

    Raises:
        TriptychError: it does.
    """
    tokenizer = open_tokenizer(folder)
    found = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if found != described.image_token:
        raise TriptychError(
            f"{path}: image_token_index: is {described.image_token}, but {IMAGE_TOKEN} is "
            f"{'no token' if found is None else found} of the tokenizer; choose another LLaVA, or correct a copy"
        )


def _check_projector(whole: Path, folder: Path, config: LlavaConfig) -> None:
    """Compare the projector's tensors with what the configuration describes.

    Raises:
        TriptychError: one is missing, unknown, of another shape or not finite.
    """
    width, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
    shapes = {"linear_1.weight": (hidden, width), "linear_1.bias": (hidden,)}
    shapes |= {"linear_2.weight": (hidden, hidden), "linear_2.bias": (hidden,)}
    found = load_file(folder / PROJECTOR) if (folder / PROJECTOR).is_file() else {}
    for name in sorted({*shapes, *found}):
        shape = tuple(found[name].shape) if name in found else None
        if shape != shapes.get(name):
            raise TriptychError(
                f"{whole}: multi_modal_projector.{name}: has shape {shape or 'none'}, not {shapes.get(name, 'none')}, "
                "as config.json describes it; fetch or save the model again"
            )
        if not found[name].isfinite().all():
            raise TriptychError(f"{whole}: multi_modal_projector.{name}: is not finite; fetch or save the model again")


def load_projector(connector: nn.Module, language_model: Path) -> None:
    """Load the projector that stands beside a language model out of a LLaVA into a connector, where there is one."""
    if (language_model / PROJECTOR).is_file():
        connector.load_state_dict(load_file(language_model / PROJECTOR), strict=True)


def identity(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Name the LLaVA that a language model with this manifest was taken out of; {} for none.

    Returns:
        Repository and revision, of one from the hub, and the hash of the projector.
    """
    settings = manifest["settings"]
    if settings.get("part_of") != "llava":
        return {}
    named = {key: settings[key] for key in ("repo", "revision") if settings.get(key)}
    return {**named, "projector": manifest["files"][PROJECTOR]}
