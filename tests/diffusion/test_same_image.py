"""Image i of derm-tiny is the same in batch 1, 4 and 16, on one device and on eight, before it is rounded to levels."""

import os
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from dermjax import sharding
from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.sampling import text_to_image
from dermjax.sampling.text_to_image import LatentDiffusion
from dermjax.weights import diffusers

pytestmark = pytest.mark.slow
NAMES = ("Euler a", "PLMS")  # fresh noise, memory; `test_samplers` has the others
STEPS, SIZE = 10, 64
RANGE = 2  # of the values of an image, -1 to 1
PARTS = {1: slice(5, 6), 4: slice(4, 8), 16: slice(0, 16)}  # of the seeds, by the batch


def images(path, batches):
    """Saves float images [batch, SIZE, SIZE, 3] by sampler and batch; called in a process with devices of its own."""
    model, params = diffusers.read(diffusers.locate("derm-tiny"))
    words = load_tokenizer(model.tokenizer)
    prompts = [f"a dermoscopy photo of a {kind} mole" for kind in ("benign", "malignant")] * 8
    rows = {"tokens": tokenize(words, prompts), "negative": tokenize(words, [""] * 16), "seeds": np.arange(16)}
    grid = sharding.mesh(0, 1)
    params = jax.device_put(params, sharding.replicated(grid))
    made = {}
    for name in NAMES:
        sampler = samplers.get_sampler(name)
        ladder = sampler.ladder(model.configs["scheduler"], STEPS, "")
        with mock.patch.object(text_to_image, "pixels", lambda image: image):
            render = text_to_image.text_to_image(LatentDiffusion(model, sampler, ladder, 1, None), SIZE)
            for batch in batches:
                placed = sharding.place({key: row[PARTS[batch]] for key, row in rows.items()}, grid)
                made[f"{name}/{batch}"] = render(params, **placed, guidance=Guidance(np.float32(3.5), None, None))
    np.savez(path, **made)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What `images` saves on one device, in every batch, and on eight, in the largest."""
    found = {}
    for devices, batches in ((1, (1, 4, 16)), (8, (16,))):
        path = tmp_path_factory.mktemp("made") / f"{devices}.npz"
        call = f"import runpy; runpy.run_path({__file__!r})['images']({str(path)!r}, {batches!r})"
        subprocess.run([sys.executable, "-c", call], env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}, check=True)
        found[devices] = np.load(path)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_everywhere(name, made):
    whole = made[1][f"{name}/16"]
    others = {
        "batch 1": (made[1][f"{name}/1"], PARTS[1]),
        "batch 4": (made[1][f"{name}/4"], PARTS[4]),
        "8 devices": (made[8][f"{name}/16"], PARTS[16]),
    }
    off = {where: float(np.abs(image - whole[part]).max()) / RANGE for where, (image, part) in others.items()}
    print(f"{name}: {', '.join(f'{where} {error:.1e}' for where, error in off.items())} of the range at most")
    assert whole.dtype == np.float32 and whole.std() > 0.1
    assert max(off.values()) <= 1e-5
