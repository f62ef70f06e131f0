"""The model card of an export: how to load it, how it was trained, on what data, from which models."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from triptych.config.stages import Stage
from triptych.download.packages import PACKAGES
from triptych.errors import TriptychError
from triptych.export.base_models import BaseModels
from triptych.export.results import hub_id
from triptych.io.manifest import canonical_json, read_json
from triptych.model import checkpoint
from triptych.train.history import read_metrics
from triptych.utils.markdown import plain

TEMPLATES = Path(__file__).parent
UNKNOWN, LICENCE = "not stated", "LICENSE.md"
LAST_EPOCHS = 3  # whose validation is shown, beside the epoch whose weights were kept


@dataclass(frozen=True)
class Loading:
    """How an export is loaded.

    Attributes:
        without_class: parts of the model that transformers has no class for; empty where transformers loads it all.
        prompt: text of one turn.
        adapter: the LoRA is a peft adapter, and not merged.
    """

    without_class: Sequence[str]
    prompt: str
    adapter: bool


@dataclass
class DataTable:
    """What the card says of the data sets.

    Attributes:
        rows: a row for each data set.
        hashes: a line for each of their tables.
        cards: their own cards, by data set.
        on_hub: ids of those that are on the hub.
    """

    rows: list[list[str]] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    cards: dict[str, Path] = field(default_factory=dict)
    on_hub: list[str] = field(default_factory=list)


def model_card(
    manifest: dict, source: Path, models: BaseModels, data: DataTable, loading: Loading, results: Sequence[EvalResult]
) -> str:
    """Return the text of README.md.

    Args:
        manifest: the checkpoint's.
        source: folder of the checkpoint.
        models: its base models.
        data: its data sets, from `describe_data`.
        loading: how the export is loaded.
        results: what was measured of the checkpoint.
    """
    bases = _base_settings(models)
    stages = _named_stages(manifest)
    hub = dict.fromkeys(settings["repo"] for settings in bases.values() if settings["source"] == "hub")
    front_matter = ModelCardData(
        library_name="triptych" if loading.without_class else "transformers",
        pipeline_tag="image-text-to-text",
        license="other",
        license_name="licences-of-its-parts",
        license_link=LICENCE,
        base_model=list(hub) or None,
        datasets=data.on_hub or None,
        tags=["triptych", "llava"],
        model_name=f"{manifest['prefix']}, {manifest['split']}, seed {manifest['seed']}",
        eval_results=list(results) or None,
    )
    return _render(
        "card.md.j2",
        front_matter=front_matter.to_yaml(),
        manifest=manifest,
        tuned=checkpoint.LANGUAGE_MODEL_FILE in manifest["files"],
        seeing=checkpoint.has_own_encoder(manifest),
        unknown=UNKNOWN,
        without_class=loading.without_class,
        prompt=repr(loading.prompt),
        adapter=loading.adapter,
        stages=_stage_rows(stages),
        metrics=_metric_rows(source / "metrics.jsonl", manifest.get("epoch")),
        results=[
            [
                one.dataset_name,
                one.dataset_split,
                one.metric_name,
                f"{one.metric_value:.2f}",
                *one.dataset_args.values(),
            ]
            for one in results
        ],
        data=data.rows,
        hashes=data.hashes,
        last=stages[-1][1]["data"],
        bases=_base_rows(bases),
    )


def licences(models: BaseModels, data: DataTable) -> str:
    """Return the text of LICENSE.md: the parts of an export, and their licences as far as they are known."""
    sets = [["data set", name, source, licence] for name, source, _, _, licence in data.rows]
    return _render("licence.md.j2", parts=[*_base_rows(_base_settings(models)), *sets])


def _render(template: str, **facts: Any) -> str:
    loader = jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["plain"] = plain
    return environment.get_template(template).render(facts)


def _base_settings(models: BaseModels) -> dict[str, dict]:
    """Return the settings of the base models, by role."""
    roles = ("language_model", "vision_encoder")
    return {role: read_json(getattr(models, role) / checkpoint.MANIFEST)["settings"] for role in roles}


def _base_rows(bases: dict[str, dict]) -> list[list[str]]:
    return [[role.replace("_", " "), *_base_model(settings)] for role, settings in bases.items()]


def describe_data(manifest: dict, data: Sequence[Path]) -> DataTable:
    """Return what is known of the data sets that a checkpoint was trained on.

    Args:
        manifest: the checkpoint's.
        data: folders of prepared data sets; of the others, the card says that their facts are not stated.

    Raises:
        TriptychError: a folder is not a data set that the checkpoint was trained on.
    """
    stages = _named_stages(manifest)
    names = list(dict.fromkeys(stage["data"] for _, stage in stages))
    given = {path.name: path for path in data}
    if strangers := sorted(given.keys() - set(names)):
        raise TriptychError(f"--data {given[strangers[0]]}: the checkpoint was trained on {', '.join(names)} only")
    last, table = stages[-1][1]["data"], DataTable()
    for name in names:
        row, files = [UNKNOWN] * 4, manifest["data"] if name == last else {}
        if name in given:
            facts = read_json(given[name] / checkpoint.MANIFEST)
            if name == last and facts["files"] != manifest["data"]:
                raise TriptychError(f"--data {given[name]}: is not the data that the checkpoint was trained on")
            row, files = _data_row(facts), facts["files"]
            table.on_hub += [repo] if (repo := hub_id(facts["settings"])) else []
            if (card := given[name] / "card.md").is_file():
                table.cards[name] = card
                row[-1] = f"see data/{name}.md"
        table.rows.append([name, *row])
        table.hashes += [f"{name}/{file}: `{digest}`" for file, digest in sorted(files.items())]
    return table


def copy_data_cards(cards: dict[str, Path], folder: Path) -> None:
    """Copy the data sets' own cards into `data/` of an export."""
    for name, card in cards.items():
        (folder / "data").mkdir(exist_ok=True)
        shutil.copyfile(card, folder / "data" / f"{name}.md")


