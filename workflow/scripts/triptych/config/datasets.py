"""Settings of data sets, a class for each source.

A source is added by a class here, under `@data_source`, which says all that other code asks about the source, and by
the module that the class names, which lists and reads the images (`triptych.data.sources.base`).
"""

import math
import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveInt,
    Strict,
    TypeAdapter,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from triptych.config.base import Record, former
from triptych.config.sizes import ALL, Size
from triptych.config.texts import HubId, Line, LocalPath, Prose, Revision, Sha256, located

SLAKE_VARIABLE = "TRIPTYCH_SLAKE"  # names the user's copy of SLAKE where the key `folder` does not


class Images(Record):
    """Settings that all data sets share: which images are taken."""

    # What other code asks about a source; nothing of it can be set in a configuration.
    module: ClassVar[str]  # dotted name of the module with `listing` and `reader`
    has_captions: ClassVar[bool] = False  # questions otherwise
    read_options: ClassVar[tuple[str, ...]] = ()  # settings that decide which bytes `reader` gives for an image
    archive: ClassVar[str] = ""  # file of the hub out of which single images are fetched
    more_images: ClassVar[str] = "give the source more images"  # what helps where too few images are usable

    min_side: PositiveInt = Field(
        8, description="Minimum length of the shorter side in pixels; smaller images are rejected."
    )
    max_pixels: PositiveInt = Field(
        50_000_000, le=50_000_000, description="Maximum number of pixels; larger images are rejected."
    )

    @property
    def location(self) -> Path | None:
        """The user's folder that is read, where there is one and settings alone do not tell it."""
        return None

    @property
    def fetched_gb(self) -> float:
        """GB of the images that are fetched out of `archive`."""
        return 0.0

    def local_tables(self) -> list[Path]:
        """Table files of the user's that list the images: the fetch step runs again when one of them changes."""
        return []

    def has_part(self, part: str) -> bool:
        """Tell whether there may be a part, as far as settings say it."""
        return True


class Captions(Images):
    """Settings that all image-caption data share."""

    has_captions = True

    sizes: Annotated[list[Size], BeforeValidator(lambda sizes: [ALL] if sizes == ALL else sizes)] = Field(
        min_length=1,
        description="Numbers of images, or `all` for every usable one. Each is a separate data set, `<name>-<size>`; a "
        "larger one contains the smaller ones.",
    )
    oversample: float = former(
        "spares", 0.1, ge=0, le=5, description="Fraction of additional images read to replace rejected ones."
    )
    seed: int = Field(0, description="Seed of the selection of images.")
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Fraction of images held out for validation.")
    question: Prose = Field("Describe the image.", description="Instruction to which every caption is the answer.")
    caption_length: Annotated[tuple[PositiveInt, PositiveInt], Strict(False)] = Field(  # YAML has lists only
        (3, 2000), description="Minimum and maximum number of characters of a caption."
    )
    keep_near_duplicates: bool = Field(
        False, description="Use near-duplicates too; otherwise only the first of them is used."
    )
    placeholders: list[Sha256] = Field(
        [], description='SHA-256 of images that replace a missing one ("image not available"); they are rejected.'
    )

    @property
    def size(self) -> float:
        """Number of images of an expanded data set, which has one size only; infinite for all."""
        return math.inf if self.sizes[-1] == ALL else self.sizes[-1]

    @property
    def wanted(self) -> float:
        """Number of candidates that are read at first: the size and what `oversample` adds; infinite for all."""
        return self.size + (0 if self.sizes[-1] == ALL else math.ceil(self.size * self.oversample))

    @model_validator(mode="after")
    def _lengths_are_in_order(self) -> "Captions":
        if self.caption_length[0] > self.caption_length[1]:
            raise ValueError("caption_length must be [minimum, maximum]")
        return self


SOURCES: dict[str, type[Images]] = {}  # settings classes by the value of `source`

Source = TypeVar("Source", bound=type[Images])


def data_source(settings: Source) -> Source:
    """Register the settings class of a source, under the one value of its field `source`.

    Raises:
        ValueError: another class has that value.
    """
    (name,) = get_args(settings.model_fields["source"].annotation)
    if name in SOURCES:
        raise ValueError(f"source {name!r} is registered already, by {SOURCES[name].__name__}")
    SOURCES[name] = settings
    return settings


def caption_sources() -> list[str]:
    """Names of the sources that have captions."""
    return [name for name, settings in SOURCES.items() if settings.has_captions]


@cache
def _union(classes: tuple[type[Images], ...]) -> TypeAdapter:
    return TypeAdapter(Annotated[Union[classes], Field(discriminator="source")])  # noqa: UP007 - made of a tuple


