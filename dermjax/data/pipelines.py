"""Batches for training and evaluation, by grain: endless, reproducible by seed, resumable at any batch.

The state of an iterator is the index of its next batch: everything else (order, mixture, augmentation) is a pure
function of seed and index, so a resumed run gets the batches that it would have had. Of several processes each makes
some rows of a batch, and all of them together what one process would, whichever rows whose are: the state is the same
for all of them.

Shapes: B batch over all processes, n rows of it that are made here, S side of the square images, K classes.
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

from dermjax import machine
from dermjax.data import images
from dermjax.data.augmentation import MIXTURES, POLICIES
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

CACHE_BYTES = 2 * 1024**3  # decoded training images up to this are kept in memory
AHEAD = 2  # batches that are decoded while the devices work on one
THREADS = 4  # batches in the making; the arithmetic and the decoding release Python's lock
MEMORY_READS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # slicing arrays is faster than a thread
FINEST_MIXTURE = 10_000  # a synthetic fraction is the nearest fraction with at most this denominator
MIXING = 2**31  # apart from the seeds of the examples
JUDGED = "label"  # the score of `curate` that is the probability of an image's own class


@dataclass(frozen=True)
class Alternation(grain.transforms.DatasetSelectionMap):
    """The source at each position of an exact mixture, and the index in it.

    The sources are the K real classes, then the K synthetic ones. A synthetic image comes whenever floor(k · fraction)
    steps up, and within each side the classes take turns, so every prefix is balanced to within one image. Written here
    because `MapDataset.mix` rounds its weights: 0.7 becomes 233/333 there.
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


def as_fraction(share: float) -> Fraction:
    """The nearest fraction of a share that a mixture can have."""
    return Fraction(share).limit_denominator(FINEST_MIXTURE)


def confidence(record: Record) -> float:
    """The probability that a judge gave the class of an image; UserError where none has seen it."""
    if JUDGED not in record.scores:
        raise UserError(
            f"{record.image}: config.synthetic_targets = judge, and no judge has seen it; curate with config.classifier"
        )
    return record.scores[JUDGED]


def judged(hot: np.ndarray, record: Record) -> np.ndarray:
    """The probability that a judge gives the class of an image, and what is left in equal parts for the others.

    hot: float32 [K], 1 at the class. The judge is the classifier, trained on real images only, that `curate` had.
    """
    own, others = np.float32(confidence(record)), max(1, len(hot) - 1)
    return own * hot + (1 - own) / others * (1 - hot)


@dataclass(frozen=True, kw_only=True)
class MixturePlan:
    """The manifests that training draws from, and how.

    synthetic_fraction: the share of synthetic images in every prefix, to within one image. mixing: a name of MIXTURES.
    rows: int [n], the rows of a batch of B that this process makes, ascending.
    synthetic_weight: of the loss of a synthetic image beside a real one's. synthetic_targets: a name of TARGETS.
    """

    real: Manifest
    synthetic: Manifest | None
    synthetic_fraction: float
    batch: int
    rows: np.ndarray
    seed: int
    mixing: str
    synthetic_weight: float = 1.0
    synthetic_targets: str = "label"

    @property
    def share(self) -> Fraction:
        """The share of synthetic images in a batch, 0 when there is no synthetic manifest."""
        return as_fraction(self.synthetic_fraction if self.synthetic else 0)

    @property
    def sides(self) -> list[Manifest]:
        """The manifests of which anything is drawn, real ones first."""
        return [self.real] * (self.share < 1) + [self.synthetic] * (self.share > 0)

    @property
    def alternation(self) -> Alternation:
        """The order in which the classes of the sides come."""
        fraction = self.share if len(self.sides) == 2 else Fraction(0)
        return Alternation(fraction=fraction, classes=len(self.real.labels))

    @property
    def real_rows(self) -> int:
        """The real images of each batch, 0 where there are no others; UserError where their number changes."""
        if len(self.sides) < 2:
            return 0
        rows = self.batch * (1 - self.share)
        if rows.denominator != 1:
            raise UserError(
                f"config.synthetic_statistics = separate: of a batch of {self.batch}, {float(rows):g} would be real; "
                "give a batch and a synthetic_fraction that divide into whole images"
            )
        return int(rows)

    def teaching(self, record: Record) -> dict[str, np.ndarray]:
        """What is known of an image besides its label: "synthetic" bool, its "weight" in the loss, soft "targets" [K].

        Weights are 1 in the mean over the mixture, so that the rate means the same whatever they are. The plan's
        defaults leave weights and targets out.

        Raises:
          UserError: targets are the judge's, and no judge has seen this image.
        """
        if (self.synthetic_weight, self.synthetic_targets) == (1.0, "label"):
            return {"synthetic": np.bool_(record.synthetic)}
        share, classes = float(self.share), len(self.real.labels)
        weight = (self.synthetic_weight if record.synthetic else 1.0) / (1 - share + share * self.synthetic_weight)
        targets = np.eye(classes, dtype=np.float32)[self.real.labels.index(record.label)]
        if record.synthetic:
            targets = TARGETS[self.synthetic_targets](targets, record)
        return {"synthetic": np.bool_(record.synthetic), "weight": np.float32(weight), "targets": targets}


