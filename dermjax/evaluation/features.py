"""What a frozen network sees in images, as vectors: the features that sets are compared by and copies are found by.

The network is any folder that a classifier is read from: DINOv2, another ViT, MobileNetV2. Its features are those
before the head. Shapes: N images, D features.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from dermjax import run_folder, sharding
from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import NUMERIC_VERSION, Classifier, Params
from dermjax.progress import bar
from dermjax.training.disk_cache import digest_of, load_or_compute
from dermjax.weights import classifiers
from dermjax.weights.tensor_files import digest

SIZE = 224  # side in pixels at which images are shown to it, as DINOv2 and ViTs are trained
BATCH = 64
HARDLY = 0.01  # of the mean variance: directions of less are noise
BLOCK = 4096  # training images that are compared at a time
PART = 1000  # images whose features are kept at a time: a killed run computes no more of them again
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")  # that a network's answers follow from


@dataclass(frozen=True)
class FeatureExtractor:
    """A network, its (params, variables), and the digest of its files."""

    network: Classifier
    trees: tuple[Params, Params]
    digest: str

    def features(
        self, manifest: Manifest, records: Sequence[Record], *, mirrored: bool = False, folder: Path | None = None
    ) -> np.ndarray:
        """The features of images, float32 [N, D], or of their mirror images; kept in a folder where one is given."""
        if folder is None or not records:
            return self._compute(manifest, records, mirrored)
        parts = []
        for start in range(0, len(records), PART):
            some = records[start : start + PART]
            names = "".join(record.sha256 for record in some).encode()
            causes = {
                run_folder.SUBJECT: f"{len(some)} images{' mirrored' if mirrored else ''}",
                run_folder.NUMERIC_VERSIONS: {"classifier": NUMERIC_VERSION, "images": images.NUMERIC_VERSION},
                "arithmetic": sharding.arithmetic(self.network.dtype, sharding.local_mesh()),
                "images": digest_of([np.frombuffer(names, np.uint8)]),
                "mirrored": mirrored,
                "network": self.digest,
                "size": SIZE,
            }
            parts.append(
                load_or_compute(folder, "features", causes, lambda some=some: self._compute(manifest, some, mirrored))
            )
        return np.concatenate(parts)

    def of_pixels(self, pictures: Iterable[np.ndarray], number: int) -> np.ndarray:
        """The features of `number` images uint8 [SIZE, SIZE, 3], float32 [N, D]."""
        return batched(lambda image: self._lower(self.trees, image), map(images.to_model, pictures), number, "features")

    @cached_property
    def _lower(self) -> Callable[[tuple[Params, Params], np.ndarray], jax.Array]:
        return jax.jit(lambda trees, image: self.network.lower(*trees, image, last=0))

    def _compute(self, manifest: Manifest, records: Sequence[Record], mirrored: bool) -> np.ndarray:
        way = slice(None, None, -1 if mirrored else 1)
        return in_batches(lambda image: self._lower(self.trees, image[:, :, way]), manifest, records, SIZE, "features")


def read(folder: str) -> FeatureExtractor | None:
    """The network in a folder of Hugging Face's layout, such as DINOv2's; None for ""."""
    if not folder:
        return None
    network, trees = classifiers.read(Path(folder), ("",), SIZE)
    files = {name: Path(folder) / name for name in FILES if (Path(folder) / name).is_file()}
    return FeatureExtractor(network, trees, digest(files))


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
    network: Callable[[np.ndarray], jax.Array], manifest: Manifest, records: Sequence[Record], size: int, title: str
) -> np.ndarray:
    """What a network makes of images float32 [BATCH, size, size, 3] in [-1, 1], of all records: [N, …]."""
    pictures = (images.to_model(images.load(manifest.path(record), size)) for record in records)
    return batched(network, pictures, len(records), title)


def batched(
    network: Callable[[np.ndarray], jax.Array], pictures: Iterable[np.ndarray], number: int, title: str
) -> np.ndarray:
    """What a network makes of `number` pictures [S, S, 3], shown to it BATCH at a time, the last batch filled up."""
    rows = []
    with bar(number, title, "images", 0) as progress:
        pictures = iter(pictures)
        while some := list(islice(pictures, BATCH)):
            pixels = np.stack(some)
            full = np.concatenate([pixels, np.zeros((BATCH - len(pixels), *pixels.shape[1:]), np.float32)])
            rows.append(np.asarray(network(full))[: len(pixels)])
            progress.update(len(pixels))
    if not all(np.isfinite(each).all() for each in rows):
        raise UserError(f"{title} are not finite numbers; the network's weights are damaged")
    return np.concatenate(rows)
