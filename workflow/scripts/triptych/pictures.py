"""Decoding of pictures: complete, bounded, always RGB and upright."""

import io
import warnings

from PIL import Image, ImageOps

from triptych.storage import TriptychError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MIN_SIDE = 8
MAX_PIXELS = 50_000_000


def decode(data: bytes) -> Image.Image:
    """The whole picture in RGB: EXIF orientation applied, transparency over white.

    Raises:
        TriptychError: not a picture of an allowed format, incomplete, too small or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise TriptychError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
                if min(picture.size) < MIN_SIDE:
                    raise TriptychError(f"{picture.width} x {picture.height} pixels, a side below {MIN_SIDE}")
                if picture.mode.startswith(("I", "F")):
                    raise TriptychError(f"mode {picture.mode} has no fixed brightness scale; convert it to 8 bits")
                picture.load()
                upright = ImageOps.exif_transpose(picture)
    except TriptychError:
        raise
    except Exception as error:  # Pillow's decoders raise many types; each means the picture cannot be used
        raise TriptychError(f"cannot be decoded: {type(error).__name__}: {error}") from None
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")
