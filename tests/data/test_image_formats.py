"""What an image is, of every format: verdicts, orientation, depth, reasons."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from jpegs import baseline_jpeg, lossless_jpeg
from PIL import Image
from triptych.data.formats.recognise import FORMATS
from triptych.data.images import decode, inspect
from triptych.errors import TriptychError
from verdicts import refused, verdicts

HEIGHT, WIDTH = 64, 96
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
GREY = (2 * ROWS + COLUMNS).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 30, (HEIGHT, WIDTH, 3))
    colours = np.stack([GREY, 255 - 3 * ROWS, 220 - GREY // 2], -1) // 2
    return Image.fromarray((colours + noise).astype(np.uint8))


def accepted(data: bytes) -> np.ndarray:
    assert verdicts(data) == [None, None]
    pixels, found = np.asarray(decode(data)), inspect(data)
    assert pixels.shape == (found.height, found.width, 3) and pixels.dtype == np.uint8
    assert np.array_equal(np.asarray(decode(found.data)), pixels), "what is kept shows the same"
    return pixels


# JPEG


@pytest.mark.parametrize(
    "samplings",
    [
        [(4, 2), (1, 1), (1, 1)],
        [(3, 1), (1, 1), (1, 1)],
        [(2, 4), (1, 1), (1, 1)],
        [(2, 2), (1, 2), (2, 1)],  # mixed
        [(1, 1), (2, 2), (1, 1)],  # colours finer than brightness
        [(4, 1), (2, 1), (1, 1)],
    ],
)
def test_jpegs_of_rare_samplings_are_read(samplings):
    most = [max(values) for values in zip(*samplings, strict=True)]
    no_colour = np.full_like(GREY, 128)
    planes = [
        plane[:: -(-most[1] // down), :: -(-most[0] // across)]
        for plane, (across, down) in zip([GREY, no_colour, no_colour], samplings, strict=True)
    ]
    pixels = accepted(baseline_jpeg(planes, (WIDTH, HEIGHT), samplings))
    if samplings[0] == tuple(most):  # else brightness is not stored at full size
        assert np.abs(pixels.astype(int) - GREY[..., None]).max() <= 2


def test_rare_samplings_are_refused_where_their_scan_is_damaged():
    samplings = [(4, 2), (1, 1), (1, 1)]
    planes = [GREY, np.full((HEIGHT // 2, WIDTH // 4), 90, np.uint8), np.full((HEIGHT // 2, WIDTH // 4), 150, np.uint8)]
    data = baseline_jpeg(planes, (WIDTH, HEIGHT), samplings)
    accepted(data)
    refused(data[:-300])
    refused(data[:-300] + b"\xff\x00" * 10 + data[-280:])  # a code that its table lacks
    refused(data[:-300] + b"\xff\xd3\x12\xff\x99" + data[-295:])


def before_tables(data: bytes, more: bytes) -> bytes:
    at = data.index(b"\xff\xdb")
    return data[:at] + more + data[at:]


ICC = b"\xff\xe2" + struct.pack(">H", 20) + b"ICC_PROFILE\0\x02\x01abcd"  # part 2 of 1


def test_what_disturbs_before_the_scan_costs_no_jpeg_and_damage_within_does():
    whole = encoded(photo(), "JPEG", quality=90)
    expected = np.asarray(decode(whole))
    scan = whole.index(b"\xff\xda")
    for data in (
        before_tables(whole, b"\0\0\0"),
        before_tables(whole, b"\xff\xff\xff"),
        before_tables(whole, b"\x12\xff\x00\x34"),
        before_tables(whole, ICC),
        whole[:scan] + ICC + whole[scan:],
        before_tables(whole, b"\xff\xe1" + struct.pack(">H", 10) + b"Exif\0\0ab"),  # a damaged EXIF block
    ):
        assert np.array_equal(accepted(data), expected)
        broken = data[:-300] + b"\x12\x34\x56\xff\x99" + data[-295:]
        with pytest.raises(ValueError):
            simplejpeg.decode_jpeg(whole[:-300] + b"\x12\x34\x56\xff\x99" + whole[-295:])
        refused(broken)
        refused(data[:-300])


def test_cmyk_jpegs_keep_their_colours_behind_padding():
    whole = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    assert np.array_equal(accepted(before_tables(whole, b"\0\0")), accepted(whole))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_lossless_jpegs_are_read_by_both(bits):
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 37) % 2**bits
    pixels = accepted(lossless_jpeg(values, bits))
    assert np.abs(pixels[..., 0] - values / (2**bits - 1) * 255).max() <= (1 if bits == 16 else 0.5)


# Orientation


XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description {}/></rdf:RDF></x:xmpmeta>"""


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@pytest.mark.parametrize("before", [0, 5_000, 60_000, 3 * 65_000])
def test_exif_is_found_behind_any_segment(before):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(photo(), "JPEG")
    filling = b"".join(segment(0xE5, bytes(min(65_000, before - at))) for at in range(0, before, 65_000))
    data = plain[:2] + filling + segment(0xE1, exif.tobytes()) + plain[2:]
    assert np.array_equal(accepted(data), np.rot90(np.asarray(decode(plain)), -1))
    assert (inspect(data).width, inspect(data).height) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("said", ['tiff:Orientation="6"', "tiff:Orientation='6'"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_one_rule_for_xmp_in_all_formats(kind, said):
    xmp = XMP.format(said).encode()
    upright = np.rot90(np.asarray(photo()), -1)
    if kind == "PNG":
        body = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        plain = encoded(photo(), "PNG")
        data = plain[:33] + chunk(b"iTXt", body) + plain[33:]
    else:
        data = encoded(photo(), kind, xmp=xmp, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    pixels = accepted(data)
    assert pixels.shape == upright.shape and np.abs(pixels.astype(int) - upright).mean() < 8


def test_exif_comes_before_xmp():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(photo(), "JPEG", exif=exif, xmp=XMP.format('tiff:Orientation="6"').encode())
    assert np.array_equal(accepted(data), np.rot90(np.asarray(decode(encoded(photo(), "JPEG"))), 2))


# More than 8 bits


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(values: np.ndarray, kind: int = 0, bits: int = 16, *chunks: bytes) -> bytes:
    """A PNG of big-endian rows as they are."""
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def values_up_to(largest: int) -> np.ndarray:
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 613) % (largest + 1)
    values[0, 0] = largest
    return values


@pytest.mark.parametrize(("largest", "bits"), [(4095, 12), (3000, 12), (1000, 10), (255, 8), (16383, 14)])
def test_few_bits_in_16_fill_the_range(largest, bits):
    values = values_up_to(largest)
    expected = np.round(values / (2**bits - 1) * 255)
    for data in (
        png(values.astype(">u2")),
        encoded(Image.fromarray(values.astype(np.uint16)), "TIFF"),
        encoded(Image.fromarray(values.astype(np.uint16)), "TIFF", compression="tiff_lzw"),
    ):
        assert np.abs(accepted(data)[..., 0] - expected).max() <= 1
        assert inspect(data).notes == (
            f"values in 16 bits, scaled by the {bits} bits that their real range needs: nothing narrower is declared",
        )


def test_a_file_that_declares_all_16_bits_is_read_by_its_values():
    values = values_up_to(4095)
    expected = np.round(values / 4095 * 255)
    for data in (
        png(values.astype(">u2"), 0, 16, chunk(b"sBIT", b"\x10")),
        encoded(Image.fromarray(values.astype(np.uint16)), "TIFF", tiffinfo={281: 65535}),
    ):
        assert np.abs(accepted(data)[..., 0] - expected).max() <= 1
        assert "12 bits that their real range needs" in inspect(data).notes[0]


def test_all_16_bits_are_read_as_before():
    values = values_up_to(65535)
    data = png(values.astype(">u2"))
    assert np.array_equal(accepted(data)[..., 0], values // 257)
    assert inspect(data).notes == () and inspect(data).data == data


def test_the_declared_range_comes_first():
    values = values_up_to(900)
    data = png(values.astype(">u2"), 0, 16, chunk(b"sBIT", b"\x0c"))
    assert np.abs(accepted(data)[..., 0] - np.round(values / 4095 * 255)).max() <= 1
    assert inspect(data).notes == ("values in 16 bits, scaled by the range that the file declares",)
    tiff = encoded(Image.fromarray(values.astype(np.uint16)), "TIFF", tiffinfo={281: 2000})
    assert np.abs(accepted(tiff)[..., 0] - np.round(values / 2000 * 255)).max() <= 1
    scaled = png((values_up_to(4095) * 16).astype(">u2"), 0, 16, chunk(b"sBIT", b"\x0c"))
    assert accepted(scaled).max() == 254, "as the standard has it, values were brought to 16 bits"


def test_pgm_of_12_bits_has_its_declared_range():
    values = values_up_to(900)
    data = b"P5\n96 64\n4095\n" + values.astype(">u2").tobytes()
    assert np.abs(accepted(data)[..., 0] - values / 4095 * 255).max() <= 1


@pytest.mark.parametrize("kind", ["PPM", "JPEG2000"])
@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (900, 10), (3000, 12), (16000, 14)])
def test_few_bits_in_files_that_declare_16_fill_the_range(kind, largest, bits):
    values = values_up_to(largest)
    data = encoded(Image.fromarray(values.astype(np.uint16)), kind)
    assert np.abs(accepted(data)[..., 0] - values / (2**bits - 1) * 255).max() <= 1
    assert f"scaled by the {bits} bits" in inspect(data).notes[0]


def test_dark_images_of_declared_12_bits_stay_dark():
    values = values_up_to(200)
    data = b"P5\n96 64\n4095\n" + values.astype(">u2").tobytes()
    assert accepted(data).max() == 12 and inspect(data).notes == ()


def test_white_is_zero_is_turned_in_16_bits_as_in_8():
    values = values_up_to(65535)
    normal = encoded(Image.fromarray(values.astype(np.uint16)), "TIFF")
    # The entry of tag 262, a short of value 1, becomes 0.
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert normal.count(entry) == 1
    data = normal.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    assert np.array_equal(accepted(data)[..., 0], 255 - values // 257)


def test_colours_of_few_bits_in_16_are_refused():
    values = np.stack([values_up_to(4095)] * 3, -1).astype(">u2")
    assert "stored in 16 bits" in refused(png(values, kind=2))
    values = values_up_to(4095)[..., None] * [16, 16, 16]  # brought to 16 bits
    assert np.array_equal(accepted(png(values.astype(">u2"), kind=2))[..., 0], values_up_to(4095) // 16)


# Checksums, and what has none


def test_every_chunk_of_a_png_is_compared_with_its_checksum():
    whole = encoded(photo(), "PNG")
    accepted(whole)
    at = whole.index(b"IDAT")
    for place in (at + 50, len(whole) - 30):
        data = bytearray(whole)
        data[place] ^= 1
        assert "differs from its checksum" in refused(bytes(data))
    end = at + 4 + int.from_bytes(whole[at - 4 : at], "big")
    wrong = whole[:end] + bytes(4) + whole[end + 4 :]
    assert "chunk IDAT differs from its checksum" in refused(wrong)
    assert "cut off" in refused(whole[:-12]), "without its end"
    refused(whole[:-60])
    accepted(whole + b"trailing")


def test_a_png_without_its_palette_is_refused():
    assert "palette" in refused(png(GREY, kind=3, bits=8))


def bmp_runs(runs: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 16, 8, 1, 8, 1, len(runs), 0, 0, 256, 0)
    palette = b"".join(bytes([n, n, n, 0]) for n in range(256))
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(runs), 0, 0, 54 + 1024) + header + palette + runs


def test_compressed_bmps_must_fit_their_image():
    line = b"\x08\x10\x08\xf0\0\0"
    good = bmp_runs(line * 8 + b"\0\1")
    assert accepted(good)[0, :, 0].tolist() == [16] * 8 + [240] * 8
    assert "do not fit" in refused(bmp_runs(b"\x18\x10\0\0" * 8 + b"\0\1")), "runs over the edge"
    assert "do not fit" in refused(bmp_runs(line * 9 + b"\0\1")), "more lines than rows"
    assert "do not fit" in refused(bmp_runs(line * 3)), "no end"
    accepted(
        bmp_runs((b"\x08\x10\0\x08" + bytes(range(100, 108)) + b"\0\0") * 8 + b"\0\1")
    )  # plain values between runs


# Formats


LOSSLESS = {
    "GIF": {},
    "JPEG2000": {"irreversible": False},
    "PPM": {},
    "TGA": {},
    "BMP": {},
    "TIFF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_their_pixels(kind):
    image = photo().quantize(64).convert("RGB") if kind == "GIF" else photo()
    assert np.array_equal(accepted(encoded(image, kind, **LOSSLESS[kind])), np.asarray(image))
    assert kind in FORMATS


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow reads no AVIF")
def test_avif_is_read():
    pixels = accepted(encoded(photo(), "AVIF", quality=95))
    assert np.abs(pixels.astype(int) - np.asarray(photo())).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "PPM", "TGA", "BMP", "TIFF", "WEBP", "AVIF", "PNG", "JPEG"])
def test_files_cut_off_are_refused(kind):
    data = encoded(photo(), kind)
    for length in (len(data) // 2, len(data) * 9 // 10):
        refused(data[:length])


@pytest.mark.parametrize("options", [{}, {"compression": "tga_rle"}, {"orientation": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_tga_of_every_kind(mode, options):
    image = photo().convert(mode)
    assert np.array_equal(accepted(encoded(image, "TGA", **options)), np.asarray(image.convert("RGB")))


def test_plain_and_odd_pnms():
    rows = "\n".join(" ".join(str(value // 17) for value in row) for row in GREY)
    assert np.array_equal(accepted(f"P2\n# said\n{WIDTH} {HEIGHT}\n15\n{rows}\n".encode())[..., 0], GREY // 17 * 17)
    colours = np.stack([values_up_to(1023)] * 3, -1)
    data = b"P6\n96 64\n1023\n" + colours.astype(">u2").tobytes()
    assert np.abs(accepted(data) - colours / 1023 * 255).max() <= 1


def test_the_first_frame_is_taken_and_said():
    first, second = photo().quantize(32).convert("RGB"), Image.new("RGB", (WIDTH, HEIGHT), "red")
    for kind in ("GIF", "TIFF", "PNG"):
        data = encoded(first, kind, save_all=True, append_images=[second])
        assert np.array_equal(accepted(data), np.asarray(first))
        assert inspect(data).notes == (f"first frame of a {kind} of several",)


def test_jpeg_2000_of_12_bits_fills_the_range():
    from openjpeg.utils import encode_array

    values = values_up_to(4095)
    data = bytes(encode_array(values.astype(np.uint16), bits_stored=12, photometric_interpretation=2))
    assert np.abs(accepted(data)[..., 0] - values / 4095 * 255).max() < 2  # Pillow shifts to 16 bits


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "PPM", "TGA", "AVIF", "PNG", "JPEG"])
def test_the_most_pixels_hold_before_decoding(kind, monkeypatch):
    data = encoded(photo(), kind)
    monkeypatch.setattr(Image.Image, "load", None)
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    for judge in (decode, inspect):
        with pytest.raises(TriptychError, match="96 x 64 pixels, more than 6143"):
            judge(data, max_pixels=96 * 64 - 1)


# Reasons

STRANGERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n": "Git LFS pointer.*git lfs pull",
    b"/annex/objects/SHA256E-s12--ab.jpg": "git-annex pointer.*git annex get",
    b"<!DOCTYPE html><html>": "web page",
    b"\n\n<HTML><body>": "web page",
    b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic": "HEIC.*convert it to PNG",
    b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic": "HEIC.*convert it to PNG",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a\x10\x20": "JPEG XL",
    b"8BPS\0\1": "Photoshop",
    b"Pf\n3 3\n-1.0\n": "PFM",
    b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100": "DICOM file without preamble",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(40): "JPEG2000 image that is damaged",
    b"P5\n96 64\n255\n": "PPM image that is damaged",
    b"GIF89a": "GIF image that is damaged",
    b"II*\0\x08\0\0\0": "TIFF of a variant",
    b"hello": "no image of a format that is read here .JPEG, PNG",
}


@pytest.mark.parametrize(("data", "reason"), STRANGERS.items(), ids=lambda value: str(value)[:20])
def test_strangers_are_named_with_what_to_do(data, reason):
    assert re.search(reason, refused(data))
    assert verdicts(data) == verdicts(bytes(bytearray(data))), "equal bytes, equal words"
