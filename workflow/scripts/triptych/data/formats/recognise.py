"""What bytes are, by their first bytes and never by a file's name; and what to do about those that are not read."""

from PIL import features

from triptych.errors import message_of

# The names are those of Pillow's readers, where one reads the format.
READ = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM", "TGA", "DICOM")
FORMATS = (*READ, "AVIF") if features.check("avif") else READ
SUFFIXES_OF = {
    "JPEG": ("jpg", "jpeg"), "PNG": ("png",), "WEBP": ("webp",), "BMP": ("bmp",), "TIFF": ("tif", "tiff"),
    "GIF": ("gif",), "AVIF": ("avif",), "JPEG2000": ("jp2", "j2k", "j2c", "jpc"),
    "PPM": ("pnm", "ppm", "pgm", "pbm"), "TGA": ("tga",), "DICOM": ("dcm", "dicom"),
}  # fmt: skip
# Of image members in shards, in which nothing else tells images from other members.
SUFFIXES = tuple(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)

_MARKS = {
    b"\xff\xd8": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000", b"\xff\x4f\xff\x51": "JPEG2000",
}  # fmt: skip

_CONVERT = "convert it to PNG"
# What is found in an image's place: how its bytes begin (lower case), what it is, what to do.
_STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in the folder it came from"),
    (b"/annex/objects", "a git-annex pointer", "run `git annex get` in the folder it came from"),
    (b"<svg", "an SVG drawing", _CONVERT), (b"<?xml", "an XML or SVG file", "put the image in its place"),
    (b"<!doc", "a web page (HTML)", "download the image itself"),
    (b"<html", "a web page (HTML)", "download the image itself"),
    (b"<head", "a web page (HTML)", "download the image itself"),
    (b"%pdf", "a PDF", _CONVERT), (b"\x93numpy", "a NumPy array", _CONVERT),
    (b"pk\x03\x04", "a zip archive", "unpack it"), (b"\x1f\x8b", "a gzip file", "unpack it"),
    (b"\xff\x0a", "a JPEG XL image", _CONVERT), (b"\0\0\0\x0cjxl ", "a JPEG XL image", _CONVERT),
    (b"8bps", "a Photoshop file", _CONVERT), (b"\x76\x2f\x31\x01", "an OpenEXR image", _CONVERT),
    (b"p7\n", "a PAM image", _CONVERT), (b"pf\n", "a PFM image, which has no fixed brightness scale", _CONVERT),
    (b"nrrd0", "an NRRD volume", "cut slices out of it as PNG"),
    (b"\x5c\x01\0\0", "a NIfTI volume", "cut slices out of it as PNG"),
    (b"\x08\0\x05\0", "a DICOM file without preamble", "write it again with its preamble and file meta information"),
    (b"\x08\0\0\0", "a DICOM file without preamble", "write it again with its preamble and file meta information"),
    (b"\x02\0\0\0", "a DICOM file without preamble", "write it again with its preamble and file meta information"),
    (b"{", "a JSON text", "put the image in its place"),
)  # fmt: skip


def format_of(data: bytes) -> str | None:
    """Name the format of an image, as in `READ`, or AVIF or HEIC; None where it is none of them."""
    if data[128:132] == b"DICM":  # first: files that are TIFF, too, have a DICOM header all the same
        return "DICOM"
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 64)]
        return "AVIF" if b"avif" in brands or b"avis" in brands else "HEIC" if brands[:3] in _HEIC else None
    return "TGA" if _is_tga(data) else None


_HEIC = (b"hei", b"hev", b"mif", b"msf")  # how the brands of HEIC begin


def _is_tga(data: bytes) -> bool:
    """Whether the header is one of TGA, which has no mark: its few possible values, and a palette where one is used."""
    if len(data) < 18:
        return False
    palette, kind, depth, rest = data[1], data[2], data[16], data[17]
    depths = {1: (8,), 2: (16, 24, 32), 3: (8, 16), 9: (8,), 10: (16, 24, 32), 11: (8, 16)}
    wide, high = int.from_bytes(data[12:14], "little"), int.from_bytes(data[14:16], "little")
    return depth in depths.get(kind, ()) and palette == (kind in (1, 9)) and not rest & 0xC0 and wide > 0 < high


def describe_unusable(data: bytes, error: Exception | None = None) -> str:
    """Say what bytes are that cannot be used as an image, and what to do: the same words for equal bytes.

    Args:
        data: the bytes.
        error: what the decoder said; None where no decoder was tried.
    """
    if not data:
        return "no bytes"
    name = format_of(data)
    if name in FORMATS:
        said = message_of(error) if error else "damaged"
        if name == "TIFF" and type(error).__name__ == "UnidentifiedImageError":
            return f"is a TIFF of a variant that is not read (compression, bits or layout of its values); {_CONVERT}"
        return f"cannot be decoded: a {name} image that is damaged or of a rare variant ({said}); get it again"
    if name:  # AVIF where this Pillow lacks it, and HEIC
        return f"is an image of format {name}, which is not read here; {_CONVERT}"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").lower()
    for mark, what, remedy in _STRANGERS:
        if data.lower().startswith(mark) or start.startswith(mark):
            return f"is {what}, not an image that is read here; {remedy}"
    return f"cannot be decoded: no image of a format that is read here ({', '.join(FORMATS)})"
