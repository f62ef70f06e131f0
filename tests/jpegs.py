"""Two small JPEG encoders, for files that Pillow does not write: any chroma sampling, and lossless of 2 to 16 bits."""

import struct
from collections.abc import Sequence

import numpy as np
from scipy.fft import dctn

_ZERO_TO = bytes(range(255))  # symbols of the Huffman codes
_ZIGZAG = sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))


def _code(kind: int, symbols: int) -> bytes:
    """A Huffman table whose codes are the symbols themselves, of 8 bits each; the one of all ones is not used."""
    return _segment(0xC4, bytes([kind, *[0] * 7, symbols, *[0] * 8]) + _ZERO_TO[:symbols])


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


class _Bits:
    def __init__(self) -> None:
        self.parts: list[str] = []

    def symbol(self, value: int) -> None:
        self.parts.append(f"{value:08b}")

    def signed(self, value: int, size: int) -> None:
        if size:
            self.parts.append(f"{value if value > 0 else value + (1 << size) - 1:0{size}b}")

    def data(self) -> bytes:
        bits = "".join(self.parts)
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def baseline_jpeg(planes: Sequence[np.ndarray], size: tuple[int, int], samplings: Sequence[tuple[int, int]]) -> bytes:
    """Encode planes (uint8, each of its own sampled size), with quantisation by 1, as a baseline JPEG.

    Args:
        planes: Y, Cb, Cr; padded here to whole units by their edges.
        size: width and height of the image.
        samplings: (horizontal, vertical) factor of each plane.
    """
    most = tuple(max(values) for values in zip(*samplings, strict=True))
    units = tuple(-(-side // (8 * factor)) for side, factor in zip(size, most, strict=True))
    padded = []
    for plane, (across, down) in zip(planes, samplings, strict=True):
        wide, high = units[0] * across * 8, units[1] * down * 8
        padded.append(
            np.pad(plane, ((0, high - plane.shape[0]), (0, wide - plane.shape[1])), mode="edge").astype(float)
        )
    bits, before = _Bits(), [0] * len(planes)
    for row in range(units[1]):
        for column in range(units[0]):
            for number, (plane, (across, down)) in enumerate(zip(padded, samplings, strict=True)):
                for y in range(row * down, (row + 1) * down):
                    for x in range(column * across, (column + 1) * across):
                        block = plane[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] - 128
                        before[number] = _block(bits, block, before[number])
    components = b"".join(bytes([n + 1, across << 4 | down, 0]) for n, (across, down) in enumerate(samplings))
    frame = struct.pack(">BHHB", 8, size[1], size[0], len(planes)) + components
    head = b"\xff\xd8" + _segment(0xDB, bytes([0] + [1] * 64)) + _segment(0xC0, frame)
    head += _code(0x00, 16) + _code(0x10, 255)
    return head + _scan(len(planes), b"\x00\x3f\x00") + bits.data() + b"\xff\xd9"


def lossless_jpeg(values: np.ndarray, precision: int) -> bytes:
    """Encode grey values (H, W) of `precision` bits as a lossless JPEG (process 14, first predictor)."""
    values = values.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits = _Bits()
    for difference in (values - predicted).ravel().tolist():
        difference = (difference + 32767) % 65536 - 32767
        size = abs(difference).bit_length()
        bits.symbol(size)
        bits.signed(difference, size if size < 16 else 0)  # 32768 alone has 16, and is said by that
    frame = struct.pack(">BHHB", precision, *values.shape, 1) + b"\x01\x11\x00"
    head = b"\xff\xd8" + _segment(0xC3, frame) + _code(0x00, 17)
    return head + _scan(1, b"\x01\x00\x00") + bits.data() + b"\xff\xd9"


def _scan(planes: int, last: bytes) -> bytes:
    return _segment(0xDA, bytes([planes]) + b"".join(bytes([n + 1, 0]) for n in range(planes)) + last)


def _block(bits: _Bits, block: np.ndarray, before: int) -> int:
    """Encode one block of 8 x 8; give its mean coefficient, which the next one of its plane is told from."""
    found = np.round(dctn(block, norm="ortho")).astype(int)
    mean = int(found[0, 0])
    size = abs(mean - before).bit_length()
    bits.symbol(size)
    bits.signed(mean - before, size)
    zeros = 0
    for at in _ZIGZAG[1:]:
        value = int(found[at])
        if not value:
            zeros += 1
            continue
        while zeros > 15:
            bits.symbol(0xF0)
            zeros -= 16
        size = abs(value).bit_length()
        bits.symbol(zeros << 4 | size)
        bits.signed(value, size)
        zeros = 0
    if zeros:
        bits.symbol(0)
    return mean
