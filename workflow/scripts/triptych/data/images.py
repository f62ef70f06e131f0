"""Decoding of images: complete, bounded, always RGB and upright. Here is said what an image is, and if it is used.

`read` alone judges: `decode` and `inspect` give what it gives, and `inspect` only takes a shorter way to the same
verdict where a JPEG's is certain.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, TiffImagePlugin

from triptych.data.formats import jpeg
from triptych.data.formats.checks import check_bmp, check_png
from triptych.data.formats.depth import is_scaled, to_bytes
from triptych.data.formats.dicom import read_dicom
from triptych.data.formats.orientation import TURNS, orientation_of
from triptych.data.formats.recognise import FORMATS, describe_unusable, format_of
from triptych.errors import TriptychError

MIN_SIDE, MAX_PIXELS = 8, 50_000_000
THUMBNAIL = 32  # side in pixels, as in pHash and in the nearest-neighbour baseline
_ON_THEIR_SIDE = (5, 6, 7, 8)  # orientations that change width for height
_DARK_COLOURS = 64  # of 256: colours in 16 bits that are all darker are of fewer bits
_WHITE_IS_ZERO = 0


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        image: upright, with 8 bits a channel, in any mode.
        notes: what was decided that another reader might have decided otherwise.
        as_stored: False where it must be kept as PNG: the file holds more than the image (a DICOM header), or plain
            readers would show something else.
    """

    image: Image.Image
    notes: tuple[str, ...] = ()
    as_stored: bool = True


@dataclass(frozen=True)
class Inspected:
    """What a complete decoding tells.

    Attributes:
        width: in pixels, of the upright image.
        height: in pixels.
        thumbnail: grey, 32 x 32, uint8.
        data: the bytes to keep: the file's own, or a PNG where `Picture.as_stored` is False.
        notes: as of `Picture`.
    """

    width: int
    height: int
    thumbnail: np.ndarray
    data: bytes
    notes: tuple[str, ...] = ()


