"""Step: vision features of images of which one square after the other is grey, computed once for all checkpoints.

They lie as those of a data set do, a shard for each image: first the image itself, then with each of its squares grey.
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise

from PIL import Image

from triptych.config.evaluation import Occlusion
from triptych.data.boxed import boxed_questions
from triptych.data.image_table import ImageTable
from triptych.errors import run_step
from triptych.features.shards import CODE, is_complete, new_shard, read_header
from triptych.features.store import Features, image_encoder, shards_folder
from triptych.io.manifest import sha256_json, write_record
from triptych.utils.arguments import folder
from triptych.utils.device import best_device

GREY = (128, 128, 128)  # of the control `blank`, too


def edges(side: int, grid: int) -> list[int]:
    """Give where squares begin and end on a side of an image, in pixels: grid + 1 numbers from 0 to `side`."""
    return [round(number * side / grid) for number in range(grid + 1)]


def views(image: Image.Image, grid: int) -> Iterator[Image.Image]:
    """Give an image (RGB), and then what it is with each of its grid x grid squares grey, row by row."""
    yield image
    across, down = (edges(side, grid) for side in image.size)
    for top, bottom in pairwise(down):
        for left, right in pairwise(across):
            hidden = image.copy()
            hidden.paste(GREY, (left, top, right, bottom))
            yield hidden


def view_names(image: str, grid: int) -> list[str]:
    """Name the views of an image, in their order."""
    return [f"{image}/{number}" for number in range(grid**2 + 1)]


def main() -> None:
    """Encode the occluded images that held-out questions are asked about."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="settings `evaluation.occlusion` as JSON")
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set with folds")
    parser.add_argument("--features", type=folder, required=True, help="folder of its vision features")
    parser.add_argument("--encoder", type=folder, required=True, help="folder of the vision encoder")
    parser.add_argument("--out", type=folder, required=True, help="folder to write the manifest into")
    arguments = parser.parse_args()
    settings = Occlusion.model_validate_json(arguments.settings)
    features, table = Features(arguments.features), ImageTable(arguments.data / "images")
    dtype, store = features.manifest["dtype"], shards_folder(arguments.out)
    rows = boxed_questions(arguments.data, settings.images, settings.questions)
    images = list(dict.fromkeys(row["image_id"] for row in rows))
    encode = image_encoder(features, arguments.encoder, best_device())
    row_of = {image: row for row, image in enumerate(table.image_ids)}
    shards, files, shape = [], {}, features.manifest["shape"]
    for number, image in enumerate(images, 1):
        identity = {"code": CODE, "encoder": features.encoder, "dtype": dtype}
        key = sha256_json({**identity, "occluded": table.hashes[row_of[image]], "grid": settings.grid})
        path = store / f"{key}.safetensors"
        if not is_complete(path, key):
            [pixels] = table.images([row_of[image]])
            with new_shard(path, key, [settings.grid**2 + 1, *shape], dtype) as add:
                add(encode(list(views(pixels, settings.grid))))
        files[path.name] = read_header(path, key).sha256
        shards.append({"file": path.name, "images": view_names(image, settings.grid)})
        print(f"{number}/{len(images)} images, {settings.grid**2 + 1} views each", flush=True)
    record = {"dtype": dtype, "encoder": features.encoder, "shape": shape, "on_the_fly": False}
    write_record(arguments.out / "manifest.json", {**record, "files": files, "shards": shards})


if __name__ == "__main__":
    run_step(main)
