"""Settings of stages: what trains, and how."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from triptych.config.base import LrSchedule, Part, PerPart, Record, added, former
from triptych.config.texts import Line, Name


class FeatureSettings(Record):
    """How the tokens of a frozen encoder are stored. Only a change of `dtype` retrains."""

    dtype: Literal["bf16", "fp32"] = Field(
        "bf16", description="Stored type; on a GPU, bf16 also makes the encoder compute in bf16 (autocast)."
    )
    budget_gb: float = Field(
        100,
        ge=0,
        description="Maximum disk space for one data set in GB (10^9 bytes); above it nothing is stored, and training "
        "jobs compute the tokens on the fly. It applies when a data set is encoded; `--forcerun encode_images` applies "
        "a new value.",
    )
    batch_size: PositiveInt | None = Field(
        None, description="Images in one pass of the encoder; null: chosen for the device."
    )


class Connector(Record):
    """The projection from vision features to the language model's embedding space."""

    kind: Literal["mlp2x_gelu", "linear", "pooled-mlp"] = Field(
        "mlp2x_gelu",
        description="mlp2x_gelu: linear, GELU, linear, as in LLaVA-1.5; linear: one layer, as in LLaVA-1; pooled-mlp: "
        "mlp2x_gelu after average pooling of neighbouring tokens, which gives fewer image tokens.",
    )
    pool: int | None = Field(
        None, ge=2, description="For pooled-mlp: side of the squares of tokens that are averaged, such as 2."
    )

    @model_validator(mode="after")
    def _pool_of_pooled_mlp(self) -> "Connector":
        if (self.kind == "pooled-mlp") != (self.pool is not None):
            raise ValueError("pool is required for kind pooled-mlp, and not allowed for any other kind")
        return self


class Regularisation(Record):
    """An additional cosine loss for a stage that trains the connector P; its own layer is discarded afterwards."""

    kind: Literal["none", "reconstruct", "self-distillation"] = Field(
        "none",
        description="reconstruct: 1 - cos(D(P(x)), x), where a linear D maps back to the vision features x; "
        "self-distillation: 1 - cos(Q(P(x)), P(x)), where Q is a second projection. D and Q train with P.",
    )
    weight: float = Field(0.0, ge=0, description="Weight of the term; 0 is the same as kind none.")

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
    """Low-rank adapters on the language model (Hu et al., 2021), and on the vision encoder where it is asked for."""

    rank: PositiveInt = Field(8, description="Rank r of the update.")
    alpha: PositiveInt = Field(16, description="The update is scaled by alpha / r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the input of the adapters.")
    target_modules: list[Line] = Field(["q_proj", "v_proj"], min_length=1, description="Linear layers with adapters.")
    vision_target_modules: list[Line] = added(
        [],
        description="Linear layers of the vision encoder with adapters, too, as q_proj and v_proj of CLIP and SigLIP; "
        "they train with `lora`, without dropout.",
    )
    use_rslora: bool = added(
        False,
        description="rsLoRA (arXiv 2312.03732): the update is scaled by alpha / sqrt(r), for high ranks.",
    )
    use_dora: bool = added(
        False, description="DoRA (arXiv 2402.09353): the length of each row of the updated weight trains by itself."
    )


class Vision(Record):
    """How a stage trains the vision encoder: how much of it, and what is done to its images at random.

    No image is mirrored: questions ask for left and right.
    """

    blocks: PositiveInt | None = Field(
        None,
        description="Train the last so many blocks that the tokens depend on, and what follows them; null: all of it.",
    )
    crop: float = Field(
        0.0, ge=0, le=0.25, description="Up to this share of an image's width and of its height is cut off."
    )
    brightness: float = Field(
        0.0, ge=0, le=0.5, description="An image is made darker or lighter by up to this share of its brightness."
    )


# Settings of a stage that may have a value for each part.
BY_PART = ("learning_rate", "lr_schedule", "warmup_ratio", "weight_decay")

Optimizer = Literal["adamw", "adafactor", "adamw-8bit"]

# Bytes that an optimiser keeps for each weight that trains, beside the weight and its gradient.
OPTIMIZER_BYTES: dict[Optimizer, float] = {"adamw": 8, "adafactor": 0, "adamw-8bit": 2}


