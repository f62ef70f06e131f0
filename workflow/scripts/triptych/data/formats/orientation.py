"""How a stored image is set upright: one rule for all formats, EXIF first, and XMP where EXIF says nothing."""

import re

from PIL import Image

_TAG = 0x0112
_XMP = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([1-8])""")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def exif_orientation(exif: bytes) -> int | None:
    """Read the orientation of an EXIF block, which begins with `Exif`; None where there is none, or it is damaged."""
    found = Image.Exif()
    try:
        found.load(exif)
        return _known(found.get(_TAG))
    except Exception:  # Pillow raises many types; a damaged block says nothing about pixels
        return None


def xmp_orientation(xmp: bytes) -> int | None:
    """Read the orientation of an XMP packet; None where there is none."""
    match = _XMP.search(xmp)
    return int(match[1]) if match else None


def orientation_of(image: Image.Image) -> int | None:
    """Read the orientation of a loaded image that Pillow opened; None where it has none, or was turned on loading."""
    try:
        exif = _known(image.getexif().get(_TAG))
    except Exception:  # as above
        exif = None
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return exif or xmp_orientation(xmp.encode() if isinstance(xmp, str) else xmp)


def _known(value: object) -> int | None:
    return value if isinstance(value, int) and 1 <= value <= 8 else None
