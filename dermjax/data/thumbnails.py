"""Pictures on the pages of reports: small, inside the page itself, and every synthetic one marked in its own pixels.

The mark is drawn into the picture, not beside it, so that a copied picture still says what it is.
"""

import base64
import io
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dermjax.data import images
from dermjax.data.records import Manifest, Record

SIDE = 176
STRIP = 22  # height of the mark in pixels
QUALITY = 86
FOLDER = "thumbnails"  # the folder of those that are kept


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture as a data URI, the words for who cannot see it, and a caption (may be empty)."""

    source: str
    words: str
    caption: str


def thumbnail(manifest: Manifest, record: Record, caption: str) -> Thumbnail:
    """The thumbnail of a record, marked when a model made it."""
    kind = "synthetic" if record.synthetic else "real"
    return Thumbnail(
        source=_as_uri(encode_thumbnail(manifest, record)),
        words=f"{kind} {record.label}, {record.image}",
        caption=caption,
    )


def encode_thumbnail(manifest: Manifest, record: Record) -> bytes:
    """A small JPEG of a record, marked when a model made it.

    It is kept beside the manifest by the digest of the image, where that folder may be written, so that the pages of
    all stages decode a photograph once.
    """
    home = manifest.home and manifest.home / FOLDER
    kept = home and home / f"{record.sha256}{'_synthetic' * record.synthetic}.jpg"
    if kept and kept.is_file():
        return kept.read_bytes()
    image = Image.fromarray(images.load(manifest.path(record), SIDE))
    if record.synthetic:
        mark_synthetic(image)
    content = _jpeg(image)
    if kept and os.access(manifest.home, os.W_OK):
        images.write_if_changed(kept, content)
    return content


def grid(rows: list[np.ndarray]) -> Image.Image:
    """A contact sheet of pictures uint8 [n, H, W, 3] a row that a model made, every one marked."""
    made = Image.new("RGB", (SIDE * max(map(len, rows)), SIDE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            tile = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            mark_synthetic(tile)
            made.paste(tile, (x * SIDE, y * SIDE))
    return made


def data_uri(image: Image.Image) -> str:
    """A picture as a JPEG inside of a page."""
    return _as_uri(_jpeg(image))


def evenly_spaced(records: list[Record], count: int) -> list[Record]:
    """Up to count records, evenly spaced through the list: nobody picked the pretty ones."""
    step = max(len(records) / count, 1) if count else 1
    return [records[int(i * step)] for i in range(min(count, len(records)))]


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _as_uri(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def mark_synthetic(image: Image.Image) -> None:
    """Writes SYNTHETIC into the pixels of a picture of SIDE pixels a side."""
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, SIDE - STRIP, SIDE, SIDE), fill=(24, 24, 28))
    font = ImageFont.load_default(size=15)
    draw.text((SIDE / 2, SIDE - STRIP / 2), "SYNTHETIC", fill=(255, 255, 255), font=font, anchor="mm")