class _AnySource:
    """Validation and JSON schema of a data set of any registered source, looked up whenever one is asked for."""

    def __get_pydantic_core_schema__(self, *_: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: _union(tuple(SOURCES.values())).validate_python(value)
        )

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(_union(tuple(SOURCES.values())).core_schema)


Dataset = Annotated[Images, _AnySource()]


@data_source
class OpenMojiCaptions(Captions):
    """Images composed of OpenMoji drawings, from a pinned package, with captions by rule; concepts are held out."""

    module = "triptych.data.sources.embedded.openmoji"

    source: Literal["openmoji"]

    @model_validator(mode="after")
    def _has_an_end(self) -> "OpenMojiCaptions":
        if ALL in self.sizes:
            raise ValueError("sizes must be numbers: images are composed without end")
        return self


@data_source
class LlavaPretrainCaptions(Captions):
    """A subset of LLaVA-Pretrain (558k captioned web images) from the hub."""

    module = "triptych.data.sources.llava_pretrain"
    read_options = ("revision",)
    archive = "images.zip"

    source: Literal["llava-pretrain"]
    revision: Revision

    @property
    def fetched_gb(self) -> float:
        """GB of the candidates that are read at first: the archive's images have 49 kB each."""
        return min(self.wanted, 558_128) * 49e-6


@data_source
class HubParquetCaptions(Captions):
    """A data set on the hub of Parquet files with an image and a caption in each row."""

    module = "triptych.data.sources.hub_parquet"
    read_options = ("repo", "revision", "files", "image_column")

    source: Literal["hub-parquet"]
    repo: HubId = Field(description="Hub id of the data set.")
    revision: Revision
    files: Line = Field(
        "**/*.parquet", description="Glob pattern of the Parquet files to use, such as data/train-*.parquet."
    )
    image_column: Line = Field("image", description="Column with the images ({bytes, path} or bytes).")
    caption_column: Line = Field(
        "caption",
        description="Column with the captions; from a list the first, from a conversation the first answer is used.",
    )


@data_source
class FolderCaptions(Captions):
    """Your own captioned images: a folder with a table (CSV, JSON, JSONL, Parquet) and the images it names."""

    module = "triptych.data.sources.caption_folder"
    read_options = ("folder", "image_column")

    source: Literal["caption-folder"]
    folder: LocalPath = Field(description="Folder that contains the table and the images.")
    table: Line = Field("captions.jsonl", description="Table in the folder: .csv, .tsv, .json, .jsonl or .parquet.")
    image_column: Line = Field("image", description="Column or key with the path of the image below the folder.")
    caption_column: Line = Field(
        "caption", description="Column or key with the caption; without it, the first answer of `conversations`."
    )

    def local_tables(self) -> list[Path]:
        """The table in the folder."""
        return [located(self.folder) / self.table]


@data_source
class WebdatasetCaptions(Captions):
    """Tar shards in the webdataset layout: members `key.jpg` with `key.txt` or `key.json`."""

    module = "triptych.data.sources.webdataset"
    read_options = ("folder",)

    source: Literal["webdataset"]
    folder: LocalPath = Field(description="Folder that contains the shards.")
    shards: Line = Field("*.tar", description="Glob pattern of the shards.")
    caption_key: Line | None = Field(
        None,
        description="Key of the caption in `key.json`, which alone is read then. null: the caption is `key.txt` or, "
        "where there is no text file, the key `caption` of `key.json`.",
    )


@data_source
class UrlListCaptions(Captions):
    """A table of URLs and captions (as in LAION-COCO); the fetch step downloads the images."""

    module = "triptych.data.sources.url_list"
    read_options = ("max_bytes",)
    more_images = Captions.more_images + " (raise `oversample`, so that more are downloaded)"

    source: Literal["url-list"]
    table: LocalPath = Field(description="Table file: .csv, .tsv, .json, .jsonl or .parquet.")
    url_column: Line = Field("url", description="Column with the URLs (http or https).")
    caption_column: Line = Field("caption", description="Column with the captions.")
    connections: int = Field(16, ge=1, le=256, description="Number of parallel downloads.")
    timeout: float = Field(20, gt=0, description="Seconds to wait for a server that sends nothing.")
    retries: NonNegativeInt = Field(2, description="Further attempts after a temporary failure.")
    max_bytes: PositiveInt = Field(20_000_000, description="Maximum size of an image in bytes.")
    internal_hosts: list[Line] = Field(
        [],
        description="Hosts that may resolve to this machine or to a private network. All other addresses that are not "
        "public are refused, also after a redirect.",
        exclude_if=lambda hosts: not hosts,  # as in the settings that finished studies recorded
    )

    def local_tables(self) -> list[Path]:
        """The table of addresses."""
        return [located(self.table)]


