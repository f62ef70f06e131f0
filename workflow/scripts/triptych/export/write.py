"""Write a checkpoint as a folder that plain transformers loads."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from triptych.errors import TriptychError
from triptych.export.base_models import BaseModels, base_models, encoder_settings
from triptych.export.card import LICENCE, Loading, copy_data_cards, describe_data, licences, model_card
from triptych.export.llava import write_llava
from triptych.export.parts import MARK, write_triptych
from triptych.export.results import measured
from triptych.features.shards import encoder_hashes
from triptych.io.atomic import atomic_directory, write_text
from triptych.io.manifest import read_json, require_files, sha256_file, write_json
from triptych.model import checkpoint, language_model, vision
from triptych.model.encoders import encoder_kind
from triptych.model.vlm import VisionLanguageModel

CPU = torch.device("cpu")


def export(
    source: Path, models: Path, data: Sequence[Path], out: Path, adapter: bool, predictions: Sequence[Path] = ()
) -> str:
    """Write one checkpoint into the folder `out`; equal inputs give equal bytes.

    Args:
        source: folder of the checkpoint.
        models: folder of the base models, as `prepare_model` wrote them; of several, those that the checkpoint names.
        data: folders of prepared data sets, for the model card.
        out: folder to write; an earlier export there is replaced.
        adapter: keep the LoRA apart, as a peft adapter in `adapter/`, instead of merging it.
        predictions: files of the checkpoint's answers, for the model card.

    Returns:
        The layout: `llava` or `triptych`.

    Raises:
        TriptychError: the checkpoint or a base model is damaged, they or the answers do not belong together, `out`
            holds other files than those of an export, or the models cannot be exported.
    """
    refuse_other_files(out)
    manifest = read_json(source / checkpoint.MANIFEST)
    bases = base_models(models, manifest)
    if manifest.get("quantise"):
        raise TriptychError(
            f"{source}: was trained on a language model in 4 bits (models.language_model.quantise), which an export "
            "cannot hold; ask it by `triptych ask`"
        )
    model = load_checkpoint(source, bases)
    if model.vision:
        model.vision.merge()
    refuse_unsupported(model, source, manifest, adapter)
    loading = Loading(parts_without_class(bases, manifest), language_model.load_prompt(bases.language_model), adapter)
    described = describe_data(manifest, data)
    results = measured(manifest, source, data, predictions)
    layout, write = ("triptych", write_triptych) if loading.without_class else ("llava", write_llava)
    with atomic_directory(out) as folder:
        write(model, bases, adapter, folder)
        copy_data_cards(described.cards, folder)
        write_text(folder / "README.md", model_card(manifest, source, bases, described, loading, results))
        write_text(folder / LICENCE, licences(bases, described))
        facts = {
            "layout": layout,
            "prompt": loading.prompt,
            "connector": manifest["connector"],
            "checkpoint": sha256_file(source / checkpoint.MANIFEST),
            "code": checkpoint.code_version(),
            "files": {name: sha256_file(folder / name) for name in files_below(folder)},
        }
        write_json(folder / MARK, facts)
    return layout


def load_checkpoint(source: Path, bases: BaseModels) -> VisionLanguageModel:
    """Load a checkpoint on its base models, whose hashes are checked, on the CPU.

    Raises:
        TriptychError: a file is missing or changed, or the checkpoint was trained with other models.
    """
    language = bases.language_model
    require_files(language, read_json(language / checkpoint.MANIFEST)["files"], f"delete {language} and run again")
    encoder = vision.load(bases.vision_encoder, CPU)
    identity = encoder.hidden_size, encoder_hashes(bases.vision_encoder)
    base = checkpoint.Base(language, *identity, encoder=bases.vision_encoder)
    dtype = AutoConfig.from_pretrained(language, trust_remote_code=False).dtype or torch.float32
    if checkpoint.LANGUAGE_MODEL_FILE in read_json(source / checkpoint.MANIFEST)["files"]:
        dtype = torch.float32  # as it was trained
    return checkpoint.load(base, source / checkpoint.MANIFEST, dtype, CPU)


def refuse_unsupported(model: VisionLanguageModel, source: Path, manifest: dict, adapter: bool) -> None:
    """Refuse a checkpoint that no export can be written of.

    Raises:
        TriptychError: it has no LoRA though an adapter is asked for, adapts the output layer, or is blind.
    """
    if adapter and not model.has_lora:
        raise TriptychError(f"{source}: has no LoRA, so there is no adapter to write; leave out --adapter")
    if model.has_lora and "lm_head" in manifest["lora"]["target_modules"]:
        raise TriptychError(f"{source}: its LoRA adapts the output layer (lm_head), which is not supported")
    if model.blind:
        raise TriptychError(f"{source}: is a blind control, which is shown no image; export another schedule")


def parts_without_class(bases: BaseModels, manifest: dict) -> list[str]:
    """Return the parts of a model that transformers has no class for, in words."""
    connector = manifest["connector"]["kind"]
    settings, found = encoder_settings(bases), []
    if settings["source"] == "package":
        found.append("encoder, EfficientNet-Lite0")
    elif not (kind := encoder_kind(bases.vision_encoder)).plain_export:
        found.append(f"encoder, {kind.name}")
    if fit := settings.get("fit"):
        found.append(f"fitting of images, {fit}")
    return [*found, *([f"connector, {connector}"] if connector == "pooled-mlp" else [])]


def files_below(folder: Path) -> list[str]:
    """Return the names of all files below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refuse_other_files(out: Path) -> None:
    """Refuse to write an export over anything but an earlier export in which nothing was added or changed.

    Raises:
        TriptychError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    known = read_json(out / MARK)["files"] if (out / MARK).is_file() else {}
    files = files_below(out) if out.is_dir() else [out.name]
    others = sorted({*files} - {*known, MARK})
    changed = [name for name in files if name in known and sha256_file(out / name) != known[name]]
    if others or changed or not known:
        found = "contains no export"
        if others or changed:
            what = "which is not part of an export" if others else "which was changed after it was written"
            found = f"contains {[*others, *changed][0]}, {what}"
        raise TriptychError(f"{out}: {found}; name another folder, or empty this one")
