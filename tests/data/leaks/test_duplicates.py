"""Copies are found through what copying does to an image; different lesions are not taken for copies."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermjax.data import digests, images
from dermjax.data.leaks import duplicates

PHOTOGRAPHS = Path(__file__).parents[3] / ".." / "shared" / "data" / "dermoscopy" / "test" / "malignant"


def lesions(count, side=96):
    """uint8 [count, side, side, 3]: a dark ellipse with blotches on skin, each another one."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    made = []
    for _ in range(count):
        image = np.full((side, side, 3), rng.uniform([170, 120, 100], [230, 190, 170]))
        for _ in range(12):
            centre, radius = rng.uniform(-0.7, 0.7, 2), rng.uniform(0.1, 0.5)
            inside = np.hypot(x - centre[0], y - centre[1]) < radius
            image[inside] = image[inside] * rng.uniform(0.6, 1.05, 3)
        made.append(image.clip(0, 255))
    return np.stack(made).astype(np.uint8)


def hashes(pictures):
    """Of whole images, uint64 [N, 4]."""
    return duplicates.views(pictures, duplicates.VIEWS[:1])[:, 0]


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=70)
    return np.asarray(Image.open(buffer))


def half(image):
    return np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.LANCZOS))


def brighter(image):
    return np.minimum(image * 1.1, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [jpeg, half, brighter])
def test_a_copy_is_near_and_another_lesion_is_not(change):
    originals = lesions(30)
    copies = hashes(np.stack([change(image) for image in originals]))
    found = duplicates.pairs(hashes(originals), copies, duplicates.NEAR)
    np.testing.assert_array_equal(found[:, :2], np.stack([np.arange(30)] * 2, axis=-1))


def test_no_two_lesions_of_real_photographs_are_taken_for_one():
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared photographs are not here")
    found = hashes(images.load_all(sorted(PHOTOGRAPHS.glob("*.jpg")), 64, "photographs"))
    assert len(duplicates.pairs(found, found, duplicates.NEAR)) == len(found)


def test_hashes_are_four_words_an_image():
    found = hashes(lesions(3))
    assert found.shape == (3, 4) and found.dtype == np.uint64
    assert hashes(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 4)


def test_a_blank_image_has_a_hash():
    blank = np.zeros((2, 32, 32, 3), np.uint8)
    assert len(duplicates.pairs(hashes(blank), hashes(blank), 0)) == 4


def test_pairs_are_those_of_the_definition_in_every_block(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 20)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**63, (count, 4)).astype(np.uint64) for count in (11, 7))
    b[3], b[5] = a[2], a[2] ^ np.uint64(0b1011)
    apart = [[sum(int(x ^ y).bit_count() for x, y in zip(one, other, strict=True)) for other in b] for one in a]
    expected = [(i, j, apart[i][j]) for i in range(11) for j in range(7) if apart[i][j] <= 120]
    assert [tuple(row) for row in duplicates.pairs(a, b, 120)] == expected
    assert [tuple(row) for row in duplicates.pairs(a, b, 12)] == [(2, 3, 0), (2, 5, 12)]


def test_pairs_of_nothing():
    found = hashes(lesions(4))
    assert duplicates.pairs(found[:0], found, 256).shape == (0, 3)


def test_groups_join_through_links_and_shared_identities():
    links = np.array([[0, 3, 5]])
    identities = [[], [("lesion", "a")], [("lesion", "b")], [("patient", "p")], [("patient", "p"), ("lesion", "b")], []]
    found = duplicates.group(links, identities)
    assert found[0] == found[3] == found[4] == found[2]
    assert len({found[0], found[1], found[5]}) == 3


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"lesion" * 100_000)
    assert digests.sha256(tmp_path / "a") == hashlib.sha256(b"lesion" * 100_000).hexdigest()
