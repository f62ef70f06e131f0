"""Vision features by image id: read from shards on disk, or computed when they are needed (on the fly).

`Pixels` stand in their place where a model has a vision encoder of its own, which has trained.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from safetensors import safe_open

from triptych.config.paths import FEATURE_SHARDS
from triptych.data.image_table import ImageTable
from triptych.errors import TriptychError
from triptych.features.shards import TENSOR, Dtype, checksum, encoder_hashes, read_header
from triptych.io.manifest import read_json
from triptych.model import vision
from triptych.utils.device import DTYPES, best_device, encoder_batch, loading_threads
from triptych.utils.prefetch import map_ahead

EncodeImages = Callable[[Sequence[Image.Image]], torch.Tensor]
ChangeImage = Callable[[str, Image.Image], Image.Image]


class Features:
    """Vision features of one data set, stored or computed on the fly as its manifest says.

    Attributes:
        manifest: as the encode step wrote it.
        hidden_size: width D of a token.
        encoder: sha256 of the encoder's files and settings.
    """

    def __init__(self, folder: Path):
        """Open the features in `folder`.

        Raises:
            TriptychError: a shard is missing or damaged; on the fly, images or encoder are not those of the manifest.
        """
        self.manifest = read_json(folder / "manifest.json")
        self.hidden_size = self.manifest["shape"][-1]
        self.encoder = self.manifest["encoder"]
        opened = _on_the_fly if self.manifest["on_the_fly"] else _stored
        self._remedy = f"delete {folder / 'manifest.json'} and run again"
        try:
            self._place, self._read = opened(folder, self.manifest)
        except TriptychError as error:
            raise TriptychError(f"{error}; {self._remedy}") from None

    @property
    def identity(self) -> tuple[int, dict[str, str], Dtype]:
        """Width of a token, encoder and stored dtype, as `checkpoint.Base` takes them."""
        return self.hidden_size, self.encoder, self.manifest["dtype"]

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Give the features (R, N, D) of R images, in the dtype in which they are stored, on the CPU.

        Raises:
            TriptychError: an image has no features.
        """
        for image_id in image_ids:
            if image_id not in self._place:
                raise TriptychError(f"image {image_id} has no vision features; {self._remedy}")
        return self._read([self._place[image_id] for image_id in image_ids])


def shards_folder(folder: Path) -> Path:
    """Give the folder of the shards of all data sets, beside the features folder of one of them."""
    return folder.parent / Path(FEATURE_SHARDS).name


def _stored(folder: Path, manifest: dict) -> tuple[dict, Callable[[list], torch.Tensor]]:
    """Give each image's place (shard, row), and a function from places to tokens (R, N, D), read from mapped files."""
    place, tensors, checksums = {}, [], []
    for number, shard in enumerate(manifest["shards"]):
        path = shards_folder(folder) / shard["file"]
        header = read_header(path, path.stem)
        if header.shape != [len(shard["images"]), *manifest["shape"]]:
            raise TriptychError(f"{path}: has shape {header.shape}, unlike the manifest's")
        checksums.append(header.checksums)
        tensors.append(safe_open(path, framework="pt").get_slice(TENSOR))
        place |= {image_id: (number, row) for row, image_id in enumerate(shard["images"])}

    def read(places: list[tuple[int, int]]) -> torch.Tensor:
        rows = [tensors[number][row : row + 1][0] for number, row in places]
        for (number, row), tokens in zip(places, rows, strict=True):
            if checksums[number] and checksum(tokens) != checksums[number][row]:
                shard = manifest["shards"][number]
                raise TriptychError(
                    f"{shards_folder(folder) / shard['file']}: damaged (the tokens of image {shard['images'][row]} "
                    f"differ from their checksum); delete {folder / 'manifest.json'} and run again"
                )
        return torch.stack(rows)

    return place, read


def _on_the_fly(folder: Path, manifest: dict) -> tuple[dict, Callable[[list], torch.Tensor]]:
    """Give each image's row in `images/`, and a function from rows to tokens (R, N, D), which it computes."""
    data, models = (Path(os.path.normpath(folder / manifest[name])) for name in ("data", "vision_encoder"))
    if read_json(data / "manifest.json")["files"]["images"] != manifest["images_table"]:
        raise TriptychError(f"{data}: its images are not those that {folder} was computed from")
    if encoder_hashes(models) != manifest["encoder"]:
        raise TriptychError(f"{models}: is not the encoder that {folder} was computed with")
    device = best_device()
    table = ImageTable(data / "images")
    encoder = vision.load(models, device)
    size = manifest["batch_size"] or encoder_batch(device)

    def read(rows: list[int]) -> torch.Tensor:
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        loaded = map_ahead(lambda part: load_pixels(encoder, table, part, device), parts, loading_threads(device))
        return torch.cat([compute_tokens(encoder, pixels, manifest["dtype"], device) for pixels in loaded])

    return {image_id: row for row, image_id in enumerate(table.image_ids)}, read


