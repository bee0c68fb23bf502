"""A loaded model that is called with prompts, for Python; what `dermjax.load` returns.

The images of a call are those that `dermjax generate` makes of the same requests, in batches of the same size.
"""

import json
import math
import operator
import re
import tempfile
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermjax import buckets
from dermjax.config_file import LARGEST_SEED
from dermjax.data import images, records
from dermjax.data.archives import layouts
from dermjax.data.images import ImageLike
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest
from dermjax.diffusion import samplers
from dermjax.errors import UserError
from dermjax.run_folder import make_folder, write_atomically
from dermjax.sampling import init_images, provenance
from dermjax.sampling.init_images import InitImages
from dermjax.sampling.model import Model
from dermjax.sampling.render import Renderer, produce
from dermjax.sampling.requests import Request, batches, names_folder, rounds


class Pipeline:
    """A model that makes synthetic images of prompts, with the functions compiled for it so far. Research use only."""

    def __init__(self, model: Model):
        self.model = model

    @cached_property
    def renderer(self) -> Renderer:
        """The model on the devices of this process."""
        return Renderer(self.model.placed(), None)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        sampler: str = "DPM++ 2M",
        steps: int = 20,
        guidance: float = 7.0,
        seeds: int | Iterable[int] = 0,
        size: int = 0,
        batch: int = 8,
        image: ImageLike | None = None,
        mask: ImageLike | None = None,
        strength: float = 0.6,
    ) -> list[Image.Image]:
        """Returns an image for each prompt with each seed, prompt by prompt.

        The `info` of each says that it is synthetic and how it was made. `Pipeline.save` writes that into the file; the
        image's own `save` leaves it out.

        Args:
          guidance: 1 is none, and half the time.
          size: the side in pixels; 0 is the model's own.
          batch: images that a device makes at a time.
          image: what to start from: a file, a PIL image or uint8 [H, W, 3].
          strength: how far to go from it, in (0, 1].
          mask: white where to paint, as large as the image.

        Raises:
          UserError: an option that nothing can be done with, a prompt that is too long, an image that cannot be read.
        """
        steps, size, batch = (_whole(*each) for each in (("steps", steps), ("size", size), ("batch", batch)))
        guidance, strength = number("guidance", guidance), number("strength", strength)
        sampler = samplers.get_sampler(str(sampler)).name
        seeds = [_whole("seed", seed) for seed in _listed(seeds)]
        prompts = _listed(prompts)
        wrong = [text for text in (*prompts, negative_prompt) if not isinstance(text, str)]
        if wrong:
            raise UserError(f"prompt {wrong[0]!r}: give text")
        if batch < 1 or not seeds or not prompts:
            raise UserError("nothing to make: give at least one prompt, one seed, and a batch of 1")
        outside = [seed for seed in seeds if not 0 <= seed <= LARGEST_SEED]
        if outside:
            raise UserError(f"seed {outside[0]}: give 0 to {LARGEST_SEED}")
        pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
        requests = [
            Request(image=f"image {n}", label="", prompt=prompt, negative=negative_prompt, seed=seed, sampler=sampler,
                    steps=steps, guidance=guidance)
            for n, (prompt, seed) in enumerate(pairs)
        ]  # fmt: skip
        requests[0].check("")
        size = self.model.size(size)
        divided = batches(requests, self.model.largest_batch(batch, size), self.model.kind)
        with tempfile.TemporaryDirectory() as folder:
            init = _init_images(image, mask, strength, requests, Path(folder))
            begin = partial(self.renderer.begin, init=init, size=size, batch=max(map(len, divided)))
            pixels: dict[Request, np.ndarray] = {}
            work = rounds(divided, self.renderer.grid.size, self.model.kind)
            produce(work, begin, requests, pixels.__setitem__, lambda n: None)
        made = []
        for request in requests:
            digests = self.model.digests | init.provenance(request)
            made.append(Image.fromarray(pixels[request]))
            made[-1].info = provenance.texts(provenance.generation(request, size, digests))
        return made

    def save(
        self, made: Image.Image | Iterable[Image.Image], folder: str | PathLike, label: str = "lesion"
    ) -> list[Path]:
        """Writes images of this pipeline to folder/images/<label>/NNNNN.png with their provenance, behind those there.

        Their records are added to folder/manifest.jsonl, for training only, and the list of what the model was trained
        on beside it, where the model's run has one. Returns the files.

        Raises:
          UserError: there is no image, one of them does not say how it was made, the label cannot name a folder, or the
            folder holds the manifest of photographs or of images elsewhere, or cannot be written.
        """
        root = buckets.path_here("folder", folder).absolute()
        before = records.read(root) if (root / records.FILE).is_file() else Manifest(labels=(), root=root, records=())
        if not names_folder(label):
            raise UserError(f"label {label!r} cannot name a folder; give another")
        if before.root.resolve() != root.resolve() or not all(record.synthetic for record in before.records):
            raise UserError(f"{root}: its {records.FILE} is of other images, in {before.root}; give another folder")
        made = _listed(made)
        if not made:
            raise UserError("no image to save; give at least one")
        generations = [_generation(n, image) for n, image in enumerate(made)]
        make_folder(root)
        images_of_label = Path("images", label)
        (root / images_of_label).mkdir(parents=True, exist_ok=True)
        there = [path.name for path in (root / images_of_label).iterdir()]
        there += [Path(record.image).name for record in before.records if Path(record.image).parent == images_of_label]
        number = 1 + max((int(name[:-4]) for name in there if re.fullmatch(r"[0-9]+\.png", name)), default=-1)
        paths, entries = [], list(before.records)
        for n, (image, generation) in enumerate(zip(made, generations, strict=True), number):
            path = root / images_of_label / f"{n:05d}.png"
            write_atomically(path, provenance.png(np.asarray(image.convert("RGB")), generation))
            entries.append(provenance.record(root, path.relative_to(root).as_posix(), label, generation))
            paths.append(path)
        labels = layouts.ordered({*before.labels, label})  # as `prepare` has them
        training_images.pass_on([root / records.FILE, *self.model.sources], root)
        records.write(root / records.FILE, Manifest(labels=labels, root=root, records=tuple(entries)))
        return paths


