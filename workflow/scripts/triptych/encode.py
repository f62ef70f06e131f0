"""Step: frozen vision features of every picture of a data set, computed once, in memory-mapped shards."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from triptych.hardware import best_device, mixed_precision
from triptych.model import vision
from triptych.pictures import decode
from triptych.storage import TriptychError, atomic_path, read_json, run_step, sha256_file, write_json

SHARD = 1024  # pictures in a file: 128 MB at 49 x 1280 tokens in bf16
TENSOR = "features"


class Features:
    """Vision features by image id, read from disk as they are asked for."""

    def __init__(self, folder: Path):
        self.manifest = read_json(folder / "manifest.json")
        self.hidden_size = self.manifest["shape"][-1]
        self.encoder = self.manifest["encoder"]
        self._place = {
            image_id: (shard, row)
            for shard, images in enumerate(self.manifest["images"])
            for row, image_id in enumerate(images)
        }
        for name in self.manifest["files"]:
            if not (folder / name).is_file():
                raise TriptychError(f"{folder / name}: missing; delete {folder / 'manifest.json'} and run again")
        self._shards = [
            safe_open(folder / name, framework="pt").get_slice(TENSOR) for name in sorted(self.manifest["files"])
        ]

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Features (R, N, D) of `image_ids`, float32.

        Raises:
            TriptychError: an image has no features.
        """
        for image_id in image_ids:
            if image_id not in self._place:
                raise TriptychError(f"image {image_id} has no vision features; run the encode step again")
        places = [self._place[image_id] for image_id in image_ids]
        return torch.stack([self._shards[shard][row : row + 1][0] for shard, row in places]).float()


def read_pictures(table: Path, batch_size: int) -> Iterator[list[dict]]:
    """Rows of `images.parquet`, `batch_size` at a time."""
    for batch in pq.ParquetFile(table).iter_batches(batch_size, columns=["image_id", "image"]):
        yield batch.to_pylist()


def encode(encoder: vision.Encoder, table: Path, out: Path, device: torch.device, batch_size: int = 16) -> dict:
    """Write features of all pictures in `table` into `out`, as bf16 shards; gives the manifest's entries."""
    total = pq.ParquetFile(table).metadata.num_rows
    files: dict[str, str] = {}
    images: list[list[str]] = []
    pending: list[torch.Tensor] = []
    names: list[str] = []
    start, done = time.monotonic(), 0
    shape = None
    context = mixed_precision("auto", device) if device.type == "cuda" else nullcontext()

    def flush() -> None:
        file = f"features-{len(images):05d}.safetensors"
        with atomic_path(out / file) as temporary:
            save_file({TENSOR: torch.cat(pending)}, temporary)
        files[file] = sha256_file(out / file)
        images.append(list(names))
        pending.clear()
        names.clear()

    with torch.inference_mode(), context:
        for rows in read_pictures(table, batch_size):
            pixels = encoder.preprocess([decode(row["image"]["bytes"]) for row in rows])
            tokens = encoder.tokens(pixels.to(device)).to(torch.bfloat16).cpu()
            shape = list(tokens.shape[1:])
            pending.append(tokens.contiguous())
            names += [row["image_id"] for row in rows]
            if len(names) >= SHARD:
                flush()
            done += len(rows)
            if done % 256 < batch_size or done == total:
                rate = done / (time.monotonic() - start)
                print(f"{done}/{total} pictures, {rate:.0f}/s, {(total - done) / rate:.0f} s left", flush=True)
        if names:
            flush()
    return {"shape": shape, "files": files, "images": images}


def main() -> None:
    """Encode one data set's pictures; the manifest is written last."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the vision encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    device = best_device()
    encoder = vision.load(arguments.encoder, device)
    record = encode(encoder, arguments.data / "images.parquet", arguments.out, device)
    record["encoder"] = read_json(arguments.encoder / "manifest.json")["files"]
    record["images_table"] = read_json(arguments.data / "manifest.json")["files"]["images.parquet"]
    write_json(arguments.out / "manifest.json", record)


if __name__ == "__main__":
    run_step(main)
