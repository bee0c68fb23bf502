"""How near images are to training images by what a frozen network sees in them: copies that no hash sees.

A generator that has learnt an image by heart gives it back with other noise, light or crop; its hash is another, its
features are nearly the same. How near is too near is read off held-out real images, which are no copies.

Shapes: N images, M training images, D features.
"""

from collections.abc import Sequence

import numpy as np

from dermjax.data.records import Manifest, Record
from dermjax.evaluation.features import BLOCK, FeatureExtractor


def of(network: FeatureExtractor, manifest: Manifest, records: Sequence[Record], *, mirrored: bool) -> np.ndarray:
    """The features of images, float32 [N, D], and then those of their mirror images: [2 N, D]."""
    ways = (False, True) if mirrored else (False,)  # tuning shows both
    return np.concatenate([network.features(manifest, records, mirrored=way) for way in ways])


def nearest_other(training: np.ndarray) -> np.ndarray:
    """The similarity of each of M training images to the nearest other one, of [2 M, D] with their mirror images."""
    count, blocks = len(training) // 2, []
    for start in range(0, count, BLOCK):
        index = np.arange(start, min(start + BLOCK, count))
        alike = training[index] @ training.T
        alike[index - start, index] = alike[index - start, index + count] = -1
        blocks.append(alike.max(1))
    return np.concatenate(blocks)
