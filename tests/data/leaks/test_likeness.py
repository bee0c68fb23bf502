"""What only hashes alike is told from a copy; a copy passes whatever was done to it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermjax.data import images
from dermjax.data.leaks import duplicates, neighbours

PHOTOGRAPHS = Path(__file__).parents[3] / ".." / "shared" / "data" / "dermoscopy" / "test" / "malignant"
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photographs():
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared photographs are not here")
    return images.load_all(sorted(PHOTOGRAPHS.glob("*.jpg"))[:40], 128, "photographs")


def edited(image):
    """A copy cut anywhere, turned, with other light, contrast and tint, compressed."""
    cut = rng.uniform(0.02, 0.12)
    left, top = rng.uniform(0, cut, 2) * 128
    box = (left, top, left + (1 - cut) * 128, top + (1 - cut) * 128)
    copy = Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC, box=box)
    copy = np.rot90(copy, rng.integers(4))[:, :: rng.choice((1, -1))].astype(float)
    copy = (copy - copy.mean()) * rng.uniform(0.85, 1.15) + copy.mean() + rng.uniform(-20, 20) + rng.uniform(-6, 6, 3)
    file = io.BytesIO()
    Image.fromarray(copy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def of_each(pictures):
    return np.stack([duplicates.cells(image) for image in pictures])


def paired(count, bits):
    return np.stack([np.arange(count), np.arange(count) + count, np.full(count, bits)], axis=-1)


def test_edited_copies_are_confirmed_and_other_lesions_are_not(photographs):
    copies = np.stack([edited(image) for image in photographs])
    near = paired(40, 30)
    np.testing.assert_array_equal(duplicates.confirm(near, of_each([*photographs, *copies])), near)
    others = of_each([*photographs, *np.roll(photographs, 1, axis=0)])
    assert len(duplicates.confirm(near, others)) == 0
    assert len(duplicates.confirm(paired(40, 0), others)) == 40  # of one hash each, so nobody asks


def test_copies_cut_anywhere_are_found_from_hash_to_check(photographs):
    copies = []
    for image in photographs:
        cut = rng.uniform(0.02, 0.1)
        left, top = rng.uniform(0, cut, 2) * 128
        box = (left, top, left + (1 - cut) * 128, top + (1 - cut) * 128)
        copy = Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC, box=box)
        file = io.BytesIO()
        Image.fromarray(np.rot90(np.asarray(copy), rng.integers(4))).save(file, "JPEG", quality=70)
        copies.append(np.asarray(Image.open(file)))
    everything = np.concatenate([photographs, np.stack(copies)])
    found = duplicates.confirm(neighbours.near(duplicates.views(everything)), of_each(everything))
    assert all(other - one == 40 for one, other, _ in found) and len(found) >= 39


def test_a_hash_alike_with_other_colours_is_no_copy(photographs):
    """The same brightness, hence the same bits, in the colours of another lesion."""
    recoloured = []
    for image, other in zip(photographs, np.roll(photographs, 7, axis=0), strict=True):
        light = image.astype(np.float32) @ duplicates.LUMA
        hue = other.astype(np.float32) - (other.astype(np.float32) @ duplicates.LUMA)[..., None]
        recoloured.append((light[..., None] + hue).clip(0, 255).astype(np.uint8))
    views = duplicates.views(np.concatenate([photographs, np.stack(recoloured)]))
    near = neighbours.near(views)
    near = near[(near[:, 1] - near[:, 0] == 40) & (near[:, 2] > 0)]
    assert len(near) > 10
    assert len(duplicates.confirm(near, of_each([*photographs, *recoloured]))) <= 0.1 * len(near)


def test_nothing_and_blank_images():
    assert duplicates.confirm(np.empty((0, 3), np.int64), np.empty((0, 16, 16, 3), np.uint8)).shape == (0, 3)
    blank = np.full((2, 16, 16, 3), 90, np.uint8)
    assert duplicates.likeness(blank[:1], blank[1:], duplicates.VIEWS).tolist() == [0]


def test_cells_are_means():
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert duplicates.cells(image)[3, 5, 1] == round(float(image[12:16, 20:24, 1].mean()))
