"""What a frozen network sees in images, as vectors: the features that sets are compared by and copies are found by.

The network is any that `weights.image_encoders` reads: DINOv2, another ViT, MobileNetV2, CLIP's image encoder, the
InceptionV3 of the Frechet inception distance. Shapes: N images, D features.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from dermjax import run_folder, segmentation, sharding
from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.progress import bar
from dermjax.training.disk_cache import digest_of, load_or_compute
from dermjax.weights import image_encoders
from dermjax.weights.image_encoders import ImageEncoder

BATCH = 64
HARDLY = 0.01  # of the mean variance: directions of less are noise
BLOCK = 4096  # training images that are compared at a time
FLOOR = 0.1  # of the median feature's deviation, below which none is divided by
PART = 1000  # images whose features are kept at a time: a killed run computes no more of them again


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that is shown images, one of VIEWS of each, BATCH at a time."""

    encoder: ImageEncoder

    @property
    def digest(self) -> str:
        """The digest of the network's files."""
        return self.encoder.digest

    def features(
        self, manifest: Manifest, records: Sequence[Record], *, view: str = "", folder: Path | None = None
    ) -> np.ndarray:
        """The features of images, float32 [N, D], seen as VIEWS has it; kept in a folder where one is given."""
        if folder is None or not records:
            return self._compute(manifest, records, view)
        parts = []
        for start in range(0, len(records), PART):
            some = records[start : start + PART]
            names = "".join(record.sha256 for record in some).encode()
            shown = digest_of([np.frombuffer(names, np.uint8)])
            versions = {"classifier": self.encoder.version, "images": images.NUMERIC_VERSION}
            if view in (HIDDEN, ALONE):
                versions["segmentation"] = segmentation.NUMERIC_VERSION
            causes = {
                run_folder.SUBJECT: f"images {shown} {view}".strip(),
                run_folder.NUMERIC_VERSIONS: versions,
                "arithmetic": sharding.arithmetic(jnp.float32, sharding.local_mesh()),
                "images": shown,
                "network": self.encoder.digest,
                "size": self.encoder.size,
                "view": view,
            }
            parts.append(
                load_or_compute(folder, "features", causes, lambda some=some: self._compute(manifest, some, view))
            )
        return np.concatenate(parts)

    def of_pixels(self, pictures: Iterable[np.ndarray], number: int) -> np.ndarray:
        """The features of `number` images uint8 [size, size, 3] of the encoder's size, float32 [N, D]."""
        return batched(self._describe, map(images.to_model, pictures), number, "features")

    @cached_property
    def _describe(self) -> Callable[[np.ndarray], jax.Array]:
        trees, run = jax.device_put(self.encoder.trees), jax.jit(self.encoder.describe)
        return lambda image: run(trees, jax.device_put(image))

    def _compute(self, manifest: Manifest, records: Sequence[Record], view: str) -> np.ndarray:
        change = VIEWS[view]
        pictures = (change(images.load(manifest.path(record), self.encoder.size)) for record in records)
        return self.of_pixels(pictures, len(records))


def read(folder: str) -> FeatureExtractor | None:
    """The network in a folder or a file; None for ""."""
    return FeatureExtractor(image_encoders.read(Path(folder))) if folder else None


