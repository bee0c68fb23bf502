"""Training crops: squares cut anew for every batch out of phantoms and photographs, at many scales and in other light.

Which picture, where and how follows from the seed, the number of the batch and the row, so a resumed run, and any
number of processes, cut the same.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import grain
import numpy as np
from PIL import Image

from dermjax.data.images import to_model

READS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
LIGHT, GAMMA = 0.06, 0.12  # deviations of the logarithms of each channel's gain and of the curve's exponent


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
    sources: Sequence[Source], *, batch: int, size: int, sides: tuple[int, int], seed: int, rows: np.ndarray
) -> grain.DatasetIterator:
    """Endless batches {"image": float32 [n, size, size, 3] in [-1, 1]}, of whose rows a process makes its own.

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
