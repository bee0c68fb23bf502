"""What a model's images say of it while it is tuned: copies of training images, and how near they are to real ones.

The loss on held-out images says that a model learns images by heart; that it draws them again is seen on images alone.
They are drawn from the same seeds and equally many at every look, so that looks compare; `evaluate` gives the figures
that stand alone. Shapes: N images, D features.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dermjax.data.images import load_any
from dermjax.evaluation import distances, features
from dermjax.evaluation.features import MIRRORED, FeatureExtractor
from dermjax.evaluation.images.memorisation import similarity_limit
from dermjax.training.loop import Evaluate
from dermjax.training.state import State
from dermjax.tuning.concepts import Concepts

MINIMISED = ("validation_loss", "frechet")
JUDGED = "judged"


def figures(
    draw: Callable[[State, dict], np.ndarray], network: FeatureExtractor, training: Concepts, validation: Concepts,
    folder: Path,
) -> Evaluate:  # fmt: skip
    """Returns measure(state, constants) -> {"copies", "frechet"}; features of real images are kept in the folder.

    copies: the share of drawn images that are nearer to a training image than all but one held-out image in a hundred.
    frechet: the Frechet distance to the held-out images.
    """

    def of(concepts: Concepts, view: str) -> np.ndarray:
        manifest = concepts.sources[0][0]
        records = {record.sha256: record for one, record in concepts.sources if one is manifest}
        return network.features(manifest, list(records.values()), view=view, folder=folder)

    known, held_out = np.concatenate([of(training, view) for view in ("", MIRRORED)]), of(validation, "")
    space = features.space_of(known)
    near = space.unit(known)
    limit = similarity_limit(features.nearest(space.unit(held_out), near)[0])
    leading = slice(network.encoder.leading)

    def measure(state: State, constants: dict) -> dict[str, float]:
        images = draw(state, constants)
        seen = network.of_pixels((load_any(image, network.encoder.size) for image in images), len(images))
        similarity, _ = features.nearest(space.unit(seen), near)
        return {
            "copies": float((similarity > limit).mean()),
            "frechet": distances.frechet(held_out[:, leading], seen[:, leading]),
        }

    return measure


def judged(scalars: dict[str, float], minimise: str, most_copies: float) -> dict[str, float]:
    """Returns what makes a look the best, the lower the better; nothing of one with too many copies."""
    return {JUDGED: scalars[minimise]} if scalars["copies"] <= most_copies else {}
