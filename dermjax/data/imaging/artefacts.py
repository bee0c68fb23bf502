"""Scores of the artefacts of dermoscopy on any image: hairs, ruler, dark corners, ink, gel bubbles.

Place in the flow: an image -> `measure` -> Record.scores of `prepare` and `curate`: was the artefact that a prompt
requests drawn? A score goes from 0 to 1; from its threshold in THRESHOLDS on, the artefact is there: measured on
phantoms and checked by eye on photographs (curation/calibration.json). No score knows the class. All lengths are
fractions of the field.

Shape legend: S side in pixels. Images are uint8 [S, S, 3] in sRGB.
"""

import numpy as np
from scipy import ndimage

from dermjax.data.imaging.colour import rgb_to_lab
from dermjax.data.imaging.fields import coordinates
from dermjax.data.imaging.hair import long_pieces, straight_pieces

TICKS = (0.085, 0.1)  # distance between two ticks of the ruler
STRIP = 0.10  # height of the ruler
HAIRY = 0.04  # area under strands from which on the score of hairs is 1
EVERY_TICK = 0.8  # as dark, in logarithms, as ink on skin
INKED = 0.03  # area of a full ring
RIMMED = 0.2  # as bright, in logarithms, as the rim of a bubble on light skin

STRAIGHT, DIRECTIONS = 0.07, 12  # length of the least straight piece of a thin hair, and the ways in which it may lie
LONG = 0.2  # extent of the least hair
BLUER, DARKER = 14, 8  # b* and L* that ink lies below the skin
COLD = -1  # b* above which nothing is ink, whatever the skin
CORE = 0.3  # radius in which there is the lesion, blue ones among them, and no pen
THICK = 0.045  # half the width of the widest stroke
BLOT = 0.001  # area of the least
BRIM = 0.06  # logarithm that a bubble's rim is brighter than the skin
RADII = np.arange(0.018, 0.046, 0.0045)  # of bubbles
AROUND = 10  # points on a rim; one may be hidden

THRESHOLDS = {"hairs": 0.15, "ruler": 0.15, "dark_corners": 0.4, "ink": 0.07, "gel": 0.35}
# the parameter of phantoms that paints each
PAINTED = {name: name for name in THRESHOLDS} | {"ink": "pen_ring", "gel": "gel_bubbles"}


def measure(image: np.ndarray) -> dict[str, float]:
    """All scores of an image, by name."""
    return {name: score(image) for name, score in SCORES.items()}


def hairs(image: np.ndarray) -> float:
    """Area of the field under strands of hair, 1 from HAIRY on."""
    hidden = outside(image)
    return min(float((strands(image, hidden) | straight_hairs(image, hidden)).mean()) / HAIRY, 1.0)


def ruler(image: np.ndarray) -> float:
    """How much darker (in logarithms, 1 from EVERY_TICK on) nearly every tick along an edge is than the gaps beside it.

    The best edge, period and phase count, so that a few hairs across an edge are no ruler.
    """
    corners = _corners(image)
    return max(_ticks(np.rot90(image, quarter), np.rot90(corners, quarter)) for quarter in range(4))


def dark_corners(image: np.ndarray) -> float:
    """How dark the second brightest corner is against the middle of the image: 0 as bright, 1 black."""
    size = len(image)
    c = round(0.07 * size)
    luminance = image.astype(np.float32).mean(-1)
    corners = [luminance[y, x].mean() for y in (slice(c), slice(-c, None)) for x in (slice(c), slice(-c, None))]
    return float(np.clip(1 - sorted(corners)[-2] / max(np.percentile(luminance, 60), 1), 0, 1))


def ink(image: np.ndarray) -> float:
    """Area of violet or blue strokes of a pen on the skin around the lesion, 1 from INKED on.

    Strokes are narrow, bluer than grey, and have skin beside them: patches of a lesion have the lesion.
    """
    size = len(image)
    lightness, _, b = np.moveaxis(rgb_to_lab(ndimage.gaussian_filter(image, (0.005 * size,) * 2 + (0,))), -1, 0)
    fall = np.percentile(lightness, 65) - lightness
    bluer = np.percentile(b, 60) - b
    x, y = coordinates(size)
    inked = (bluer > np.maximum(BLUER, 0.7 * fall)) & (b < COLD) & (fall > DARKER)
    inked &= (np.hypot(x - 0.5, y - 0.5) >= CORE) & ~outside(image)
    depth = ndimage.distance_transform_edt(inked)
    pieces, _ = ndimage.label(inked, np.ones((3, 3)))
    reach = max(round(0.02 * size), 2)
    area = 0
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        box = tuple(slice(max(side.start - reach - 1, 0), side.stop + reach + 1) for side in box)
        piece = pieces[box] == number
        away = ndimage.distance_transform_edt(~piece)
        beside = (away <= reach) & (away > 1.5) & ~inked[box]
        is_stroke = piece.sum() >= BLOT * size**2 and depth[box][piece].max() <= THICK * size
        if is_stroke and not (beside.any() and (fall[box] > 12)[beside].mean() > 0.3):
            area += piece.sum()
    return min(float(area) / (INKED * size**2), 1.0)


