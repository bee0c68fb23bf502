"""What images start from besides noise: pictures, as a whole or under a mask, and how far they go from them.

Place in the flow: config.init and the plan's requests -> for each batch the rows `image` and `mask`, and the function
of `diffusion.text_to_image` that takes them.

S the side of the images in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import jax
import numpy as np
from PIL import ImageOps

from dermjax.data import digests, images, records
from dermjax.diffusion import ladders
from dermjax.errors import UserError
from dermjax.sampling.requests import Request
from dermjax.sampling.text_to_image import Pipeline, image_to_image, inpaint, text_to_image

WHITE = 127  # a mask is painted over where it is lighter


@dataclass(frozen=True)
class Picture:
    """A picture that an image starts from, its mask, None where all of it may change, and what records say of both."""

    image: Path
    mask: Path | None
    digests: dict[str, str]


@dataclass(frozen=True)
class Source:
    """The pictures that the images of a run start from, none for noise alone; strength is in (0, 1], 1 for noise."""

    pictures: dict[Request, Picture]
    strength: float

    def named(self, request: Request) -> dict:
        """Returns what the record of an image says of its start."""
        picture = self.pictures.get(request)
        return {**picture.digests, "strength": self.strength} if picture else {}

    def rows(self, requests: Sequence[Request], size: int) -> dict[str, np.ndarray]:
        """Returns `image`, uint8 [n, S, S, 3], and `mask`, bool [n, S, S], as far as the requests have them."""
        pictures = [self.pictures[request] for request in requests if request in self.pictures]
        rows = {}
        if pictures:
            rows["image"] = np.stack([images.load(picture.image, size) for picture in pictures])
        if any(picture.mask for picture in pictures):
            rows["mask"] = np.stack([images.load(picture.mask, size).mean(-1) > WHITE for picture in pictures])
        return rows

    def function(self, pipeline: Pipeline, size: int) -> Callable[..., jax.Array]:
        """Returns the compiled function that takes these rows; a model that cannot do without a mask: UserError."""
        if any(picture.mask for picture in self.pictures.values()):
            return inpaint(pipeline, self.strength)
        if pipeline.model.configs["unet"]["in_channels"] == 9:
            raise UserError("this model paints into pictures: give config.init.images and config.init.mask")
        return image_to_image(pipeline, self.strength) if self.pictures else text_to_image(pipeline, size)


NOISE = Source({}, 1.0)


def read(pictures: str, mask: str, strength: float, asked: Sequence[Request]) -> Source:
    """Returns what the requests start from: "" is noise; a picture; or a manifest's training images of each class.

    The images of a class take turns. mask is "", a picture, or a folder with NAME.png for the picture NAME.

    Raises:
      UserError: a file is missing or no picture, a mask has another size, or the strength leaves no step.
    """
    if not pictures:
        if mask:
            raise UserError("config.init.mask needs config.init.images, the pictures to paint into")
        return NOISE
    for steps in {request.steps for request in asked}:
        ladders.kept(steps, strength)
    turns = {label: cycle(files) for label, files in _files(pictures, {r.label for r in asked}).items()}
    starts = {request: next(turns[request.label]) for request in asked}
    known = {file: _picture(file, mask) for file in dict.fromkeys(starts.values())}
    return Source({request: known[file] for request, file in starts.items()}, strength)


def _files(pictures: str, labels: set[str]) -> dict[str, list[Path]]:
    """Returns the files that the images of each label start from."""
    path = Path(pictures)
    if not path.is_dir() and path.suffix != Path(records.FILE).suffix:
        return {label: [path] for label in labels}
    manifest = records.read(path)
    training = manifest.split("train")  # a picture of another split would carry the answer into training
    files = {label: [manifest.path(r) for r in training if r.label == label] for label in labels}
    for label in sorted(labels):
        if not files[label]:
            raise UserError(f"manifest {pictures}: no training image is labelled {label!r}, as the plan asks")
    return files


def _picture(image: Path, mask: str) -> Picture:
    """Returns a picture with its mask, both of which can be decoded and have one size."""
    sides = _sides(image)
    said = {"init_image": digests.cached_sha256(image)}
    if not mask:
        return Picture(image, None, said)
    path = Path(mask) / f"{image.stem}.png" if Path(mask).is_dir() else Path(mask)
    if _sides(path) != sides:
        raise UserError(f"mask {path}: {_told(_sides(path))}, but {image} is {_told(sides)}; give a mask of its size")
    return Picture(image, path, said | {"init_mask": digests.cached_sha256(path)})


def _sides(path: Path) -> tuple[int, int]:
    """Returns width and height of a picture as it is looked at; one that cannot be decoded is a UserError."""
    images.load(path, 8)
    with images.open_image(path) as image:
        return ImageOps.exif_transpose(image).size


def _told(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]} px"
