"""Is the encoder kept busy? Its own forward rate at its best batch size against the rate of the whole encode step.

    OMP_NUM_THREADS=1 python benchmarks/bench_features.py

Both run in turn for several rounds on photograph-like JPEGs of 640 x 480; medians count. The step's rate includes
loading the encoder, trying it out, decoding, and writing the shards. On a machine that others use, both rates waver
with its load. So there is a second ratio, of rates from which the time is taken that the encoder's thread stood in the
system's queue for a core (Linux counts it). It hides a wait for the step's own threads too, so it holds for two cores
or more.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import torch
from llava import VIT_BASE
from photographs import photograph
from triptych.config.base import Record
from triptych.config.models import FolderEncoder, PackageEncoder
from triptych.config.stages import FeatureSettings
from triptych.config.texts import cache_folder
from triptych.features.encode import encode
from triptych.features.store import compute_tokens
from triptych.io.manifest import sha256_bytes, sha256_file, write_json
from triptych.io.parquet import write_table
from triptych.model import vision
from triptych.model.prepare import prepare_model
from triptych.utils.device import best_device, cores

BATCH_SIZES = (16, 64, 128, 256) if torch.cuda.is_available() else (1, 4, 8, 16, 32)
SIGLIP = VIT_BASE | {"image_size": 384, "patch_size": 16}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
    ]
)


def write_images(folder: Path, number: int) -> int:
    """A data set of `number` photographs in `folder`; gives their mean size in bytes."""
    files = [photograph(seed) for seed in range(number)]
    rows = [
        {"id": str(row), "image": {"bytes": data, "path": f"{row}.jpg"}, "sha256": sha256_bytes(data)}
        | {"width": 640, "height": 480}
        for row, data in enumerate(files)
    ]
    write_table(folder / "images", rows, SCHEMA)
    write_json(folder / "manifest.json", {"files": {"images": sha256_file(folder / "images")}})
    return sum(map(len, files)) // number


def encoder_settings(folder: Path, device: torch.device) -> tuple[Record, int]:
    """The embedded encoder, for a GPU a random one of the shape of config/config.yaml's; and its images' side."""
    if device.type == "cpu":
        embedded = PackageEncoder(source="package")
        return embedded, embedded.image_size
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(folder / "siglip")
    size = {"height": SIGLIP["image_size"], "width": SIGLIP["image_size"]}
    SiglipImageProcessor(size=size).save_pretrained(folder / "siglip")
    return FolderEncoder(source="folder", folder=str(folder / "siglip"), layer=-2), SIGLIP["image_size"]


def queued() -> float:
    """Seconds that this thread has been ready to run, and had no core; 0 where the system does not tell."""
    file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    return int(file.read_text().split()[1]) / 1e9 if file.exists() else 0.0


def forward_rate(
    encoder: vision.Encoder, side: int, batch_size: int, seconds: float, device: torch.device
) -> tuple[float, float]:
    """The encoder alone, the pixels lying ready in memory: images per second, with and without time in the queue."""
    pixels = torch.randn(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    compute_tokens(encoder, pixels, "bf16", device)
    done, start, before = 0, time.perf_counter(), queued()
    while time.perf_counter() - start < seconds:
        compute_tokens(encoder, pixels, "bf16", device)
        done += batch_size
    whole = time.perf_counter() - start
    return done / whole, done / (whole - queued() + before)


def step_rate(data: Path, models: Path, images: int, device: torch.device) -> tuple[float, float]:
    """The whole encode step, from nothing to its manifest: images per second, with and without time in the queue."""
    waited = 0.0

    def watched(*arguments: Any) -> torch.Tensor:
        nonlocal waited
        before = queued()
        tokens = compute_tokens(*arguments)
        waited += queued() - before
        return tokens

    scratch = tempfile.TemporaryDirectory(dir=data.parent)
    with scratch, redirect_stdout(io.StringIO()), patch("triptych.features.encode.compute_tokens", watched):
        start = time.perf_counter()
        encode(data, models, Path(scratch.name) / "features" / "photographs", FeatureSettings(), device)
        whole = time.perf_counter() - start
    return images / whole, images / (whole - waited)


def measure(folder: Path, images: int, rounds: int, seconds: float) -> dict:
    """Find the encoder's best batch size, then measure encoder and step in turn.

    Args:
        folder: scratch space.
        images: size of the data set.
        rounds: how often each is measured.
        seconds: how long the encoder alone runs, per round.

    Returns:
        `bytes`: mean size of an image's file; `batches`: median rate by batch size; `best`: the best of these;
        `encoder`, `step`: images per second in each round, with and without time in the queue; `load`: the machine's
        load average.
    """
    device = best_device()
    size = write_images(folder / "data", images)
    settings, side = encoder_settings(folder, device)
    prepare_model("vision_encoder", settings, cache_folder(), folder / "encoder")
    encoder = vision.load(folder / "encoder", device)

    def alone(batch_size: int, length: float) -> tuple[float, float]:
        return forward_rate(encoder, side, batch_size, length, device)

    tried = [{batch: alone(batch, seconds / 4)[1] for batch in BATCH_SIZES} for _ in range(5)]
    batches = {batch: statistics.median(rates[batch] for rates in tried) for batch in BATCH_SIZES}
    best = max(batches, key=batches.get)
    found = {"bytes": size, "batches": batches, "best": best, "encoder": [], "step": [], "load": []}
    for _ in range(rounds):
        found["encoder"].append(alone(best, seconds))
        found["step"].append(step_rate(folder / "data", folder / "encoder", images, device))
        found["load"].append(os.getloadavg()[0])
    return found


def row(found: dict) -> str:
    """A row of a Markdown table: encoder alone at its best batch size, whole step, their ratios; medians and ranges."""

    def cell(values: list[float], decimals: int) -> str:
        middle, least, most = (f"{part(values):.{decimals}f}" for part in (statistics.median, min, max))
        return f"{middle} ({least} to {most})"

    pairs = list(zip(found["encoder"], found["step"], strict=True))
    ratios = [cell([step[kind] / alone[kind] for alone, step in pairs], 2) for kind in (0, 1)]
    rates = [cell([rate for rate, _ in found[name]], 1) for name in ("encoder", "step")]
    machine = f"{cores()} cores, {torch.get_num_threads()} for the encoder, load {statistics.median(found['load']):.1f}"
    return f"| {machine} | {found['best']} | {' | '.join(rates + ratios)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of the encoder alone, per round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.images, arguments.rounds, arguments.seconds)
    print(json.dumps(found))
    print("| machine | best batch | encoder alone, images/s | encode step, images/s | ratio | without the queue |")
    print("|---|---|---|---|---|---|")
    print(row(found))


if __name__ == "__main__":
    main()
