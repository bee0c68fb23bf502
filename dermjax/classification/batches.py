"""What a classifier is trained and judged on, batch by batch: images, or features of its frozen part.

Both sides have `training()`, endless batches {"image", "label"} for the loop, and `evaluation(manifest, records)`, each
record once. Real and synthetic ones alternate exactly, and classes take turns (data/pipelines.py).

Shapes: n images, V views, B batch over all processes, K classes; ... the shape of one image's features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial

import numpy as np

from dermjax.classification.features import Features
from dermjax.data import pipelines
from dermjax.data.pipelines import FINEST_MIXTURE, Alternation, mix_rows
from dermjax.data.records import Manifest, Record

FLOOR = 1e-6  # of a feature's deviation: one that never changes is left alone


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The manifests that training draws from, and how.

    mixing: a name of data/augmentation.py's MIXTURES. rows: int [n], those of a batch that this process makes.
    """

    real: Manifest
    synthetic: Manifest | None
    synthetic_fraction: float
    batch: int
    rows: np.ndarray
    seed: int
    mixing: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images, decoded and augmented anew each time."""

    plan: Plan
    size: int
    augment: str

    def training(self):
        """Returns endless batches of images."""
        plan = self.plan
        return pipelines.training_batches(
            plan.real, plan.synthetic, size=self.size, batch=plan.batch, seed=plan.seed,
            synthetic_fraction=plan.synthetic_fraction, augment=self.augment, mixing=plan.mixing, rows=plan.rows,
        )  # fmt: skip

    def evaluation(self, manifest: Manifest, records: list[Record]) -> Iterator[dict[str, np.ndarray]]:
        """Returns the images of some records once, in order."""
        plan = self.plan
        return pipelines.evaluation_batches(records, manifest, size=self.size, batch=plan.batch, rows=plan.rows)


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Features out of the folder; where they are pooled, less their mean and by their deviation in training."""

    plan: Plan
    features: Features
    views: int  # of each training image; judged is the first
    mean: np.ndarray
    deviation: np.ndarray

    def training(self) -> "Mixture":
        """Returns endless batches of features."""
        plan, share = self.plan, self._share
        sides = [(plan.real, 1 - share), (plan.synthetic, share)]
        sources = [
            self._scaled(self.features.of(manifest, records, self.views))
            for manifest, part in sides
            if part > 0
            for records in by_class(manifest)
        ]
        turns = Alternation(fraction=share if share < 1 else Fraction(0), classes=len(plan.real.labels))
        return Mixture(sources, turns, batch=plan.batch, rows=plan.rows, seed=plan.seed, mixing=plan.mixing)

    def evaluation(self, manifest: Manifest, records: list[Record]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the first views of some records once, in order."""
        values, batch = self._scaled(self.features.of(manifest, records, 1)), self.plan.batch
        for first in range(0, len(values), batch):
            chosen = values[first : first + batch, 0]
            padded = np.zeros((batch, *chosen.shape[1:]), np.float32)
            padded[: len(chosen)] = chosen
            yield {"image": padded[self.plan.rows], "valid": np.arange(batch) < len(chosen)}

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return values if self.features.last else (values - self.mean) / self.deviation

    @property
    def _share(self) -> Fraction:
        return Fraction(self.plan.synthetic_fraction if self.plan.synthetic else 0).limit_denominator(FINEST_MIXTURE)


def cached(plan: Plan, features: Features, views: int) -> Cached:
    """Returns the cached side of a plan, scaled by what it trains on; tokens of a deeper cut stay as they are."""
    mean, deviation = np.zeros(1), np.ones(1)
    if not features.last:
        whole = [plan.real] if plan.synthetic_fraction < 1 or not plan.synthetic else []
        whole += [plan.synthetic] if plan.synthetic and plan.synthetic_fraction > 0 else []
        values = np.concatenate([features.of(manifest, manifest.split("train"), 1)[:, 0] for manifest in whole])
        mean, deviation = values.mean(0), np.maximum(values.std(0), FLOOR)
    return Cached(plan=plan, features=features, views=views, mean=mean, deviation=deviation)


def by_class(manifest: Manifest) -> list[list[Record]]:
    """Returns the kept training records of each class."""
    training = manifest.split("train")
    return [[record for record in training if record.label == label] for label in manifest.labels]


class Mixture:
    """Endless batches {"image": [n, ...], "label": int32 [n]} of features, mixed as pipelines.training_batches mixes.

    `sources` are the features [n, V, ...] of the K real classes, then of the K synthetic ones. The state is the number
    of the next batch; order, mixture and view are a pure function of seed and position.
    """

    def __init__(
        self, sources: list[np.ndarray], turns: Alternation, *, batch: int, rows: np.ndarray, seed: int, mixing: str
    ):
        self._sources, self._turns, self._seed, self._next = sources, turns, seed, 0
        self._made = partial(
            mix_rows, self._example, batch=batch, rows=rows, seed=seed, mixing=mixing, classes=turns.classes
        )
        self._order = lru_cache(maxsize=4 * len(sources))(self._drawn)

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._made(self._next)
        self._next += 1
        return batch

    def get_state(self) -> dict:
        """Returns the state for a checkpoint."""
        return {"next": self._next}

    def set_state(self, state: dict) -> None:
        """Goes on from a state."""
        self._next = state["next"]

    def _example(self, position: int) -> dict:
        place, turn = self._turns[position]
        source = self._sources[place]
        epoch, row = divmod(turn, len(source))
        view = np.random.default_rng((self._seed, position)).integers(source.shape[1]) if source.shape[1] > 1 else 0
        image = source[self._order(place, epoch)[row], view].astype(np.float32)
        return {"image": image, "label": np.int32(place % self._turns.classes)}

    def _drawn(self, place: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, place, epoch)).permutation(len(self._sources[place]))
