"""Init images: what images start from besides noise, as a whole or under a mask, and how far they go from it.

Place in the flow: config.init and the requests -> for each batch the arrays `image` and `mask` of `text_to_image`.

n requests, S the side of their images in pixels.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from operator import itemgetter
from pathlib import Path

import numpy as np
from PIL import ImageOps

from dermjax.data import digests, images, records
from dermjax.data.records import Manifest, Record
from dermjax.diffusion import ladders
from dermjax.errors import UserError
from dermjax.sampling.requests import Request


@dataclass(frozen=True)
class InitImage:
    """An image to start from, its mask, None where all of it may change, and their digests for records."""

    image: Path
    mask: Path | None
    digests: dict[str, str]


@dataclass(frozen=True)
class InitImages:
    """The init images of requests, none for noise alone; strength is in (0, 1], 1 for noise."""

    images: dict[Request, InitImage]
    strength: float

    def image(self, request: Request) -> Path | None:
        """Returns the file that a request starts from, None for noise."""
        chosen = self.images.get(request)
        return chosen.image if chosen else None

    def provenance(self, request: Request) -> dict:
        """Returns what the record of an image says of what it started from."""
        image = self.images.get(request)
        return {**image.digests, "strength": self.strength} if image else {}

    def arrays(self, requests: Sequence[Request], size: int) -> dict[str, np.ndarray]:
        """Returns `image`, uint8 [n, S, S, 3], and `mask`, bool [n, S, S], as far as the requests have them."""
        chosen = [self.images[request] for request in requests if request in self.images]
        arrays = {}
        if chosen:
            arrays["image"] = np.stack([images.load(each.image, size) for each in chosen])
        if any(each.mask for each in chosen):
            arrays["mask"] = np.stack([_painted(each.mask, size) for each in chosen])
        return arrays


NOISE = InitImages({}, 1.0)


def read(source: str, mask: str, strength: float, requests: Sequence[Request]) -> InitImages:
    """Returns the init images of requests: "" is noise; an image; or a manifest's training images of each class.

    The images of a class take turns. mask is "", an image, or a folder with NAME.png for the image NAME.

    Raises:
      UserError: a file is missing or no image, a mask has another size, or the strength leaves no step.
    """
    if not source:
        if mask:
            raise UserError("config.init.mask needs config.init.images, the pictures to paint into")
        return NOISE
    for steps in {request.steps for request in requests}:
        ladders.walked_steps(steps, strength)
    files = _files(Path(source), {request.label for request in requests})
    turns = {label: cycle(paths) for label, paths in files.items()}
    chosen = {request: next(turns[request.label]) for request in requests}
    if mask and Path(mask).is_dir():
        refuse_shared_names(set(chosen.values()), f"config.init.mask {mask}")
    checked = {path: _init_image(path, mask) for path in dict.fromkeys(chosen.values())}
    return InitImages({request: checked[path] for request, path in chosen.items()}, strength)


def refuse_shared_names(paths: Iterable[Path], key: str) -> None:
    """UserError where two images have one name but for their folder and suffix: a mask is found by that name."""
    stems = Counter(path.stem for path in paths)
    name, number = max(stems.items(), key=itemgetter(1), default=("", 0))
    if number > 1:
        raise UserError(f"{key}: {number} images are named {name}, and masks go by name; rename them, or give none")


def _files(source: Path, labels: set[str]) -> dict[str, list[Path]]:
    """Returns the files that the images of each label start from."""
    if not source.is_dir() and source.suffix != Path(records.FILE).suffix:
        return {label: [source] for label in labels}
    manifest = records.read(source)
    files = {label: [manifest.path(record) for record in in_turns(manifest, label)] for label in labels}
    for label in sorted(labels):
        if not files[label]:
            raise UserError(f"manifest {source}: no training image is labelled {label!r}, as the plan asks")
    return files


def in_turns(manifest: Manifest, label: str) -> list[Record]:
    """Returns the training images of a class in the order in which requests take them, always the same one.

    An image of another split would carry the answer into training. They are shuffled: a manifest of several archives
    has one behind the other, and few requests would take none of the last.
    """
    same = manifest.split("train", label)
    return [same[i] for i in np.random.default_rng(0).permutation(len(same))]


def _init_image(image: Path, mask: str) -> InitImage:
    """Returns an image with its mask, both of which can be decoded and have one size."""
    size = _size(image)
    digest = {"init_image": digests.cached_sha256(image)}
    if not mask:
        return InitImage(image, None, digest)
    path = Path(mask) / f"{image.stem}.png" if Path(mask).is_dir() else Path(mask)
    if (other := _size(path)) != size:
        raise UserError(f"mask {path}: {other}, but {image} is {size}; give a mask of its size")
    _painted(path, min(images.read_shape(path)[:2]))
    return InitImage(image, path, digest | {"init_mask": digests.cached_sha256(path)})


def _painted(path: Path, size: int) -> np.ndarray:
    """Returns where a mask is painted over, bool [S, S]; one that is so nowhere is a UserError."""
    mask = images.load_mask(path, size)
    if not mask.any():
        raise UserError(f"mask {path}: paints nothing in the middle square at {size} px; make it white where to paint")
    return mask


def _size(path: Path) -> str:
    """Returns width and height of an image as it is shown, for people; one that cannot be decoded is a UserError."""
    images.load(path, 8)
    with images.open_image(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    return f"{width}x{height} px"
