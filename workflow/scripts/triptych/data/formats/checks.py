"""Damage that Pillow passes over: checksums of PNG, and the runs of compressed BMP."""

import struct
import zlib

from triptych.errors import TriptychError


def check_png(data: bytes) -> dict[bytes, bytes]:
    """Compare all chunks of a PNG with their checksums, up to its end.

    Returns:
        The chunks that say what pixels mean (IHDR, PLTE, sBIT), by name.

    Raises:
        TriptychError: a chunk is damaged or cut off, the end or the palette is missing.
    """
    found, at = {}, 8
    while True:
        length = int.from_bytes(data[at : at + 4], "big")
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise TriptychError("cannot be decoded: the PNG is cut off; get it again")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            shown = name.decode("ascii", "replace") if name.isalpha() else "unknown"
            raise TriptychError(f"cannot be decoded: the PNG's chunk {shown} differs from its checksum; get it again")
        if name in (b"IHDR", b"PLTE", b"sBIT"):
            found[name] = data[at + 8 : end - 4]
        if name == b"IEND":
            break
        at = end
    if len(found.get(b"IHDR", b"")) != 13:
        raise TriptychError("cannot be decoded: the PNG has no header; get it again")
    if found[b"IHDR"][9] == 3 and not found.get(b"PLTE"):
        raise TriptychError("cannot be decoded: the PNG lacks the palette that its colours refer to; get it again")
    return found


def check_bmp(data: bytes) -> None:
    """Follow the runs of a compressed BMP: all within the image, up to its end mark.

    Raises:
        TriptychError: they are not.
    """
    if len(data) < 34 or data[14] < 40:
        return  # an older header, without compression, or no header at all: Pillow says so
    start = int.from_bytes(data[10:14], "little")
    width, height, _, bits, compression = struct.unpack("<iiHHI", data[18:34])
    if compression not in (1, 2):
        return
    at, x, y = start, 0, 0
    while at + 2 <= len(data):
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            x += count
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            return
        elif value == 2 and at + 2 <= len(data):
            x, y, at = x + data[at], y + data[at + 1], at + 2
        elif value > 2:
            x += value
            taken = value if bits == 8 else (value + 1) // 2
            at += taken + taken % 2
        if x > width or y > abs(height) or (x and y == abs(height)):
            break
    raise TriptychError("cannot be decoded: the runs of the compressed BMP do not fit the image; get it again")
