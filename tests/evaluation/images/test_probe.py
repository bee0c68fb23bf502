"""Probes: a class that shows is seen, labels that do not hold are noticed, the strength is chosen on validation."""

from dataclasses import replace

import numpy as np

from dermjax.data.records import Record
from dermjax.evaluation.images import probe


def clouds(n, apart, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return rng.normal(size=(n, 10)) + apart * labels[:, None] * np.eye(10)[0], labels


def test_a_probe_judges_images_by_name():
    fitted = probe.fit(*clouds(400, 3.0, 0), clouds(100, 3.0, 1))
    features, labels = clouds(200, 3.0, 2)
    names = [f"{199 - i:03d}.png" for i in range(200)]
    found = probe.judge(fitted, names, features, labels)
    assert found.images == tuple(sorted(names)) and found.right.mean() > 0.85
    np.testing.assert_array_equal(found.labels, labels[::-1])
    swapped = probe.judge(fitted, names, features, 1 - labels)
    np.testing.assert_array_equal(swapped.right, ~found.right)


def test_validation_images_choose_the_strength(monkeypatch):
    """Forty images of a hundred dimensions: how strongly weights are held down decides."""
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(40, 100)), np.arange(40) % 2
    features[:, 0] += labels
    unseen, truth = rng.normal(size=(500, 100)), np.arange(500) % 2
    unseen[:, 0] += truth
    chosen = probe._auroc(probe.fit(features, labels, (unseen, truth)), unseen, truth)
    each = []
    for strength in probe.STRENGTHS:
        monkeypatch.setattr(probe, "STRENGTHS", (strength,))
        each.append(probe._auroc(probe.fit(features, labels, (unseen, truth)), unseen, truth))
    assert chosen == max(each) > min(each)


def test_a_feature_that_training_hardly_shows_does_not_drown_the_others():
    """MobileNetV2's channels end in ReLU6: of fifty images some hardly have one that is alive in others."""
    (features, labels), held_out, (unseen, truth) = (clouds(n, 2.0, n) for n in (50, 200, 1000))
    rng = np.random.default_rng(0)

    def with_dead(values, alive):
        dead = rng.random((len(values), 6)) * 1e-4
        return np.concatenate([values, np.where(rng.random(dead.shape) < alive, 1.0, dead)], 1)

    plain = probe._auroc(probe.fit(features, labels, held_out), unseen, truth)
    fitted = probe.fit(with_dead(features, 0.0), labels, (with_dead(held_out[0], 0.0), held_out[1]))
    assert probe._auroc(fitted, with_dead(unseen, 0.2), truth) > plain - 0.02


def test_artefacts_of_images_that_begin_at_one_photograph_are_no_evidence():
    """Four photographs, twelve images of each: nobody knows whether their rulers go with the label."""
    records = [
        Record(image=f"{n}.png", sha256=f"{n:064x}", label="ab"[n % 2], split="train", source="x",
               image_manipulation="synthetic", generation={"init_image": f"{n % 4:064x}"})
        for n in range(48)
    ]  # fmt: skip
    scores = np.array([[n % 4, 0, 0, 0, 0] for n in range(48)], float)
    assert probe.predict_by_artefacts(scores, records, ("a", "b"), 0) is None
    alone = [replace(record, generation={}) for record in records]
    assert probe.predict_by_artefacts(scores, alone, ("a", "b"), 0) is not None
