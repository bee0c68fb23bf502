"""Which images of a large set are near each other by their hashes, without comparing all with all.

Locality-sensitive hashing by sampled bits (Indyk and Motwani 1998): a table sorts the images by a few bits of their
hash; two images that agree on those bits meet in it, and every meeting is checked by the exact distance. With enough
tables, each over other bits, hardly a pair is missed: at most MISSED of those that are as far apart as is asked for,
fewer of those that are closer. N images cost about N^1.25: measured in BUILD_NOTES.md.

An image may be mirrored, turned or cropped. Mirroring negates the odd frequencies and turning by a quarter also swaps
the axes, so the eight orientations are permutations and flips of the bits of one hash. Crops are views of their own
(duplicates.VIEWS); each is looked for among the whole images.

Shapes: N images, V views, 4 words of 64 bits a hash, P pairs.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, comb, log, log2

import numpy as np

from dermjax import machine
from dermjax.data.leaks.duplicates import FREQUENCIES, NEAR, NEAR_CROPPED, pairs

MISSED = 1e-3  # share of the pairs at exactly NEAR bits that may be missed; at 3/4 of it, a millionth
FEW = 300  # images up to which all are compared with all
BLOCK = 1 << 20  # meetings checked at once
BITS = FREQUENCIES * FREQUENCIES
ROW, COLUMN = np.divmod(np.arange(BITS), FREQUENCIES)
TRANSPOSED = COLUMN * FREQUENCIES + ROW
FLIPS = [(ROW * down + COLUMN * across) % 2 == 1 for down in (0, 1) for across in (0, 1)]
ORDERS = (np.arange(BITS), TRANSPOSED)


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
    whole, first, again = np.unique(views[:, 0], axis=0, return_index=True, return_inverse=True)
    same = np.stack([first[again], np.arange(len(views)), np.zeros(len(views), np.int64)], axis=-1)
    chosen = np.sort(first)
    views = views[chosen]
    few = len(whole) <= FEW
    tables = () if few else _tables(np.ascontiguousarray(_bits(views[:, 0]).T))
    tasks = [(view, order) for view in range(views.shape[1]) for order in ORDERS]
    with ThreadPoolExecutor(machine.cores()) as pool:
        found = list(pool.map(lambda task: _meetings(views, *task, tables), tasks))
    found = np.concatenate(found)
    found[:, :2] = np.sort(chosen[found[:, :2]], axis=1)
    return _nearest_of_each(np.concatenate([same[same[:, 0] < same[:, 1]], found]))


def orientations(hashes: np.ndarray) -> np.ndarray:
    """The hashes of the eight orientations of images: uint64 [N, 4] -> [8, N, 4], the first as given."""
    bits = _bits(hashes)
    return np.stack([_packed(bits[:, order] ^ flip) for order in ORDERS for flip in FLIPS])


def _meetings(views: np.ndarray, view: int, order: np.ndarray, tables: tuple[Table, ...]) -> np.ndarray:
    """The pairs of one view, in one order of the axes and all four mirrorings, with the whole images."""
    distance = NEAR_CROPPED if view else NEAR
    whole, turned = np.ascontiguousarray(views[:, 0]), _bits(views[:, view])[:, order]
    asked = [_packed(turned ^ flip) for flip in FLIPS]
    if not tables:
        return np.concatenate([_apart(pairs(each, whole, distance), view) for each in asked])
    planes = np.ascontiguousarray(turned.T)
    found = [np.empty((0, 3), np.int64)]
    for table in tables[: _enough(distance, len(tables[0].bits))]:
        keys = _keys(planes, table.bits)
        for flip, ours in zip(FLIPS, asked, strict=True):
            mask = _keys(flip[:, None].astype(np.uint8), table.bits)
            for queries, rows in _blocks(table, keys ^ mask):
                bits = np.bitwise_count(ours[queries] ^ whole[rows]).sum(-1, dtype=np.int64)
                met = bits <= distance
                found.append(_apart(np.stack([queries[met], rows[met], bits[met]], axis=-1), view))
    return np.concatenate(found)


def _apart(found: np.ndarray, view: int) -> np.ndarray:
    """The pairs of different images; between whole images each is asked for twice, and one of them will do."""
    return found[found[:, 0] < found[:, 1]] if view == 0 else found[found[:, 0] != found[:, 1]]


def _blocks(table: Table, keys: np.ndarray):
    """(query, row) of all images that meet the queries in a table, in blocks of bounded size."""
    first = table.start[keys]
    counts = table.start[keys + 1] - first
    met = np.flatnonzero(counts)
    ends = np.cumsum(counts[met])
    for block in np.split(met, np.flatnonzero(np.diff(ends // BLOCK)) + 1):
        many = counts[block]
        queries = np.repeat(block, many)
        place = np.arange(len(queries)) - np.repeat(np.cumsum(many) - many, many)
        yield queries, table.rows[np.repeat(first[block], many) + place]


def _tables(planes: np.ndarray) -> tuple[Table, ...]:
    """Tables over disjoint sets of bits as long as these last, then over sets of another permutation, and so on.

    A table has as many bits as give about one image a key; the first bit of a hash is always 0 and is left out.
    """
    size = ceil(log2(planes.shape[1]))
    count = _enough(NEAR, size)
    rng = np.random.default_rng(0)
    a_permutation = (BITS - 1) // size
    chosen = [
        bits
        for _ in range(ceil(count / a_permutation))
        for bits in (1 + rng.permutation(BITS - 1))[: a_permutation * size].reshape(a_permutation, size)
    ]
    return tuple(_table(planes, bits) for bits in chosen[:count])


def _enough(distance: int, size: int) -> int:
    """How many tables of `size` bits miss at most MISSED of the pairs at this distance."""
    meets = comb(BITS - 1 - distance, size) / comb(BITS - 1, size)
    return ceil(log(MISSED) / log(1 - meets))


def _table(planes: np.ndarray, bits: np.ndarray) -> Table:
    keys = _keys(planes, bits)
    start = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << len(bits)))])
    return Table(bits, start.astype(np.int32), np.argsort(keys, kind="stable").astype(np.int32))


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


def _nearest_of_each(found: np.ndarray) -> np.ndarray:
    """Each pair once, with its least distance, in order."""
    found = found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]
    first = np.ones(len(found), bool)
    first[1:] = (np.diff(found[:, :2], axis=0) != 0).any(1)
    return found[first]
