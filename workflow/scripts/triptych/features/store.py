"""Vision features by image id: read from shards on disk, or computed when they are asked for."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors import safe_open

from triptych.data.image_table import ImageTable
from triptych.errors import TriptychError
from triptych.features.shards import TENSOR, TORCH, Dtype, checksum, encoder_hashes, read_header
from triptych.io.manifest import read_json
from triptych.model import vision
from triptych.utils.device import best_device, compute_dtype, encoder_batch, loading_threads
from triptych.utils.prefetch import map_ahead


class Features:
    """Vision features of one data set, as its manifest says they are kept.

    Attributes:
        manifest: what the encode step wrote.
        hidden_size: D.
        encoder: sha256 of the encoder's files and settings.
    """

    def __init__(self, folder: Path):
        """Open the features in `folder`.

        Raises:
            TriptychError: a shard is missing or damaged; or features that are computed have lost data or encoder.
        """
        self.manifest = read_json(folder / "manifest.json")
        self.hidden_size = self.manifest["shape"][-1]
        self.encoder = self.manifest["encoder"]
        opened = _on_the_fly if self.manifest["on_the_fly"] else _stored
        self._mend = f"delete {folder / 'manifest.json'} and run again"
        try:
            self._place, self._read = opened(folder, self.manifest)
        except TriptychError as error:
            raise TriptychError(f"{error}; {self._mend}") from None

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Features (R, N, D) of `image_ids`, float32, on the CPU.

        Raises:
            TriptychError: an image has no features.
        """
        for image_id in image_ids:
            if image_id not in self._place:
                raise TriptychError(f"image {image_id} has no vision features; {self._mend}")
        return self._read([self._place[image_id] for image_id in image_ids]).float()


def shards_folder(folder: Path) -> Path:
    """Where the shards of all data sets are, given the features folder of one of them."""
    return folder.parent / "shards"


def _stored(folder: Path, manifest: dict) -> tuple[dict, Callable[[list], torch.Tensor]]:
    """Image id -> (shard, row), and the function that reads tokens (R, N, D) of such places from mapped files."""
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
    """Image id -> row of `images/`, and the function that computes tokens (R, N, D) of such rows."""
    data, models = (Path(os.path.normpath(folder / manifest[name])) for name in ("data", "vision_encoder"))
    if read_json(data / "manifest.json")["files"]["images"] != manifest["images_table"]:
        raise TriptychError(f"{data}: its images are not those that {folder} was made for")
    if encoder_hashes(models) != manifest["encoder"]:
        raise TriptychError(f"{models}: is not the encoder that {folder} was made for")
    device = best_device()
    table = ImageTable(data / "images")
    encoder = vision.load(models, device)
    size = manifest["batch_size"] or encoder_batch(device)

    def read(rows: list[int]) -> torch.Tensor:
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        loaded = map_ahead(lambda part: load_pixels(encoder, table, part, device), parts, loading_threads(device))
        return torch.cat([compute_tokens(encoder, pixels, manifest["dtype"], device) for pixels in loaded])

    return {image_id: row for row, image_id in enumerate(table.image_ids)}, read


def load_pixels(encoder: vision.Encoder, table: ImageTable, rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """Decoded and preprocessed images of `rows` (B, 3, S, S), float32, ready to be copied to `device`."""
    pixels = encoder.preprocess(table.images(rows))
    return pixels.pin_memory() if device.type == "cuda" else pixels


@torch.no_grad()  # not inference mode: a connector that trains must be able to keep what is computed here
def compute_tokens(encoder: vision.Encoder, pixels: torch.Tensor, dtype: Dtype, device: torch.device) -> torch.Tensor:
    """Tokens (B, N, D) of pixels (B, 3, S, S), in the dtype they are stored in, on the CPU."""
    with _precision(dtype, device):
        return encoder.tokens(pixels.to(device, non_blocking=True)).to(TORCH[dtype]).cpu()


def _precision(dtype: Dtype, device: torch.device) -> AbstractContextManager:
    """The encoder's own precision, whatever autocast the caller has on: equal tokens, stored or computed."""
    on_gpu = device.type == "cuda" and dtype == "bf16"
    compute = compute_dtype("auto", device) if on_gpu else torch.float32
    return torch.autocast(device.type, compute, enabled=compute != torch.float32)