def decode(data: bytes, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the whole image in RGB: orientation applied, transparency over white, more than 8 bits brought to 8.

    Raises:
        TriptychError: not an image of an allowed format, incomplete, corrupt, too small or too large.
    """
    with _refusing(data):
        return _in_rgb(read(data, min_side, max_pixels).image)


def inspect(data: bytes, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS) -> Inspected:
    """Decode an image strictly and to its end, and give its size, its thumbnail and the bytes to keep.

    Of a JPEG every coefficient is read, but only a small grey image is built from them: as strict as full decoding,
    and twice as fast.

    Raises:
        TriptychError: as `decode`.
    """
    with _refusing(data):
        if (found := _inspect_jpeg(data, min_side, max_pixels)) is not None:
            return found
        picture = read(data, min_side, max_pixels)
        if not picture.as_stored:
            buffer = io.BytesIO()
            picture.image.save(buffer, "PNG")
            data = buffer.getvalue()
        return Inspected(*picture.image.size, _thumbnail(_in_rgb(picture.image).convert("L")), data, picture.notes)


def read(data: bytes, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image of any format: the one place that says what bytes are as an image, or that they are none.

    Raises:
        TriptychError: they are not used, for the reason that it gives.
        Exception: whatever a decoder raises; it means the same.
    """
    kind = format_of(data)
    if kind not in FORMATS:
        raise TriptychError(describe_unusable(data))
    if kind == "DICOM":
        pixels, notes = read_dicom(data, lambda *size: _check_size(*size, min_side, max_pixels))
        return Picture(Image.fromarray(pixels), tuple(notes), as_stored=False)
    if kind == "JPEG":
        frame = jpeg.read_frame(data)
        _check_size(frame.width, frame.height, min_side, max_pixels)
        found = jpeg.decode(data, frame)
        turn = TURNS.get(frame.orientation)
        if isinstance(found, np.ndarray):
            return _grey(found, 2**frame.bits - 1, turn)
        return Picture(found if turn is None else found.transpose(turn))
    return _read_by_pillow(data, kind, min_side, max_pixels)


def is_image(data: bytes) -> bool:
    """Tell whether bytes begin as an image; whether they are one to their end is for `inspect`."""
    return format_of(data) in FORMATS


def _read_by_pillow(data: bytes, kind: str, min_side: int, max_pixels: int) -> Picture:
    chunks = check_png(data) if kind == "PNG" else {}
    if kind == "BMP":
        check_bmp(data)
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        _check_size(*image.size, min_side, max_pixels)
        deep = image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM")
        if not deep and image.mode in ("I", "F"):
            raise TriptychError(f"mode {image.mode} has no fixed brightness scale; convert it to 8 or 16 bits")
        notes = (f"first frame of a {kind} of several",) if getattr(image, "is_animated", False) else ()
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        scaled = deep and is_scaled(kind, image, data)
        image.load()
        turn = TURNS.get(orientation_of(image))
        if deep:
            values, inverted = np.asarray(image), tags.get(262) == _WHITE_IS_ZERO
            return _grey(values, _declared(chunks, tags), turn, notes, inverted, all_bits=scaled)
        bits = chunks[b"IHDR"][8] if kind == "PNG" else max(tags.get(258, (8,)))
        if bits == 16:
            _require_all_bits(image)
        return Picture(image.copy() if turn is None else image.transpose(turn), notes)


def _grey(
    values: np.ndarray,
    declared: int | None,
    turn: Image.Transpose | None,
    notes: tuple[str, ...] = (),
    inverted: bool = False,
    all_bits: bool = False,
) -> Picture:
    """Grey values of more than 8 bits as a picture; `all_bits` where they were brought to all 16."""
    pixels, note = ((values // 257).astype(np.uint8), None) if all_bits else to_bytes(values, declared)
    image = Image.fromarray(255 - pixels if inverted else pixels)
    notes += (note,) if note else ()
    return Picture(image if turn is None else image.transpose(turn), notes, as_stored=not note and not inverted)


def _declared(chunks: dict[bytes, bytes], tags: dict) -> int | None:
    """The largest grey value that a PNG (sBIT) or TIFF (BitsPerSample, MaxSampleValue) declares; None for none."""
    if b"sBIT" in chunks:
        return 2 ** chunks[b"sBIT"][0] - 1
    bits = tags.get(258, (16,))[0]
    value = tags.get(281, tags.get(341, (0,)))
    value = value[0] if isinstance(value, tuple) else value
    return 2**bits - 1 if bits < 16 else int(value) or None


def _require_all_bits(image: Image.Image) -> None:
    """Refuse colours in 16 bits that use few of them: of the 8 that are kept, nearly none would be left.

    Raises:
        TriptychError: they do.
    """
    if max(high for _, high in image.convert("RGB").getextrema()) < _DARK_COLOURS:
        raise TriptychError("its colours are stored in 16 bits, but use 14 or fewer of them; convert it to 8 bits")


def _inspect_jpeg(data: bytes, min_side: int, max_pixels: int) -> Inspected | None:
    """Inspect a JPEG the quick way; None where `read` has to judge."""
    if format_of(data) != "JPEG":
        return None
    frame = jpeg.read_frame(data)
    _check_size(frame.width, frame.height, min_side, max_pixels)
    pixels = jpeg.decode_small_grey(data, frame, THUMBNAIL)
    if pixels is None:
        return None
    # Quicker than fromarray, which counts where it takes a tenth of the whole.
    grey = Image.frombuffer("L", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "L", 0, 1)
    width, height = frame.width, frame.height
    if frame.orientation in TURNS:
        grey = grey.transpose(TURNS[frame.orientation])
        width, height = (height, width) if frame.orientation in _ON_THEIR_SIDE else (width, height)
    return Inspected(width, height, _thumbnail(grey), data)


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises into one TriptychError that says what the bytes are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged metadata, which say nothing about pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except TriptychError:
        raise
    except Exception as error:  # decoders raise many types; each means that the image cannot be used
        raise TriptychError(describe_unusable(data, error)) from None


def _check_size(width: int, height: int, min_side: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TriptychError(f"{width} x {height} pixels, more than {max_pixels}")
    if min(width, height) < min_side:
        raise TriptychError(f"{width} x {height} pixels, a side below {min_side}")


def _in_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _thumbnail(grey: Image.Image) -> np.ndarray:
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.frombuffer(small.tobytes(), np.uint8).reshape(THUMBNAIL, THUMBNAIL)
