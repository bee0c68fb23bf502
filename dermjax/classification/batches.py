"""What a classifier is trained and evaluated on, batch by batch: images, or features of its frozen part.

Both kinds have `training()`, endless batches {"image", "label"} for the loop, and `evaluation(manifest, records)`, each
record once. Real and synthetic ones alternate exactly, and so do the classes (data/pipelines.py).

Shapes: n images, V views, B batch over all processes, K classes; ... the shape of one image's features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
from einops import rearrange

from dermjax.classification import features
from dermjax.classification.features import Features
from dermjax.data import pipelines
from dermjax.data.images import filled
from dermjax.data.pipelines import MixturePlan, mix_rows
from dermjax.data.records import Manifest, Record
from dermjax.evaluation.features import standardisation

# Of what is learnt and calibrated from the same images. 2: no feature is divided by next to nothing; 3: classes weigh
# alike in the fit of the temperature
NUMERIC_VERSION = 3
VERSIONS = features.VERSIONS | {"batches": NUMERIC_VERSION}  # of what a classifier's training follows from


@dataclass(frozen=True, kw_only=True)
class ImageBatches:
    """Images, decoded and augmented anew each time."""

    plan: MixturePlan
    size: int
    augment: str

    def training(self) -> Iterator[dict[str, np.ndarray]]:
        """Returns endless batches of images."""
        return pipelines.training_batches(self.plan, size=self.size, augment=self.augment)

    def evaluation(self, manifest: Manifest, records: list[Record]) -> Iterator[dict[str, np.ndarray]]:
        """Returns the images of some records once, in order."""
        plan = self.plan
        return pipelines.evaluation_batches(records, manifest, size=self.size, batch=plan.batch, rows=plan.rows)


@dataclass(frozen=True, kw_only=True)
class FeatureBatches:
    """Features out of their folder; pooled ones less the mean and by the deviation of all that training sees.

    views: of each training image; evaluation is on the first.
    """

    plan: MixturePlan
    features: Features
    views: int

    @cached_property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """The (mean, deviation) that features are standardised by; tokens of a deeper cut stay as they are."""
        if self.features.last:
            return np.zeros(1), np.ones(1)
        sides = [self.features.read(manifest, manifest.split("train"), self.views) for manifest in self.plan.sides]
        return standardisation(rearrange(np.concatenate(sides), "n V D -> (n V) D"))

    def training(self) -> "Mixture":
        """Returns endless batches of features."""
        classes = [
            (manifest, manifest.split("train", label)) for manifest in self.plan.sides for label in manifest.labels
        ]
        sources = [self._standardised(side, records, self.views) for side, records in classes]
        teaching = [[self.plan.teaching(record) for record in records] for _, records in classes]
        return Mixture(sources, teaching, self.plan)

    def evaluation(self, manifest: Manifest, records: list[Record]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the first views of some records once, in order."""
        values, batch = self._standardised(manifest, records, 1), self.plan.batch
        for first in range(0, len(values), batch):
            chosen = values[first : first + batch, 0].astype(np.float32)
            yield {"image": filled(chosen, batch)[self.plan.rows], "valid": np.arange(batch) < len(chosen)}

    def _standardised(self, manifest: Manifest, records: list[Record], views: int) -> np.ndarray:
        values, (mean, deviation) = self.features.read(manifest, records, views), self.scale
        return values if self.features.last else (values - mean) / deviation


class Mixture:
    """Endless batches {"image": [n, ...], "label": int32 [n]} of features, mixed as pipelines.training_batches mixes.

    `sources` are the features [n, V, ...] of the K real classes, then of the K synthetic ones; `teaching` is what each
    of their images teaches besides its label (`MixturePlan.teaching`). The state is the number of the next batch;
    order, mixture and view are a pure function of seed and position.
    """

    def __init__(self, sources: list[np.ndarray], teaching: list[list[dict]], plan: MixturePlan):
        self._sources, self._teaching = sources, teaching
        self._alternation, self._seed, self._next = plan.alternation, plan.seed, 0
        self._batch = partial(mix_rows, self._example, plan=plan)
        self._order = lru_cache(maxsize=4 * len(sources))(self._shuffled)

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._batch(self._next)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the state for a checkpoint."""
        return {"next": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from a state."""
        self._next = state["next"]

    def _example(self, position: int) -> dict[str, np.ndarray]:
        number, index = self._alternation[position]
        source = self._sources[number]
        epoch, row = divmod(index, len(source))
        view = np.random.default_rng((self._seed, position)).integers(source.shape[1]) if source.shape[1] > 1 else 0
        row = self._order(number, epoch)[row]
        known = {"label": np.int32(number % self._alternation.classes)} | self._teaching[number][row]
        return {"image": source[row, view].astype(np.float32)} | known

    def _shuffled(self, number: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, number, epoch)).permutation(len(self._sources[number]))
