"""What a transformation comes to: a source image, what is asked of it, in which way, and the request to the model.

Ways:
  prompt          the words of a generated image are changed, its seed stays: as in the paper
  image_to_image  noise over a sketch of the change, everywhere
  inpaint         noise over the sketch where something changes; every other pixel is the source's own
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dermjax.data import images, templates
from dermjax.data.imaging.segmentation import Segmentation, measure_mask, segment
from dermjax.data.phantoms.appearance import SIZES
from dermjax.data.phantoms.captions import NUMBER_WORDS
from dermjax.data.records import Manifest, Record
from dermjax.data.templates import PromptWords
from dermjax.errors import UserError
from dermjax.sampling.requests import Request
from dermjax.transformation import measures
from dermjax.transformation.measures import MOST, Measure
from dermjax.transformation.sketches import SKETCHES, Sketch

WAYS = ("prompt", "image_to_image", "inpaint")
SAID = ("seed", "sampler", "steps", "guidance")  # of what a record says, what a request takes as it is
UNUSUAL = ("spacing", "guidance_rescale", "guidance_interval", "deep_cache")  # where it says so
SIZE_WORDS = {"larger": "large", "smaller": "tiny"}
SIZE = re.compile(rf"\b({'|'.join(SIZES)})\b")
NOUN = re.compile(r"\b(mole|lesion|nevus|melanoma)s?\b")


@dataclass(frozen=True)
class Subject:
    """A source image: its record, its pixels uint8 [S, S, 3], its lesions and their measure."""

    record: Record
    pixels: np.ndarray
    seen: Segmentation
    measure: Measure


@dataclass(frozen=True)
class Job:
    """One transformation of one subject.

    sketch is None where only the prompt changes; strength in (0, 1] is how far the image goes from it.
    """

    subject: Subject
    asked: str
    way: str
    request: Request
    sketch: Sketch | None
    strength: float


def subjects(manifest: Manifest, records: Collection[Record], masks: str, size: int) -> Iterator[Subject]:
    """The sources that show a lesion; masks: a folder with a mask for each, NAME.png white on lesions;
    "" takes those that `prepare` found beside images, else `segment`."""
    for record in records:
        pixels = images.load(manifest.path(record), size)
        beside = Path(masks) / f"{Path(record.image).stem}.png" if masks else manifest.mask(record)
        seen = measure_mask(pixels, _mask(beside, record, manifest, size)) if beside else segment(pixels)
        if seen.count:
            yield Subject(record, pixels, seen, measures.measured(seen))


def job(
    subject: Subject, asked: str, way: str, template: str, factor: float, strength: float, settings: Request
) -> Job:
    """The transformation; UserError where it cannot be done on this image."""
    name = f"{way}/{asked.replace(' ', '_')}/{subject.record.label}/{Path(subject.record.image).stem}"
    request = replace(settings, image=f"images/{name}.png", label=subject.record.label)
    if way == "prompt":
        made = subject.record.generation
        if not {"prompt", "negative_prompt", *SAID} <= made.keys():
            raise UserError("its record does not say what it was generated with")
        same = {name: made[name] for name in (*SAID, *UNUSUAL) if name in made}
        if "guidance_interval" in same:
            same["guidance_interval"] = tuple(same["guidance_interval"])
        words = exchanged(made["prompt"], asked)
        request = replace(request, prompt=words, negative=made["negative_prompt"], **same)
        return Job(subject, asked, way, request, None, 1.0)
    sketch = SKETCHES[asked](subject.pixels, subject.seen, factor)
    words = measures.measured(segment(sketch.image)).words()
    if asked.endswith(" skin"):
        words["tone"] = asked.removesuffix(" skin")
    prompt = templates.fill(template, PromptWords(subject.record.label, words, None))
    return Job(subject, asked, way, replace(request, prompt=prompt), sketch, strength)


def exchanged(prompt: str, asked: str) -> str:
    """A prompt with the word for size, number or skin tone that is asked for; UserError where it says so already."""
    if asked.endswith(" skin"):
        words = re.sub(r"\b(very light|\w+) skin\b", asked, prompt)
        changed = words if "skin" in prompt else f"{prompt}, {asked}"
    elif asked == "more":
        numbers = {word: number for number, word in NUMBER_WORDS.items()}
        found = [word for word in prompt.split() if word in numbers]
        number = min(numbers[found[0]] + 1, MOST) if found else 2
        bare = re.sub(rf"\b({'|'.join(found) or 'a'}) ", "", prompt, count=1)
        changed = NOUN.sub(lambda noun: f"{noun[1]}s", _before_the_kind(bare, NUMBER_WORDS[number]))
    else:
        wanted = SIZE_WORDS[asked]
        changed = SIZE.sub(wanted, prompt) if SIZE.search(prompt) else NOUN.sub(rf"{wanted} \g<0>", prompt, count=1)
    if changed == prompt:
        raise UserError(f"its prompt says so already: {prompt}")
    return changed


def _before_the_kind(prompt: str, number: str) -> str:
    """The prompt with a number where "of" ends, else at its front."""
    return prompt.replace("of ", f"of {number} ", 1) if "of " in prompt else f"{number} {prompt}"


def _mask(path: Path, record: Record, manifest: Manifest, size: int) -> np.ndarray:
    """The mask of a record at the size of its image, bool [S, S]: what is brighter than half of its brightest."""
    image, mask = images.decode(manifest.path(record)), images.decode(path)
    if image.shape != mask.shape:
        told = " and ".join(f"{each.shape[1]}x{each.shape[0]} px" for each in (mask, image))
        raise UserError(f"mask {path} and its image are {told}; give a mask of its size")
    return images.load(path, size).mean(-1) > mask.max() / 2
