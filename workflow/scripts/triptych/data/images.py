"""Decoding of images: complete, bounded, always RGB and upright."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from triptych.errors import TriptychError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MIN_SIDE, MAX_PIXELS = 8, 50_000_000
THUMBNAIL = 32  # side in pixels, as in pHash and in the nearest-neighbour baseline
# EXIF: the tag, and what sets an image of each orientation upright.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ON_THEIR_SIDE = (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])

# What is often found under the name of an image; only for a better message.
_STRANGERS = (
    (b"gif8", "a GIF"), (b"<svg", "an SVG drawing"), (b"<?xml", "an XML or SVG file"), (b"<!doc", "a web page"),
    (b"<html", "a web page"), (b"%pdf", "a PDF"), (b"\x93numpy", "a NumPy array"), (b"pk\x03\x04", "a zip archive"),
)  # fmt: skip


@dataclass(frozen=True)
class Inspected:
    """What a complete decoding tells: sides in pixels (upright), and a grey 32 x 32 thumbnail (uint8)."""

    width: int
    height: int
    thumbnail: np.ndarray


def decode(data: bytes, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole image in RGB: EXIF orientation applied, transparency over white, 16 bits brought to 8.

    Raises:
        TriptychError: not an image of an allowed format, incomplete, corrupt, too small or too large.
    """
    with _refusing(data):
        if (colours := _jpeg_colours(data, min_side, max_pixels)) is not None:
            pixels = simplejpeg.decode_jpeg(data, colours)
            image = Image.fromarray(pixels[..., 0] if colours == "GRAY" else pixels).convert("RGB")
            return image if (turn := _turn(data)) is None else image.transpose(turn)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, min_side, max_pixels)
            if image.mode in ("I", "F"):
                raise TriptychError(f"mode {image.mode} has no fixed brightness scale; convert it to 8 or 16 bits")
            image.load()
            upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(upright) // 257).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")


def inspect(data: bytes, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS) -> Inspected:
    """Decode an image strictly and to its end, and give its size and thumbnail.

    Of a JPEG every coefficient is read, but only a small grey image is built from them: as strict as full decoding,
    and twice as fast.

    Raises:
        TriptychError: as `decode`.
    """
    with _refusing(data):
        if _jpeg_colours(data, min_side, max_pixels) is not None:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            # Images below twice the thumbnail's side are decoded whole: a factor would make them too small.
            small = min(height, width) >= 2 * THUMBNAIL
            scale = {"min_height": THUMBNAIL, "min_width": THUMBNAIL, "min_factor": 2} if small else {}
            pixels = simplejpeg.decode_jpeg(data, "GRAY", **scale)
            # Quicker than fromarray, which counts where it takes a tenth of the whole.
            grey = Image.frombuffer("L", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "L", 0, 1)
            if (turn := _turn(data)) is not None:
                grey = grey.transpose(turn)
                width, height = (height, width) if turn in _ON_THEIR_SIDE else (width, height)
            return Inspected(width, height, _thumbnail(grey))
    image = decode(data, min_side, max_pixels)
    return Inspected(*image.size, _thumbnail(image.convert("L")))


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises into one TriptychError that says what the bytes are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except TriptychError:
        raise
    except Exception as error:  # decoders raise many types; each means that the image cannot be used
        raise TriptychError(_reason(data, error)) from None


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "no bytes"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, name in _STRANGERS:
        if start.startswith(mark):
            return f"is {name}, not one of {', '.join(FORMATS)}"
    return f"cannot be decoded: {type(error).__name__}: {error}"


def _jpeg_colours(data: bytes, min_side: int, max_pixels: int) -> str | None:
    """The colour space to decode a JPEG into; None for what Pillow has to decode (other formats, CMYK)."""
    if not data.startswith(b"\xff\xd8"):
        return None
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height, min_side, max_pixels)
    if colours in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK")  # strictly, which Pillow is not; it converts the colours
    return {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}.get(colours)


def _check_size(width: int, height: int, min_side: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TriptychError(f"{width} x {height} pixels, more than {max_pixels}")
    if min(width, height) < min_side:
        raise TriptychError(f"{width} x {height} pixels, a side below {min_side}")


def _turn(data: bytes) -> Image.Transpose | None:
    """What sets a JPEG upright, as its EXIF header says."""
    if b"Exif" not in data[:4096]:
        return None
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
        return _TURNS.get(header.getexif().get(_ORIENTATION))


def _thumbnail(grey: Image.Image) -> np.ndarray:
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.frombuffer(small.tobytes(), np.uint8).reshape(THUMBNAIL, THUMBNAIL)
