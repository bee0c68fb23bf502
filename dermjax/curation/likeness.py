"""How near images are to training images by what a frozen network sees in them: copies that no hash sees.

A generator that has learnt an image by heart gives it back with other noise, light or crop; its hash is another, its
features are nearly the same. How near is too near is read off held-out real images, which are no copies.

Shapes: N images, M training images, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from dermjax.curation import label_score
from dermjax.data.records import Manifest, Record
from dermjax.models.classifier import Classifier, Params
from dermjax.weights import classifiers
from dermjax.weights.tensor_files import digest

SIZE = 224  # side in pixels at which images are shown to it, as DINOv2 and ViTs are trained
BLOCK = 4096  # training images that are compared at a time


@dataclass(frozen=True)
class FeatureExtractor:
    """A network, its (params, variables), and the digest of its files."""

    network: Classifier
    trees: tuple[Params, Params]
    digest: str

    def features(self, manifest: Manifest, records: Sequence[Record], *, mirrored: bool) -> np.ndarray:
        """The features of images, of length 1, float32 [N, D], and then those of their mirror images: [2 N, D]."""
        lower = jax.jit(lambda trees, image: self.network.lower(*trees, image, last=0))

        def upright(image: np.ndarray) -> jax.Array:
            return lower(self.trees, image)

        def flipped(image: np.ndarray) -> jax.Array:
            return lower(self.trees, image[:, :, ::-1])

        ways = (upright, flipped) if mirrored else (upright,)  # tuning shows both
        found = [label_score.in_batches(way, manifest, records, SIZE, "features") for way in ways]
        features = np.concatenate(found)
        return features / np.linalg.norm(features, axis=1, keepdims=True)


def read(folder: str) -> FeatureExtractor | None:
    """The network in a folder of Hugging Face's layout, such as DINOv2's; None for ""."""
    if not folder:
        return None
    network, trees = classifiers.read(Path(folder), ("",), SIZE)
    files = {name: Path(folder) / name for name in label_score.FILES if (Path(folder) / name).is_file()}
    return FeatureExtractor(network, trees, digest(files))


def nearest(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The cosine similarity of each image [N, D] to the nearest training image [M, D]: float32 [N]."""
    blocks = [training[start : start + BLOCK] for start in range(0, len(training), BLOCK)]
    return np.max([(features @ block.T).max(1) for block in blocks], axis=0)


def nearest_other(training: np.ndarray) -> np.ndarray:
    """The similarity of each of M training images to the nearest other one, of [2 M, D] with their mirror images."""
    count, blocks = len(training) // 2, []
    for start in range(0, count, BLOCK):
        index = np.arange(start, min(start + BLOCK, count))
        alike = training[index] @ training.T
        alike[index - start, index] = alike[index - start, index + count] = -1
        blocks.append(alike.max(1))
    return np.concatenate(blocks)