def _generation(number: int, image: Any) -> dict:
    """Returns how an image was made; UserError where it does not say so."""
    try:
        return json.loads(image.info[provenance.KEY])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"image {number}: does not say how it was made; give images of a pipeline") from error


def _init_images(
    image: ImageLike | None,
    mask: ImageLike | None,
    strength: float,
    requests: Sequence[Request],
    folder: Path,
) -> InitImages:
    """Returns what requests start from; images in memory are written to PNG files of the folder, which name them."""
    if image is None and mask is not None:
        raise UserError("mask: needs an image to paint into")
    files = {}
    for name, source in (("image", image), ("mask", mask)):
        if source is None or isinstance(source, str | PathLike):
            files[name] = str(source or "")
            continue
        files[name] = str(folder / f"{name}.png")
        png = images.encode_mask(source) if name == "mask" else images.encode_png(images.decode_any(source))
        Path(files[name]).write_bytes(png)
    return init_images.read(files["image"], files["mask"], strength, requests)


def _listed(values: Any) -> list:
    """Returns one value, a text or a number, or several as a list."""
    try:
        return [values] if isinstance(values, str) else list(values)
    except TypeError:  # no iterable
        return [values]


def _whole(name: str, value: Any) -> int:
    """Returns a whole number of Python, numpy or a tensor; UserError for anything else."""
    try:
        return operator.index(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} = {value!r}: give a whole number") from error


def number(name: str, value: Any) -> float:
    """Returns a finite number as a float; UserError for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} = {value!r}: give a number") from error
    if not math.isfinite(found):
        raise UserError(f"{name} = {value!r}: give a finite number")
    return found
