"""The photographs that a base model learns from: decoded once as squares, cropped, and described by captions.

Crops are cut anew for every batch out of phantoms and photographs, at many scales and in other light. Which picture,
where and how follows from the seed, the number of the batch and the row, so a resumed run, and any number of processes,
cut the same.

Captions say what is measured within an expert's mask, in the words of the phantoms' captions: number, size, colours,
border, skin tone and artefacts, never the class.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grain
import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull

from dermjax import run_folder
from dermjax.data import images, records
from dermjax.data.images import to_model
from dermjax.data.imaging import artefacts
from dermjax.data.imaging.colour import rgb_to_lab
from dermjax.data.imaging.segmentation import Segmentation, measure_mask
from dermjax.data.imaging.skin_tone import BEYOND_SKIN
from dermjax.data.phantoms.appearance import COLOURS, SECOND_COLOURS, SIZES, TONES
from dermjax.data.phantoms.captions import LARGER_SIZES, NUMBER_WORDS, caption
from dermjax.data.phantoms.painting import ABSORPTION
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.training.disk_cache import digest_of, load_or_compute

SIDE = 512  # pixels that photographs are kept at
READS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
LIGHT, GAMMA = 0.06, 0.12  # deviations of the logarithms of each channel's gain and of the curve's exponent
PALER = 0.7  # as much of a phantom's light as lesions of its colour take on photographs
PATCHY = 0.15  # share of the lesion from which on a second colour is named
STUCK, UNLIKE_SKIN = 0.02, -6.0  # share of the field under a sticker, and the b* or a* below which nothing is skin


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
    crops, masks = [], []
    for row in rows:
        rng = np.random.default_rng((seed, number, row))
        source = sources[rng.choice(len(sources), p=shares / shares.sum())]
        chosen = rng.integers(len(source.pictures))
        window = draw_window(source.pictures.shape[1], size, sides, rng)
        crops.append(relight(window.cut(source.pictures[chosen], size), rng))
        masks += [window.cut(source.masks[chosen], size)] if source.masks is not None else []
    batch = {"image": to_model(np.stack(crops))}
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


def describe_all(pictures: np.ndarray, masks: np.ndarray) -> list[dict]:
    """The parameters (see `appearance.draw`) of photographs uint8 [N, S, S, 3] with masks bool [N, S, S].

    What cannot be told is "". Borders are ranked among these photographs, since experts draw smoother than a painter.
    """
    described = [describe(*pair) for pair in zip(pictures, masks, strict=True)]
    order = np.argsort(np.argsort([ragged(mask) for mask in masks]))
    return [each | {"irregularity": (rank + 0.5) / len(order)} for each, rank in zip(described, order, strict=True)]


def describe(picture: np.ndarray, mask: np.ndarray) -> dict:
    """The parameters of one photograph uint8 [S, S, 3] with its mask bool [S, S]; all but `irregularity`."""
    lesions = measure_mask(picture, mask)
    colour, second = colours(picture, lesions)
    scores = artefacts.measure(picture)
    present = {artefacts.PAINTED[name]: score >= artefacts.THRESHOLDS[name] for name, score in scores.items()}
    across = 2 * np.sqrt(lesions.areas.max(initial=0.0) / np.pi)
    sizes = {name: abs(across - np.mean(bounds)) for name, bounds in (SIZES | LARGER_SIZES).items()}
    present["sticker"] = sticker(picture) >= STUCK
    return {
        "photograph": True,
        "number": min(max(lesions.count, 1), max(NUMBER_WORDS)),
        "size_name": min(sizes, key=sizes.get),
        "colour": colour,
        "second_colour": second,
        "texture": "",
        "veil": False,
        "tone": tone(lesions),
        "blur": False,
    } | present


def colours(picture: np.ndarray, lesions: Segmentation) -> tuple[str, str]:
    """The words for the colour of the lesions and for the second colour that patches of it have, "" for none."""
    inside = picture[lesions.mask].astype(np.float64)
    if not len(inside) or np.isnan(lesions.skin).any():
        return "", ""
    absorbed = np.log(lesions.skin / 255 + 0.02) - np.log(inside / 255 + 0.02)  # [n, 3], as phantoms are painted
    absorbed = absorbed[absorbed.mean(1) >= np.median(absorbed.mean(1))]  # experts' masks have faint margins
    main = _nearest(np.median(absorbed, 0)[None], list(COLOURS))[0]
    names = list(dict.fromkeys((*COLOURS, *SECOND_COLOURS)))
    nearest = _nearest(absorbed, names)
    shares = {name: np.mean(nearest == name) for name in SECOND_COLOURS if name[:3] != main[:3]}
    second = max(shares, key=shares.get)
    return str(main), second if shares[second] >= PATCHY else ""


def tone(lesions: Segmentation) -> str:
    """The word for the tone of the skin, "" where no skin is seen or in colours that skin has not."""
    if not -90 < lesions.ita <= BEYOND_SKIN:
        return ""
    away = {name: max(low - lesions.ita, lesions.ita - high, 0) for name, (low, high) in TONES.items()}
    return min(away, key=away.get)


def sticker(picture: np.ndarray) -> float:
    """The share of the field that is as blue or as green as the round stickers that are laid beside lesions."""
    lightness, a, b = np.moveaxis(rgb_to_lab(picture), -1, 0)
    coloured = ((b < UNLIKE_SKIN) | (a < UNLIKE_SKIN)) & (lightness > 35)
    return float(ndimage.binary_opening(coloured, iterations=3).mean())


def ragged(mask: np.ndarray) -> float:
    """How much of the convex hull of a mask's largest piece is not in it, 0 of a disc; 0 where there is no mask."""
    pieces, _ = ndimage.label(mask)
    rows, columns = np.nonzero(pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=2)[1:]))
    if len(rows) < 3 or np.ptp(rows) == 0 or np.ptp(columns) == 0:
        return 0.0
    corners = np.concatenate([np.stack([rows + dy, columns + dx], 1) for dy in (0, 1) for dx in (0, 1)])
    return float(1 - len(rows) / ConvexHull(corners).volume)  # of two dimensions the volume is the area


def write_captions(described: Sequence[dict], seed: int) -> list[str]:
    """The captions of described photographs, each with clauses left out at random."""
    return [caption(each, np.random.default_rng((seed, row))) for row, each in enumerate(described)]


def _nearest(absorbed: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The name of the absorption nearest to each row, str [n]."""
    table = PALER * np.array([ABSORPTION[name] for name in names])
    return np.array(names)[np.argmin(np.square(absorbed[:, None] - table[None]).sum(-1), axis=1)]
