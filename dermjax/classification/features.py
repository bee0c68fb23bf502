"""What the frozen part of a classifier makes of images, computed once and kept by digest.

    folder/features_<digest>/<sha256 of the image>[-<policy>-<view>].npy

<digest> is that of all that they follow from besides the image (`causes`), so that no other network, arithmetic or
version of the code meets old features, and runs, arms and hosts share what is there. The first view is the image as it
is, the others are augmented by a policy of data/augmentation.py. Pooled features are float32, tokens of a deeper cut
float16.

Shapes: n images, V views, B batch, S side; ... the shape of one image's features.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress
from pathlib import Path

import jax
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dermjax import run_folder, sharding
from dermjax.classification.recipes import Recipe, divide
from dermjax.data import augmentation, images
from dermjax.data.augmentation import POLICIES
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import NUMERIC_VERSION, Classifier, Params
from dermjax.progress import bar
from dermjax.run_folder import write_atomically
from dermjax.weights.torch_layout import flatten

READERS = 4
VERSIONS = {
    "augmentation": augmentation.NUMERIC_VERSION,
    "classifier": NUMERIC_VERSION,
    "images": images.NUMERIC_VERSION,
}
LABELS = ("id2label", "label2id")  # of a config: what no feature follows from


@dataclass(frozen=True, kw_only=True)
class Features:
    """The frozen part of one classifier, and the folder of what it makes of images."""

    classifier: Classifier
    params: Params
    variables: Params
    last: int
    causes: dict
    within: Path  # the folder that networks share
    policy: str
    batch: int
    grid: Mesh

    @cached_property
    def folder(self) -> Path:
        """The folder of this network's features."""
        return run_folder.derived(self.within, "features", self.causes)

    def path(self, record: Record, view: int) -> Path:
        """The file of a view of one image."""
        return self.folder / f"{record.sha256}{f'-{self.policy}-{view}' if view else ''}.npy"

    def read(self, manifest: Manifest, records: list[Record], views: int) -> np.ndarray:
        """Returns the features [n, V, ...] of some images; those that are not in the folder are computed first.

        The first process says which those are: all of them compute rows of the same batches.
        """
        pairs = [(record, view) for record in records for view in range(views)]
        distinct = {self.path(*pair): pair for pair in pairs}
        first = jax.process_index() == 0
        absent = np.array([first and not path.is_file() for path in distinct], bool)
        missing = list(compress(distinct.values(), multihost_utils.broadcast_one_to_all(absent)))
        if missing:
            self._compute(manifest, missing)
        with ThreadPoolExecutor(READERS) as pool:
            files = pool.map(self._bytes, pairs)
            # one after the other: Python 3.11 may fail where several threads parse, as np.load does with a header
            values = [self._load(*each) for each in zip(pairs, files, strict=True)]
        return rearrange(np.stack(values), "(n V) ... -> n V ...", V=views)

    def _compute(self, manifest: Manifest, missing: list[tuple[Record, int]]) -> None:
        """Computes views in every process; the first one writes them."""
        first_process = jax.process_index() == 0
        if first_process and not self.folder.is_dir():
            run_folder.report_stale(self.folder, self.causes)
            run_folder.write_causes(self.folder, self.causes)
            self.folder.mkdir(exist_ok=True)
        lower = jax.jit(partial(self.classifier.lower, last=self.last), out_shardings=sharding.replicated(self.grid))
        trees = jax.device_put((self.params, self.variables), sharding.replicated(self.grid))
        kind = np.float16 if self.last else np.float32
        side, rows = self.classifier.config["image_size"], sharding.local_rows(self.batch, self.grid)
        with ThreadPoolExecutor(READERS) as pool, bar(len(missing), "features", "images", 0) as progress:
            for first in range(0, len(missing), self.batch):
                pairs = missing[first : first + self.batch]
                views = pool.map(partial(self._view, manifest), [pairs[row] for row in rows if row < len(pairs)])
                padded = np.zeros((len(rows), side, side, 3), np.float32)  # the last batch is as large as the others
                for row, view in enumerate(views):
                    padded[row] = view
                values = np.asarray(lower(*trees, sharding.place(padded, self.grid)), kind)[: len(pairs)]
                self._check(pairs, values)
                if first_process:
                    list(pool.map(self._save, pairs, values))
                progress.update(len(pairs))
        multihost_utils.sync_global_devices("dermjax: features written")

    def _view(self, manifest: Manifest, pair: tuple[Record, int]) -> np.ndarray:
        """Returns a view [S, S, 3] of one image, augmented as its digest draws it."""
        record, view = pair
        image = images.load(manifest.path(record), self.classifier.config["image_size"])
        rng = np.random.default_rng((int(record.sha256[:16], 16), view))
        return POLICIES[self.policy](image, rng) if view else images.to_model(image)

    def _check(self, pairs: list[tuple[Record, int]], values: np.ndarray) -> None:
        """Raises UserError, in every process, where features are no numbers."""
        lost = [pair[0].image for pair, value in zip(pairs, values, strict=True) if not np.isfinite(value).all()]
        if lost:
            raise UserError(f"features of {lost[0]} are not finite numbers; the weights or the file are damaged")

    def _save(self, pair: tuple[Record, int], value: np.ndarray) -> None:
        file = io.BytesIO()
        np.save(file, value)
        write_atomically(self.path(*pair), file.getvalue())

    def _bytes(self, pair: tuple[Record, int]) -> bytes:
        path = self.path(*pair)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            gone = "removed meanwhile, or not on a disk that all hosts share"
            raise UserError(f"features {path}: {gone}; mend that, then the same command") from error

    def _load(self, pair: tuple[Record, int], file: bytes) -> np.ndarray:
        try:
            return np.load(io.BytesIO(file))
        except (EOFError, ValueError) as error:
            raise UserError(f"features {self.path(*pair)}: damaged ({error}); delete the file") from error


def causes(classifier: Classifier, params: Params, variables: Params, chosen: Recipe, grid: Mesh) -> dict:
    """Returns what the features of an image follow from: the frozen part, how images are shown to it, arithmetic."""
    digest = hashlib.sha256()
    frozen = [flatten(divide(tree, chosen)[1]) for tree in (params, variables) if tree]
    for path, leaf in sorted((path, leaf) for flat in frozen for path, leaf in flat.items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf))
    config = {name: value for name, value in classifier.config.items() if name not in LABELS}
    return {
        run_folder.SUBJECT: classifier.config["model_type"],
        run_folder.NUMERIC_VERSIONS: VERSIONS,
        "arithmetic": sharding.arithmetic(classifier.dtype, grid),
        "network": digest.hexdigest()[:16],
        "last": chosen.last,
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "config": config,
    }
