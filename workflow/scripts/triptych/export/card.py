"""The model card of an export: how to load it, how it was trained, on what data, from which models."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from triptych.config.stages import Stage
from triptych.download.packages import PACKAGES
from triptych.errors import TriptychError
from triptych.export.base_models import BaseModels
from triptych.io.manifest import canonical_json, read_json
from triptych.model import checkpoint

UNKNOWN = "not stated"


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
            'print(answer(Image.open("image.png"), "What is shown?"))',
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
        'inputs = processor(images=Image.open("image.png").convert("RGB"), text=prompt, return_tensors="pt")',
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
        source = images = questions = card = UNKNOWN
        files = manifest["data"] if name == last else {}
        if name in given:
            facts = read_json(given[name] / checkpoint.MANIFEST)
            if name == last and facts["files"] != manifest["data"]:
                raise TriptychError(f"--data {given[name]}: is not the data that the checkpoint was trained on")
            files, settings, counts = facts["files"], facts["settings"], facts["counts"]
            source = " ".join(str(settings[key]) for key in ("source", "repo", "revision") if settings.get(key))
            images, questions = (
                ", ".join(f"{part} {number}" for part, number in sorted(counts[kind].items()))
                for kind in ("images", "questions")
            )
            if (given[name] / "card.md").is_file():
                card = f"see data/{name}.md"
                (folder / "data").mkdir(exist_ok=True)
                shutil.copyfile(given[name] / "card.md", folder / "data" / f"{name}.md")
        rows.append([name, source, images, questions, card])
        hashes += [f"- {name}/{file}: `{digest}`" for file, digest in sorted(files.items())]
    head = ["data set", "source", "images", "questions or captions", "licence"]
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
