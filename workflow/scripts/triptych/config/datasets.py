"""Settings of data sets and of the folds."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from triptych.config.base import Name, Record, Revision, former

CAPTION_SOURCES = ("openmoji", "llava-pretrain", "hub-parquet", "caption-folder", "webdataset", "url-list")


class Images(Record):
    """Settings that all data sets share: which images are taken."""

    min_side: PositiveInt = Field(8, description="Shortest side in pixels; smaller images are rejected.")
    max_pixels: PositiveInt = Field(50_000_000, le=50_000_000, description="Most pixels; larger ones are rejected.")


class Captions(Images):
    """Settings that all image-caption data share."""

    sizes: list[PositiveInt] = Field(
        min_length=1,
        description="Numbers of images. Each is a data set of its own, `<name>-<size>`; a smaller one is contained "
        "in a larger one.",
    )
    oversample: float = former(
        "spares", 0.1, ge=0, le=5, description="Share of further images read, to replace rejected ones."
    )
    seed: int = Field(0, description="Seed of the choice of images.")
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of images held out.")
    question: str = Field("Describe the image.", description="The instruction that every caption answers.")
    caption_length: tuple[PositiveInt, PositiveInt] = Field(
        (3, 2000), description="Least and largest number of characters of a caption."
    )
    keep_near_duplicates: bool = Field(
        False, description="Take near-duplicates too; otherwise only the first of them is taken."
    )
    placeholders: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        [], description='SHA-256 of images that stand for a missing one ("image not available"); rejected.'
    )

    @property
    def size(self) -> int:
        """Number of images of an expanded data set, which has one size only."""
        return self.sizes[-1]

    @property
    def wanted(self) -> int:
        """Number of candidates that are read at first: the size and what `oversample` adds."""
        return self.size + math.ceil(self.size * self.oversample)

    @model_validator(mode="after")
    def _lengths_are_in_order(self) -> "Captions":
        if self.caption_length[0] > self.caption_length[1]:
            raise ValueError("caption_length must name the least length first")
        return self


class OpenMojiCaptions(Captions):
    """Drawings composed into images with captions (embedded default); concepts are held out."""

    source: Literal["openmoji"]


class LlavaPretrainCaptions(Captions):
    """A subset of LLaVA-Pretrain (558k captioned web images) from the hub."""

    source: Literal["llava-pretrain"]
    revision: Revision


class HubParquetCaptions(Captions):
    """A hub data set of Parquet files with an image and a caption in each row."""

    source: Literal["hub-parquet"]
    repo: str = Field(description="Hub id of the data set.")
    revision: Revision
    files: str = Field("**/*.parquet", description="Pattern of the Parquet files to use, such as data/train-*.parquet.")
    image_column: str = Field("image", description="Column of images ({bytes, path} or bytes).")
    caption_column: str = Field("caption", description="Column of captions; of a list, the first is taken.")


class FolderCaptions(Captions):
    """Your own captioned images: a folder with a table (CSV, JSON, JSONL, Parquet) and the images it names."""

    source: Literal["caption-folder"]
    folder: str = Field(description="Folder that holds the table and the images.")
    table: str = Field("captions.jsonl", description="Table in the folder: .csv, .json, .jsonl or .parquet.")
    image_column: str = Field("image", description="Column or key of the image's file name below the folder.")
    caption_column: str = Field("caption", description="Column or key of the caption.")


class WebdatasetCaptions(Captions):
    """Tar shards in the webdataset layout: members `key.jpg` with `key.txt` or `key.json`."""

    source: Literal["webdataset"]
    folder: str = Field(description="Folder that holds the shards.")
    shards: str = Field("*.tar", description="Pattern of the shards' file names.")
    caption_key: str = Field("caption", description="Key of the caption where it is in `key.json`.")


class UrlListCaptions(Captions):
    """A table of addresses and captions (as LAION-COCO); images are downloaded by the fetch step."""

    source: Literal["url-list"]
    table: str = Field(description="The table: .csv, .json, .jsonl or .parquet.")
    url_column: str = Field("url", description="Column of the addresses (http or https).")
    caption_column: str = Field("caption", description="Column of the captions.")
    connections: int = Field(16, ge=1, le=256, description="Downloads at a time.")
    timeout: float = Field(20, gt=0, description="Seconds that a server may stay silent.")
    retries: NonNegativeInt = Field(2, description="Further attempts after a failure that may pass.")
    max_bytes: PositiveInt = Field(20_000_000, description="Largest image in bytes.")


class EmbeddedVqa(Images):
    """Medical questions on real images out of pinned packages (embedded default)."""

    source: Literal["embedded-medical"]


class Vqa(Images):
    """Settings that data sets in SLAKE's layout share."""

    language: Literal["en", "zh", "both"] = Field(
        "en",
        description="Questions of one language. SLAKE's Chinese parts hold images of its English test part: with "
        "`zh` or `both`, each image goes to the part of its English questions.",
    )
    expected: dict[Literal["images", "train", "validation", "test"], PositiveInt] | None = Field(
        None, description="Numbers of images, and of questions per part; other numbers stop the run. Null: any."
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
        "images where it names none; image: images, exact copies together; near-duplicate-cluster: subjects and "
        "images that look alike, together; row: nothing, which leaks images and serves to measure the leak; "
        "official: one fold of the source's own parts, which holds out its validation part.",
    )
    near_duplicate: float = Field(
        0.98, gt=0, lt=1, description="Images whose 32 x 32 grey thumbnails correlate more than this look alike."
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


def expanded_names(base: str, sizes: Any) -> list[tuple[str, int | None]]:
    """A data set's name with each of its sizes, or the name alone where it has none."""
    sizes = [sizes] if isinstance(sizes, int) else sizes  # a fault, which is named elsewhere
    return [(f"{base}-{size}", size) for size in sizes] if isinstance(sizes, list) else [(base, None)]