class Stage(Record):
    """One stage of training. A schedule is a list of stages; equal prefixes are trained once."""

    data: Name = Field(description="Name of the data set under `datasets`.")
    train: list[Part] = Field(
        description="Parts that train; all else is frozen. language_model: all of its weights, embeddings and output "
        "layer included, instead of lora; vision_encoder: as `vision` says. []: nothing trains; the parent is "
        "validated and passed on."
    )
    init: Literal["random", "parent"] = Field(
        "parent",
        description="random: start from a new connector instead of the parent's, and keep the parent's adapters and "
        "models. The parent of a first stage is the LLaVA of `models.llava`; "
        "without one it always starts from a new connector.",
    )
    blind: bool = Field(
        False,
        description="A control: show no image, neither in training nor for the answers of a schedule that ends here.",
    )
    learning_rate: dict[Part, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Peak learning rate of each part that trains."
    )
    lr_schedule: PerPart[LrSchedule] = former(
        "schedule",
        "cosine",
        description="Learning rate after warm-up: cosine or linear decay to zero, or constant; also by part.",
    )
    warmup_ratio: PerPart[Annotated[float, Field(ge=0, lt=1)]] = former(
        "warmup", 0.03, description="Fraction of the steps used for linear warm-up; also by part."
    )
    weight_decay: PerPart[Annotated[float, Field(ge=0)]] = Field(
        0.0, description="Decoupled weight decay; also by part, as {connector: 0.01, lora: 0.0}."
    )
    optimizer: Optimizer = added(
        "adamw",
        description="adafactor: keeps hardly anything beside the weights, and takes steps relative to their size; "
        "adamw-8bit: keeps AdamW's two moments in 8 bits, on a GPU where bitsandbytes is installed.",
    )
    vision: Vision = added(Vision(), description="For a stage that trains the vision encoder.")
    epochs: PositiveInt | None = Field(None, description="Passes over the training part; null if nothing trains.")
    select: Literal["last", "best"] = Field(
        "last",
        description="Epoch whose weights are kept: the last, or the best by exact match on the validation part (ties "
        "are decided by the lower loss). The held-out part is not used.",
    )
    max_samples: PositiveInt | None = former(
        "samples", None, description="Train on at most this many samples; null: all."
    )
    fraction: float = added(
        1.0,
        gt=0,
        le=1,
        description="Train on this fraction of the training part, in folds of each fold's; whole images, of which a "
        "smaller fraction has some of a larger one's.",
    )
    batch_size: PositiveInt = Field(16, description="Questions (or captions) per optimiser step.")
    questions_per_image: PositiveInt | None = added(
        None,
        description="Questions of one image that follow each other; null: all of them, which shares its tokens most. "
        "With fewer, a step has more images, and costs more.",
    )
    clip_norm: float | None = added(
        1.0, gt=0, description="Gradients are scaled down to this norm where theirs is larger; null: never."
    )
    label_smoothing: float = added(
        0.0,
        ge=0,
        lt=1,
        description="Share of an answer token's weight in the loss that is spread over all tokens. Metrics are those "
        "of the loss without it.",
    )
    regularisation: Regularisation = Field(Regularisation(), description="An additional loss term.")

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
            for name in BY_PART
            if isinstance(value := getattr(self, name), dict) and set(value) != set(self.train)
        ]
        if self.train and self.epochs is None:
            faults.append("epochs is required if anything trains")
        if not self.train and self.epochs is not None:
            faults.append("epochs must be omitted if nothing trains (train: [])")
        if {"lora", "language_model"} <= {*self.train}:
            faults.append("train: lora and language_model cannot train together; name one of them")
        if self.blind and self.train not in (["lora"], ["language_model"]):
            faults.append(
                "blind needs train: [lora] or [language_model], because a connector learns nothing without images"
            )
        if self.regularisation.kind != "none" and "connector" not in self.train:
            faults.append("regularisation needs a stage that trains the connector")
        if self.vision != Vision() and "vision_encoder" not in self.train:
            faults.append("vision needs a stage that trains vision_encoder")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def most_samples(self, number: int) -> int:
        """Say how many of a training part's samples are trained on, at least one of them."""
        return min(max(1, round(self.fraction * number)), self.max_samples or number)

    def of(self, name: str, part: Part) -> Any:
        """The value of a setting for one part that trains."""
        value = getattr(self, name)
        return value[part] if isinstance(value, dict) else value


class Training(Record):
    """Settings other than the stages that affect the result of every training job: a change retrains all."""

    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="Precision of training; auto: bf16 if the hardware supports it."
    )
    validation_limit: PositiveInt | None = Field(
        None, description="Maximum number of validation questions per epoch; null: all."
    )
