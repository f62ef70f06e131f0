"""Checkpoints: a folder of safetensors with a manifest, which the next stage starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import triptych
from triptych.config.grid import SHARED, shared_split
from triptych.config.stages import Connector, Lora
from triptych.errors import TriptychError
from triptych.io.atomic import atomic_directory, atomic_path, link_or_copy
from triptych.io.manifest import read_json, require_files, sha256_bytes, sha256_file, write_record
from triptych.model import language_model, llava, vision
from triptych.model.connector import CONNECTOR_FILE, build_connector
from triptych.model.four_bits import load_quantise, quantise
from triptych.model.tower import VISION_ADAPTER_FILE, VISION_FILE, VisionTower
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.utils.device import DTYPES, attention_kind
from triptych.utils.seeds import derive_seed

COMPUTE_WITH = ("torch", "transformers", "tokenizers", "peft")  # packages that decide what a training computes
ADAPTER_FILE, LANGUAGE_MODEL_FILE, MANIFEST = "adapter.safetensors", "language_model.safetensors", "manifest.json"


def trained_state(model: VisionLanguageModel) -> dict[str, dict[str, torch.Tensor]]:
    """Collect the tensors that a checkpoint holds, by file and name."""
    state = {CONNECTOR_FILE: dict(model.connector.state_dict())}
    if model.has_lora:
        state[ADAPTER_FILE] = get_peft_model_state_dict(model.language_model)
    if model.tuned:
        state[LANGUAGE_MODEL_FILE] = model.own_weights()
    if model.vision:
        state |= model.vision.states()
    return {
        file: {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
        for file, tensors in state.items()
    }


def save_trained(model: VisionLanguageModel, folder: Path, parent: Path | None = None) -> list[str]:
    """Write a checkpoint's tensor files into `folder`; gives their names.

    A tuned language model or vision encoder that was frozen in this stage is its parent's, in fp32, and so is its file:
    a second name.
    """
    state = trained_state(model)
    for file, trains in ((LANGUAGE_MODEL_FILE, model.tuning), (VISION_FILE, model.vision and model.vision.tuning)):
        if file in state and not trains:
            del state[file]
            link_or_copy(parent.parent / file, folder / file)
    for file, tensors in state.items():
        save_file(tensors, folder / file)
    return sorted(file.name for file in folder.iterdir())


def load_trained(model: VisionLanguageModel, folder: Path, connector: bool = True) -> None:
    """Load a checkpoint's tensors into a model that has exactly the same ones.

    Args:
        model: to load into.
        folder: of the checkpoint.
        connector: load the connector too, not only the adapters and tuned models.

    Raises:
        TriptychError: a tensor is missing, unexpected or of another shape; the message names it.
    """
    expected = trained_state(model)
    if not connector:
        del expected[CONNECTOR_FILE]
    for file, tensors in expected.items():
        path = folder / file
        if not path.is_file():
            raise TriptychError(f"{path}: the parent checkpoint has no such file; its stage must be run again")
        found = load_file(path)
        errors = [f"{name} is missing" for name in tensors if name not in found]
        errors += [f"{name} is not part of this model" for name in found if name not in tensors]
        errors += [
            f"{name} has shape {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in tensors.items()
            if name in found and found[name].shape != tensor.shape
        ]
        if errors:
            raise TriptychError(f"{path}: {'; '.join(errors)}; the parent was trained with other settings")
        if file == CONNECTOR_FILE:
            model.connector.load_state_dict(found, strict=True)
        elif file == ADAPTER_FILE:
            set_peft_model_state_dict(model.language_model, found)
        elif file in (VISION_FILE, VISION_ADAPTER_FILE):
            model.vision.load(file, found)
        else:
            with torch.no_grad():
                for name, weight in model.own_weights().items():
                    weight.copy_(found[name])


@dataclass(frozen=True)
class Base:
    """The base models of a checkpoint.

    Attributes:
        language_model: folder of the language model.
        hidden_size: size of the vision features.
        vision_encoder: sha256 of the files of the encoder that made them.
        dtype: in which they are stored, and tokens of a tuned encoder are rounded to.
        encoder: folder of that encoder; needed where a checkpoint has trained it.
    """

    language_model: Path
    hidden_size: int
    vision_encoder: dict[str, str]
    dtype: Literal["bf16", "fp32"] = "bf16"
    encoder: Path | None = None

    @property
    def identity(self) -> dict[str, str | dict[str, str]]:
        """Identity of the frozen models: sha256 of their files, the text of one turn, the LLaVA, the quantisation."""
        manifest = read_json(self.language_model / MANIFEST)
        prompt = language_model.load_prompt(self.language_model)
        found = {"language_model": manifest["files"], "prompt": prompt, "vision_encoder": self.vision_encoder}
        more = {"llava": llava.identity(manifest), "quantise": load_quantise(self.language_model)}
        return found | {name: value for name, value in more.items() if value}

    def tower(self, manifest: Mapping) -> VisionTower:
        """Load the encoder as a part of a model, with the weights that it started from.

        It is tuned, and has adapters, where the checkpoint with that manifest is and has.

        Raises:
            TriptychError: its folder is not known, or is damaged.
        """
        if self.encoder is None:
            raise TriptychError("this checkpoint has trained the vision encoder, whose folder is not given")
        tower = VisionTower(vision.load(self.encoder, torch.device("cpu")), DTYPES[self.dtype])
        tower.tuned = VISION_FILE in manifest["files"]
        if VISION_ADAPTER_FILE in manifest["files"]:
            tower.adapt(Lora.model_validate(manifest["lora"]), manifest["seed"])
        return tower


def has_own_encoder(manifest: Mapping) -> bool:
    """Tell whether a checkpoint holds a vision encoder, or adapters on one: its model sees pixels, not features."""
    return VISION_FILE in manifest["files"] or VISION_ADAPTER_FILE in manifest["files"]


@cache
def code_version() -> str:
    """Give the version of Triptych and a hash of its source and of the versions of COMPUTE_WITH: what trains.

    The source is read at the first call, so a training calls it at its start: files may be edited while it runs.
    """
    folder = Path(triptych.__file__).parent
    source = "".join(f"{path.relative_to(folder)} {sha256_file(path)}\n" for path in sorted(folder.rglob("*.py")))
    source += "".join(f"{name} {version(name).partition('+')[0]}\n" for name in COMPUTE_WITH)  # not +cpu or +cu130
    return f"{triptych.__version__}+{sha256_bytes(source.encode())[:12]}"


def build(
    base: Base,
    parent: Path | None,
    connector: Connector,
    lora: Lora | None,
    seed: int,
    split: str,
    dtype: torch.dtype,
    device: torch.device,
    init: Literal["random", "parent"] = "parent",
    tower: bool = False,
) -> VisionLanguageModel:
    """Build the model at the start of a stage: the parent's tensors, or fresh ones that depend on seed and split alone.

    The parent of a first stage on a LLaVA is that model, whose projector the connector is then.

    Args:
        base: language model and size of the vision features.
        parent: the parent's `manifest.json`; None for a first stage.
        connector: settings of the connector.
        lora: settings of the adapters, where the stage trains them; a parent's adapters are kept in any case, and so
            are its language model and vision encoder, where they were trained.
        seed: the run's seed.
        split: the fold, or that of a shared stage.
        dtype: of the language model, fp32 where it trains; all else that trains is fp32.
        device: of the model.
        init: with `random`, the connector is fresh although there is a parent, of which all else is kept.
        tower: the model gets a vision encoder of its own, which the stage trains.

    Raises:
        TriptychError: language model or parent is damaged, or the parent was trained with other models, settings or
            seed, or for another fold.
    """
    require_files(base.language_model, base.identity["language_model"], f"delete {base.language_model} and run again")
    network = language_model.load(base.language_model, dtype, attention_kind(device))
    hidden = network.get_input_embeddings().weight.shape[1]
    if kind := load_quantise(base.language_model):
        quantise(network, kind, dtype, device)
    fresh = build_connector(connector, base.hidden_size, hidden, derive_seed(seed, "connector", split))
    model = VisionLanguageModel(fresh, network)
    manifest = verify(parent, base) if parent else {"seed": seed, "split": split, "files": {}}
    if manifest["seed"] != seed:
        raise TriptychError(f"{parent}: was trained with seed {manifest['seed']}, not {seed}")
    if manifest["split"] not in (split, shared_split(split), SHARED):
        raise TriptychError(f"{parent}: was trained on {manifest['split']}, from which {split} does not start")
    keep = init == "parent"
    if parent and keep and Connector.model_validate(manifest["connector"]) != connector:
        raise TriptychError(f"{parent}: was trained with another connector; delete the folder and run again")
    model.tuned = LANGUAGE_MODEL_FILE in manifest["files"]
    vision_lora = lora is not None and bool(lora.vision_target_modules)
    if tower or vision_lora or has_own_encoder(manifest):
        model.vision = base.tower(manifest)
    parent_has_lora = ADAPTER_FILE in manifest["files"]
    if parent_has_lora:
        model.language_model = add_lora(network, Lora.model_validate(manifest["lora"]), seed)
    if parent:
        load_trained(model, parent.parent, connector=keep)
    elif keep:
        llava.load_projector(model.connector, base.language_model)
    if lora and not parent_has_lora:
        model.language_model = add_lora(network, lora, derive_seed(seed, "lora", split))
    if vision_lora and not model.vision.adapted:
        model.vision.adapt(lora, derive_seed(seed, "vision-lora", split))
    return model.to(device)


def load(base: Base, manifest_path: Path, dtype: torch.dtype, device: torch.device) -> VisionLanguageModel:
    """Load a finished checkpoint for evaluation, frozen and in evaluation mode."""
    manifest = read_json(manifest_path)  # `build` verifies it
    connector = Connector.model_validate(manifest["connector"])
    model = build(base, manifest_path, connector, None, manifest["seed"], manifest["split"], dtype, device)
    model.blind = manifest.get("blind", False)
    return model.eval().requires_grad_(False)


def verify(manifest_path: Path, base: Base) -> dict:
    """Compare a checkpoint's files with its manifest, and its frozen models with `base`; gives the manifest.

    Raises:
        TriptychError: a file is missing or changed, or a frozen model is another one.
    """
    manifest = read_json(manifest_path)
    require_files(manifest_path.parent, manifest["files"], "delete the folder and run again")
    identity = base.identity
    if manifest.get("quantise") != identity.get("quantise"):
        bits = ["in 4 bits" if one.get("quantise") else "in full precision" for one in (manifest, identity)]
        raise TriptychError(
            f"{manifest_path}: was trained on a language model {bits[0]}, and this one is {bits[1]}; set "
            "models.language_model.quantise as it was, or delete the folder and run again"
        )
    for part, expected in identity.items():
        if manifest.get(part, expected) != expected:  # checkpoints of earlier versions have no prompt
            name = part.replace("_", " ")
            raise TriptychError(f"{manifest_path}: was trained with another {name}; delete the folder and run again")
    return manifest


def save(model: VisionLanguageModel, folder: Path, manifest: dict, metrics: str, parent: Path | None = None) -> None:
    """Write a finished checkpoint: tensors, `metrics.jsonl` and, last, the manifest with the files' hashes.

    Args:
        model: with the weights to write.
        folder: of the checkpoint.
        manifest: all that it says but hashes and version.
        metrics: text of `metrics.jsonl`.
        parent: the parent's `manifest.json`, where there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in (MANIFEST, ADAPTER_FILE, LANGUAGE_MODEL_FILE, VISION_FILE, VISION_ADAPTER_FILE):
        (folder / file).unlink(missing_ok=True)
    with atomic_directory(folder / "new") as temporary:
        files = save_trained(model, temporary, parent)
    for file in files:
        (folder / "new" / file).replace(folder / file)
    (folder / "new").rmdir()
    with atomic_path(folder / "metrics.jsonl") as temporary:
        temporary.write_text(metrics, encoding="utf-8")
    hashes = {file: sha256_file(folder / file) for file in [*files, "metrics.jsonl"]}
    write_record(folder / MANIFEST, {**manifest, "files": hashes, "code": code_version()})
