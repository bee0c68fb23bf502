"""Which images of a large set are near each other by their hashes, without comparing all with all.

Locality-sensitive hashing by sampled bits (Indyk and Motwani 1998): a table sorts the images by a few bits of their
hash; two images that agree on those bits meet in it, and every meeting is checked by the exact distance. With enough
tables, each over other bits, hardly a pair is missed: at most MISSED of those at the limit, fewer of those that are
closer. N images cost about N^1.25: measured in BUILD_NOTES.md.

An image may be mirrored, turned or cropped. Mirroring negates the odd frequencies and turning by a quarter also swaps
the axes, so the eight orientations are permutations and flips of the bits of one hash. Crops are views of their own
(duplicates.VIEWS); each is compared with the whole images.

Shapes: N images, V views, 4 words of 64 bits a hash, P pairs.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import ceil, comb, log, log1p, log2

import numpy as np

from dermjax import machine
from dermjax.data.leaks.duplicates import BITS, FREQUENCIES, NEAR, NEAR_CROPPED, pairs
from dermjax.errors import UserError

MISSED = 1e-3  # share of the pairs at exactly NEAR bits that may be missed; at 3/4 of it, a millionth
FEW = 300  # images up to which all are compared with all
BLOCK = 1 << 20  # meetings checked at once
ROW, COLUMN = np.divmod(np.arange(BITS), FREQUENCIES)
FLIPS = [(ROW * down + COLUMN * across) % 2 == 1 for down in (0, 1) for across in (0, 1)]
ORDERS = (np.arange(BITS), COLUMN * FREQUENCIES + ROW)  # of the bits of an image, and of its transpose


@dataclass(frozen=True)
class Table:
    """The images sorted by a few bits: those with key k are rows[start[k] : start[k + 1]]."""

    bits: np.ndarray
    start: np.ndarray
    rows: np.ndarray


def near(views: np.ndarray) -> np.ndarray:
    """Pairs of images that are near in some orientation or crop, as int64 [P, 3]: row < row, bits that differ.

    Near are whole images at most NEAR bits apart, and a crop and a whole image at most NEAR_CROPPED.
    views: uint64 [N, V, 4], the hashes of each image, the whole one first. The pairs are enough to tell every group:
    of images with one and the same hash, each is paired with the first and only the first with others.
    """
    _, first, inverse = np.unique(views[:, 0], axis=0, return_index=True, return_inverse=True)
    same = np.stack([first[inverse], np.arange(len(views)), np.zeros(len(views), np.int64)], axis=-1)
    distinct = np.sort(first)
    views = views[distinct]
    tables = _tables(np.ascontiguousarray(_bits(views[:, 0]).T)) if len(views) > FEW else ()
    tasks = [(view, order) for view in range(views.shape[1]) for order in ORDERS]
    with ThreadPoolExecutor(machine.cores()) as pool:
        met = np.concatenate(list(pool.map(lambda task: _meetings(views, *task, tables), tasks)))
    met[:, :2] = np.sort(distinct[met[:, :2]], axis=1)
    met = np.concatenate([same[same[:, 0] < same[:, 1]], met])
    met = met[np.argsort(met[:, 2], kind="stable")]
    return met[np.unique(met[:, :2], axis=0, return_index=True)[1]]  # each pair once, with its least distance, in order


class Index:
    """Whole images that are added as one goes, and which of them are near others in some orientation.

    A table is a chain for each key: the last image that has it, and for each image the one before it. It takes 4 bytes
    an image and table, as much again for the keys, and hardly a pair is missed, as in `near`.
    """

    def __init__(self, capacity: int, distance: int):
        size = ceil(log2(max(2, capacity)))
        tables, have = _enough(distance, size), machine.free_memory()
        needed = tables * 4 * (capacity + (1 << size))
        if needed > have:
            raise UserError(
                f"near-duplicates: {capacity} images within {distance} bits take {machine.format_bytes(needed)} of "
                f"memory, {machine.format_bytes(have)} are free; give a smaller thresholds.bits, or another machine"
            )
        self.distance, self.sets, self.count = distance, _bit_sets(tables, size), 0
        self.last = np.full((len(self.sets), 1 << size), -1, np.int32)
        self.before = np.empty((len(self.sets), capacity), np.int32)
        self.hashes = np.empty((capacity, 4), np.uint64)

    def add(self, hashes: np.ndarray) -> None:
        """Adds the hashes of images, uint64 [N, 4]; their numbers go on from those before."""
        if not len(hashes):
            return
        planes, rows = np.ascontiguousarray(_bits(hashes).T), np.arange(self.count, self.count + len(hashes))
        self.hashes[rows] = hashes
        self.count += len(hashes)
        for bits, last, before in zip(self.sets, self.last, self.before, strict=True):
            keys = _keys(planes, bits)
            order = np.argsort(keys, kind="stable")
            keys, sorted_rows = keys[order], rows[order]
            before[sorted_rows] = last[keys]
            before[sorted_rows[1:]] = np.where(keys[1:] == keys[:-1], sorted_rows[:-1], before[sorted_rows[1:]])
            last[keys] = sorted_rows  # of equal keys the last one stays

    def near(self, turned: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (row, numbers) of the images uint64 [N, 8, 4], in their eight orientations, near which others are."""
        queried = np.ascontiguousarray(turned.reshape(-1, 4))
        planes = np.ascontiguousarray(_bits(queried).T)
        with ThreadPoolExecutor(machine.cores()) as pool:
            met = np.concatenate(list(pool.map(partial(self._met, queried, planes), range(len(self.sets)))))
        met[:, 0] //= turned.shape[1]
        met = np.unique(met, axis=0)
        rows, starts = np.unique(met[:, 0], return_index=True)
        return zip(rows.tolist(), np.split(met[:, 1], starts[1:]), strict=True)

    def _met(self, queried: np.ndarray, planes: np.ndarray, table: int) -> np.ndarray:
        """The pairs (query, number) of a table that are near each other, int64 [P, 2]."""
        queries, numbers = np.arange(len(queried)), self.last[table][_keys(planes, self.sets[table])]
        met = [np.empty((0, 2), np.int64)]
        while len(alive := np.flatnonzero(numbers >= 0)):
            queries, numbers = queries[alive], numbers[alive]
            bits = np.bitwise_count(queried[queries] ^ self.hashes[numbers]).sum(-1, dtype=np.int64)
            close = bits <= self.distance
            met.append(np.stack([queries[close], numbers[close].astype(np.int64)], axis=-1))
            numbers = self.before[table][numbers]
        return np.concatenate(met)


