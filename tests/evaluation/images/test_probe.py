"""Probes: a class that shows is seen, labels that do not hold are noticed, the strength is chosen on validation."""

import numpy as np

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
