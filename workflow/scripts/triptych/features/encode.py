"""Step: frozen vision features of every image of a data set, computed once, in memory-mapped shards."""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch

from triptych.config.stages import FeatureSettings
from triptych.data.formats.jpeg import was_turned_wrongly
from triptych.data.image_table import ImageTable
from triptych.errors import TriptychError, run_step
from triptych.features.shards import (
    SHARD,
    Shard,
    encoder_hashes,
    is_complete,
    made_anew,
    new_shard,
    plan,
    read_header,
)
from triptych.features.store import compute_tokens, load_pixels, shards_folder
from triptych.io.manifest import read_json, write_record
from triptych.io.parquet import read_table
from triptych.model import vision
from triptych.utils.arguments import folder
from triptych.utils.device import DTYPES, best_device, cores, encoder_batch, loading_threads
from triptych.utils.prefetch import map_ahead
from triptych.utils.terminal import announce, duration

SECONDS_BETWEEN_LINES = 10


def encode(
    data: Path, models: Path, out: Path, settings: FeatureSettings, device: torch.device, shard_size: int = SHARD
) -> dict:
    """Compute the shards of one data set that are missing, then write its manifest.

    Above the budget no shard is written, and the manifest says `on_the_fly`.

    Args:
        data: folder of the data set.
        models: folder of the vision encoder.
        out: folder of the manifest; the shards of all data sets are beside it.
        settings: of the features.
        device: where the encoder runs.
        shard_size: images in a shard.

    Returns:
        The manifest.

    Raises:
        TriptychError: an image cannot be decoded, or differs from its hash in the table.
    """
    table = ImageTable(data / "images")
    identity = encoder_hashes(models)
    shards = plan(table.hashes, identity, settings.dtype, shard_size)
    store = shards_folder(out)
    shards = [made_anew(shard) if was_computed_wrongly(shard, store, table) else shard for shard in shards]
    # The last shard comes first: of two data sets that begin alike and are encoded at the same time, the larger one
    # finds the shards that both need already written when it gets there.
    missing = [shard for shard in reversed(shards) if not is_complete(store / shard.file, shard.key)]
    record = {
        "dtype": settings.dtype,
        "encoder": identity,
        "images_table": read_json(data / "manifest.json")["files"]["images"],
    }
    if missing:
        encoder = vision.load(models, device)
        batch_size = settings.batch_size or encoder_batch(device)
        shape, rate = time_one_batch(encoder, table, missing[0].rows[:batch_size], settings, device)
        warn_of_unseen_borders(read_table(data / "images", ["width", "height"]), encoder)
    else:
        shape, rate = read_header(store / shards[0].file, shards[0].key).shape[1:], None
    gigabytes = len(table) * shape[0] * shape[1] * DTYPES[settings.dtype].itemsize / 1e9
    on_the_fly = gigabytes > settings.budget_gb
    left = sum(len(shard.rows) for shard in missing)
    print(estimate(len(table), shape, settings, gigabytes, left, rate), flush=True)
    record |= {"shape": list(shape), "on_the_fly": on_the_fly}
    if on_the_fly:
        # Relative paths, so that results can be moved as a whole.
        folders = {"data": os.path.relpath(data, out), "vision_encoder": os.path.relpath(models, out)}
        record |= {"files": {}, "batch_size": settings.batch_size, **folders}
    else:
        if missing:
            write_shards(encoder, table, missing, store, shape, settings.dtype, batch_size, device)
        record["files"] = {shard.file: read_header(store / shard.file, shard.key).sha256 for shard in shards}
        record["shards"] = [
            {"file": shard.file, "images": table.image_ids[shard.rows.start : shard.rows.stop]} for shard in shards
        ]
    write_record(out / "manifest.json", record)
    return record


def was_computed_wrongly(shard: Shard, store: Path, table: ImageTable) -> bool:
    """Tell whether a finished shard is of earlier code, and holds an image whose orientation that code did not see."""
    try:
        if read_header(store / shard.file, shard.key).upright:
            return False
    except TriptychError:  # missing or damaged: it is computed anyway
        return False
    return any(was_turned_wrongly(table.file(row)) for row in shard.rows)


def warn_of_unseen_borders(images: Sequence[dict], encoder: vision.Encoder) -> None:
    """Say how much of the images the encoder does not see, where its processor crops them."""
    unseen = [1 - encoder.visible(row["width"], row["height"]) for row in images]
    cropped = sum(share > 0.005 for share in unseen)
    if cropped:
        announce(
            f"warning: the border of {cropped} of {len(unseen)} images is cropped and never seen: "
            f"{100 * sum(unseen) / len(unseen):.1f} % of the area of all, {100 * max(unseen):.1f} % of one; "
            "models.vision_encoder.fit: pad (or squash) shows all of it",
            warning=True,
        )


