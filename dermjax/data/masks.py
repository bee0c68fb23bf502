"""Masks and other annotations that lie beside images: told from photographs by their names and their two levels.

`ISIC_0000000_segmentation.png` belongs to `ISIC_0000000.jpg`, and so does `masks/ISIC_0000000.png`. What is named so
is never a photograph; a mask of two levels is kept with its image. Endings that photographs may have too (`_lesion`)
count only with two levels.
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
    r"^(?P<of>.+?)[ _.-]+(?:(?P<other>superpixels?|attribute_\w+)|(?P<sure>segmentations?|masks?|ground_?truth)"
    r"|(?P<unsure>seg|lesion|gt|contour|border))$",
    re.IGNORECASE,
)
FOLDER = re.compile(r"(?:^|[^a-z])(?:masks?|segmentations?|superpixels?|ground_?truth)(?:$|[^a-z])", re.IGNORECASE)
USED, OTHER = "used as the mask of its image", "superpixels or attributes of an image"
LEVELS, SEVERAL = "a mask of many levels", "a mask that may be of several images"
FAR = 40  # grey levels of 255 from black or white; a JPEG of a mask comes so near with all but few pixels
MOST = 0.97


@dataclass(frozen=True)
class Found:
    """The photographs, their masks {photograph: mask}, and (path, reason) of all that is no photograph."""

    photographs: tuple[str, ...]
    masks: Mapping[str, str]
    left_out: tuple[tuple[str, str], ...]


def divided(root: Path, names: Sequence[str]) -> Found:
    """Tells photographs and annotations among images, paths relative to the root, apart."""
    of = _named(names)
    looked = [name for name, (_, kind) in of.items() if kind != "other"]
    with ThreadPoolExecutor(machine.cores()) as pool:
        levels = dict(zip(looked, pool.map(lambda name: has_two_levels(root / name), looked), strict=True))
    masks, left_out = {}, []
    for name, (photograph, kind) in of.items():
        if not photograph:
            left_out.append((name, SEVERAL))
        elif levels.get(name) and photograph not in masks:
            masks[photograph] = name
            left_out.append((name, USED))
        elif kind == "other" or kind == "sure":
            left_out.append((name, OTHER if kind == "other" or levels[name] else LEVELS))
    out = {name for name, _ in left_out}
    return Found(tuple(name for name in names if name not in out), masks, tuple(left_out))


def has_two_levels(path: Path) -> bool:
    """Whether an image has two levels of grey at most, or nearly so; a damaged one has not."""
    try:
        grey = images.whole(path)[..., 1]
    except UserError:
        return False
    counts = np.bincount(grey.ravel(), minlength=256)
    return np.count_nonzero(counts) <= 2 or counts[:FAR].sum() + counts[256 - FAR :].sum() >= MOST * grey.size


def _named(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{annotation: (the image that it is of, kind)} as far as names tell; kind is other, sure or unsure."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_stem(name).casefold(), []).append(name)
    found = {}
    for name in names:
        ending = ENDING.match(_stem(name))
        beside = [each for each in stems.get(ending["of"].casefold(), ()) if each != name] if ending else []
        if beside:
            found[name] = _nearest(name, beside), ending.lastgroup
        elif _in_folder(_folder(name)):
            of = [each for each in stems[_stem(name).casefold()] if each != name and not _in_folder(_folder(each))]
            if of:
                found[name] = _nearest(name, of), "sure"
    return {name: (of, kind) for name, (of, kind) in found.items() if of not in found}


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]


@cache
def _in_folder(folder: str) -> bool:
    return any(FOLDER.search(part) for part in folder.split("/"))


def _nearest(name: str, others: list[str]) -> str:
    """The one in the same folder, or in one of the same name, or the only one; "" where it may be of several."""
    own = _folder(name)
    for near in (lambda folder: folder == own, lambda folder: _folder_name(folder) == _folder_name(own)):
        found = [each for each in others if near(_folder(each))]
        if found:
            return found[0]
    return others[0] if len(others) == 1 else ""


def _folder_name(folder: str) -> str:
    return folder.rpartition("/")[2]