def _named_stages(manifest: dict) -> list[tuple[str, dict]]:
    return [(name, stage) for entry in manifest["stages"] for name, stage in entry.items()]


def _stage_rows(stages: Sequence[tuple[str, dict]]) -> list[list[object]]:
    """Return a row for each stage; its last cell has every setting that is not the default."""
    shown = {"data", "train", "learning_rate", "epochs", "batch_size"}
    stage = Stage.model_construct(data="", train=[])
    defaults = stage.model_dump() | stage.model_dump(by_alias=True)  # manifests keep the names of version 0.1
    rows = []
    for name, stage in stages:
        rates = ", ".join(f"{part} {rate:g}" for part, rate in sorted(stage["learning_rate"].items()))
        others = {key: value for key, value in stage.items() if key not in shown and value != defaults.get(key)}
        trains, more = ", ".join(stage["train"]) or "nothing", canonical_json(others) if others else ""
        rows.append([name, stage["data"], trains, rates, stage["epochs"] or "", stage["batch_size"], more])
    return rows


def _metric_rows(path: Path, kept: int | None) -> list[list[object]]:
    """Return the validation of the last epochs, and of the epoch whose weights were kept."""
    rows = read_metrics(path)
    names = ["validation_loss", "validation_accuracy", "validation_samples"]
    return [
        [row["epoch"], *(f"{row[name]:.4f}" if isinstance(row[name], float) else row[name] for name in names)]
        for position, row in enumerate(rows)
        if row["epoch"] == kept or position >= len(rows) - LAST_EPOCHS
    ]


def _data_row(facts: dict) -> list[str]:
    """Return source, counts of images and of questions, and licence, from a data set's manifest."""
    settings, counts = facts["settings"], facts["counts"]
    source = " ".join(str(settings[key]) for key in ("source", "repo", "revision") if settings.get(key))
    images, questions = (
        ", ".join(f"{part} {number}" for part, number in sorted(counts[kind].items()))
        for kind in ("images", "questions")
    )
    return [source, images, questions, UNKNOWN]


def _base_model(settings: dict) -> tuple[str, str, str]:
    """Return name, revision and licence, as far as the settings of a base model tell."""
    match settings["source"]:
        case "package":
            package = PACKAGES[settings["package"]]
            return package.purpose, f"package {package.name} {package.version}", package.licence
        case "hub":
            return settings["repo"], settings["revision"], UNKNOWN
        case _:
            return Path(settings["folder"]).name, "a local folder", UNKNOWN
