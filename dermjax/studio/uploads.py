"""Uploads: an image that somebody drops on the page, by its content alone, and what it says of itself."""

import hashlib
import io
import json
import threading

import numpy as np
from PIL import Image

from dermjax.data.images import Resize, detail, load_any
from dermjax.sampling import provenance
from dermjax.studio.calls import Refused

PIXELS = 40_000_000
HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
DECODING = threading.Lock()  # a file of few bytes may hold PIXELS, which take hundreds of MB until they are made small


def open_upload(body: bytes) -> Image.Image:
    """An image that was sent, not decoded yet: PNG or JPEG, of at most PIXELS; Refused for all else."""
    if not body.startswith(HEADS):
        raise Refused("this is neither a PNG nor a JPEG, whatever its name says", 415)
    try:
        image = Image.open(io.BytesIO(body), formats=["PNG", "JPEG"])
    except Exception:  # Pillow's decoders raise anything, its own warnings of bombs too
        raise Refused("this image is damaged or too large", 415) from None
    if image.width * image.height > PIXELS:
        raise Refused(f"this image is too large: {PIXELS // 1_000_000} megapixels at most", 413)
    return image


def decoded(image: Image.Image, size: int, resize: Resize | None = None) -> np.ndarray:
    """uint8 [size, size, 3], as `images.load`, one image at a time; Refused for one that is only there in part."""
    try:
        side = detail(size, resize)
        image.draft("RGB", (side, side))  # lets JPEG skip detail that is not wanted
        with DECODING:
            return load_any(image, size, resize)
    except Exception:  # Pillow's decoders raise anything
        raise Refused("this image is damaged", 415) from None


def digest(body: bytes) -> str:
    """The SHA-256 of an upload."""
    return hashlib.sha256(body).hexdigest()


def own_text(body: bytes) -> dict | None:
    """What an image of ours says of itself, None for any other; no pixel is decoded for it."""
    try:
        text = json.loads(_text(body, provenance.KEY))
    except (ValueError, RecursionError):
        return None
    return text if isinstance(text, dict) else None


def other_text(body: bytes) -> dict | None:
    """What an image says of itself as AUTOMATIC1111 writes it, in our words; None for one that says nothing."""
    written = _text(body, provenance.PARAMETERS)
    return provenance.read_parameters(written) if written else None


def _text(body: bytes, key: str) -> str:
    with open_upload(body) as image:
        written = image.info.get(key, "")
    return written if isinstance(written, str) else ""
