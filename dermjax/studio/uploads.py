"""Uploads: an image that somebody drops on the page, by its content alone, and what it says of itself."""

import io
import json

from PIL import Image

from dermjax.sampling import provenance
from dermjax.studio.calls import Refused

PIXELS = 40_000_000
HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


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


def own_text(body: bytes) -> dict | None:
    """What an image of ours says of itself, None for any other; no pixel is decoded for it."""
    with open_upload(body) as image:
        written = image.info.get(provenance.KEY)
    try:
        text = json.loads(written)
    except (TypeError, ValueError, RecursionError):
        return None
    return text if isinstance(text, dict) else None
