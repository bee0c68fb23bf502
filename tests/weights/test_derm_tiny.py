"""What the shipped base model does when it is asked: number, size, tone and artefacts, by measurement.

`--slow` measures 256 images for the number of lesions. A gate that the shipped weights do not reach yet is marked as an
expected failure with what they reach; the mark is strict, so better weights make it fail until it is taken away.
"""

import json
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from dermjax.data.images import from_model, to_model
from dermjax.data.imaging import artefacts
from dermjax.data.phantoms import appearance, captions, painting
from dermjax.data.phantoms.painting import phantom
from dermjax.sampling.init_images import NOISE
from dermjax.sampling.model import load_model
from dermjax.sampling.render import Renderer
from dermjax.sampling.requests import Request
from dermjax.segmentation import segment
from dermjax.weights import diffusers

BATCH, SAMPLER, STEPS, GUIDANCE = 16, "Euler a", 20, 3.5
SIZES = tuple(appearance.SIZES)
TONES = tuple(appearance.TONES)
ARTEFACTS = ("hairs", "dark_corners", "ruler")
ABSENT = dict.fromkeys((*painting.PAINTERS, "blur"), False)


@pytest.fixture(scope="module")
def model():
    return diffusers.read(diffusers.locate("derm-tiny"))


@pytest.fixture(scope="module")
def draw():
    """A function from parameters to images: each asks with the caption of a phantom that has them."""
    renderer = Renderer(load_model("derm-tiny", "", 1.0, (), "refuse", "float32").placed(), None)
    begin = partial(renderer.begin, init=NOISE, size=renderer.model.sd.size, batch=BATCH)

    def images(asked: list[dict], first_seed: int) -> list[np.ndarray]:
        requests = []
        for seed, wanted in enumerate(asked, first_seed):
            prompt = captions.caption(appearance.draw(seed, ABSENT | wanted), None)
            requests.append(Request(image="", label="", prompt=prompt, negative="", seed=seed, sampler=SAMPLER,
                                    steps=STEPS, guidance=GUIDANCE))  # fmt: skip
        chunks = [requests[at : at + BATCH] for at in range(0, len(requests), BATCH)]
        return [image for chunk in chunks for image in np.asarray(begin([chunk]).images)[: len(chunk)]]

    return images


def number_and_size(draw, images: int) -> tuple[float, dict[str, float], float]:
    """Returns the share of images with the number asked for, the median area by size, and the artefacts' share."""
    pairs = [(number, size) for number in (1, 2, 3) for size in SIZES]
    asked = [dict(zip(("number", "size_name"), pairs[i % len(pairs)], strict=True)) for i in range(images)]
    right, areas, clean = [], defaultdict(list), []
    for wanted, image in zip(asked, draw(asked, 50_000_000), strict=True):
        found = segment(image)
        right.append(found.count == wanted["number"])
        areas[wanted["size_name"]] += list(found.areas)
        clean += [artefacts.SCORES[name](image) < artefacts.THRESHOLDS[name] for name in ARTEFACTS]
    return float(np.mean(right)), {size: float(np.median(areas[size])) for size in SIZES}, float(np.mean(clean))


@pytest.mark.slow
def test_the_number_follows_the_caption_over_256_images(draw, capsys):
    right, medians, clean = number_and_size(draw, 256)
    with capsys.disabled():
        print(f"\nnumber right {right:.3f}; median area {medians}; artefacts absent when not asked {clean:.3f}")
    assert right >= 0.8


@pytest.mark.slow
def test_sizes_are_ordered_and_nothing_comes_unasked(draw):
    _, medians, clean = number_and_size(draw, 48)
    assert medians["tiny"] < medians["small"] < medians["medium"] < medians["large"]
    assert clean >= 0.8


@pytest.mark.slow
def test_skin_tone_moves_with_the_caption(draw, capsys):
    each = 16
    images = draw(
        [{"tone": tone, "number": 1, "size_name": "small"} for tone in TONES for _ in range(each)], 51_000_000
    )
    angles = [float(np.median([segment(image).ita for image in images[i * each : (i + 1) * each]]))
              for i in range(len(TONES))]  # fmt: skip
    with capsys.disabled():
        print(f"\nmedian ITA {dict(zip(TONES, angles, strict=True))}")
    assert all(lighter > darker for lighter, darker in pairwise(angles))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARTEFACTS)
def test_artefacts_come_when_asked(draw, capsys, name):
    images = draw([{name: True, "number": 1 + i % 3} for i in range(32)], 52_000_000)
    score, least = artefacts.SCORES[name], artefacts.THRESHOLDS[name]
    share = float(np.mean([score(image) >= least for image in images]))
    with capsys.disabled():
        print(f"\n{name} when asked {share:.3f}")
    assert share >= 0.8


def test_reconstructions_keep_colour_border_and_number(model, capsys):
    sd, params = model
    phantoms = [phantom(53_000_000 + i, sd.size, **ABSENT, number=1 + i % 3) for i in range(48)]
    originals = np.stack([p.image for p in phantoms])
    moments = jax.jit(sd.encode)(params, to_model(originals))
    latents = moments[..., :4] * sd.scale
    again = from_model(np.asarray(jax.jit(sd.decode)(params, latents)))
    same, overlap, shift = [], [], []
    for p, image in zip(phantoms, again, strict=True):
        found = segment(image)
        same.append(found.count == p.parameters["number"])
        overlap.append((found.mask & p.mask).sum() / (found.mask | p.mask).sum())
        shift.append(np.abs(image[p.mask].mean(0) - p.image[p.mask].mean(0)).max())
    with capsys.disabled():
        print(f"\nnumber kept {np.mean(same):.3f}, IoU {np.median(overlap):.3f}, colour off {np.median(shift):.1f}")
    assert np.mean(same) >= 0.95
    assert np.median(overlap) >= 0.8  # of the truth; the segmentation itself reaches about 0.9
    assert np.median(shift) <= 10  # of 255, mean colour of the lesion


def test_the_folder_is_small_complete_and_documented():
    folder = Path(diffusers.locate("derm-tiny"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= 40e6
    card = (folder / "README.md").read_text()
    for word in ("Recipe", "Seed", "Data", "Time", "Quality", "research use only"):
        assert word.lower() in card.lower(), word
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
