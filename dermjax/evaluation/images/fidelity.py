"""How near the synthetic images are to real ones, and how varied, beside real images judged as if they were synthetic.

The reference are held-out real images, which the generator has not seen. Training images, as many as there are
synthetic ones, stand beside them: what they reach is the ceiling that no generator can be expected to pass.

Shapes: N images, D features.
"""

from dataclasses import dataclass

import numpy as np

from dermjax.errors import UserError
from dermjax.evaluation import distances, intervals
from dermjax.evaluation.distances import NEIGHBOURS
from dermjax.evaluation.intervals import Estimate

LEAST = 2 * NEIGHBOURS  # images of a set; a neighbourhood needs more than NEIGHBOURS
MOST = 5000  # images of each set whose kernels are compared twenty times over
DISTANCES = {"frechet": distances.frechet, "kid": distances.kid, "cmmd": distances.cmmd}
SHARES = ("precision", "recall", "density", "coverage", "authentic")
HIGHER_IS_BETTER = (*SHARES, "vendi")


@dataclass(frozen=True)
class Fidelity:
    """Every figure of a set of images, and of as many real training images (`ceiling`), against the same reference."""

    synthetic: dict[str, Estimate]
    ceiling: dict[str, Estimate]
    reference: int  # images

    def ratio(self, name: str) -> float:
        """A figure over that of real images."""
        return self.synthetic[name].value / self.ceiling[name].value


def compare(reference: np.ndarray, training: np.ndarray, synthetic: np.ndarray, seed: int) -> Fidelity:
    """Compares features [N, D] of synthetic and of training images, equally many, with those of held-out images.

    Raises:
      UserError: a set is too small for any figure.
    """
    rng = np.random.default_rng(seed)
    for name, each in {"held-out real": reference, "real training": training, "synthetic": synthetic}.items():
        if len(each) < LEAST:
            raise UserError(f"{len(each)} {name} images: figures of whole sets need {LEAST} or more")
    count = min(len(training), len(synthetic))
    some = [each[np.sort(rng.choice(len(each), count, replace=False))] for each in (synthetic, training)]
    found = [figures(reference, each, seed) for each in some]
    return Fidelity(*found, reference=len(reference))


def figures(reference: np.ndarray, images: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Every figure of one set of features against another.

    Intervals of distances are by the jackknife; those of shares say how far the images at hand, against this
    reference, tell the share of all that the same generator would make.
    """
    rng = np.random.default_rng(seed)
    sets = [each if len(each) <= MOST else rng.choice(each, MOST, replace=False) for each in (reference, images)]
    found = {name: intervals.jackknife(distance, sets, seed) for name, distance in DISTANCES.items()}
    if min(map(len, sets)) <= reference.shape[1]:
        note = f"{min(map(len, sets))} images for {reference.shape[1]} features: too few, the value is no distance"
        found["frechet"] = Estimate(value=found["frechet"].value, n=found["frechet"].n, low=None, high=None, note=note)
    near = distances.neighbourhoods(reference, images)
    found |= {name: intervals.mean(getattr(near, name)) for name in SHARES}
    return found | {"vendi": intervals.jackknife(distances.vendi, [images], seed)}
