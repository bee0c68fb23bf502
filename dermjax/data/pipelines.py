"""Batches for training and evaluation, by grain: endless, reproducible by seed, resumable at any batch.

The state of an iterator is the index of its next batch: everything else (order, mixture, augmentation) is a pure
function of seed and index, so a resumed run sees what it would have seen. Of n processes each makes its own rows of a
batch, the i-th those from i B / n on, so that together they make what one process would.

Shapes: B batch over all processes, S side of the square images, K classes.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial

import grain
import numpy as np

from dermjax.data import images
from dermjax.data.augmentation import MIXTURES, POLICIES
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

CACHE_BYTES = 2 * 1024**3  # decoded training images up to this are kept in memory
AHEAD = 2  # batches that are decoded while the devices judge one
THREADS = 4  # batches in the making; the arithmetic and the decoding release Python's lock
MEMORY_READS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # slicing arrays is faster than a thread
FINEST_MIXTURE = 10_000  # a synthetic fraction is the nearest fraction with at most this denominator
MIXING = 2**31  # apart from the seeds of the examples
ALONE = (0, 1)  # which of how many processes


def arrays(
    data: dict[str, np.ndarray],
    *,
    batch: int,
    seed: int,
    process: tuple[int, int] = ALONE,
    epoch: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """Endless batches of rows {name: [B / n, ...]} of arrays with one common length, in a new order every epoch.

    epoch: int [M], the rows that make one epoch, in which a row may stand several times; None is each once.
    """
    lengths = {name: len(array) for name, array in data.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"arrays must have one common length above 0, not {lengths}")
    if epoch is None:
        epoch = np.arange(next(iter(lengths.values())))
    places = _share(_epochs(len(epoch), seed=(seed,)), batch, process)
    batches = places.batch(batch // process[1]).map(lambda chosen: {name: a[epoch[chosen]] for name, a in data.items()})
    return iter(batches.to_iter_dataset(MEMORY_READS))


def classification(
    real: Manifest,
    synthetic: Manifest | None,
    *,
    size: int,
    batch: int,
    seed: int,
    synthetic_fraction: float,
    augment: str,
    mixing: str = "none",
    process: tuple[int, int] = ALONE,
) -> grain.DatasetIterator:
    """Endless training batches {"image": float32 [B / n, S, S, 3] in [-1, 1], "label": int32 [B / n]}.

    Real and synthetic images alternate at exactly `synthetic_fraction` (0 when there is no synthetic manifest), and
    within each the classes take turns, so every prefix is balanced to within one image. augment: a name of POLICIES.
    mixing: a name of MIXTURES; "mixup" and "cutmix" mix within the rows of a process and add "targets", float32
    [B / n, K]. Raises UserError when a class has no image on a side that is drawn from, or the manifests do not belong
    together.
    """
    policy = _chosen("augment", augment, POLICIES)
    mixture = _chosen("mixing", mixing, MIXTURES)
    fraction = Fraction(synthetic_fraction).limit_denominator(FINEST_MIXTURE) if synthetic else Fraction(0)
    if not 0 <= fraction <= 1:
        raise UserError(f"synthetic_fraction {synthetic_fraction}: give a share between 0 and 1")
    sides = [side for side, share in ((real, 1 - fraction), (synthetic, fraction)) if share > 0]
    _refuse_strangers(real, synthetic)
    classes = [(side, records) for side in sides for records in _by_class(side)]
    picture = _reader([side.path(record) for side, records in classes for record in records], size)

    sources, first = [], 0
    for place, (_, records) in enumerate(classes):
        rows, label = _epochs(len(records), seed=(seed, place)), np.int32(place % len(real.labels))
        sources.append(rows.map(partial(_example, picture=picture, first=first, label=label)))
        first += len(records)
    turns = Turns(fraction=fraction if len(sides) == 2 else Fraction(0), classes=len(real.labels))
    mixed = grain.MapDataset.select_from_datasets(sources, turns)
    examples = mixed.random_map(partial(_augmented, policy=policy), seed=seed)
    batches = _share(examples, batch, process).batch(batch // process[1])
    batches = batches.random_map(partial(mixture, classes=len(real.labels)), seed=(seed + MIXING + process[0]) % 2**32)
    return iter(batches.to_iter_dataset(grain.ReadOptions(THREADS, THREADS)))


def evaluation(records: list[Record], manifest: Manifest, *, size: int, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """The records once, in order: {"image": float32 [B, S, S, 3], "label": int32 [B], "valid": bool [B]}.

    The next batches are decoded while one is used. The last is filled up to B with grey images that are not valid, so
    that a jitted step compiles once.
    """
    with ThreadPoolExecutor(THREADS) as pool:

        def decoding(chosen: list[Record]) -> list[Future]:
            return [pool.submit(images.load, manifest.path(record), size) for record in chosen]

        parts = [records[first : first + batch] for first in range(0, len(records), batch)]
        coming = deque(decoding(part) for part in parts[:AHEAD])
        for place, chosen in enumerate(parts):
            decoded = [each.result() for each in coming.popleft()]
            coming.extend(decoding(part) for part in parts[place + AHEAD : place + AHEAD + 1])
            valid = np.arange(batch) < len(chosen)
            image, label = np.zeros((batch, size, size, 3), np.float32), np.zeros(batch, np.int32)
            image[valid] = images.to_model(np.stack(decoded))
            label[valid] = [manifest.labels.index(record.label) for record in chosen]
            yield {"image": image, "label": label, "valid": valid}


@dataclass(frozen=True)
class Turns(grain.transforms.DatasetSelectionMap):
    """Whose turn it is at each position of an exact mixture: (source, index in it).

    The sources are the K real classes, then the K synthetic ones. A synthetic image comes whenever floor(k · fraction)
    steps up. Written here because `MapDataset.mix` rounds its weights: 0.7 becomes 233/333 there.
    """

    fraction: Fraction
    classes: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> tuple[int, int]:
        before, after = int(position * self.fraction), int((position + 1) * self.fraction)
        drawn = before if after > before else position - before
        side = self.classes if after > before else 0
        return side + drawn % self.classes, drawn // self.classes


@dataclass(frozen=True)
class Rows(grain.transforms.DatasetSelectionMap):
    """The positions of one process: of every batch of `whole`, the `own` from `first` on."""

    whole: int
    first: int
    own: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> tuple[int, int]:
        batch, row = divmod(position, self.own)
        return 0, batch * self.whole + self.first + row


def _share(examples: grain.MapDataset, batch: int, process: tuple[int, int]) -> grain.MapDataset:
    """The rows of one process out of endless examples; UserError when a batch does not divide."""
    index, count = process
    if batch % count:
        raise UserError(f"batch = {batch} does not divide over {count} processes; give a multiple")
    if count == 1:
        return examples
    own = batch // count
    return grain.MapDataset.select_from_datasets([examples], Rows(whole=batch, first=index * own, own=own))


def _chosen(what: str, name: str, known: dict[str, Callable]) -> Callable:
    if name not in known:
        raise UserError(f"{what} {name!r}: there are {', '.join(known)}")
    return known[name]


def _epochs(length: int, *, seed: tuple[int, ...]) -> grain.MapDataset:
    """Endless row numbers, in a new order every epoch.

    `MapDataset.shuffle` is not used: it walks a 16-bit cipher until it falls into the range, 12 ms an index for 4 rows.
    """

    @lru_cache(maxsize=4)  # the epochs that the batches in the making may touch
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((*seed, epoch)).permutation(length)

    return grain.MapDataset.range(length).repeat().map_with_index(lambda index, row: order(index // length)[row])


def _example(row: int, picture: Callable[[int], np.ndarray], first: int, label: np.int32) -> dict:
    return {"image": picture(first + row), "label": label}


def _by_class(manifest: Manifest) -> list[list[Record]]:
    """The kept training records of each class, none of them empty."""
    training = manifest.split("train")
    classes = [[record for record in training if record.label == label] for label in manifest.labels]
    for label, records in zip(manifest.labels, classes, strict=True):
        if not records:
            raise UserError(f"manifest of {manifest.root}: no kept training image of class {label!r}; add some")
    return classes


def _refuse_strangers(real: Manifest, synthetic: Manifest | None) -> None:
    """A mixture is true only if each manifest is of one kind and both name the same classes."""
    if any(record.synthetic for record in real.split("train")):
        raise UserError(
            f"manifest of {real.root}: holds synthetic images; give it as synthetic and not as the real one"
        )
    if synthetic and not all(record.synthetic for record in synthetic.split("train")):
        raise UserError(
            f"manifest of {synthetic.root}: holds real images; give it as the real one and not as synthetic"
        )
    if synthetic and synthetic.labels != real.labels:
        theirs, ours = ", ".join(synthetic.labels), ", ".join(real.labels)
        raise UserError(f"manifest of {synthetic.root}: its classes are {theirs}, the real ones are {ours}")


def _reader(paths: list, size: int) -> Callable[[int], np.ndarray]:
    """A function from row to uint8 [S, S, 3]: out of memory when all images fit there, else decoded on each call."""
    if len(paths) * size * size * 3 > CACHE_BYTES:
        return lambda row: images.load(paths[row], size)
    return images.load_all(paths, size, "training images").__getitem__


def _augmented(example: dict, rng: np.random.Generator, policy: Callable) -> dict:
    return {**example, "image": policy(example["image"], rng)}