def gel(image: np.ndarray) -> float:
    """How bright the clearest round rim of a bubble is, in logarithms: nearly all the way round, 1 from RIMMED on."""
    size = len(image)
    light = _logarithm(image, 0.003)[..., 1:]
    above = (light - np.median(light, (0, 1)) - BRIM).min(-1)
    disc = _disc(max(round(0.016 * size), 2))
    opened = np.stack([ndimage.grey_opening(light[..., c], footprint=disc) for c in range(2)], -1)
    rim = np.minimum((light - opened).min(-1), above).clip(0)
    angles = 2 * np.pi * np.arange(AROUND) / AROUND
    best = 0.0
    for radius in RADII * size:
        steps = np.rint(radius * np.stack([np.sin(angles), np.cos(angles)], -1)).astype(int)
        reach = int(np.ceil(radius)) + 1
        padded = np.pad(rim, reach)
        points = np.stack([padded[reach + dy :, reach + dx :][:size, :size] for dy, dx in steps])
        best = max(best, float(np.partition(points, 1, axis=0)[1].max()))
    return min(best / RIMMED, 1.0)


SCORES = {"hairs": hairs, "ruler": ruler, "dark_corners": dark_corners, "ink": ink, "gel": gel}


def strands(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Long thin dark structures on skin, which hairs are, thick and bent ones too. bool [S, S]; hidden: see `outside`.

    They show in a black top-hat, are long for their area, take as much blue light as green (pen ink does not) and have
    skin on both sides (the mesh of a lesion has not).
    """
    dark = _dark_lines(image, radius=0.03, darker=0.18) & ~hidden
    return long_pieces(dark, LONG * len(image), 0.2)


def straight_hairs(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Thin hairs, fainter than `strands`, which are straight for a while. bool [S, S]; hidden: see `outside`."""
    dark = _dark_lines(image, radius=0.018, darker=0.05) & ~hidden
    return long_pieces(straight_pieces(dark, STRAIGHT * len(image), DIRECTIONS), LONG * len(image), 0.15)


def outside(image: np.ndarray) -> np.ndarray:
    """What is neither skin nor lesion: dark corners, where there are any, and a ruler's strip. bool [S, S]"""
    corners = _corners(image)
    hidden, strip = corners.copy(), round((1 - STRIP) * len(image))
    for quarter in range(4):
        if _ticks(np.rot90(image, quarter), np.rot90(corners, quarter)) >= THRESHOLDS["ruler"]:
            np.rot90(hidden, quarter)[strip:] = True  # a view of it
    return hidden


def _ticks(image: np.ndarray, corners: np.ndarray) -> float:
    """The score of a ruler along the lower edge of an image with these dark corners, bool [S, S]."""
    size = len(image)
    rows = slice(round(0.948 * size), round(0.985 * size))
    light = np.log(image[rows].astype(np.float32).mean(-1).mean(0) / 255 + 0.04)
    visible = np.flatnonzero(~corners[rows].any(0))
    if np.ptp(light) < THRESHOLDS["ruler"] * EVERY_TICK or len(visible) < 0.3 * size:
        return 0.0
    start, stop = visible[[0, -1]] / size
    best = 0.0
    for period in np.linspace(*TICKS, 7):
        first = start + period * np.linspace(0.5, 1.5, 13)[:-1, None]
        ticks = first + period * np.arange(int((stop - start) / period) - 1)
        at, left, right = (
            np.interp((ticks + shift * period) * size - 0.5, np.arange(size), light) for shift in (0, -0.5, 0.5)
        )
        best = max(best, float(np.percentile(np.minimum(left, right) - at, 20, axis=1).max()))
    return min(best / EVERY_TICK, 1.0)


def _dark_lines(image: np.ndarray, radius: float, darker: float) -> np.ndarray:
    """Where a closing by a disc of `radius` brightens skin by `darker` in the logarithm of blue. bool [S, S]"""
    light = _logarithm(image, 0.004)[..., 1:]
    disc = _disc(max(round(radius * len(image)), 2))
    beside = np.stack([ndimage.grey_closing(light[..., c], footprint=disc) for c in range(2)], -1)
    green, blue = np.moveaxis(beside - light, -1, 0)
    skin = (beside > np.median(beside, (0, 1)) - 0.25).all(-1)
    return (blue > darker) & (blue > 0.6 * green) & skin


def _corners(image: np.ndarray) -> np.ndarray:
    """The dark corners with their soft edge; nothing where there are none. bool [S, S]"""
    size = len(image)
    if dark_corners(image) < THRESHOLDS["dark_corners"]:
        return np.zeros((size, size), bool)
    luminance = ndimage.gaussian_filter(image.astype(np.float32).mean(-1), 0.006 * size)
    dark, _ = ndimage.label(luminance < 0.5 * np.percentile(luminance, 60))
    corners = {dark[0, 0], dark[0, -1], dark[-1, 0], dark[-1, -1]} - {0}
    return ndimage.distance_transform_edt(~np.isin(dark, list(corners))) <= 0.025 * size


def _logarithm(image: np.ndarray, smoothing: float) -> np.ndarray:
    """The logarithm of the image, smoothed a little, far from black. float32 [S, S, 3]"""
    soft = ndimage.gaussian_filter(image.astype(np.float32), (smoothing * len(image),) * 2 + (0,))
    return np.log(soft / 255 + 0.04)


def _disc(radius: int) -> np.ndarray:
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return rows**2 + columns**2 <= radius**2 + 0.5
