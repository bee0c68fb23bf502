"""MS-SSIM beside its definition, and what it says of a class whose images are all alike."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from dermjax.data import digests, images
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.evaluation.images import similarity


def reference(x, y):
    """Of two images [S, S, 3] in [0, 1], float64, as the papers write it, a channel at a time."""
    at = np.arange(-5, 6)
    window = np.exp(-(at**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(a):
        return correlate1d(correlate1d(a, window, 0), window, 1)[5:-5, 5:-5]

    values = []
    for channel in range(3):
        a, b, product = x[..., channel], y[..., channel], 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            ma, mb = blur(a), blur(b)
            va, vb, cab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
            value = (2 * cab + 0.03**2) / (va + vb + 0.03**2)
            if scale == 4:
                value = value * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
            product *= max(value.mean(), 0.0) ** weight
            a, b = (each.reshape(len(each) // 2, 2, -1, 2).mean((1, 3)) for each in (a, b))
        values.append(product)
    return np.mean(values)


def test_it_is_its_definition():
    pictures = np.stack([phantom(90_000_000 + i, 224).image for i in range(4)]).astype(np.float32) / 255
    rng = np.random.default_rng(0)
    others = np.stack(
        [
            pictures[1],
            np.clip(pictures[1] + rng.normal(0, 0.1, pictures[1].shape), 0, 1),
            pictures[2] * 0.8,
            1 - pictures[3],
        ]
    ).astype(np.float32)
    found = np.asarray(similarity.ms_ssim(pictures, others))
    expected = [reference(*pair) for pair in zip(pictures.astype(np.float64), others.astype(np.float64), strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.asarray(similarity.ms_ssim(pictures, pictures)) == pytest.approx(1, abs=1e-5)


def test_a_class_of_one_picture_is_more_alike_and_lesions_are_not_compared_with_themselves(tmp_path):
    def write(name, pictures, lesion=""):
        found = []
        for number, picture in enumerate(pictures):
            path = tmp_path / f"{name}{number}.png"
            path.write_bytes(images.encode_png(picture))
            given = {"label": "a", "split": "train", "source": "test", "image_manipulation": "none"}
            found.append(Record(image=path.name, sha256=digests.sha256(path), lesion_id=lesion, **given))
        return Manifest(labels=("a", "b"), root=tmp_path, records=tuple(found)), found

    varied = [phantom(91_000_000 + i, 224).image for i in range(24)]
    rng = np.random.default_rng(1)
    alike = [np.clip(varied[0] + rng.normal(0, 5, varied[0].shape), 0, 255).astype(np.uint8) for _ in range(24)]
    of_varied, of_alike = (similarity.within(*write(*each), seed=0) for each in (("v", varied), ("a", alike)))
    assert of_varied.high < of_alike.low and of_varied.n == of_alike.n == 12
    assert similarity.within(*write("s", alike, "one lesion"), seed=0) is None
    assert similarity.within(*write("f", varied[:8]), seed=0) is None
