"""How near images are to training images by what a frozen network sees in them: copies that no hash sees.

A generator that has learnt an image by heart gives it back with other noise, light or crop; its hash is another, its
features are nearly the same. How near is too near is read off held-out real images, which are no copies.

Shapes: N images, M training images, D features.
"""

from collections.abc import Sequence

import numpy as np

from dermjax.data.records import Manifest, Record
from dermjax.evaluation.features import FeatureExtractor

BLOCK = 4096  # training images that are compared at a time


def unit(network: FeatureExtractor, manifest: Manifest, records: Sequence[Record], *, mirrored: bool) -> np.ndarray:
    """The features of images, of length 1, float32 [N, D], and then those of their mirror images: [2 N, D]."""
    ways = (False, True) if mirrored else (False,)  # tuning shows both
    features = np.concatenate([network.features(manifest, records, mirrored=way) for way in ways])
    return features / np.linalg.norm(features, axis=1, keepdims=True)


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