class Pixels:
    """Pixels of one data set's images, in place of features, for a model that has a vision encoder of its own.

    Attributes:
        manifest, hidden_size, encoder: of the features that the frozen encoder gives.
        preprocess: images (RGB) -> pixels (R, 3, S, S), as for those features.
    """

    def __init__(self, features: Features, data: Path, folder: Path, change: ChangeImage | None = None):
        """Open the images.

        Args:
            features: of the same data set, or of some of its images.
            data: folder of the data set.
            folder: of the vision encoder.
            change: from an image's id and the image to what is preprocessed instead.

        Raises:
            TriptychError: images or encoder are not those of the features.
        """
        self.manifest, self.hidden_size, self.encoder = features.manifest, features.hidden_size, features.encoder
        known = read_json(data / "manifest.json")["files"]["images"]
        if self.manifest.get("images_table", known) != known:
            raise TriptychError(f"{data}: its images are not those of the vision features; encode them again")
        if encoder_hashes(folder) != self.encoder:
            raise TriptychError(f"{folder}: is not the encoder that made the vision features; encode them again")
        self.preprocess = vision.load(folder, torch.device("cpu")).preprocess
        self._table, self._change = ImageTable(data / "images"), change
        self._rows = {image_id: row for row, image_id in enumerate(self._table.image_ids)}

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Give the pixels (R, 3, S, S) of R images, on the CPU."""
        images = zip(image_ids, self.images(image_ids), strict=True)
        return self.preprocess(self._change(*one) if self._change else one[1] for one in images)

    def images(self, image_ids: Sequence[str]) -> Iterator[Image.Image]:
        """Give R images in RGB, as they are.

        Raises:
            TriptychError: an image is not in the data set.
        """
        if unknown := [image_id for image_id in image_ids if image_id not in self._rows]:
            raise TriptychError(f"image {unknown[0]} is not in the data set; prepare it again")
        return self._table.images([self._rows[image_id] for image_id in image_ids])

    def changed(self, change: ChangeImage) -> Self:
        """Give the same pixels of images that are changed before they are preprocessed."""
        other = copy(self)
        other._change = change
        return other


def image_encoder(features: Features | Pixels, folder: Path, device: torch.device) -> EncodeImages:
    """Give a function from R images (RGB) to their features (R, N, D), computed as those of a data set were.

    For a model that has an encoder of its own, which computes them, it gives pixels.

    Args:
        features: of the data set, or its pixels.
        folder: of the vision encoder.
        device: where the encoder runs.

    Raises:
        TriptychError: the encoder is not the one that made the features.
    """
    if isinstance(features, Pixels):
        return features.preprocess
    if encoder_hashes(folder) != features.encoder:
        raise TriptychError(f"{folder}: is not the encoder that made the vision features; encode them again")
    encoder, dtype = vision.load(folder, device), features.manifest["dtype"]
    size = features.manifest.get("batch_size") or encoder_batch(device)

    def encode(images: Sequence[Image.Image]) -> torch.Tensor:
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return torch.cat([compute_tokens(encoder, encoder.preprocess(part), dtype, device) for part in parts])

    return encode


def load_pixels(encoder: vision.Encoder, table: ImageTable, rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """Decode and preprocess the images of B rows: pixels (B, 3, S, S), float32, ready to be copied to `device`."""
    pixels = encoder.preprocess(table.images(rows))
    return pixels.pin_memory() if device.type == "cuda" else pixels


@torch.no_grad()  # not inference mode, whose tensors a connector could not save for its backward pass
def compute_tokens(encoder: vision.Encoder, pixels: torch.Tensor, dtype: Dtype, device: torch.device) -> torch.Tensor:
    """Encode pixels (B, 3, S, S) as tokens (B, N, D), on the CPU in the dtype of storage."""
    with vision.own_precision(DTYPES[dtype], device):
        return encoder.tokens(pixels.to(device, non_blocking=True)).to(DTYPES[dtype]).cpu()
