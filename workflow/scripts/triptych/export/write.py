"""Writing a checkpoint as a folder that plain transformers loads."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from triptych.errors import TriptychError
from triptych.export.base_models import base_models, encoder_settings
from triptych.export.card import how_to_load, model_card
from triptych.export.llava import write_llava
from triptych.export.parts import MARK, write_triptych
from triptych.features.shards import encoder_hashes
from triptych.io.atomic import atomic_directory, write_text
from triptych.io.manifest import read_json, require_files, sha256_file, write_json
from triptych.model import checkpoint, language_model, vision

CPU = torch.device("cpu")


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
        raise TriptychError(f"{source}: is a blind control, which is shown no image; export another schedule")
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
