"""JPEG: its segments, its orientation, and strict decoding, in which damage to the scan alone refuses an image."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from triptych.data.formats.orientation import exif_orientation, xmp_orientation

_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_COMMON = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # frames of cosine coefficients; a lossless one overruns a scaled buffer
_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class Frame:
    """What a JPEG says before its scan.

    Attributes:
        width: in pixels, as stored.
        height: in pixels.
        bits: of a value.
        channels: of colour.
        common: whether the usual decoder may be given it.
        orientation: as EXIF or else XMP states it in any segment; None where neither does.
    """

    width: int
    height: int
    bits: int
    channels: int
    common: bool
    orientation: int | None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Give marker, start and end of each segment up to the scan, which is the last; bytes between them are passed."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # fills up
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
        elif marker in (_SCAN, _END):
            yield marker, at, len(data)
            return
        else:
            end = at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
            yield marker, at, end
            at = max(end, at + 4)


def read_frame(data: bytes) -> Frame:
    """Read what a JPEG says before its scan.

    Raises:
        ValueError: it has no frame header there.
    """
    found = exif = xmp = None
    for marker, start, end in _segments(data):
        if marker in _FRAMES and not found and end - start >= 10 and end <= len(data):
            bits, height, width, channels = struct.unpack(">BHHB", data[start + 4 : start + 10])
            found = (width, height, bits, channels, marker in _COMMON and bits == 8)
        elif marker == _APP1 and data[start + 4 : start + 9] == b"Exif\0":
            exif = exif or exif_orientation(data[start + 4 : end])
        elif marker == _APP1 and data.startswith(_XMP, start + 4):
            xmp = xmp or xmp_orientation(data[start + 4 : end])
    if found is None:
        raise ValueError("it has no frame header before its scan")
    return Frame(*found, exif or xmp)


def was_turned_wrongly(data: bytes) -> bool:
    """Tell whether earlier versions missed the orientation of a JPEG: `Exif` had to be in its first 4,096 bytes."""
    if not data.startswith(b"\xff\xd8"):
        return False
    try:
        frame = read_frame(data)
    except ValueError:
        return False
    return frame.channels in (1, 3) and (frame.orientation or 1) > 1 and b"Exif" not in data[:4096]


def decode(data: bytes, frame: Frame) -> Image.Image | np.ndarray:
    """Decode a JPEG strictly.

    Returns:
        An image of mode L, RGB or CMYK; of more than 8 bits, grey values (H, W), uint16.

    Raises:
        Exception: the scan is damaged, or no decoder here reads its kind; the type depends on the decoder.
    """
    data, colours = _readable(data)
    if colours is None or not frame.common:
        return _decode_rare(data, frame)
    if colours in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK")  # strictly, which Pillow is not; it converts the colours
        return _pillow(data)
    grey = colours == "Gray"
    pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB")
    return Image.fromarray(pixels[..., 0] if grey else pixels)


def decode_small_grey(data: bytes, frame: Frame, side: int) -> np.ndarray | None:
    """Read every coefficient as strictly as `decode`, and build a small grey image (H, W), at least `side`, of them.

    Returns:
        None where `decode` must judge: of rare kinds, and wherever this decoding fails.
    """
    try:
        if not frame.common or frame.channels not in (1, 3):
            return None
        # Images below twice the side are decoded whole: a factor would make them too small.
        small = min(frame.height, frame.width) >= 2 * side
        scale = {"min_height": side, "min_width": side, "min_factor": 2} if small else {}
        return simplejpeg.decode_jpeg(data, "GRAY", **scale)[..., 0]
    except ValueError:
        return None


def _readable(data: bytes) -> tuple[bytes, str | None]:
    """The bytes that the strict decoder is given, and the colours that it finds; None where it cannot read the kind.

    Where anything before the scan disturbs it (padding, a damaged ICC profile), all that says nothing about pixels is
    taken out.
    """
    try:
        return data, simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:
        data = _bare(data)
    try:
        return data, simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:
        return data, None


def _bare(data: bytes) -> bytes:
    """The JPEG without padding, comments and application segments, but for the two that say what its colours are."""
    kept = [data[:2]]
    for marker, start, end in _segments(data):
        body = data[start + 4 : start + 9]
        says_colours = (marker, body) in ((_APP0, b"JFIF\0"), (_APP14, b"Adobe"))
        if says_colours or not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
            kept.append(data[start:end])
    return b"".join(kept)


def _decode_rare(data: bytes, frame: Frame) -> Image.Image | np.ndarray:
    """Decode rare chroma samplings, lossless JPEGs and more than 8 bits; another strict decoder judges the scan."""
    import libjpeg

    values = libjpeg.decode(data)
    if frame.bits == 8:
        return _pillow(data)
    if values.ndim != 2:
        raise ValueError(f"colours of {frame.bits} bits")
    return values.astype(np.uint16)


def _pillow(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.load()
        return image
