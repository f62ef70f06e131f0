"""Grey values of more than 8 bits brought to 8."""

import numpy as np
from PIL import Image

_DEPTHS = (8, 10, 12, 14)  # that devices have; above, all 16 bits count


def is_scaled(kind: str, image: Image.Image, data: bytes) -> bool:
    """Tell whether Pillow brings grey values to the whole of 16 bits: those of a PGM or JPEG 2000 that declares fewer.

    Args:
        kind: format of the image.
        image: opened, not loaded.
        data: its file.
    """
    if kind == "PPM":
        return image.tile[0].codec_name != "raw"  # which is for 16 bits alone
    size = data.find(b"\xff\x4f\xff\x51")  # the marker of the code stream, with that of its sizes
    return kind == "JPEG2000" and size >= 0 and (data[size + 42] & 0x7F) + 1 < 16


def scaled(values: np.ndarray, high: int) -> np.ndarray:
    """Scale values from 0 to `high` to bytes from 0 to 255, rounded."""
    return ((values.astype(np.uint64) * 255 + high // 2) // high).clip(0, 255).astype(np.uint8)


def to_bytes(values: np.ndarray, declared: int | None = None) -> tuple[np.ndarray, str | None]:
    """Bring grey values stored in 16 bits to 8.

    Devices store 10, 12 or 14 bits in 16; taken for 16 bits, they would be all but black. So the scale is the largest
    value that the file declares or, where it declares none, the least usual depth that holds the image's values.

    Args:
        values: (H, W), uint16.
        declared: the largest value that the file declares for them; None where it declares nothing.

    Returns:
        (H, W), uint8, and what the scale was; None for the latter where all 16 bits count.
    """
    largest = int(values.max())
    if declared and largest <= declared < 2**15:
        return scaled(values, declared), "values in 16 bits, scaled by the range that the file declares"
    for bits in _DEPTHS:
        if largest < 2**bits:
            note = f"values in 16 bits, scaled by the {bits} bits that their real range needs"
            return scaled(values, 2**bits - 1), f"{note}: nothing narrower is declared"
    return (values // 257).astype(np.uint8), None