@dataclass(frozen=True)
class Space:
    """Where features are compared: seen from `middle` [D], and in `scale` [D, D] by how much images vary.

    All photographs of skin are alike in most of what a network sees, and differ in two or three things, such as their
    tint. There a copy is lost: of 300 altered training photographs 4 were nearer to one than 1 % of others come. With
    every direction in units of its own spread (whitened) they were 60.
    """

    middle: np.ndarray
    scale: np.ndarray

    def unit(self, features: np.ndarray) -> np.ndarray:
        """Features [N, D] in this space, of length 1."""
        apart = (features - self.middle) @ self.scale
        return (apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def space_of(features: np.ndarray) -> Space:
    """The space in which many images [N, D] vary alike in every direction, but for those in which they hardly do."""
    middle = features.mean(0)
    values, vectors = np.linalg.eigh(np.cov(features - middle, rowvar=False))
    return Space(middle, vectors / np.sqrt(np.maximum(values, 0) + HARDLY * values.mean() + 1e-12))


def standardisation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (mean, deviation) [D] that features [n, D] are standardised by.

    In fifty images some of MobileNetV2's channels, which end in ReLU6, are zero or nearly so and come alive in others.
    Divided by their own deviation they would be thousands there and drown the rest, so no feature is divided by less
    than a tenth of the median one's deviation.
    """
    deviation = values.std(0)
    alive = deviation[deviation > 0]
    least = FLOOR * np.median(alive) if len(alive) else 1.0
    return values.mean(0), np.maximum(deviation, least)


def nearest(features: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarity of each image [N, D] to the nearest training image [M, D], float32 [N], and its index, int [N]."""
    best, index = np.full(len(features), -np.inf, np.float32), np.zeros(len(features), int)
    for row in range(0, len(features), BLOCK):
        rows = slice(row, row + BLOCK)
        for start in range(0, len(training), BLOCK):
            alike = features[rows] @ training[start : start + BLOCK].T
            at = alike.argmax(1)
            value = alike[np.arange(len(at)), at]
            index[rows] = np.where(value > best[rows], start + at, index[rows])
            best[rows] = np.maximum(value, best[rows])
    return best, index


def in_batches(
    network: Callable[[np.ndarray], jax.Array],
    manifest: Manifest,
    records: Sequence[Record],
    size: int,
    title: str,
    resize: images.Resize | None = None,
) -> np.ndarray:
    """What a network makes of images float32 [BATCH, size, size, 3] in [-1, 1], of all records: [N, …].

    size, resize: of `images.load`.
    """
    pictures = (images.to_model(images.load(manifest.path(record), size, resize)) for record in records)
    return batched(network, pictures, len(records), title)


def batched(
    network: Callable[[np.ndarray], jax.Array], pictures: Iterable[np.ndarray], number: int, title: str
) -> np.ndarray:
    """What a network makes of `number` pictures [S, S, 3], shown to it BATCH at a time, the last batch filled up."""
    rows = []
    with bar(number, title, "images", 0) as progress:
        pictures = iter(pictures)
        while some := list(islice(pictures, BATCH)):
            rows.append(np.asarray(network(images.filled(np.stack(some), BATCH)))[: len(some)])
            progress.update(len(some))
    if not all(np.isfinite(each).all() for each in rows):
        raise UserError(f"{title} are not finite numbers; the network's weights are damaged")
    return np.concatenate(rows)


def lesion_hidden(image: np.ndarray) -> np.ndarray:
    """The image uint8 [S, S, 3] with the boxes around its lesions in the mean colour of what is outside of them."""
    mask = segmentation.segment(image).mask
    box = np.zeros_like(mask)
    for rows in ndimage.find_objects(ndimage.label(mask)[0]):
        box[rows] = True
    return _painted(image, box, ~box)


def lesion_alone(image: np.ndarray) -> np.ndarray:
    """The image uint8 [S, S, 3] with all that is outside of its lesions in one colour, the mean of that."""
    outside = ~segmentation.segment(image).mask
    return _painted(image, outside, outside)


def _painted(image: np.ndarray, where: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The image with pixels, bool [S, S], in the mean colour of others, if there are any."""
    colour = image[source if source.any() else where | ~where].mean(0)
    return np.where(where[..., None], colour.round().astype(np.uint8), image)


MIRRORED, HIDDEN, ALONE = "mirrored", "with the lesion hidden", "with the lesion alone"
VIEWS = {
    "": lambda image: image,
    MIRRORED: lambda image: image[:, ::-1],
    HIDDEN: lesion_hidden,
    ALONE: lesion_alone,
}
