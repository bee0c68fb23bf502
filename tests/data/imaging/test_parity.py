"""What is measured on phantoms is what the plain forms of the same methods gave, before they were made fast.

measured.json holds what SciPy's and NumPy's own functions gave on whole images [S, S, 3], to its digits, of phantoms
that were drawn by the same seeds. Who means to change a method writes it anew; who makes one faster does not.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dermjax.data.imaging import artefacts, quality
from dermjax.data.imaging.artefacts import THRESHOLDS
from dermjax.data.imaging.segmentation import measure_mask, segment_classically
from dermjax.data.leaks import copies, duplicates
from dermjax.data.phantoms.painting import phantom

MEASURED = json.loads((Path(__file__).parent / "measured.json").read_text())
LAST = 1.1e-4  # a score may round to the next of its digits


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("before", MEASURED, ids=lambda before: f"{before['seed']}-{before['size']}")
def test_verdicts_are_those_of_the_plain_forms(before):
    made = phantom(before["seed"], before["size"])
    scores = artefacts.measure(made.image)
    assert scores == pytest.approx(before["artefacts"], abs=LAST)
    assert {name: scores[name] >= THRESHOLDS[name] for name in scores} == {
        name: score >= THRESHOLDS[name] for name, score in before["artefacts"].items()
    }
    assert quality.measure(made.image) == pytest.approx(before["quality"], abs=LAST)
    given, found = measure_mask(made.image, made.mask), segment_classically(made.image)
    assert (given.count, given.skin.tolist()) == (before["count"], before["skin"])
    np.testing.assert_allclose(given.areas, before["areas"], atol=1e-6)
    assert given.ita == pytest.approx(before["ita"], abs=0.011)
    assert [found.count, int(found.mask.sum())] == before["classical"]
    assert digest(copies.orientation_hashes(made.image)) == before["hashes"]
    assert digest(duplicates.cells(made.image)) == before["cells"]