@data_source
class EmbeddedVqa(Images):
    """Medical questions about real images from pinned packages."""

    module = "triptych.data.sources.embedded.medical"

    source: Literal["embedded-medical"]


class Vqa(Images):
    """Settings that data sets in SLAKE's layout share."""

    language: Literal["en", "zh", "both"] = Field(
        "en",
        description="Language of the questions. SLAKE's Chinese parts contain images of its English test part: with "
        "`zh` or `both`, each image is assigned to the part of its English questions.",
    )
    expected: dict[Literal["images", "train", "validation", "test"], PositiveInt] | None = Field(
        None, description="Numbers of images, and of questions per part; other numbers stop the run. Null: any."
    )


@data_source
class SlakeFolderVqa(Vqa):
    """SLAKE, or any data set in its layout, from a local folder."""

    module = "triptych.data.sources.slake_folder"
    read_options = ("folder",)

    source: Literal["slake-folder"]
    folder: LocalPath | None = Field(
        None,
        description="Folder with train.json, validation.json, test.json and imgs/. Null: the one that the variable "
        "TRIPTYCH_SLAKE names.",
    )

    @property
    def location(self) -> Path | None:
        """The user's folder: the key `folder`, or else TRIPTYCH_SLAKE; None where neither is given."""
        name = self.folder or os.environ.get(SLAKE_VARIABLE)
        return located(name) if name else None

    @property
    def overruled(self) -> Path | None:
        """Another folder, which TRIPTYCH_SLAKE names and the key `folder` overrules; None where they agree."""
        other = located(os.environ.get(SLAKE_VARIABLE) or self.folder or ".")
        return other if self.folder and other.resolve() != self.location.resolve() else None

    def local_tables(self) -> list[Path]:
        """The tables of the three parts."""
        return [self.location / f"{part}.json" for part in ("train", "validation", "test")] if self.location else []


@data_source
class SlakeHubVqa(Vqa):
    """SLAKE from the hub (BoKelvin/SLAKE), at a pinned revision."""

    module = "triptych.data.sources.slake_hub"
    read_options = ("revision",)

    source: Literal["slake-hub"]
    revision: Revision


QuestionPart = Literal["train", "validation", "test"]


@data_source
class HubQuestions(Images):
    """Images with questions in the Parquet files of a data set on the hub, read by the names of its columns."""

    module = "triptych.data.sources.hub_questions"
    read_options = ("repo", "revision", "image_column")

    source: Literal["hub-questions"]
    repo: HubId = Field(description="Hub id of the data set.")
    revision: Revision
    parts: dict[QuestionPart, Line] = Field(
        {part: f"data/{part}-*.parquet" for part in get_args(QuestionPart)},
        min_length=1,
        description="Glob pattern of the Parquet files of each part. Leave out a part that the data set lacks.",
    )
    shared_images: Literal["leave-out", "move"] = Field(
        "leave-out",
        description="An image of several parts belongs to the first of test, validation and train that has it. Its "
        "questions in the others are left out, or move there with it.",
    )
    image_column: Line = Field("image", description="Column with the images ({bytes, path} or bytes).")
    question_column: Line = Field("question", description="Column with the questions.")
    answer_column: Line = Field("answer", description="Column with the answers.")
    question_id_column: Line | None = Field(
        None, description="Column with an id for each question. Null: a hash of image, question and answer."
    )
    image_id_column: Line | None = Field(
        None, description="Column with an id for each image. Null: a hash of its bytes; equal images are one."
    )
    subject_column: Line | None = Field(None, description="Column with the patient, whose images folds do not cut.")
    answer_type_column: Line | None = Field(
        None,
        description="Column with OPEN or CLOSED. Null: CLOSED where the answer is yes or no, or where options are "
        "listed in the question; OPEN otherwise.",
    )
    content_type_column: Line | None = Field(None, description="Column with the type of question. Null: `Unknown`.")
    modality_column: Line | None = Field(None, description="Column with the image's modality. Null: `Unknown`.")
    location_column: Line | None = Field(None, description="Column with the body part. Null: `Unknown`.")
    option_columns: list[Line] = Field(
        [], description="Multiple choice: the columns of the options in order, or one column that holds a list of them."
    )
    options_in: Literal["question", "answer", "both"] = Field(
        "question",
        description="question: options are listed behind the question, and the answer is the letter of the right one; "
        "answer: the question is asked without them, and the answer is the right one's text; both: they are listed, "
        "and the answer is the text.",
    )
    right_option: Literal["letter", "number", "text"] = Field(
        "letter", description="What `answer_column` says of the right option: its letter, number (from 0) or text."
    )

    def has_part(self, part: str) -> bool:
        """Tell whether the data set has a part."""
        return part in self.parts
