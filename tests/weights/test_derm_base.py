"""What derm-base keeps of photographs, and what it paints when it is asked.

`--slow` measures all 488 test photographs of HAM10000, which nothing of it was trained on or chosen by, with a DINOv2
as the judge, and 120 images for number, size and tone.
"""

import json
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from dermjax import reconstruction
from dermjax.data.images import from_model, load, to_model
from dermjax.data.phantoms import appearance, captions, painting
from dermjax.data.phantoms.painting import phantom
from dermjax.evaluation import features
from dermjax.evaluation.images import probe
from dermjax.evaluation.metrics import auroc
from dermjax.sampling.init_images import NOISE
from dermjax.sampling.model import load_model
from dermjax.sampling.render import Renderer
from dermjax.sampling.requests import Request
from dermjax.segmentation import segment
from dermjax.weights import diffusers

SHARED = Path(__file__).parents[3] / "shared"
DINOV2, PHOTOGRAPHS = SHARED / "weights/dinov2_vits14", SHARED / "data/dermoscopy"
present = pytest.mark.skipif(not (DINOV2.is_dir() and PHOTOGRAPHS.is_dir()), reason="no photographs or no judge")
SIDE = 224
ABSENT = dict.fromkeys((*painting.PAINTERS, "blur"), False)


@pytest.fixture(scope="module")
def model():
    return diffusers.read(diffusers.locate("derm-base"))


@pytest.fixture(scope="module")
def tested(model):
    """The test photographs, their classes, and what comes back of them."""
    pictures, classes = photographs("test")
    return pictures, classes, again(model, pictures)


def again(model, pictures):
    """What comes back of uint8 pictures [N, S, S, 3]."""
    sd, params = model
    through = jax.jit(lambda image: reconstruction.reconstruct(sd, params["vae"], image))
    return from_model(
        np.concatenate([through(to_model(some)) for some in np.array_split(pictures, -(-len(pictures) // 8))])
    )


def photographs(split):
    """uint8 [N, SIDE, SIDE, 3] and classes int [N]."""
    labels = ("benign", "malignant")
    files = [
        (path, at) for at, label in enumerate(labels) for path in sorted((PHOTOGRAPHS / split / label).glob("*.jpg"))
    ]
    return np.stack([load(path, SIDE) for path, _ in files]), np.array([at for _, at in files])


def gradients(pictures):
    return sum(np.abs(np.diff(pictures.astype(np.float64), axis=axis)).sum() for axis in (1, 2))


def test_reconstructions_of_phantoms_keep_number_and_colour(model):
    phantoms = [phantom(54_000_000 + i, model[0].size, **ABSENT, number=1 + i % 3) for i in range(12)]
    came_back = again(model, np.stack([each.image for each in phantoms]))
    same, shift = [], []
    for each, image in zip(phantoms, came_back, strict=True):
        same.append(segment(image).count == each.parameters["number"])
        shift.append(np.abs(image[each.mask].mean(0) - each.image[each.mask].mean(0)).max())
    assert np.mean(same) >= 0.9 and np.median(shift) <= 6


@present
def test_photographs_come_back(model):
    pictures, _ = photographs("test")
    some = pictures[::20]
    error = np.square((again(model, some).astype(np.float64) - some) / 255).mean((1, 2, 3))
    assert -10 * np.log10(error).mean() >= 32


@pytest.fixture(scope="module")
def judged(tested):
    """By DINOv2: how far the photographs are from what came back, and a probe's AUROC on both."""
    pictures, classes, came_back = tested
    network = features.read(str(DINOV2))
    training, of_training = photographs("train")
    held_out = np.arange(len(training)) % 10 == 0
    seen = {name: network.of_pixels(each, len(each)) for name, each in
            {"training": training, "originals": pictures, "again": came_back}.items()}  # fmt: skip
    judge = probe.fit(seen["training"][~held_out], of_training[~held_out],
                      (seen["training"][held_out], of_training[held_out]))  # fmt: skip
    names = [f"{i:03d}" for i in range(len(pictures))]
    area = {name: auroc(probe.judge(judge, names, seen[name], classes)) for name in ("originals", "again")}
    length_one = [seen[name] / np.linalg.norm(seen[name], axis=1, keepdims=True) for name in ("originals", "again")]
    return 1 - np.prod(length_one, axis=0).sum(1).mean(), area


@present
@pytest.mark.slow
def test_photographs_keep_what_a_network_sees_in_them(tested, judged, capsys):
    pictures, _, came_back = tested
    error = np.square((came_back.astype(np.float64) - pictures) / 255).mean((1, 2, 3))
    psnr, (apart, area) = -10 * np.log10(error).mean(), judged
    with capsys.disabled():
        print(f"\nn {len(pictures)}: PSNR {psnr:.2f} dB, DINOv2 distance {apart:.4f}, AUROC {area}")
    assert psnr >= 32 and apart <= 0.04 and area["originals"] - area["again"] < 0.02


@present
@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="0.843, of 0.859 on the originals, by this probe")
def test_photographs_keep_what_a_probe_needs(judged):
    assert judged[1]["again"] >= 0.85


@present
@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="0.66: a stronger term for roughness costs what a judge sees")
def test_photographs_keep_their_grain(tested):
    pictures, _, came_back = tested
    assert gradients(came_back) / gradients(pictures) >= 0.7


@pytest.mark.slow
def test_number_size_and_tone_follow_the_caption(capsys):
    """Euler a, 20 steps, guidance 3.5, as derm-tiny is measured."""
    renderer = Renderer(load_model("derm-base", "", 1.0, (), "refuse", "float32").placed(), None)
    begin = partial(renderer.begin, init=NOISE, size=renderer.model.sd.size, batch=16)
    asked = [
        {
            "number": 1 + i % 3,
            "size_name": tuple(appearance.SIZES)[i // 3 % 4],
            "tone": tuple(appearance.TONES)[i // 12 % 5],
        }
        for i in range(120)
    ]
    requests = [
        Request(image="", label="", prompt=captions.caption(appearance.draw(55_000_000 + seed, ABSENT | wanted), None),
                negative="", seed=seed, sampler="Euler a", steps=20, guidance=3.5)
        for seed, wanted in enumerate(asked)
    ]  # fmt: skip
    chunks = [requests[at : at + 16] for at in range(0, len(requests), 16)]
    found = [segment(image) for chunk in chunks for image in np.asarray(begin([chunk]).images)[: len(chunk)]]
    areas, tones = defaultdict(list), defaultdict(list)
    for wanted, each in zip(asked, found, strict=True):
        areas[wanted["size_name"]] += list(each.areas)
        tones[wanted["tone"]].append(each.ita)
    right = np.mean([each.count == wanted["number"] for wanted, each in zip(asked, found, strict=True)])
    sizes = [float(np.median(areas[name])) for name in appearance.SIZES]
    angles = [float(np.nanmedian(tones[name])) for name in appearance.TONES]
    with capsys.disabled():
        print(f"\nnumber right {right:.3f}; median areas {sizes}; median ITA {angles}")
    assert right >= 0.8
    assert all(smaller < larger for smaller, larger in pairwise(sizes))
    assert all(lighter > darker for lighter, darker in pairwise(angles))


def test_the_folder_is_small_complete_and_documented():
    folder = Path(diffusers.locate("derm-base"))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 80e6
    card = (folder / "README.md").read_text().lower()
    for word in ("recipe", "seed", "data", "time", "quality", "cc0", "dinov2", "research use only"):
        assert word in card, word
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
