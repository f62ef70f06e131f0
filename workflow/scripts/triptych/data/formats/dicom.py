"""One image out of a DICOM file: its values as the header's window shows them. Nothing else of the header is read."""

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from triptych.data.formats.depth import scaled
from triptych.data.formats.jpeg import read_frame
from triptych.errors import TriptychError

if TYPE_CHECKING:
    from pydicom import Dataset

_PRIMARIES = ("Red", "Green", "Blue")
# All that is read of a header. No field that names a person, place or time is among them: such are not even parsed.
_FIELDS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "PresentationLUTShape", "BurnedInAnnotation", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in _PRIMARIES for part in ("Descriptor", "Data")),
    "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_INFLATED = 500_000_000  # bytes
_GREY, _COLOURS = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(data: bytes, check_size: Callable[[int, int], None]) -> tuple[np.ndarray, list[str]]:
    """Read the first frame of a DICOM file as a viewer would first show it.

    Args:
        data: the file's bytes.
        check_size: raises for a width and height that are not wanted; called before pixels are decoded.

    Returns:
        Grey (H, W) or RGB (H, W, 3) values, uint8, and notes on how they came about.

    Raises:
        TriptychError: there is no image, it is of a kind that cannot be read here, or it is damaged. The message holds
            nothing of the header but names of its technical fields.
    """
    # A warning would carry a field's value into a log.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
        header = _read_header(data)
        rows, columns = header.get("Rows"), header.get("Columns")
        if "PixelData" not in header or not rows or not columns:
            raise TriptychError("is a DICOM file without an image (no pixel data); leave it out")
        check_size(columns, rows)
        values = _decoded(header)
        kind = str(header.get("PhotometricInterpretation", ""))
        notes = []
        if int(header.get("NumberOfFrames") or 1) > 1:
            notes.append("first frame of a DICOM of several")
        if header.get("BurnedInAnnotation") == "YES":
            notes.append("DICOM whose header says that text is burned into the image")
        try:
            if kind in _GREY and values.ndim == 2:
                shown, scale = _shown_grey(values, header, kind)
                return shown, [f"DICOM, grey {scale}", *notes]
            if kind == "PALETTE COLOR" and values.ndim == 2:
                return _shown_palette(values, header), ["DICOM, colours by its palette", *notes]
            if kind in _COLOURS and values.ndim == 3:
                return scaled(values, 2**header.BitsStored - 1), ["DICOM in colours", *notes]
        except TriptychError:
            raise
        except Exception:  # its message may hold values of the header
            raise TriptychError("cannot be decoded: the DICOM header's look-up table or window is damaged") from None
    name = kind if kind.replace(" ", "").replace("_", "").isalnum() and len(kind) <= 16 else "missing or damaged"
    raise TriptychError(f"is DICOM with the photometric interpretation {name}, which is not read; convert it to PNG")


def _read_header(data: bytes) -> "Dataset":
    """Read the fields of `_FIELDS`.

    Raises:
        TriptychError: they cannot be read.
    """
    import pydicom

    try:
        if _DEFLATED in data[132:4096]:  # pydicom would inflate without a limit
            _require_small_when_inflated(data)
        header = pydicom.dcmread(io.BytesIO(data), specific_tags=list(_FIELDS))
        for name in _FIELDS[:-3]:
            header.get(name)  # values are converted when they are asked for
        return header
    except TriptychError:
        raise
    except Exception as error:  # its message may hold values of the header
        raise TriptychError(f"cannot be decoded: the DICOM file is damaged ({type(error).__name__})") from None


def _require_small_when_inflated(data: bytes) -> None:
    length = struct.unpack("<I", data[140:144])[0]  # of the file meta information, which begins with it
    rest = zlib.decompressobj(-15)
    rest.decompress(data[144 + length :], _MOST_INFLATED)
    if rest.unconsumed_tail:
        raise TriptychError(f"is DICOM that inflates to more than {_MOST_INFLATED} bytes; refused")


def _decoded(header: "Dataset") -> np.ndarray:
    """Decode the first frame: grey (H, W), or RGB (H, W, 3).

    Raises:
        TriptychError: it cannot be decoded; of a compression that is not read here, the message names it.
    """
    from pydicom.pixels import get_decoder, pixel_array

    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        readable = syntax is not None and get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        name = "missing" if syntax is None else f"{syntax.name} ({syntax})" if syntax.is_transfer_syntax else "unknown"
        raise TriptychError(
            f"is DICOM with the transfer syntax {name}, which cannot be decoded here; write it with an uncompressed one"
        )
    try:
        if syntax.is_encapsulated:
            _require_stated_size(header)
        return pixel_array(header, index=0)
    except Exception as error:  # its message may hold values of the header
        raise TriptychError(
            f"cannot be decoded: the DICOM pixels ({syntax.name}) are damaged or of a rare variant "
            f"({type(error).__name__}); get the file again, or write it uncompressed"
        ) from None


