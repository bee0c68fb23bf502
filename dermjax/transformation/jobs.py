"""What a transformation comes to: a source image, what is to change on it, in which way, and the request to the model.

Ways:
  prompt          the words of a generated image are changed, its seed stays: as in the paper
  image_to_image  noise over a sketch of the change, everywhere
  inpaint         noise over the sketch where something changes; every other pixel is the source's own
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dermjax.config_file import LARGEST_SEED
from dermjax.data import images, templates
from dermjax.data.archives.masks import fits
from dermjax.data.imaging.segmentation import Segmentation, measure_mask
from dermjax.data.phantoms.appearance import SIZES
from dermjax.data.phantoms.captions import NUMBER_WORDS
from dermjax.data.records import Manifest, Record
from dermjax.data.templates import PromptWords
from dermjax.errors import UserError
from dermjax.sampling.requests import Request, names_folder
from dermjax.segmentation import segment
from dermjax.transformation import measures
from dermjax.transformation.measures import MOST, Measure
from dermjax.transformation.sketches import SKETCHES, Sketch

WAYS = ("prompt", "image_to_image", "inpaint")
RECORDED = ("seed", "sampler", "steps", "guidance")  # of a generated image, what a request takes as it is
UNUSUAL = ("spacing", "guidance_rescale", "guidance_interval", "deep_cache")  # where the record has them
NAMED = 16  # characters of a source's digest that name what is made of it
SIZE_WORDS = {"larger": "large", "smaller": "tiny"}
SIZE = re.compile(rf"\b({'|'.join(SIZES)})\b")
NOUN = re.compile(r"\b(mole|lesion|nevus|melanoma)s?\b")


@dataclass(frozen=True)
class Subject:
    """A source image: its record, its pixels uint8 [S, S, 3], its lesions and their measure."""

    record: Record
    pixels: np.ndarray
    lesions: Segmentation
    measure: Measure


@dataclass(frozen=True)
class Job:
    """One transformation of one subject.

    sketch is None where only the prompt changes; strength in (0, 1] is how far the image goes from it.
    """

    subject: Subject
    transformation: str
    way: str
    request: Request
    sketch: Sketch | None
    strength: float

    @property
    def description(self) -> dict[str, str]:
        """What the file of its image says of it: of which source by the digest alone, as the file gets around."""
        return {"asked": self.transformation, "way": self.way, "of_sha256": self.subject.record.sha256}


def subjects(manifest: Manifest, records: Collection[Record], masks: str, size: int) -> Iterator[Subject]:
    """Yields the sources that show a lesion; masks: a folder with a mask for each, NAME.png white on lesions; "" takes
    those that `prepare` found beside images, else `segment`."""
    for record in records:
        pixels = images.load(manifest.path(record), size)
        mask = Path(masks) / f"{Path(record.image).stem}.png" if masks else manifest.mask(record)
        lesions = measure_mask(pixels, _mask(mask, record, manifest, size)) if mask else segment(pixels)
        if lesions.count:
            yield Subject(record, pixels, lesions, measures.measure(lesions))


def plan_job(
    subject: Subject, transformation: str, way: str, template: str, factor: float, strength: float, request: Request
) -> Job:
    """Returns the job of a transformation, its request with the settings of `request` and a prompt by the template.

    The image is named by the source's digest: names of photographs may be names of patients, and images get around.

    Raises:
      UserError: it cannot be done on this image.
    """
    record = subject.record
    # a class may be named "in situ/invasive", or, by whoever made the manifest, "../.."
    folder = record.label
    if not names_folder(folder):
        folder = quote(folder, " ", errors="surrogateescape").replace(".", "%2E") or "%"
    name = f"{way}/{transformation.replace(' ', '_')}/{folder}/{record.sha256[:NAMED]}"
    request = replace(request, image=f"images/{name}.png", label=record.label)
    if way == "prompt":
        generation = record.generation
        if not {"prompt", "negative_prompt", *RECORDED} <= generation.keys():
            raise UserError("its record does not say what it was generated with")
        same = {name: generation[name] for name in (*RECORDED, *UNUSUAL) if name in generation}
        if "guidance_interval" in same:
            same["guidance_interval"] = tuple(same["guidance_interval"])
        prompt = change_prompt(generation["prompt"], transformation)
        request = replace(request, prompt=prompt, negative=generation["negative_prompt"], **same)
        if not 0 <= request.seed <= LARGEST_SEED:
            raise UserError(f"its record's seed = {request.seed}: seeds are 0 to {LARGEST_SEED}")
        request.check("its record's ")
        return Job(subject, transformation, way, request, None, 1.0)
    sketch = SKETCHES[transformation](subject.pixels, subject.lesions, factor)
    words = measures.measure(segment(sketch.image)).words()
    if transformation.endswith(" skin"):
        words["tone"] = transformation.removesuffix(" skin")
    prompt = templates.fill(template, PromptWords(record.label, words, None))
    return Job(subject, transformation, way, replace(request, prompt=prompt), sketch, strength)


def change_prompt(prompt: str, transformation: str) -> str:
    """Returns a prompt with the word for another size, number or skin tone; UserError where it says so already."""
    if transformation.endswith(" skin"):
        changed = re.sub(r"\b(very light|\w+) skin\b", transformation, prompt)
        changed = changed if "skin" in prompt else f"{prompt}, {transformation}"
    elif transformation == "more":
        numbers = {word: number for number, word in NUMBER_WORDS.items()}
        present = [word for word in prompt.split() if word in numbers]
        number = NUMBER_WORDS[min(numbers[present[0]] + 1, MOST) if present else 2]
        bare = re.sub(rf"\b({'|'.join(present) or 'a'}) ", "", prompt, count=1)
        # the number stands where "of" ends, else at the front
        counted = bare.replace("of ", f"of {number} ", 1) if "of " in bare else f"{number} {bare}"
        changed = NOUN.sub(lambda noun: f"{noun[1]}s", counted)
    else:
        size = SIZE_WORDS[transformation]
        changed = SIZE.sub(size, prompt) if SIZE.search(prompt) else NOUN.sub(rf"{size} \g<0>", prompt, count=1)
    if changed == prompt:
        raise UserError(f"its prompt says so already: {prompt}")
    return changed


def _mask(path: Path, record: Record, manifest: Manifest, size: int) -> np.ndarray:
    """Returns the mask of a record at the size of its image, bool [S, S]: brighter than half of its brightest."""
    image, mask = images.decode(manifest.path(record)), images.decode(path)
    if image.shape != mask.shape:
        sizes = " and ".join(f"{each.shape[1]}x{each.shape[0]} px" for each in (mask, image))
        raise UserError(f"mask {path} and its image are {sizes}; give a mask of its size")
    if not fits(manifest.path(record), path):
        turns = " and ".join(str(images.read_shape(each)[2]) for each in (path, manifest.path(record)))
        raise UserError(f"mask {path} and its image have the EXIF orientations {turns}, so that it may be turned "
                        "otherwise; save both without one, turned alike")  # fmt: skip
    return images.load(path, size).mean(-1) > mask.max() / 2
