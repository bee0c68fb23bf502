"""The photographs of a manifest, and experts' masks of them, decoded once as squares, and training crops of them.

Crops are cut anew for every batch out of phantoms and photographs, at many scales and in other light. Which picture,
where and how follows from the seed, the number of the batch and the row, so a resumed run, and any number of processes,
cut the same.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grain
import numpy as np
from PIL import Image

from dermjax import run_folder
from dermjax.data import images, records
from dermjax.data.images import to_model
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.training.disk_cache import digest_of, load_or_compute

SIDE = 512  # pixels that photographs are kept at
READS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
LIGHT, GAMMA = 0.06, 0.12  # deviations of the logarithms of each channel's gain and of the curve's exponent


def read(manifest: str, split: str, side: int, workdir: Path) -> np.ndarray:
    """Returns the kept photographs of one split of a manifest, uint8 [N, side, side, 3].

    Raises:
      UserError: the manifest is broken, or has none.
    """

    def decode(given: Manifest, chosen: list[Record]) -> np.ndarray:
        return images.load_all([given.path(record) for record in chosen], side, f"{split} photographs")

    return _kept("photographs", manifest, split, side, workdir, decode)


def read_masks(manifest: str, split: str, side: int, workdir: Path) -> np.ndarray:
    """Returns the masks of the same photographs, uint8 [N, side, side], 255 on the lesion; UserError without one."""

    def decode(given: Manifest, chosen: list[Record]) -> np.ndarray:
        without = [record.image for record in chosen if not given.mask(record)]
        if without:
            raise UserError(f"{manifest}: {without[0]} has no mask beside it, nor have {len(without) - 1} others")
        masks = images.load_all([given.mask(record) for record in chosen], side, f"{split} masks")
        return np.ascontiguousarray(masks[..., 1])

    return _kept("masks", manifest, split, side, workdir, decode)


def _kept(
    name: str, manifest: str, split: str, side: int, workdir: Path,
    decode: Callable[[Manifest, list[Record]], np.ndarray],
) -> np.ndarray:  # fmt: skip
    given = records.read(Path(manifest))
    chosen = given.split(split)
    if not chosen:
        raise UserError(f"{manifest}: no kept image in its {split} split; make the manifest with `prepare`")
    digests = "".join(record.sha256 for record in chosen).encode()
    causes = {
        run_folder.NUMERIC_VERSIONS: {"images": images.NUMERIC_VERSION},
        run_folder.SUBJECT: f"{split}, {side} px",
        "images": digest_of([np.frombuffer(digests, np.uint8)]),
    }
    return load_or_compute(workdir, name, causes, lambda: decode(given, chosen))


@dataclass(frozen=True)
class Source:
    """Square pictures of one kind, uint8 [N, S, S, 3], and the share of the crops that is cut from them.

    masks: uint8 [N, S, S], 255 on the lesion, or None.
    """

    pictures: np.ndarray
    share: float
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Window:
    """Where a crop lies in its picture, in the picture's pixels, and how it is turned and mirrored."""

    left: float
    top: float
    width: float
    quarters: int
    mirrored: bool

    def cut(self, picture: np.ndarray, size: int) -> np.ndarray:
        """The crop of a picture uint8 [S, S, 3], or of its mask [S, S], `size` pixels wide."""
        box = (self.left, self.top, self.left + self.width, self.top + self.width)
        made = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS, box))
        return np.rot90(made, self.quarters)[:: -1 if self.mirrored else 1]


def crop_batches(
    sources: Sequence[Source], *, size: int, sides: tuple[int, int], seed: int, rows: np.ndarray
) -> grain.DatasetIterator:
    """Endless batches {"image": float32 [n, size, size, 3] in [-1, 1]}; a process makes its `rows` of each.

    Where the sources have masks a batch has "mask" besides, float32 [n, size, size] from 0 to 1.

    sides: least and most pixels along the whole picture that a crop is cut from; a picture is never enlarged.
    """
    make = partial(_batch, sources=[source for source in sources if source.share], size=size, sides=sides, seed=seed,
                   rows=[int(row) for row in rows])  # fmt: skip
    return iter(grain.MapDataset.range(sys.maxsize).map(make).to_iter_dataset(READS))


def _batch(
    number: int, *, sources: Sequence[Source], size: int, sides: tuple[int, int], seed: int, rows: Sequence[int]
) -> dict[str, np.ndarray]:
    shares = np.array([source.share for source in sources])
    images, masks = [], []
    for row in rows:
        rng = np.random.default_rng((seed, number, row))
        source = sources[rng.choice(len(sources), p=shares / shares.sum())]
        chosen = rng.integers(len(source.pictures))
        window = draw_window(source.pictures.shape[1], size, sides, rng)
        images.append(relight(window.cut(source.pictures[chosen], size), rng))
        masks += [window.cut(source.masks[chosen], size)] if source.masks is not None else []
    batch = {"image": to_model(np.stack(images))}
    return batch | ({"mask": np.stack(masks).astype(np.float32) / 255} if masks else {})


def draw_window(whole: int, size: int, sides: tuple[int, int], rng: np.random.Generator) -> Window:
    """The window of a crop of `size` pixels of a picture of `whole` ones that is scaled to a side within `sides`."""
    low, high = (max(size, min(side, whole)) for side in sides)
    side = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
    width = size * whole / side
    left, top = rng.uniform(0, whole - width, 2)
    return Window(float(left), float(top), width, int(rng.integers(4)), bool(rng.random() < 0.5))


def relight(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uint8 image as another camera in other light might give it: a gain a channel and a curve for all."""
    gain, gamma = np.exp(rng.normal(0, LIGHT, 3)), np.exp(rng.normal(0, GAMMA))
    levels = np.arange(256)[:, None] / 255
    table = np.rint(255 * np.clip(gain * levels**gamma, 0, 1)).astype(np.uint8)  # [256, 3]
    return np.stack([table[image[..., channel], channel] for channel in range(3)], -1)
