"""Thumbnails on the pages of reports: small, inside the page itself, and every synthetic one marked in its own pixels.

The mark is drawn into the image, not beside it, so that a copied thumbnail still shows what it is.
"""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dermjax.data import images
from dermjax.data.records import Manifest, Record

SIDE = 176
STRIP = 22  # height of the mark in pixels
QUALITY = 86
FOLDER = "thumbnails"  # where thumbnails are kept


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An image as a data URI, a text for who cannot see it, and a caption (may be empty)."""

    uri: str
    alt: str
    caption: str


def thumbnail(manifest: Manifest, record: Record, caption: str) -> Thumbnail:
    """The thumbnail of a record, marked when a model made it."""
    kind = "synthetic" if record.synthetic else "real"
    return Thumbnail(
        uri=_uri(_jpeg_of(manifest, record)), alt=f"{kind} {record.label}, {record.image}", caption=caption
    )


def grid(rows: Sequence[np.ndarray]) -> Image.Image:
    """Synthetic images uint8 [n, H, W, 3] a row as one image, every one of them marked."""
    tiled = Image.new("RGB", (SIDE * max(map(len, rows)), SIDE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            tile = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            mark_synthetic(tile)
            tiled.paste(tile, (x * SIDE, y * SIDE))
    return tiled


def data_uri(image: Image.Image) -> str:
    """An image as a JPEG inside of a page."""
    return _uri(_jpeg(image))


def evenly_spaced(records: Sequence[Record], count: int) -> list[Record]:
    """Up to count records, evenly spaced through the list: nobody picked the pretty ones."""
    step = max(len(records) / count, 1) if count else 1
    return [records[int(i * step)] for i in range(min(count, len(records)))]


def mark_synthetic(image: Image.Image) -> None:
    """Writes SYNTHETIC into the pixels of a square image, into a strip at its foot."""
    side = image.width
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, side - STRIP, side, side), fill=(24, 24, 28))
    font = ImageFont.load_default(size=15)
    draw.text((side / 2, side - STRIP / 2), "SYNTHETIC", fill=(255, 255, 255), font=font, anchor="mm")


def jpeg(manifest: Manifest, record: Record, side: int) -> bytes:
    """A JPEG of a record, `side` pixels a side, marked when a model made it."""
    image = Image.fromarray(images.load(manifest.path(record), side))
    if record.synthetic:
        mark_synthetic(image)
    return _jpeg(image)


def _jpeg_of(manifest: Manifest, record: Record) -> bytes:
    """A small JPEG of a record, marked when a model made it.

    It is kept beside the manifest by the digest of the image, where that folder may be written, so that the pages of
    all stages decode a photograph once.
    """
    kept = manifest.home and manifest.home / FOLDER / f"{record.sha256}{'_synthetic' * record.synthetic}.jpg"
    if kept and kept.is_file():
        return kept.read_bytes()
    content = jpeg(manifest, record, SIDE)
    if kept and os.access(manifest.home, os.W_OK):
        images.write_if_changed(kept, content)
    return content


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
