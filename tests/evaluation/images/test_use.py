"""What synthetic images are good for, of more classes than two as well."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dermjax.data.records import Manifest, Record
from dermjax.evaluation.images import run

CLASSES = ("melanoma", "nevus", "wart")
BOOTSTRAP = {"resamples": 100, "seed": 0, "smallest": 5}


@pytest.fixture(scope="module")
def sets():
    """Features that follow the class, of real images in their splits and of synthetic ones."""
    rng, chosen, features = np.random.default_rng(0), {}, {}
    for name, split, count in (("training", "train", 20), ("validation", "validation", 6), ("test", "test", 12),
                               ("synthetic", "train", 8)):  # fmt: skip
        chosen[name] = [
            Record(image=f"{name}-{label}-{number}.png", label=label,
                   sha256=hashlib.sha256(f"{name}{label}{number}".encode()).hexdigest(),
                   split=split, source="x", attributes={"sex": "mf"[number % 2]},
                   image_manipulation="synthetic" if name == "synthetic" else "none")
            for label in CLASSES for number in range(count)
        ]  # fmt: skip
        middle = np.repeat(np.eye(3, 5), count, axis=0)
        features[name] = (2 * middle + rng.normal(size=middle.shape)).astype(np.float32)
    chosen["synthetic"][0] = replace(chosen["synthetic"][0], generation={"init_image": chosen["training"][4].sha256})
    real = tuple(record for name in ("training", "validation", "test") for record in chosen[name])
    manifests = [Manifest(labels=CLASSES, root=Path(), records=some) for some in (real, tuple(chosen["synthetic"]))]
    return run.Sets(*manifests, chosen, features, None)


def test_three_classes_have_what_exists_for_them(sets):
    masked = {"with the lesion hidden": np.zeros_like(sets.features["test"])}
    found = run.use(sets, masked, BOOTSTRAP)
    assert 1 / 3 < found["label_fidelity"].value <= 1 and found["label_fidelity"].n == 24
    assert found["accuracy_on_real"].low < found["accuracy_on_real"].value and found["accuracy_on_real"].n == 36
    assert found["auroc_on_test"]["training"].value > 0.7
    assert found["auroc_masked"]["with the lesion hidden"]["training"].value == 0.5
    assert set(found["label_fidelity_of"]) == set(CLASSES)
    assert set(found["subgroups"]["training"]["sex"].figures["f"]) == {"auroc"}, "sensitivity is of two classes only"


def test_images_that_begin_where_the_probe_has_learnt_are_counted(sets):
    assert run.use(sets, {}, BOOTSTRAP)["begun_at_training_images"] == 1
