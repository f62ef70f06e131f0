"""DICOM as an image: values against the standard's formulas in numpy, and nothing of a person in any output."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from jpegs import lossless_jpeg
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)
from triptych.config.datasets import FolderCaptions, Images, SlakeFolderVqa, WebdatasetCaptions
from triptych.data.fetch import fetch
from triptych.data.formats import dicom as module
from triptych.data.images import decode, inspect
from triptych.data.prepare import write_dataset
from triptych.io.parquet import read_table
from verdicts import refused

NAME = "Mustermann^Erika"
HEIGHT, WIDTH = 24, 40
RAMP = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


def dicom(values: np.ndarray, syntax: str = ExplicitVRLittleEndian, pixels: bytes | None = None, **fields) -> bytes:
    """Write values (H, W) or (H, W, 3) as a DICOM file with a name in its header; a field None is left out."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.PatientName, file.PatientID, file.PatientBirthDate = NAME, f"ID-{NAME}", "19700101"
    file.add_new(0x00091010, "LO", NAME)  # a private field
    file.InstitutionName = f"Clinic of {NAME}"
    bits = values.dtype.itemsize * 8
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit = bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in fields.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    if "BitsStored" in fields:
        file.HighBit = fields["BitsStored"] - 1
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    file.PixelData = pixels if pixels is not None else values.astype(values.dtype.newbyteorder(order)).tobytes()
    file["PixelData"].VR = "OW" if bits > 8 and pixels is None else "OB"
    if pixels is not None and pydicom.uid.UID(syntax).is_encapsulated:
        file["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(data: bytes) -> np.ndarray:
    pixels = np.asarray(decode(data))
    assert (pixels == pixels[..., :1]).all()
    found = inspect(data)
    assert (found.width, found.height) == (pixels.shape[1], pixels.shape[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found.data)).convert("RGB")), pixels), "kept as PNG"
    assert b"DICM" not in found.data and NAME.encode() not in found.data
    return pixels[..., 0].astype(int)


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The window of the standard's part 3, C.11.2.1.2.1, case by case."""
    shown = np.empty(values.shape)
    for at, value in np.ndenumerate(values.astype(float)):
        if value <= centre - 0.5 - (width - 1) / 2:
            shown[at] = 0
        elif value > centre - 0.5 + (width - 1) / 2:
            shown[at] = 255
        else:
            shown[at] = ((value - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return shown


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_ct_is_rescaled_then_windowed(syntax):
    stored = (RAMP * 3).astype(np.uint16)
    data = dicom(
        stored, syntax, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    assert np.abs(grey(data) - linear(stored * 2.0 - 1024, 40, 400)).max() <= 0.5
    assert inspect(data).notes == ("DICOM, grey by the header's window",)


def test_the_window_agrees_with_pydicom():
    stored = (RAMP * 4).astype(np.uint16)
    data = dicom(stored, BitsStored=12, WindowCenter=[1500, 40], WindowWidth=[900, 400])
    file = pydicom.dcmread(io.BytesIO(data))
    assert np.abs(grey(data) - apply_windowing(stored, file, 0) / 4095 * 255).max() <= 0.5, "the first window"


def test_signed_values_and_other_window_functions():
    stored = (RAMP - 500).astype(np.int16)
    exact = dicom(stored, WindowCenter=0, WindowWidth=300, VOILUTFunction="LINEAR_EXACT")
    assert np.abs(grey(exact) - ((stored / 300 + 0.5) * 255).clip(0, 255)).max() <= 0.5
    sigmoid = dicom(stored, WindowCenter=10, WindowWidth=300, VOILUTFunction="SIGMOID")
    assert np.abs(grey(sigmoid) - 255 / (1 + np.exp(-4 * (stored - 10.0) / 300))).max() <= 0.5
    threshold = dicom(stored, WindowCenter=10, WindowWidth=1)
    assert np.array_equal(grey(threshold), np.where(stored > 9.5, 255, 0))


def test_monochrome1_is_turned():
    stored = (RAMP * 4).astype(np.uint16)
    options = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 3000}
    normal, turned = dicom(stored, **options), dicom(stored, PhotometricInterpretation="MONOCHROME1", **options)
    assert np.array_equal(grey(turned), 255 - grey(normal))
    inverse = dicom(stored, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **options)
    assert np.array_equal(grey(inverse), grey(turned)), "once, not twice"


def test_without_a_window_the_real_range_is_shown_but_for_padding():
    stored = RAMP.astype(np.int16) + 1000
    assert np.abs(grey(dicom(stored)) - (stored - 1000) / (RAMP.max()) * 255).max() <= 0.5
    stored[:, :5] = -2000
    padded = dicom(stored, PixelPaddingValue=-2000)
    low, high = stored[:, 5:].min(), stored.max()
    assert np.abs(grey(padded) - ((stored - low) / (high - low) * 255).clip(0, 255)).max() <= 0.5
    assert "real range" in inspect(padded).notes[0]


@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (6, 63)])
def test_few_bits_without_a_window_have_their_declared_range(bits, largest):
    stored = (RAMP % (largest // 2)).astype(np.uint8)  # never stretched to its own largest value
    data = dicom(stored, BitsStored=bits)
    assert np.abs(grey(data) - stored / largest * 255).max() <= 0.5


def test_look_up_tables():
    stored = (RAMP % 300).astype(np.uint16)
    modality = Dataset()
    entries = np.array([(n * n) % 3000 for n in range(256)], "<u2")
    modality.LUTDescriptor, modality.LUTData = [256, 20, 16], entries.tobytes()
    table = entries[(stored.astype(int) - 20).clip(0, 255)]
    data = dicom(stored, ModalityLUTSequence=Sequence([modality]), WindowCenter=1500, WindowWidth=3000)
    assert np.abs(grey(data) - linear(table, 1500, 3000)).max() <= 0.5
    voi = Dataset()
    voi.LUTDescriptor, voi.LUTData = [200, 50, 12], (4095 - 20 * np.arange(200)).astype("<u2").tobytes()
    expected = (4095 - 20 * (stored.astype(int) - 50).clip(0, 199)) / 4095 * 255
    assert np.abs(grey(dicom(stored, VOILUTSequence=Sequence([voi]))) - expected).max() <= 0.5


def test_functional_groups_of_enhanced_files():
    shared, window, rescale = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 500, 800
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -300
    shared.FrameVOILUTSequence = Sequence([window])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    stored = RAMP.astype(np.uint16)
    data = dicom(stored, SharedFunctionalGroupsSequence=Sequence([shared]))
    assert np.abs(grey(data) - linear(stored * 2.0 - 300, 500, 800)).max() <= 0.5


COLOURS = np.stack([RAMP % 256, (RAMP // 3) % 256, 255 - RAMP % 256], -1)


def test_colours():
    data = dicom(COLOURS.astype(np.uint8))
    assert np.array_equal(np.asarray(decode(data)), COLOURS)
    planes = np.ascontiguousarray(COLOURS.astype(np.uint8).transpose(2, 0, 1)).tobytes()
    data = dicom(COLOURS.astype(np.uint8), pixels=planes, PlanarConfiguration=1)
    assert np.array_equal(np.asarray(decode(data)), COLOURS)
    data = dicom((COLOURS * 16).astype(np.uint16), BitsStored=12)
    assert np.abs(np.asarray(decode(data)) - COLOURS * 16 / 4095 * 255).max() <= 0.5
    ybr = np.asarray(Image.fromarray(COLOURS.astype(np.uint8)).convert("YCbCr"))
    data = dicom(ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(np.asarray(decode(data)).astype(int) - COLOURS).max() <= 3
    assert "HSV" in refused(dicom(ybr, PhotometricInterpretation="HSV"))


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(bits):
    stored = (RAMP % 256).astype(np.uint8)
    tables = [np.arange(256), 255 - np.arange(256), np.arange(256) // 2]
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        cells = table.astype(np.uint8) if bits == 8 else (table * 257).astype("<u2")
        fields[f"{colour}PaletteColorLookupTableData"] = cells.tobytes()
    expected = np.stack([table[stored] for table in tables], -1)
    assert np.array_equal(np.asarray(decode(dicom(stored, **fields))), expected)
    fields["BluePaletteColorLookupTableData"] = None
    fields = {name: value for name, value in fields.items() if value is not None}
    assert "palette" in refused(dicom(stored, **fields))


def test_the_first_frame_of_several_is_taken_and_said():
    frames = np.stack([RAMP % 256, 255 - RAMP % 256]).astype(np.uint8)
    data = dicom(frames[0], pixels=frames.tobytes(), NumberOfFrames=2, BurnedInAnnotation="YES")
    assert np.array_equal(grey(data), frames[0])
    assert inspect(data).notes[1:] == (
        "first frame of a DICOM of several",
        "DICOM whose header says that text is burned into the image",
    )


def test_compressed_files():
    stored = RAMP.astype(np.uint16)
    options = {"WindowCenter": 500, "WindowWidth": 900, "BitsStored": 12}
    plain = pydicom.dcmread(io.BytesIO(dicom(stored, **options)))
    plain.compress(RLELossless)
    buffer = io.BytesIO()
    plain.save_as(buffer)
    assert np.abs(grey(buffer.getvalue()) - linear(stored, 500, 900)).max() <= 0.5
    pixels = encapsulate([lossless_jpeg(stored, 12)])
    lossless = dicom(stored, JPEGLosslessSV1, pixels, **options)
    assert np.abs(grey(lossless) - linear(stored, 500, 900)).max() <= 0.5
    deflated = dicom(stored, DeflatedExplicitVRLittleEndian, **options)
    assert np.abs(grey(deflated) - linear(stored, 500, 900)).max() <= 0.5


def test_what_cannot_be_read_is_named_and_nobody_with_it():
    stored = RAMP.astype(np.uint16)
    whole = dicom(stored)
    film = dicom(stored, MPEG2MPML, encapsulate([b"x" * 90]))
    trials = {
        "MPEG2 Main Profile / Main Level .1.2.840.10008.1.2.4.100.": film,
        "transfer syntax unknown": film.replace(MPEG2MPML.encode(), b"Mustermann 7654321 0 00"),
        "no pixel data": dicom(stored, Rows=0),
        "damaged or of a rare variant .ValueError.": whole[:-600],
        "the DICOM file is damaged": whole[:600],
        "100000 x|60000 x 60000 pixels, more than 50000000": dicom(stored, Rows=60000, Columns=60000),
        "a side below 8": dicom(stored[:4]),
        # A frame that says another size than its header would be decoded first.
        "rare variant": dicom(stored, JPEGLosslessSV1, encapsulate([lossless_jpeg(stored, 12)]), Rows=20),
    }
    for reason, data in trials.items():
        said = refused(data)
        assert re.search(reason, said) or (reason == "the DICOM file is damaged" and "DICOM" in said)
        assert "Mustermann" not in said and "Clinic" not in said


def test_a_name_in_a_technical_field_is_not_repeated(capfd):
    whole = dicom(RAMP.astype(np.uint16), RescaleSlope="1.00000000", RescaleIntercept="0")
    assert whole.count(b"1.00000000") == 1
    assert "Mustermann" not in refused(whole.replace(b"1.00000000", b"Mustermann"))
    kind = dicom(RAMP.astype(np.uint8)).replace(b"MONOCHROME2 ", b"Mustermann! ")
    assert "Mustermann" not in refused(kind)
    assert "Mustermann" not in "".join(capfd.readouterr())


def test_what_inflates_without_end_is_refused(monkeypatch):
    data = dicom(RAMP.astype(np.uint16), DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr(module, "_MOST_INFLATED", 1000)
    assert "inflates to more than 1000 bytes" in refused(data)


def source_of(kind: str, folder: Path, images: dict[str, bytes]) -> Images:
    """Write a data set of one source with these images, and give its settings."""
    if kind == "slake-folder":
        (folder / "imgs").mkdir(parents=True)
        asked = {"q_lang": "en", "question": "What?", "answer": "This", "answer_type": "OPEN"}
        asked |= {"content_type": "Organ", "modality": "CT", "location": "Head"}
        rows = []
        for number, (name, data) in enumerate(images.items()):
            (folder / "imgs" / name).write_bytes(data)
            rows.append({"qid": number, "img_id": number, "img_name": name, **asked})
        for part, some in (("train", rows[:-2]), ("validation", rows[-2:-1]), ("test", rows[-1:])):
            (folder / f"{part}.json").write_text(json.dumps(some))
        return SlakeFolderVqa(source=kind, folder=str(folder))
    folder.mkdir()
    if kind == "webdataset":
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name, data in images.items():
                for member, body in ((name, data), (f"{name.split('.')[0]}.txt", f"scan {name}".encode())):
                    about = tarfile.TarInfo(member)
                    about.size = len(body)
                    tar.addfile(about, io.BytesIO(body))
        return WebdatasetCaptions(source=kind, folder=str(folder), shards="*.tar", sizes=[4])
    for name, data in images.items():
        (folder / name).write_bytes(data)
    (folder / "captions.csv").write_text("\n".join(["image,caption", *(f"{name},scan {name}" for name in images)]))
    return FolderCaptions(source=kind, folder=str(folder), table="captions.csv", sizes=[4])


@pytest.mark.parametrize("kind", ["slake-folder", "caption-folder", "webdataset"])
def test_sources_read_dicom_and_no_output_holds_a_name(kind, tmp_path, capfd):
    patches = np.random.default_rng(5).integers(0, 4096, (4, 6, 8), np.uint16).repeat(8, 1).repeat(8, 2)
    images = {f"scan{number}.dcm": dicom(values, BitsStored=12) for number, values in enumerate(patches[:3])}
    images["film.dcm"] = dicom(patches[3], MPEG2MPML, encapsulate([b"x" * 90]))
    buffer = io.BytesIO()
    Image.fromarray((patches[3] // 16).astype(np.uint8)).save(buffer, "GIF")
    images["drawing.gif"] = buffer.getvalue()
    assert sum(NAME.encode() in data for data in images.values()) == 4
    settings, out = source_of(kind, tmp_path / "mine", images), tmp_path / "out"
    fetch(settings, out / "cache", out / "source")
    counts = write_dataset(settings, out / "source", out / "cache", out)["counts"]
    assert len(read_table(out / "images")) == 4
    assert counts["read_as"] == {"DICOM, grey by the real range of its values: the header has no window": 3}
    said = capfd.readouterr()
    assert "warning: out: 3 images were read as DICOM" in said.out
    reasons = [row["reason"] for row in read_table(out / "rejects.parquet") if row["kind"] == "image"]
    if kind == "slake-folder":  # of captions, four were enough, wherever the film came
        assert len(reasons) == 1 and "MPEG2" in reasons[0]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        assert not any(sign in path.read_bytes() for sign in (b"Mustermann", b"DICM", b"19700101")), path
    assert "Mustermann" not in said.out + said.err