def _meetings(views: np.ndarray, view: int, order: np.ndarray, tables: tuple[Table, ...]) -> np.ndarray:
    """The pairs of one view, in one order of the axes and all four mirrorings, with the whole images."""
    distance = NEAR_CROPPED if view else NEAR
    whole, turned = np.ascontiguousarray(views[:, 0]), _bits(views[:, view])[:, order]
    mirrored = [_packed(turned ^ flip) for flip in FLIPS]
    if not tables:
        return np.concatenate([_of_two(pairs(each, whole, distance), view) for each in mirrored])
    met = [np.empty((0, 3), np.int64)]
    planes = np.ascontiguousarray(turned.T)
    for table in tables[: _enough(distance, len(tables[0].bits))]:
        keys = _keys(planes, table.bits)
        for flip, queried in zip(FLIPS, mirrored, strict=True):
            mask = _keys(flip[:, None].astype(np.uint8), table.bits)
            for queries, rows in _blocks(table, keys ^ mask):
                bits = np.bitwise_count(queried[queries] ^ whole[rows]).sum(-1, dtype=np.int64)
                close = bits <= distance
                met.append(_of_two(np.stack([queries[close], rows[close], bits[close]], axis=-1), view))
    return np.concatenate(met)


def _of_two(met: np.ndarray, view: int) -> np.ndarray:
    """The pairs of different images; those of whole images meet twice, and one of them will do."""
    return met[met[:, 0] < met[:, 1]] if view == 0 else met[met[:, 0] != met[:, 1]]


def _blocks(table: Table, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(query, row) of all images that meet the queries in a table, in blocks of bounded size."""
    first = table.start[keys]
    counts = table.start[keys + 1] - first
    met = np.flatnonzero(counts)
    ends = np.cumsum(counts[met])
    for block in np.split(met, np.flatnonzero(np.diff(ends // BLOCK)) + 1):
        many = counts[block]
        queries = np.repeat(block, many)
        within = np.arange(len(queries)) - np.repeat(np.cumsum(many) - many, many)
        yield queries, table.rows[np.repeat(first[block], many) + within]


def _tables(planes: np.ndarray) -> tuple[Table, ...]:
    """Tables of the images with these bit planes; a table has as many bits as give about one image a key."""
    size = ceil(log2(planes.shape[1]))
    tables = []
    for bits in _bit_sets(_enough(NEAR, size), size):
        keys = _keys(planes, bits)
        start = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << size))])
        tables.append(Table(bits, start.astype(np.int32), np.argsort(keys, kind="stable").astype(np.int32)))
    return tuple(tables)


def _bit_sets(count: int, size: int) -> list[np.ndarray]:
    """The bits of so many tables: disjoint sets as long as these last, then those of another permutation, and so on.

    The first bit of a hash is always 0 and is left out.
    """
    rng = np.random.default_rng(0)
    a_permutation = (BITS - 1) // size
    sets = [
        bits
        for _ in range(ceil(count / a_permutation))
        for bits in (1 + rng.permutation(BITS - 1))[: a_permutation * size].reshape(a_permutation, size)
    ]
    return sets[:count]


def _enough(distance: int, size: int) -> int:
    """How many tables of `size` bits miss at most MISSED of the pairs at this distance."""
    meets = comb(BITS - 1 - distance, size) / comb(BITS - 1, size)
    return ceil(log(MISSED) / log1p(-meets)) if meets else sys.maxsize


def _keys(planes: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The chosen bits of each image as one number, uint32 [N], from bit planes uint8 [256, N]."""
    keys = np.zeros(planes.shape[1], np.uint32)
    for bit in bits:
        np.left_shift(keys, 1, out=keys)
        np.bitwise_or(keys, planes[bit], out=keys)
    return keys


def _bits(hashes: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8), axis=-1)


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.packbits(bits, axis=-1)).view(np.uint64)
