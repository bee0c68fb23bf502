"""How near the synthetic images are to real ones, and how varied, beside real images judged as if they were synthetic.

The reference are held-out real images, which the generator has not seen. Training images, as many as there are
synthetic ones, stand beside them: what they reach is the ceiling that no generator can be expected to pass. Both have
the classes in the shares of the reference, so that a set that was balanced on purpose is not called far.

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
DISTANCES = {"frechet": distances.frechet, "kid": distances.kid, "mmd": distances.mmd}
SHARES = ("precision", "recall", "density", "coverage")
COMPARED_ONLY = ("vendi", "frechet_infinite")  # without an interval
HIGHER_IS_BETTER = (*SHARES, "authentic", "vendi")


@dataclass(frozen=True)
class Fidelity:
    """Every figure of a set of images, and of as many real training images (`ceiling`), against the same reference."""

    synthetic: dict[str, Estimate]
    ceiling: dict[str, Estimate]
    reference: int  # images


@dataclass(frozen=True)
class Features:
    """Features [N, D] of a set of images and their classes, int [N]."""

    values: np.ndarray
    classes: np.ndarray

    def of(self, label: int) -> "Features":
        """Those of one class."""
        return Features(self.values[self.classes == label], self.classes[self.classes == label])


def compare(reference: Features, training: Features, synthetic: Features, seed: int) -> Fidelity:
    """Compares synthetic and training images, equally many, with held-out images.

    `authentic` alone is measured against the training images, of which synthetic ones may be copies; its ceiling is
    that of held-out images.

    Raises:
      UserError: a set is too small for any figure.
    """
    rng = np.random.default_rng(seed)
    shares = np.bincount(reference.classes) / len(reference.classes)
    counted = [np.bincount(each.classes, minlength=len(shares)) for each in (training, synthetic)]
    most = min(count / share for counts in counted for count, share in zip(counts, shares, strict=True) if share)
    counts = np.floor(shares * most + 1e-9).astype(int)
    for name, each in {"held-out real": len(reference.values), "real training and synthetic": counts.sum()}.items():
        if each < LEAST:
            raise UserError(f"{each} {name} images: figures of whole sets need {LEAST} or more")

    def draw(each: Features) -> np.ndarray:
        rows = [rng.choice(np.flatnonzero(each.classes == label), n, replace=False) for label, n in enumerate(counts)]
        return each.values[np.sort(np.concatenate(rows))]

    made, real = draw(synthetic), draw(training)
    authentic = [
        intervals.mean(distances.neighbourhoods(training.values, each).authentic) for each in (made, reference.values)
    ]
    return Fidelity(
        synthetic=figures(reference.values, made, seed) | {"authentic": authentic[0]},
        ceiling=figures(reference.values, real, seed) | {"authentic": authentic[1]},
        reference=len(reference.values),
    )


def figures(reference: np.ndarray, images: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Every figure of one set of features [N, D] against another.

    Intervals of distances are by the jackknife. Those of shares hold for this other set: of precision and density for
    more images like these beside this reference, of recall and coverage for more of the reference beside these images.
    """
    rng = np.random.default_rng(seed)
    sets = [each if len(each) <= MOST else rng.choice(each, MOST, replace=False) for each in (reference, images)]
    estimates = {name: intervals.jackknife(distance, sets, seed) for name, distance in DISTANCES.items()}
    few, width = min(map(len, sets)), reference.shape[1]
    if few <= width:
        note = f"{few} images for {width} features: too few, the value is no distance"
        estimates["frechet"] = Estimate(value=estimates["frechet"].value, n=few, low=None, high=None, note=note)
    if few * distances.SMALLEST_PART > width:
        note = f"extrapolated from {few * distances.SMALLEST_PART:.0f} to {few} images"
        value = distances.frechet_infinite(*sets, seed)
        estimates["frechet_infinite"] = Estimate(value=value, n=few, low=None, high=None, note=note)
    near = distances.neighbourhoods(reference, images)
    estimates |= {name: intervals.mean(getattr(near, name)) for name in SHARES}
    # it grows with the number of images, so that it has no value to estimate, and is only compared at the same number
    note = f"of {len(images)} images"
    return estimates | {"vendi": Estimate(value=distances.vendi(images), n=len(images), low=None, high=None, note=note)}
