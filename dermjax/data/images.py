"""Image files to square uint8 arrays and back, and the models' value range [-1, 1].

Every stage that reads pixels reads them here, so that a photograph means the same to the generator and the classifier.
The name of a file makes it an image, its first bytes decide how it is read: phones give HEIC the name .jpg.
Pillow opens it, or pillow-heif (HEIC) or pydicom (DICOM), both in the extra `formats`.

Shapes: S the side of the square, 3 the channels red, green, blue (sRGB).
"""

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dermjax import machine, progress
from dermjax.data import digests, shards
from dermjax.errors import UserError
from dermjax.run_folder import write_atomically

# Of decoded pixels, for whatever is kept of images: raise it where `load` gives others of the same bytes
NUMERIC_VERSION = 2  # 2: colour profiles
# Left out: formats that start another program (EPS).
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF", "DIB")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
    *(".webp", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc", ".avif", ".heic", ".heif", ".hif", ".dcm", ".dicom"),
)
PACKAGES = {  # what reads the files of a suffix, and its package: the module's name may be another
    **dict.fromkeys((".heic", ".heif", ".hif"), ("HEIC", "pillow_heif", "pillow-heif")),
    **dict.fromkeys((".dcm", ".dicom"), ("DICOM", "pydicom", "pydicom")),
}
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
EXTRA = "pip install 'dermjax[formats]'"
EXIF_MAKE, EXIF_MODEL, EXIF_ORIENTATION = 0x010F, 0x0110, 0x0112
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
# Where the head of the patient is in a DICOM image -> the EXIF orientation that turns it up: (row's, column's way).
UPRIGHT = {("", "H"): 3, ("F", ""): 6, ("H", ""): 8}
END_OF_JPEG, ZEROS = b"\xff\xd9", 64  # bytes at the end of a file that are looked at first
WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
PROFILED = ("RGB", "RGBA", "L", "CMYK")  # Pillow's modes that a colour profile is applied to
Resize = Mapping[str, int]  # "shortest_edge", or "height" and "width", and "resample", which is Pillow's number
ImageLike = str | os.PathLike | Image.Image | np.ndarray  # a file, or what is in memory

