"""What the measures of a photograph cost beside decoding it."""

import time

import numpy as np
import pytest
from PIL import Image

from dermjax.data import images
from dermjax.data.imaging import artefacts
from dermjax.data.imaging.artefacts import View
from dermjax.data.imaging.segmentation import measure_mask
from dermjax.data.leaks import duplicates
from dermjax.data.phantoms.painting import phantom
from dermjax.preparation import examination

SIZE = 224


@pytest.fixture
def photographs(tmp_path):
    """JPEG files of phantoms, and the lesions' masks at the size at which images are measured."""
    drawn = [phantom(seed, SIZE) for seed in range(24)]
    paths = [tmp_path / f"{seed}.jpg" for seed in range(len(drawn))]
    for each, path in zip(drawn, paths, strict=True):
        Image.fromarray(each.image).save(path, quality=95)
    return paths, [phantom(seed, duplicates.HASHED).mask for seed in range(len(drawn))]


def fastest(call, count):
    """The processor time of one of `count` calls, each at its fastest of three, in milliseconds."""
    best = np.full(count, np.inf)
    for _ in range(3):
        for index in range(count):
            began = time.process_time()
            call(index)
            best[index] = min(best[index], time.process_time() - began)
    return 1e3 * best.mean()


@pytest.mark.slow
def test_measuring_takes_a_few_times_as_long_as_decoding(photographs, capsys):
    paths, masks = photographs
    decoded = [images.load(path, duplicates.HASHED) for path in paths]

    def measure_by_hand(index):
        view = View(decoded[index])
        artefacts.measure(view)
        measure_mask(view, masks[index])

    examination.measure(decoded[0])  # compiles the network
    decoding = fastest(lambda index: images.load(paths[index], duplicates.HASHED), len(paths))
    by_hand = fastest(measure_by_hand, len(paths))
    whole = fastest(lambda index: examination.measure(decoded[index]), len(paths))
    with capsys.disabled():
        print(f"\ndecoding {decoding:.2f} ms; artefacts and skin {by_hand:.2f} ms, {by_hand / decoding:.1f} times that")
        print(f"all measures {whole:.2f} ms: {1e3 / (decoding + whole):.0f} photographs a second of one core")
    assert by_hand < 9 * decoding  # the plain forms took 18 times
