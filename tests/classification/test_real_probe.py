"""A linear probe on the real photographs gives what it gives in PyTorch: the same features, the same AUROC."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dermjax import sharding
from dermjax.classification.features import Features, causes
from dermjax.classification.recipes import Recipe
from dermjax.data import images
from dermjax.data.archives import folders
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest
from dermjax.weights import classifiers

SHARED = Path(__file__).parents[2] / ".." / "shared"
PHOTOGRAPHS, BACKBONES = SHARED / "data" / "dermoscopy", SHARED / "weights"
CHECKED = 16  # photographs that PyTorch looks at as well
# folder, pixels a side, the pooled features of PyTorch's model among ours, its AUROC on all photographs
PROBES = {"mobilenetv2": ("mobilenet_v2_1.0_160", 160, 1280, 0.863), "dinov2": ("dinov2_vits14", 224, 384, 0.876)}


@pytest.fixture(scope="module")
def photographs():
    """All 1950 training and 488 test photographs, as the folder divides them."""
    if not PHOTOGRAPHS.is_dir() or not BACKBONES.is_dir():
        pytest.skip("the photographs and the real backbones are not here")
    listing = folders.scan(PHOTOGRAPHS)
    found = tuple(replace(r, sha256=sha256(listing.root / r.image)) for r in listing.records)
    return Manifest(labels=listing.labels, root=listing.root, records=found)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_on_all_photographs_gives_pytorch_s_auroc(name, photographs, tmp_path):
    folder, size, width, expected = PROBES[name]
    classifier, (params, variables) = classifiers.read(BACKBONES / folder, photographs.labels, size)
    grid = sharding.mesh(0, 1)
    features = Features(
        classifier=classifier, params=params, variables=variables, last=0, policy="none", batch=32,
        grid=grid, causes=causes(classifier, params, variables, Recipe(last=0), grid), within=tmp_path,
    )  # fmt: skip
    train, test = photographs.split("train"), photographs.split("test")
    assert (len(train), len(test)) == (1950, 488)
    seen, judged = (features.read(photographs, records, 1)[:, 0, :width] for records in (train, test))
    theirs = pytorch_features(folder, photographs, test[:CHECKED], classifier, size)
    scale = np.abs(theirs).max()
    print(f"{name}: features differ by {np.abs(judged[:CHECKED] - theirs).max() / scale:.1e} of the largest")
    np.testing.assert_allclose(judged[:CHECKED], theirs, rtol=0, atol=1e-4 * scale)

    labels = [np.array([photographs.labels.index(r.label) for r in records]) for records in (train, test)]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(seen, labels[0])
    found = roc_auc_score(labels[1], probe.predict_proba(judged)[:, 1])
    print(f"{name}: AUROC {found:.4f}")
    assert found == pytest.approx(expected, abs=0.002)


def pytorch_features(folder, manifest, records, classifier, size):
    """What transformers' model pools of the same pixels, [n, width]."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    seen = np.stack([images.to_model(images.load(manifest.path(r), size)) for r in records])
    pixels = ((seen + 1) / 2 - np.array(classifier.mean)) / np.array(classifier.std)
    twin = transformers.AutoModel.from_pretrained(BACKBONES / folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return twin(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).pooler_output.numpy()