def array_batches(
    data: dict[str, np.ndarray],
    *,
    batch: int,
    seed: int,
    rows: np.ndarray | None = None,
    epoch: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """Endless batches {name: [n, ...]} of entries of arrays with one common length, in a new order every epoch.

    rows: int [n], which rows of a batch to make, ascending; None is all. epoch: int [M], the entries that make one
    epoch, in which an entry may stand several times; None is each once.
    """
    lengths = {name: len(array) for name, array in data.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"arrays must have one common length above 0, not {lengths}")
    if epoch is None:
        epoch = np.arange(next(iter(lengths.values())))
    entries, rows = _shuffled(len(epoch), seed=(seed,)), np.arange(batch) if rows is None else rows

    def make(number: int) -> dict[str, np.ndarray]:
        chosen = epoch[[entries[number * batch + row] for row in rows.tolist()]]
        return {name: array[chosen] for name, array in data.items()}

    return iter(grain.MapDataset.range(sys.maxsize).map(make).to_iter_dataset(MEMORY_READS))


def training_batches(plan: MixturePlan, *, size: int, augment: str) -> grain.DatasetIterator:
    """Endless training batches {"image": float32 [n, S, S, 3] in [-1, 1], "label": int32 [n]}, see `Alternation`.

    augment: a name of POLICIES. A batch has what `MixturePlan.teaching` says besides, and with "mixup" and "cutmix"
    "targets", float32 [n, K], in any case. Raises UserError when a class has no image on a side that is drawn from, or
    the manifests do not belong together.
    """
    for name, given, known in (("augment", augment, POLICIES), ("mixing", plan.mixing, MIXTURES)):
        if given not in known:
            raise UserError(f"{name} {given!r}: there are {', '.join(known)}")
    if not 0 <= plan.share <= 1:
        raise UserError(f"synthetic_fraction {plan.synthetic_fraction}: give a share between 0 and 1")
    check_real(plan.real, f"manifest of {plan.real.root}")
    if plan.synthetic:
        check_synthetic(plan.synthetic, f"manifest of {plan.synthetic.root}")
        check_labels(plan.synthetic, f"manifest of {plan.synthetic.root}", plan.real)
    classes = [(side, records) for side in plan.sides for records in _by_class(side)]
    read = _reader([(side, record) for side, records in classes for record in records], size)

    sources, first, seed = [], 0, plan.seed
    for number, (_, records) in enumerate(classes):
        entries = _shuffled(len(records), seed=(seed, number))
        known = [{"label": np.int32(number % len(plan.real.labels))} | plan.teaching(record) for record in records]
        sources.append(entries.map(partial(_example, read=read, first=first, known=known)))
        first += len(records)
    alternating = grain.MapDataset.select_from_datasets(sources, plan.alternation)
    examples = alternating.random_map(partial(_augmented, policy=POLICIES[augment]), seed=seed)
    make = partial(mix_rows, examples.__getitem__, plan=plan)
    return iter(grain.MapDataset.range(sys.maxsize).map(make).to_iter_dataset(grain.ReadOptions(THREADS, THREADS)))


def evaluation_batches(
    records: list[Record],
    manifest: Manifest,
    *,
    size: int,
    batch: int,
    rows: np.ndarray | None = None,
    resize: images.Resize | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The records once, in order: {"image": float32 [n, S, S, 3], "valid": bool [B]}.

    rows: int [n], which rows of a batch to make, ascending; None is all. resize: of `images.load`. The next batches are
    decoded while one is used. The last is filled up to B with grey images that are not valid, so that a jitted step
    compiles once.
    """
    rows = np.arange(batch) if rows is None else rows
    batches = [records[first : first + batch] for first in range(0, len(records), batch)]

    def decode(record: Record) -> np.ndarray:
        return images.load(manifest.path(record), size, resize)

    with ThreadPoolExecutor(THREADS) as pool:

        def submit(number: int) -> list[Future]:
            here = [batches[number][row] for row in rows if row < len(batches[number])]
            return [pool.submit(decode, record) for record in here]

        ahead = deque(map(submit, range(len(batches[:AHEAD]))))
        for number, chosen in enumerate(batches):
            decoded = [future.result() for future in ahead.popleft()]
            ahead.extend(map(submit, range(len(batches))[number + AHEAD : number + AHEAD + 1]))
            image = np.zeros((len(rows), size, size, 3), np.float32)
            if decoded:
                image[: len(decoded)] = images.to_model(np.stack(decoded))
            yield {"image": image, "valid": np.arange(batch) < len(chosen)}


def mix_rows(example: Callable[[int], dict], number: int, *, plan: MixturePlan) -> dict[str, np.ndarray]:
    """The rows of the batch `number` out of endless examples by their position, mixed by MIXTURES[plan.mixing].

    Which row is mixed with which, and how, is drawn for the full batch, so rows are the same whoever makes them. The
    partners of rows that other processes make are made here too.
    """
    rng = np.random.default_rng((plan.seed, MIXING, number))
    others = plan.rows if plan.mixing == "none" else rng.permutation(plan.batch)[plan.rows]
    examples = {row: example(number * plan.batch + row) for row in map(int, dict.fromkeys((*plan.rows, *others)))}

    def stack(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.stack([examples[row][name] for row in rows]) for name in examples[rows[0]]}

    mine = stack(plan.rows)
    return MIXTURES[plan.mixing](mine, mine if others is plan.rows else stack(others), rng, len(plan.real.labels))


def _shuffled(length: int, *, seed: tuple[int, ...]) -> grain.MapDataset:
    """Endless row numbers, in a new order every epoch.

    `MapDataset.shuffle` is not used: it walks a 16-bit cipher until it falls into the range, 12 ms an index for 4 rows.
    """

    @lru_cache(maxsize=4)  # the epochs that the batches in the making may touch
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((*seed, epoch)).permutation(length)

    return grain.MapDataset.range(length).repeat().map_with_index(lambda index, row: order(index // length)[row])


def _example(row: int, read: Callable[[int], np.ndarray], first: int, known: list[dict]) -> dict:
    return {"image": read(first + row)} | known[row]


def _by_class(manifest: Manifest) -> list[list[Record]]:
    """The kept training records of each class, none of them empty."""
    classes = [manifest.split("train", label) for label in manifest.labels]
    for label, records in zip(manifest.labels, classes, strict=True):
        if not records:
            raise UserError(f"manifest of {manifest.root}: no kept training image of class {label!r}; add some")
    return classes


def check_real(manifest: Manifest, name: str) -> None:
    """Raises UserError where a manifest of real images holds synthetic ones."""
    if any(record.synthetic for record in manifest.split("train")):
        raise UserError(f"{name}: holds synthetic images; give it as synthetic and not as the real one")


def check_synthetic(manifest: Manifest, name: str) -> None:
    """Raises UserError where a manifest of synthetic images holds real ones."""
    if not all(record.synthetic for record in manifest.split("train")):
        raise UserError(f"{name}: holds real images; give it as the real one and not as synthetic")


def check_labels(manifest: Manifest, name: str, real: Manifest) -> None:
    """Raises UserError where a manifest has other classes than the real images."""
    if manifest.labels != real.labels:
        theirs, ours = ", ".join(manifest.labels), ", ".join(real.labels)
        raise UserError(f"{name}: its classes are {theirs}, the real ones are {ours}")


def _reader(chosen: list[tuple[Manifest, Record]], size: int) -> Callable[[int], np.ndarray]:
    """A function from row to uint8 [S, S, 3]: out of memory when all images fit there, else decoded on each call."""
    with ThreadPoolExecutor(machine.cores()) as pool:
        paths = list(pool.map(lambda each: each[0].path(each[1]), chosen))
    if len(paths) * size * size * 3 > CACHE_BYTES:
        return lambda row: images.load(paths[row], size)
    return images.load_all(paths, size, "training images").__getitem__


TARGETS = {"label": lambda hot, record: hot, "judge": judged}


def _augmented(example: dict, rng: np.random.Generator, policy: Callable) -> dict:
    return {**example, "image": policy(example["image"], rng)}
