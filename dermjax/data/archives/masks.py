"""Masks and other annotations that lie beside images, known from photographs by their names and their two levels.

`ISIC_0000000_segmentation.png` belongs to `ISIC_0000000.jpg`, and so does `masks/ISIC_0000000.png`. What is named so
is never a photograph; a mask of two levels is kept with its image. Endings that photographs may have too (`_lesion`),
folders that classes may have too (`labels/ISIC_0000000.png`), and a PNG of the name of a JPEG count only with two
levels.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dermjax import machine
from dermjax.data import images
from dermjax.errors import UserError

ENDING = re.compile(
    r"^(?P<image>.+?)[ _.-]+(?:(?P<other>superpixels?|attribute_\w+)|(?P<sure>segmentations?|masks?|ground_?truth)"
    r"|(?P<unsure>seg|lesion|gt|contour|border))$",
    re.IGNORECASE,
)
LIKELY = re.compile(r"(?:gt|labels?|annotations?|targets?|segs?|lesions?|contours?|borders?|binary)$", re.IGNORECASE)
FOLDER = re.compile(r"(?:^|[^a-z])(?:masks?|segmentations?|superpixels?|ground_?truth)(?:$|[^a-z])", re.IGNORECASE)
LOSSLESS = (".png", ".bmp", ".gif", ".tif", ".tiff")
SIDEWAYS = 5  # from this EXIF orientation on, width and height change places
FAR = 40  # grey levels of 255 from black or white; a JPEG of a mask comes so near with all but few pixels
MOST = 0.97


@dataclass(frozen=True)
class Separation:
    """The photographs, their masks {photograph: mask}, and (path, reason) of all that is no photograph."""

    photographs: tuple[str, ...]
    masks: Mapping[str, str]
    left_out: tuple[tuple[str, str], ...]


def separate(root: Path, names: Sequence[str]) -> Separation:
    """Tells photographs and annotations apart among images, given by their paths relative to the root."""
    annotations = _annotations(names)
    possible = [name for name, (_, kind) in annotations.items() if kind != "other"]
    with ThreadPoolExecutor(machine.cores()) as pool:
        two_levels = dict(zip(possible, pool.map(lambda name: has_two_levels(root / name), possible), strict=True))
    masks, left_out = {}, {}
    for name, (photograph, kind) in annotations.items():
        if not photograph and (kind != "unsure" or two_levels[name]):
            left_out[name] = "a mask that may be of several images"
        elif two_levels.get(name) and photograph not in masks and not fits(root / photograph, root / name):
            left_out[name] = "a mask that is shaped or turned otherwise than its image"
        elif two_levels.get(name) and photograph not in masks:
            masks[photograph] = name
            left_out[name] = "used as the mask of its image"
        elif kind == "other" or (kind == "sure" and two_levels[name]):
            left_out[name] = "superpixels or attributes of an image"
        elif kind == "sure":
            left_out[name] = "a mask of many levels"
    return Separation(tuple(name for name in names if name not in left_out), masks, tuple(left_out.items()))


def has_two_levels(path: Path) -> bool:
    """Whether an image has at most two levels of grey, or nearly so; a damaged one has not."""
    try:
        grey = images.decode(path)[..., 1]
    except UserError:
        return False
    counts = np.bincount(grey.ravel(), minlength=256)
    return np.count_nonzero(counts) <= 2 or counts[:FAR].sum() + counts[256 - FAR :].sum() >= MOST * grey.size


def fits(photograph: Path, mask: Path) -> bool:
    """Whether a mask is of a photograph's proportions, and turned as it is by EXIF: programs that draw masks may heed
    the orientation of a photograph or not, and only proportions tell which."""
    try:
        (width, height, turn), (mask_width, mask_height, mask_turn) = map(images.read_shape, (photograph, mask))
    except UserError:
        return True  # damaged; said where it is decoded
    lies, mask_lies = turn >= SIDEWAYS, mask_turn >= SIDEWAYS
    width, height = (height, width) if lies else (width, height)
    mask_width, mask_height = (mask_height, mask_width) if mask_lies else (mask_width, mask_height)
    alike = abs(width * mask_height - height * mask_width) <= max(width, height)  # one side may be rounded
    return alike and (turn == mask_turn or (lies != mask_lies and width != height))


def _annotations(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{annotation: (its image, kind)} as far as names show; kind is other, sure or unsure."""
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(_stem(name).casefold(), []).append(name)
    matches = {}
    for name in names:
        ending = ENDING.match(_stem(name))
        beside = [each for each in by_stem.get(ending["image"].casefold(), ()) if each != name] if ending else []
        if beside:
            matches[name] = _nearest(name, beside), ending.lastgroup
        elif _is_mask_folder(_folder(name)):
            same = [each for each in by_stem[_stem(name).casefold()] if not _is_mask_folder(_folder(each))]
            if same:
                matches[name] = _nearest(name, same), "sure"
        elif LIKELY.match(_base(_folder(name))):
            same = [each for each in by_stem[_stem(name).casefold()] if not LIKELY.match(_base(_folder(each)))]
            if same:
                matches[name] = _nearest(name, same), "unsure"
        elif _is_lossless(name):
            same = [each for each in by_stem[_stem(name).casefold()]
                    if _folder(each) == _folder(name) and not _is_lossless(each)]  # fmt: skip
            if same:
                matches[name] = same[0], "unsure"
    return {name: (image, kind) for name, (image, kind) in matches.items() if image not in matches}


def _nearest(name: str, images: list[str]) -> str:
    """The one in the same folder, or in one of the same name, or the only one; "" where it may be of several."""
    here, called = _folder(name), _base(_folder(name))
    near = [image for image in images if _folder(image) == here]
    near = near or [image for image in images if _base(_folder(image)) == called]
    return near[0] if near else images[0] if len(images) == 1 else ""


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _is_lossless(name: str) -> bool:
    return name.lower().endswith(LOSSLESS)


def _stem(name: str) -> str:
    return os.path.splitext(_base(name))[0]


@cache
def _is_mask_folder(folder: str) -> bool:
    return any(FOLDER.search(part) for part in folder.split("/"))