def time_one_batch(
    encoder: vision.Encoder, table: ImageTable, rows: Sequence[int], settings: FeatureSettings, device: torch.device
) -> tuple[list[int], float]:
    """Encode one image to warm up, then time one batch.

    Returns:
        Shape (N, D) of an image's tokens, and the images per second to expect.
    """
    compute_tokens(encoder, load_pixels(encoder, table, rows[:1], device), settings.dtype, device)
    start = time.perf_counter()
    pixels = load_pixels(encoder, table, rows, device)
    loaded = time.perf_counter()
    tokens = compute_tokens(encoder, pixels, settings.dtype, device)
    loading, computing = loaded - start, time.perf_counter() - loaded
    # Images are loaded while the encoder computes where it leaves a core free, and in its own time where it does not.
    beside = device.type == "cuda" or cores() > torch.get_num_threads()
    seconds = max(loading / loading_threads(device), computing) if beside else loading + computing
    return list(tokens.shape[1:]), len(rows) / seconds


def estimate(
    images: int, shape: Sequence[int], settings: FeatureSettings, gigabytes: float, left: int, rate: float | None
) -> str:
    """Say in one line what will be computed, how large it is, and how long it takes.

    Args:
        images: number of images.
        shape: (N, D) of an image's tokens.
        settings: of the features.
        gigabytes: size of all tokens.
        left: number of images whose tokens are missing.
        rate: images per second to expect; None where none is missing.
    """
    size = f"{gigabytes:.1f} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:.1f} MB"
    line = f"{images} images x {shape[0]} tokens x {shape[1]}: {size} in {settings.dtype}"
    if gigabytes > settings.budget_gb:
        return f"{line}, above features.budget_gb ({settings.budget_gb:g}): nothing is stored, on_the_fly"
    if rate is None or not left:
        return f"{line}, all computed before"
    before = f", {images - left} images computed before" if left < images else ""
    return f"{line}{before}, about {duration(left / rate)} at {rate:.0f}/s"


def write_shards(
    encoder: vision.Encoder,
    table: ImageTable,
    shards: Sequence[Shard],
    store: Path,
    shape: Sequence[int],
    dtype: str,
    batch_size: int,
    device: torch.device,
) -> None:
    """Write `shards` into folder `store`: threads load images, one computes (two feed a GPU), this one writes.

    Order and batches, and so the bytes, are the same on every run; only a few batches are in memory.
    """

    def batches_of_rows() -> Iterator[tuple[Shard, range]]:
        for shard in shards:
            if not is_complete(store / shard.file, shard.key):  # another data set's run may have written it meanwhile
                yield from ((shard, shard.rows[at : at + batch_size]) for at in range(0, len(shard.rows), batch_size))

    def load(batch: tuple[Shard, range]) -> tuple[Shard, torch.Tensor]:
        return batch[0], load_pixels(encoder, table, batch[1], device)

    def compute(batch: tuple[Shard, torch.Tensor]) -> tuple[Shard, torch.Tensor]:
        return batch[0], compute_tokens(encoder, batch[1], dtype, device)

    loaded = map_ahead(load, batches_of_rows(), loading_threads(device))
    computed = map_ahead(compute, loaded, 2 if device.type == "cuda" else 1)
    report = progress_printer(sum(len(shard.rows) for shard in shards))
    for shard, batches in groupby(computed, key=lambda batch: batch[0]):
        with new_shard(store / shard.file, shard.key, [len(shard.rows), *shape], dtype) as add:
            for _, tokens in batches:
                add(tokens)
                report(len(tokens))


def progress_printer(total: int) -> Callable[[int], None]:
    """Give a function that counts images as they are done, and now and then prints their rate and the time left."""
    start = shown = time.monotonic()
    done = 0

    def report(more: int) -> None:
        nonlocal done, shown
        done += more
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES or done == total:
            rate = done / max(now - start, 1e-9)
            print(f"{done}/{total} images, {rate:.0f}/s, {duration((total - done) / rate)} left", flush=True)
            shown = now

    return report


def main() -> None:
    """Encode one data set's images; the manifest is written last."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", default="{}", help="settings of the features as JSON")
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set")
    parser.add_argument("--encoder", type=folder, required=True, help="folder of the vision encoder")
    parser.add_argument("--out", type=folder, required=True, help="folder to write the manifest into")
    parser.add_argument("--shard-size", type=int, default=SHARD, help="images in a shard")
    arguments = parser.parse_args()
    settings = FeatureSettings.model_validate_json(arguments.settings)
    encode(arguments.data, arguments.encoder, arguments.out, settings, best_device(), arguments.shard_size)


if __name__ == "__main__":
    run_step(main)