# Pillow only warns about images of 90 to 180 megapixels; a dermatoscope makes none, a decompression bomb does.
warnings.simplefilter("error", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # on damaged tags, without the file's name


def load(path: Path, size: int, resize: Resize | None = None) -> np.ndarray:
    """The image as uint8 [size, size, 3]: fully decoded, upright, on white, scaled to cover the square, centre-cropped.

    With `resize` it is scaled to other sides before the crop, as a classifier's own processor does.
    Raises UserError naming the path for whatever is no image or only a part of one (truncated, HTML, a bomb).
    """
    return _fit(_decode(path, detail(size, resize), WHITE), size, resize)


def load_mask(path: Path, size: int) -> np.ndarray:
    """The mask in an image file as bool [size, size]: brighter than half of its brightest, so that 0 and 1 do too.

    What is transparent is dark: programs that paint strokes on a layer of their own leave its ground out.
    """
    brightest = np.asarray(_decode(path, 0, BLACK)).mean(-1).max()
    return _fit(_decode(path, detail(size, None), BLACK), size, None).mean(-1) > brightest / 2


def load_any(image: ImageLike, size: int, resize: Resize | None = None) -> np.ndarray:
    """As `load`, of a file or of what is in memory: a PIL image, or uint8 [H, W, 3]."""
    if isinstance(image, str | os.PathLike):
        return load(Path(image), size, resize)
    return _fit(_upright(image, WHITE), size, resize)


def detail(size: int, resize: Resize | None) -> int:
    """The pixels a side below which a JPEG may not be scaled down while it is decoded, for `load`."""
    return 2 * max([size, *(side for name, side in (resize or {}).items() if name != "resample")])


def as_pil(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image as it is, and uint8 [H, W] or [H, W, 3] as one; UserError for anything else."""
    if isinstance(image, Image.Image):
        return image
    try:
        return Image.fromarray(image)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        kind = f"an array of {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"image: {kind}; give a path, a PIL image, or an array of uint8 [H, W, 3]") from error


def _upright(image: Image.Image | np.ndarray, ground: tuple[int, ...]) -> Image.Image:
    """What is in memory, upright in RGB; UserError where it cannot be."""
    try:
        return _rgb(ImageOps.exif_transpose(as_pil(image)), ground)
    except (ValueError, OSError) as error:  # OSError: a file that is opened, and is damaged
        raise UserError(f"image: {error}") from error


def _fit(image: Image.Image, size: int, resize: Resize | None) -> np.ndarray:
    if resize:
        return np.asarray(_cut(image, size, **resize))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def _cut(
    image: Image.Image, size: int, *, resample: int, shortest_edge: int = 0, height: int = 0, width: int = 0
) -> Image.Image:
    """The middle of an image that is resized, as transformers' processors do both, without making all of it."""
    if shortest_edge:
        longer = int(shortest_edge * max(image.size) / min(image.size))
        width, height = (shortest_edge, longer) if image.width <= image.height else (longer, shortest_edge)
    left, top = (width - size) // 2, (height - size) // 2
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
    return image.resize((size, size), Image.Resampling(resample), box)


def decode(path: Path) -> np.ndarray:
    """The full image as uint8 [H, W, 3], else as `load`."""
    return np.asarray(_decode(path, 0, WHITE))


def encode_mask(mask: Image.Image | np.ndarray) -> bytes:
    """A mask in memory as a PNG that `load_mask` reads as it would read its file."""
    return encode_png(np.asarray(_upright(mask, BLACK)))


def decode_any(image: ImageLike) -> np.ndarray:
    """As `decode`, of a file or of what is in memory: a PIL image, or uint8 [H, W, 3]."""
    return decode(Path(image)) if isinstance(image, str | os.PathLike) else np.asarray(_upright(image, WHITE))


def load_all(paths: Sequence[Path], size: int, title: str) -> np.ndarray:
    """The images of many files as uint8 [N, size, size, 3], decoded in threads under a progress bar with this title."""
    stacked = np.empty((len(paths), size, size, 3), np.uint8)
    with ThreadPoolExecutor(machine.cores()) as pool, progress.bar(len(paths), title, "images", 0) as bar:
        for row, image in enumerate(pool.map(lambda path: load(path, size), paths)):
            stacked[row] = image
            bar.update()
    return stacked


def read_header(path: Path) -> tuple[str, tuple[str, ...]]:
    """The camera that a file names, "" for none, and what `load` and `decode` do to its pixels beyond decoding them."""
    with _open(path) as image:
        tags = image.getexif()
        camera = " ".join(str(tags.get(tag, "")).strip("\0 ") for tag in (EXIF_MAKE, EXIF_MODEL)).strip()
        changes = {
            "turned upright": tags.get(EXIF_ORIENTATION, 1) in range(2, 9),
            "16-bit grey scaled to 8": image.mode.startswith("I"),
            "laid on white": image.has_transparency_data,
            "CMYK made RGB": image.mode == "CMYK",
            "colour profile made sRGB": _to_srgb(image) is not None,
            "first frame of several": getattr(image, "n_frames", 1) > 1,
        }
    return camera, tuple(change for change, applies in changes.items() if applies)


def read_shape(path: Path) -> tuple[int, int, int]:
    """The width and height of the pixels as they lie in a file, and the EXIF orientation, 1 for none."""
    with _open(path) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        # Pillow gives the size of a TIFF as it will be upright
        size = (image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]) if image.format == "TIFF" else image.size
        return *size, orientation if orientation in range(2, 9) else 1


def filled(rows: np.ndarray, batch: int) -> np.ndarray:
    """Rows [n, ...] and zeros after them, `batch` together, so that one compiled program takes every batch."""
    return np.concatenate([rows, np.zeros((batch - len(rows), *rows.shape[1:]), rows.dtype)])


def to_model(image: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] in 0..255 to float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def from_model(image: np.ndarray) -> np.ndarray:
    """Values in [-1, 1], and clipped to it, to uint8 in 0..255: the inverse of to_model."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file of uint8 [H, W, 3], the same for the same image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_if_changed(path: Path, content: bytes) -> None:
    """Writes an image file unless it is there with this content."""
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def open_image(path: Path) -> Image.Image:
    """The image in a file, opened by Pillow or by the package for its format, its pixels as they lie in the file.

    Raises UserError for what is no file and for a package that is missing, else whatever a decoder raises.
    """
    special = digests.special_kind(path.stat())
    if special:
        raise UserError(f"image {path}: {special} and no file; remove it")
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return _dicom(path)
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return _heif(path)
    return Image.open(path.open() if isinstance(path, shards.Member) else path, formats=FORMATS)


def missing_package(path: Path) -> str:
    """Which package would read a file of this name and is not installed, with how to install it; "" for none."""
    what, module, package = PACKAGES.get(os.path.splitext(path.name)[1].lower(), ("", "", ""))
    return f"{what}, which {package} reads where it is installed: {EXTRA}" if module and not _is_there(module) else ""


@cache
def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _decode(path: Path, least: int, ground: tuple[int, ...]) -> Image.Image:
    """The upright image in RGB on a ground of this colour; a JPEG may be scaled down while its sides stay `least` or
    more, 0 for not at all."""
    with _open(path) as image:
        if image.format in ("JPEG", "MPO") and _is_filled_up(path):  # phones put a second picture into one file
            raise ValueError("only zeros from some place on, as a download leaves that was broken off")
        if least:
            image.draft(None, (least, least))  # lets JPEG skip detail below the wanted size; others ignore it
        return _rgb(ImageOps.exif_transpose(image), ground)


def _is_filled_up(path: Path) -> bool:
    """Whether a JPEG ends in zeros without its end mark: libjpeg makes a picture of it. Zeros behind the mark do no
    harm."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(ZEROS, size), os.SEEK_END)
        if file.read().strip(b"\0"):
            return False
        file.seek(0)
        return not file.read().rstrip(b"\0").endswith(END_OF_JPEG)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Opens an image; whatever its decoder raises becomes a UserError that names the file, in one line."""
    try:
        with open_image(path) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError and struct.error
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else reason
        raise UserError(f"image {path}: cannot be decoded ({reason}); mend or remove the file") from error


def _rgb(image: Image.Image, ground: tuple[int, ...]) -> Image.Image:
    """The first frame in 8-bit RGB: deep grey is scaled (convert would clip it to white), alpha is laid on a ground."""
    if not all(image.size):
        raise ValueError("an image without a pixel; give another")
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range; save as 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; PNG has no deeper, TIFF has
        grey = np.asarray(image, np.float32)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("grey below 0 or deeper than 16 bits; save as 8 or 16 bits")
        image = Image.fromarray((grey / 257).round().astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if transform := _to_srgb(image):
        image = ImageCms.applyTransform(image, transform)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")


def _to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """What turns the colours of an image's profile, such as a phone's Display P3, into sRGB; None where they are."""
    mode, profile = "RGB" if image.mode == "P" else image.mode, image.info.get("icc_profile")
    return _transform(profile, mode) if profile and mode in PROFILED else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """As `_to_srgb`; a profile that is damaged, or of other pixels than these, counts as none, as in browsers."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = "RGBA" if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target)
    except (ImageCms.PyCMSError, OSError):
        return None


def _heif(path: Path) -> Image.Image:
    try:
        _register()
    except ImportError as error:
        raise UserError(_missing(path, "HEIC", "pillow-heif")) from error
    return Image.open(path, formats=("HEIF",))


@cache
def _register() -> None:
    import pillow_heif  # an extra

    pillow_heif.register_heif_opener()


def _dicom(path: Path) -> Image.Image:
    """The first frame of a DICOM file as grey or RGB of 8 bits, with the camera and the orientation as EXIF tags."""
    try:
        import pydicom  # an extra
        from pydicom import pixels
    except ImportError as error:
        raise UserError(_missing(path, "DICOM", "pydicom")) from error
    data = pydicom.dcmread(path)
    if data.Rows * data.Columns > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{data.Columns}x{data.Rows} px")
    interpretation = data.PhotometricInterpretation
    frame = pixels.pixel_array(data, index=0)  # YBR_FULL is RGB by now, and so are the YBR of JPEG 2000
    if interpretation == "PALETTE COLOR":
        frame = pixels.apply_color_lut(frame, data)
        white = np.iinfo(frame.dtype).max
    elif interpretation.startswith("MONOCHROME"):
        white, frame = 255, _grey(frame, data)
        frame = white - frame if interpretation == "MONOCHROME1" else frame
    elif interpretation in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"):
        white = 2**data.BitsStored - 1
    else:
        raise ValueError(f"DICOM of the photometric interpretation {interpretation}; save as RGB")
    scaled = (frame.astype(np.float32) * (255 / white)).clip(0, 255).round().astype(np.uint8)
    image = Image.fromarray(scaled)
    tags = image.getexif()
    tags[EXIF_MAKE], tags[EXIF_MODEL] = data.get("Manufacturer") or "", data.get("ManufacturerModelName") or ""
    tags[EXIF_ORIENTATION] = _orientation([str(way) for way in data.get("PatientOrientation") or ("", "")])
    return image


def _grey(frame: np.ndarray, data: Any) -> np.ndarray:
    """The grey levels 0 to 255 of a frame as the file wants them shown, by its window where it has one."""
    slope, offset = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    values = frame * slope + offset
    if data.get("WindowWidth") is None:
        least = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
        return (values - (least * slope + offset)) / ((2**data.BitsStored - 1) * slope) * 255
    centre, width = (np.ravel(data[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
    # PS3.3 C.11.2.1.2, the linear function
    return (((values - (float(centre) - 0.5)) / max(float(width) - 1, 1) + 0.5) * 255).clip(0, 255)


def _orientation(ways: list[str]) -> int:
    """The EXIF orientation that sets a patient upright whose head lies along the ways of rows and columns (PS3.3)."""
    row, column = (way[:1] if way[:1] in ("H", "F") else "" for way in (*ways, "", "")[:2])
    return UPRIGHT.get((row, column), 1)


def _missing(path: Path, what: str, package: str) -> str:
    return f"image {path}: {what} is read by {package}, which is not installed; {EXTRA}, or leave the file out"
