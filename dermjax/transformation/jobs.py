"""What a transformation comes to: a source image, what is to change on it, in which way, and the request to the model.

Ways:
  prompt          the words of a generated image are changed, its seed stays: as in the paper
  image_to_image  noise over a sketch of the change, everywhere
  inpaint         noise over the sketch where something changes; every other pixel is the source's own
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dermjax.config_file import LARGEST_SEED
from dermjax.data import images, templates
from dermjax.data.archives.masks import fits
from dermjax.data.imaging.segmentation import Segmentation, measure_mask
from dermjax.data.phantoms.appearance import SIZES
from dermjax.data.phantoms.captions import ANGLES, LARGER_SIZES, MANY, NUMBER_WORDS, NUMBERS
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
# of a generated image, what it came of besides its words; what a run has otherwise makes another image
CAUSES = ("model", "lora", "lora_weight", "embeddings", "size", "init_image", "init_mask", "strength")
SIZE_WORDS = {"larger": ("large", "huge"), "smaller": ("tiny",)}  # the word that is taken, and others that say so
SIZE = re.compile(rf"\b({'|'.join((*SIZES, *LARGER_SIZES))})\b", re.IGNORECASE)
TONE = re.compile(rf"\b({'|'.join(ANGLES)}) skin\b", re.IGNORECASE)
PLURALS = {
    **{noun: f"{noun}s" for noun in ("mole", "lesion", "melanoma", "carcinoma", "dermatofibroma")},
    **{"nevus": "nevi", "naevus": "naevi", "keratosis": "keratoses", "lentigo": "lentigines"},
}
NOUN = re.compile(rf"\b(?:(?:{'|'.join(PLURALS)}) )*({'|'.join((*PLURALS, *PLURALS.values()))})\b", re.IGNORECASE)
NUMBERED = "|".join(word for word in NUMBERS if word not in PLURALS.values())
# behind the last of these before its noun are the words for a lesion: "a photo of | benign", "on skin with a | benign"
BEFORE = re.compile(rf"\b(?:of|with|(?:an? |the )?(?P<number>{NUMBERED})|an?|the) ", re.IGNORECASE)


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
    subject: Subject, transformation: str, way: str, template: str, factor: float, strength: float, request: Request,
    causes: Mapping[str, Any],
) -> Job:  # fmt: skip
    """Returns the job of a transformation, its request with the settings of `request` and a prompt by the template.

    causes: what images of this run come of, as their records say it, of which CAUSES count where words are changed.
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
        other = [name for name in CAUSES if generation.get(name) != causes.get(name)]
        if other:
            raise UserError(f"its record's {', '.join(other)}: not as in this run, whose image of its seed is another; "
                            "inpaint and image_to_image begin at its pixels")  # fmt: skip
        same = {name: generation[name] for name in (*RECORDED, *UNUSUAL) if name in generation}
        if "guidance_interval" in same:
            same["guidance_interval"] = tuple(same["guidance_interval"])
        prompt = change_prompt(generation["prompt"], transformation)
        # without guidance nobody read it
        negative = generation["negative_prompt"] if generation["guidance"] > 1 else ""
        request = replace(request, prompt=prompt, negative=negative, **same)
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
    """Returns a prompt with the word for another size, number or skin tone.

    Raises:
      UserError: it says so already, or names no lesion that a size or a number could be put to.
    """
    if transformation.endswith(" skin"):
        changed = TONE.sub(transformation, prompt) if TONE.search(prompt) else f"{prompt}, {transformation}"
    elif transformation == "more" or not SIZE.search(prompt):
        changed = _describe_lesion(prompt, transformation)
    else:
        size, *others = SIZE_WORDS[transformation]
        changed = prompt if SIZE.search(prompt)[1].lower() in others else SIZE.sub(size, prompt)
    if changed.lower() == prompt.lower():
        raise UserError(f"its prompt says so already: {prompt}")
    return changed


def _describe_lesion(prompt: str, transformation: str) -> str:
    """Returns a prompt with a word for the size, or one for a larger number, before all other words for its lesion."""
    noun = NOUN.search(prompt)
    if not noun:
        raise UserError(
            f"its prompt has no word that {transformation} can be said of, such as {', '.join(PLURALS)}: {prompt}"
        )
    before = [found for found in BEFORE.finditer(prompt) if found.end() <= noun.start()]
    start, end = before[-1].span() if before else (0, 0)
    if transformation != "more":
        head = re.sub(r"(?<=\ba)n $", " ", prompt[:end], flags=re.IGNORECASE)
        return f"{head}{SIZE_WORDS[transformation][0]} {prompt[end:]}"
    plural = noun[1].lower() not in PLURALS
    word = before[-1]["number"] if before else None
    least, most = NUMBERS[word.lower()] if word else (1, MANY if plural else 1)
    if most == MANY or least >= MOST:
        return prompt
    counted = f"{NUMBER_WORDS[least + 1]} {prompt[end : noun.start(1)]}{PLURALS.get(noun[1].lower(), noun[1])}"
    kept = start if before and before[-1][0].lower() not in ("of ", "with ") else end
    return prompt[:kept] + counted + prompt[noun.end() :]


def _mask(path: Path, record: Record, manifest: Manifest, size: int) -> np.ndarray:
    """Returns the mask of a record at the size of its image, bool [S, S]."""
    image, mask = images.decode(manifest.path(record)), images.decode(path)
    if image.shape != mask.shape:
        sizes = " and ".join(f"{each.shape[1]}x{each.shape[0]} px" for each in (mask, image))
        raise UserError(f"mask {path} and its image are {sizes}; give a mask of its size")
    if not fits(manifest.path(record), path):
        turns = " and ".join(str(images.read_shape(each)[2]) for each in (path, manifest.path(record)))
        raise UserError(f"mask {path} and its image have the EXIF orientations {turns}, so that it may be turned "
                        "otherwise; save both without one, turned alike")  # fmt: skip
    return images.load_mask(path, size)
