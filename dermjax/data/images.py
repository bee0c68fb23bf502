"""Image files to square uint8 arrays and back, and the one place that knows the models' value range [-1, 1].

Every stage that reads pixels reads them here, so that a photograph means the same to the generator and the classifier.
Shapes: S the side of the square, 3 the channels red, green, blue (sRGB).
"""

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dermjax import machine, progress
from dermjax.data import formats
from dermjax.data.formats import EXIF_MAKE, EXIF_MODEL, EXIF_ORIENTATION
from dermjax.errors import UserError
from dermjax.run_folder import write_atomically

# Of decoded pixels, for whatever is kept of images: raise it where `load` gives others of the same bytes
NUMERIC_VERSION = 1
WHITE = (255, 255, 255, 255)

# Pillow only warns about images of 90 to 180 megapixels; a dermatoscope makes none, a decompression bomb does.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def load(path: Path, size: int) -> np.ndarray:
    """The image as uint8 [size, size, 3]: fully decoded, upright, on white, scaled to cover the square, centre-cropped.

    Raises UserError naming the path for whatever is no image or only part of one (truncated, HTML, a bomb).
    """
    return np.asarray(ImageOps.fit(_decoded(path, 2 * size), (size, size), Image.Resampling.LANCZOS))


def whole(path: Path) -> np.ndarray:
    """The whole image as uint8 [H, W, 3], else as `load`."""
    return np.asarray(_decoded(path, 0))


def header(path: Path) -> tuple[str, tuple[str, ...]]:
    """The camera that a file names, "" for none, and what `load` and `whole` do to its pixels beyond decoding them."""
    try:
        with formats.opened(path) as image:
            tags = image.getexif()
            camera = " ".join(str(tags.get(tag, "")).strip("\0 ") for tag in (EXIF_MAKE, EXIF_MODEL)).strip()
            done = {
                "turned upright": tags.get(EXIF_ORIENTATION, 1) in range(2, 9),
                "16-bit grey scaled to 8": image.mode.startswith("I"),
                "laid on white": image.has_transparency_data,
                "CMYK made RGB": image.mode == "CMYK",
                "first frame of several": getattr(image, "n_frames", 1) > 1,
            }
    except UserError:
        raise
    except Exception as error:
        raise _undecodable(path, error) from error
    return camera, tuple(name for name, is_done in done.items() if is_done)


def load_all(paths: Sequence[Path], size: int, title: str) -> np.ndarray:
    """The images of many files as uint8 [N, size, size, 3], decoded in threads under a progress bar with this title."""
    stacked = np.empty((len(paths), size, size, 3), np.uint8)
    with ThreadPoolExecutor(machine.cores()) as pool, progress.bar(len(paths), title, "images", 0) as bar:
        for row, image in enumerate(pool.map(lambda path: load(path, size), paths)):
            stacked[row] = image
            bar.update()
    return stacked


def to_model(image: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] in 0..255 to float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def from_model(image: np.ndarray) -> np.ndarray:
    """Values in [-1, 1], and clipped to it, to uint8 in 0..255: the inverse of to_model."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file of uint8 [H, W, 3], the same for the same image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def keep(path: Path, content: bytes) -> None:
    """Writes an image file unless it is there with this content."""
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def _decoded(path: Path, least: int) -> Image.Image:
    """The upright image in RGB; a JPEG may be scaled down while its sides stay `least` or more, 0 for not at all."""
    try:
        with formats.opened(path) as image:
            if least:
                image.draft(None, (least, least))  # lets JPEG skip detail below the wanted size; others ignore it
            return _rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError and struct.error
        raise _undecodable(path, error) from error


def _undecodable(path: Path, error: Exception) -> UserError:
    return UserError(f"image {path}: cannot be decoded ({_told(error)}); mend or remove the file")


def _rgb(image: Image.Image) -> Image.Image:
    """The first frame in 8-bit RGB: deep grey is scaled (convert would clip it to white), alpha is laid on white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range; save as 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; PNG has no deeper, TIFF has
        if image.getextrema()[1] > 65535:
            raise ValueError("grey deeper than 16 bits; save as 8 or 16 bits")
        image = Image.fromarray((np.asarray(image, np.float32) / 257).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image.convert("RGB")


def _told(error: Exception) -> str:
    """What an exception says, in one line and without the path again."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