def _require_stated_size(header: "Dataset") -> None:
    """Require a compressed frame to have the size that the header states: a larger one would be decoded first."""
    from pydicom.encaps import get_frame

    frame = get_frame(header.PixelData, 0, number_of_frames=int(header.get("NumberOfFrames") or 1))
    if frame.startswith(b"\xff\xd8"):
        found = read_frame(frame)
        width, height = found.width, found.height
    elif frame.startswith(b"\xff\x4f\xff\x51"):
        right, below, left, above = struct.unpack(">4I", frame[8:24])
        width, height = right - left, below - above
    else:
        return
    if (width, height) != (header.Columns, header.Rows):
        raise ValueError("a frame of another size")


def _shown_grey(values: np.ndarray, header: "Dataset", kind: str) -> tuple[np.ndarray, str]:
    """Bring stored grey values to bytes: modality (rescale), then window or range, then the sense of black."""
    padding = header.get("PixelPaddingValue")
    shown_part = values != padding if isinstance(padding, int) and not np.all(values == padding) else None
    plain = values
    if header.get("ModalityLUTSequence"):
        item = header.ModalityLUTSequence[0]
        values = _through_table(values, item.LUTDescriptor, _table(item.LUTData, item.LUTDescriptor, header))
    else:
        slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
        if slope not in (None, 1.0) or intercept not in (None, 0.0):
            values = values * (1.0 if slope is None else slope) + (intercept or 0.0)
    centre, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    function = _field(header, "VOILUTFunction") or "LINEAR"
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-9):
        shown, scale = _windowed(values, centre, width, str(function)), "by the header's window"
    elif header.get("VOILUTSequence"):
        item = header.VOILUTSequence[0]
        table = _table(item.LUTData, item.LUTDescriptor, header)
        values = np.round(values).astype(np.int64)
        shown = scaled(_through_table(values, item.LUTDescriptor, table), 2 ** item.LUTDescriptor[2] - 1)
        scale = "by the header's look-up table"
    elif header.BitsStored <= 8 and values is plain and not header.PixelRepresentation:
        shown, scale = scaled(values, 2**header.BitsStored - 1), "by the declared range of its bits"
    else:
        part = values if shown_part is None else values[shown_part]
        low, high = float(part.min()), float(part.max())
        shown = _rounded((values - low) / max(high - low, 1e-9) * 255)
        scale = "by the real range of its values: the header has no window"
    if (kind == "MONOCHROME1") or header.get("PresentationLUTShape") == "INVERSE":
        shown = 255 - shown
    return shown, scale


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Apply a window as the standard's part 3, C.11.2.1.2, defines it, from 0 to 255."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return _rounded(255 / (1 + np.exp((-4 * (values - centre) / width).clip(-700, 700))))
    if function == "LINEAR_EXACT":
        return _rounded(((values - centre) / width + 0.5) * 255)
    if width == 1:
        return np.where(values > centre - 0.5, 255, 0).astype(np.uint8)
    return _rounded(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.floor(values.clip(0, 255) + 0.5).astype(np.uint8)


def _shown_palette(values: np.ndarray, header: "Dataset") -> np.ndarray:
    channels = []
    for colour in _PRIMARIES:
        descriptor = header.get(f"{colour}PaletteColorLookupTableDescriptor")
        entries = header.get(f"{colour}PaletteColorLookupTableData")
        if descriptor is None or entries is None:
            raise TriptychError("is DICOM with a segmented or missing palette, which is not read; convert it to PNG")
        table = _table(entries, descriptor, header)
        channels.append(_through_table(values, descriptor, table))
    found = np.stack(channels, axis=-1)
    return scaled(found, 65535 if found.max() > 255 else 255)


def _table(entries: bytes | list[int] | int, descriptor: list[int], header: "Dataset") -> np.ndarray:
    """The entries of a look-up table, int64."""
    if isinstance(entries, bytes):
        number = descriptor[0] or 2**16
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        kind = f"{order}u2" if len(entries) >= 2 * number else "u1"
        entries = np.frombuffer(entries[: len(entries) // 2 * 2 if kind != "u1" else None], kind)
    return np.asarray(entries, dtype=np.int64).reshape(-1)


def _through_table(values: np.ndarray, descriptor: list[int], table: np.ndarray) -> np.ndarray:
    """Map values; those outside the table get its first or last entry."""
    return table[(values.astype(np.int64) - descriptor[1]).clip(0, len(table) - 1)]


def _field(header: "Dataset", name: str) -> object:
    """A field of the header, or of the groups in which enhanced files keep it, for the first frame or for all."""
    if name in header:
        return header.get(name)
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for item in (header.get(groups) or [])[:1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for inner in (item.get(macro) or [])[:1]:
                    if name in inner:
                        return inner.get(name)
    return None


def _number(header: "Dataset", name: str) -> float | None:
    """A field's first value as a finite number; None where there is none."""
    value = _field(header, name)
    if value is not None and not isinstance(value, (int, float)):  # several values
        value = next(iter(value), None)
    return float(value) if value is not None and math.isfinite(float(value)) else None
