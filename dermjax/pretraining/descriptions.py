"""What a photograph shows, measured within an expert's mask, in the words of the phantoms' captions.

Place in the flow: photographs and their masks -> `describe_all` -> captions, which teach a base model what to draw.
Number, size, colours, border, skin tone and artefacts are in them, never the class.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from dermjax.data.imaging import artefacts
from dermjax.data.imaging.colour import rgb_to_lab
from dermjax.data.imaging.segmentation import Segmentation, measure_mask
from dermjax.data.imaging.skin_tone import BEYOND_SKIN
from dermjax.data.phantoms.appearance import COLOURS, SECOND_COLOURS, SIZES, TONES
from dermjax.data.phantoms.captions import LARGER_SIZES, NUMBER_WORDS, caption
from dermjax.data.phantoms.painting import ABSORPTION

PALER = 0.7  # as much of a phantom's light as lesions of its colour take on photographs
PATCHY = 0.15  # share of the lesion from which on a second colour is named
STUCK, UNLIKE_SKIN = 0.02, -6.0  # share of the field under a sticker, and the b* or a* below which nothing is skin


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
