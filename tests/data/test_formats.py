"""Images of formats beyond the everyday: told by their bytes, read by their package, upright, in the colours meant."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermjax.data import images
from dermjax.errors import UserError

WIDE = np.zeros((64, 96, 3), np.uint8)  # red at the upper left, else a gradient
WIDE[..., 1] = np.linspace(0, 200, 96, dtype=np.uint8)
WIDE[:16, :24] = (230, 10, 10)


def close(path, expected, apart=12):
    seen = images.decode(path)
    assert seen.shape == expected.shape, path
    assert abs(seen.astype(int) - expected.astype(int)).mean() < apart


@pytest.mark.parametrize(
    ("suffix", "form"),
    [("jfif", "JPEG"), ("JPE", "JPEG"), ("jif", "JPEG"), ("pjpeg", "JPEG"), ("jp2", "JPEG2000"), ("j2k", "JPEG2000"),
     ("jpx", "JPEG2000"), ("avif", "AVIF"), ("dib", "DIB")],
)  # fmt: skip
def test_formats_that_pillow_reads(tmp_path, suffix, form):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(WIDE).save(path, form)
    assert f".{suffix.lower()}" in images.SUFFIXES
    close(path, WIDE)


@pytest.mark.parametrize(("module", "content", "told"), [
    ("pydicom", bytes(128) + b"DICM", r"DICOM is read by pydicom, which is not installed; pip install 'dermjax\[form"),
    ("pillow_heif", b"\0\0\0\x18ftypheic" + bytes(40), "HEIC is read by pillow-heif, which is not installed; pip"),
])  # fmt: skip
def test_a_package_that_is_missing_is_named_with_the_file(tmp_path, monkeypatch, module, content, told):
    images._register.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "photograph.jpg"  # whatever its name says
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        images.load(path, 8)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["heic", "jpg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_of_a_phone_upright_whatever_it_is_called(tmp_path, suffix, orientation):
    heif = pytest.importorskip("pillow_heif")
    file, exif = io.BytesIO(), Image.Exif()
    exif[images.EXIF_ORIENTATION], exif[images.EXIF_MAKE] = orientation, "Apple"
    stored = np.rot90(WIDE) if orientation == 6 else WIDE
    heif.from_pillow(Image.fromarray(np.ascontiguousarray(stored))).save(file, quality=95, exif=exif.tobytes())
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(file.getvalue())
    close(path, WIDE)
    assert images.load(path, 16).shape == (16, 16, 3) and images.read_header(path)[0] == "Apple"


def test_a_damaged_heic_file_is_a_line(tmp_path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))
    with pytest.raises(UserError, match=r"a\.heic: cannot be decoded"):
        images.load(tmp_path / "a.heic", 8)


def dicom(path, pixels, shown, **tags):
    """Writes a DICOM file of uint8 or uint16 pixels as they are."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.4")  # VL photographic image
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[-3:-1] if pixels.shape[-1] == 3 else pixels.shape[-2:]
    data.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored = tags.pop("BitsStored", data.BitsAllocated)
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PhotometricInterpretation, data.PixelData = shown, pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def ycbcr(pixels):
    return np.asarray(Image.fromarray(pixels).convert("YCbCr"))


@pytest.mark.parametrize(("shown", "stored"), [("RGB", lambda p: p), ("YBR_FULL", ycbcr)])
def test_dicom_in_colour(tmp_path, shown, stored):
    close(dicom(tmp_path / "a.dcm", stored(WIDE), shown, Manufacturer="Canfield"), WIDE, 3)
    assert images.read_header(tmp_path / "a.dcm") == ("Canfield", ())


GREY = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))


def rgb(grey):
    return np.repeat(grey[..., None], 3, -1)


def test_dicom_in_grey_dark_or_light_deep_signed_or_within_a_window(tmp_path):
    close(dicom(tmp_path / "a.dcm", GREY, "MONOCHROME2"), rgb(GREY), 1)
    close(dicom(tmp_path / "b.dcm", 255 - GREY, "MONOCHROME1"), rgb(GREY), 1)
    deep = GREY.astype(np.uint16) * 16
    close(dicom(tmp_path / "c.dcm", deep, "MONOCHROME2", BitsStored=12), rgb(GREY), 2)
    window = {"WindowCenter": 1000 + 128, "WindowWidth": 256, "RescaleSlope": 2, "RescaleIntercept": 1000}
    close(dicom(tmp_path / "d.dcm", (GREY // 2).astype(np.uint16), "MONOCHROME2", **window), rgb(GREY), 3)
    signed = GREY.astype(np.int16) - 128
    close(dicom(tmp_path / "e.dcm", signed, "MONOCHROME2", WindowCenter=0, WindowWidth=256), rgb(GREY), 2)


def test_dicom_with_a_palette(tmp_path):
    table = np.arange(256, dtype=np.uint16) * 257
    tags = {}
    for place, colour in enumerate(("Red", "Green", "Blue")):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = (table if place == 0 else table[::-1]).tobytes()
    expected = np.stack([GREY, 255 - GREY, 255 - GREY], -1)
    close(dicom(tmp_path / "a.dcm", GREY, "PALETTE COLOR", **tags), expected, 1)


@pytest.mark.parametrize(
    ("ways", "turns"), [(["L", "F"], 0), (["R", "H"], 2), (["F", "R"], 1), (["H", "L"], 3), (["A", "F"], 0)]
)
def test_a_patient_in_dicom_is_set_upright(tmp_path, ways, turns):
    path = dicom(tmp_path / "a.dcm", np.ascontiguousarray(np.rot90(WIDE, turns)), "RGB", PatientOrientation=ways)
    close(path, WIDE, 1)
    assert images.read_header(path)[1] == (("turned upright",) if turns else ())


def test_the_first_frame_of_dicom_and_a_jpeg_inside_of_it(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    close(dicom(tmp_path / "a.dcm", np.stack([WIDE, 255 - WIDE]), "RGB", NumberOfFrames=2), WIDE, 1)
    file = io.BytesIO()
    Image.fromarray(WIDE).save(file, "JPEG", quality=95)
    data = pydicom.dcmread(dicom(tmp_path / "b.dcm", WIDE, "RGB"))
    data.PixelData = pydicom.encaps.encapsulate([file.getvalue()])
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data.PhotometricInterpretation = "YBR_FULL_422"
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    close(tmp_path / "b.dcm", WIDE, 4)


def test_dicom_that_is_no_image_or_cut_is_a_line(tmp_path):
    path = dicom(tmp_path / "a.dcm", WIDE, "RGB")
    whole = path.read_bytes()
    for content in (whole[:200], whole[:-500], bytes(128) + b"DICM" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.dcm: cannot be decoded") as caught:
            images.load(path, 8)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"photometric interpretation HSV"):
        images.load(dicom(tmp_path / "b.dcm", WIDE, "HSV"), 8)


def test_a_pipe_is_never_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: a named pipe and no file"):
        images.load(tmp_path / "a.png", 8)
    with pytest.raises(UserError, match="a device and no file"):
        images.load(Path("/dev/zero"), 8)
