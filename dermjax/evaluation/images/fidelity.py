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
# images a feature for an interval of the Frechet distance: of fewer its bias is not the 1/n that the jackknife removes.
# Beside many real images the intervals of 48 normal features cover 0, 80 and 93 % at 1, 1.6 and 2 a feature
ENOUGH = 2
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
    counts: list[int]  # of the images of each class, in either set


@dataclass(frozen=True)
class Features:
    """Features [N, D] of a set of images and their classes, int [N]."""

    values: np.ndarray
    classes: np.ndarray

    def of(self, label: int) -> "Features":
        """Those of one class."""
        return Features(self.values[self.classes == label], self.classes[self.classes == label])


def counts(reference: np.ndarray, training: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """How many images of each class are compared, as many as both sets have in the shares of the reference.

    All are classes, int [N]. Of two synthetic sets the smaller of both counts is right for both.
    """
    shares = np.bincount(reference) / len(reference)
    counted = [np.bincount(each, minlength=len(shares)) for each in (training, synthetic)]
    most = min(count / share for each in counted for count, share in zip(each, shares, strict=True) if share)
    return np.floor(shares * most + 1e-9).astype(int)


def compare(
    reference: Features, training: Features, synthetic: Features, seed: int, number: np.ndarray | None = None
) -> Fidelity:
    """Compares synthetic and training images, equally many, with held-out images.

    `authentic` alone is measured against the training images, of which synthetic ones may be copies; its ceiling is
    that of held-out images. number: of the images of each class, None for as many as there are (see `counts`): recall,
    coverage and the Vendi score grow with it, so that two sets are compared at one number.

    Raises:
      UserError: a set is too small for any figure.
    """
    rng = np.random.default_rng(seed)
    if number is None:
        number = counts(reference.classes, training.classes, synthetic.classes)
    for name, each in {"held-out real": len(reference.values), "real training and synthetic": number.sum()}.items():
        if each < LEAST:
            raise UserError(f"{each} {name} images: figures of whole sets need {LEAST} or more")

    def draw(each: Features) -> np.ndarray:
        rows = [rng.choice(np.flatnonzero(each.classes == label), n, replace=False) for label, n in enumerate(number)]
        return each.values[np.sort(np.concatenate(rows))]

    made, real = draw(synthetic), draw(training)
    authentic = [
        intervals.mean(distances.neighbourhoods(training.values, each).authentic) for each in (made, reference.values)
    ]
    return Fidelity(
        synthetic=figures(reference.values, made, seed) | {"authentic": authentic[0]},
        ceiling=figures(reference.values, real, seed) | {"authentic": authentic[1]},
        reference=len(reference.values),
        counts=number.tolist(),
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
    if few < ENOUGH * width:
        why = "the value is no distance" if few <= width else f"an interval takes {ENOUGH * width}"
        note = f"{few} images for {width} features: too few, {why}"
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
