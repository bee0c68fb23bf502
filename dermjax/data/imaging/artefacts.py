"""Scores of the artefacts of dermoscopy on any image: hairs, ruler, dark corners, ink, gel bubbles.

Place in the flow: an image -> `measure` -> Record.scores of `prepare` and `curate`: was the artefact that a prompt
requests drawn? A score goes from 0 to 1; from its threshold in THRESHOLDS on, the artefact is there: measured on
phantoms and checked by eye on photographs (curation/calibration.json). No score knows the class. All lengths are
fractions of the field.

What is computed for every pixel is computed for a plane of one colour at a time: NumPy is slow over short last axes.

Shape legend: S side in pixels. Images are uint8 [S, S, 3] in sRGB, their planes [3, S, S].
"""

from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage

from dermjax.data.imaging import filters
from dermjax.data.imaging.colour import planes_to_lab
from dermjax.data.imaging.fields import away
from dermjax.data.imaging.filters import blur, percentile
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


class View:
    """An image uint8 [S, S, 3] and what several measurements need of it, each computed once."""

    def __init__(self, image: np.ndarray):
        self.image = image

    @classmethod
    def of(cls, image: "np.ndarray | View") -> "View":
        """The view of an image; a view is its own."""
        return image if isinstance(image, View) else cls(image)

    @cached_property
    def planes(self) -> np.ndarray:
        """Red, green and blue, uint8 [3, S, S]."""
        return np.ascontiguousarray(np.moveaxis(self.image, -1, 0))

    @cached_property
    def luminance(self) -> np.ndarray:
        """The mean of the colours, float32 [S, S]."""
        return self.planes.sum(0, dtype=np.float32) / np.float32(3)

    @cached_property
    def bright(self) -> np.float32:
        """The luminance that six tenths of the image stay below."""
        return percentile(self.luminance, 60)

    @cached_property
    def corners(self) -> np.ndarray:
        """The dark corners with their soft edge; nothing where there are none. bool [S, S]"""
        size = len(self.image)
        if dark_corners(self) < THRESHOLDS["dark_corners"]:
            return np.zeros((size, size), bool)
        luminance = blur(self.luminance, 0.006 * size)
        dark, _ = ndimage.label(luminance < 0.5 * percentile(luminance, 60))
        corners = {dark[0, 0], dark[0, -1], dark[-1, 0], dark[-1, -1]} - {0}
        return filters.grow(np.isin(dark, list(corners)), 0.025 * size)

    @cached_property
    def ticks(self) -> tuple[float, ...]:
        """The score of a ruler along the lower edge of the image, turned by quarters."""
        return tuple(_ticks(np.rot90(self.luminance, quarter), np.rot90(self.corners, quarter)) for quarter in range(4))

    @cached_property
    def outside(self) -> np.ndarray:
        """What is neither skin nor lesion: dark corners, where there are any, and a ruler's strip. bool [S, S]"""
        hidden, strip = self.corners.copy(), round((1 - STRIP) * len(self.image))
        for quarter in range(4):
            if self.ticks[quarter] >= THRESHOLDS["ruler"]:
                np.rot90(hidden, quarter)[strip:] = True  # a view of it
        return hidden

    @cached_property
    def strands(self) -> np.ndarray:
        """Long thin dark structures on skin, which hairs are, thick and bent ones too. bool [S, S]

        They show in a black top-hat, are long for their area, take as much blue light as green (pen ink does not) and
        have skin on both sides (the mesh of a lesion has not).
        """
        dark = self.dark_lines(radius=0.03, darker=0.18) & ~self.outside
        return long_pieces(dark, LONG * len(self.image), 0.2)

    def dark_lines(self, radius: float, darker: float) -> np.ndarray:
        """Where a closing by a disc of `radius` brightens skin by `darker` in the logarithm of blue. bool [S, S]"""
        radius = max(round(radius * len(self.image)), 2)
        beside = [filters.close_by_disc(plane, radius) for plane in self._light]
        green, blue = (closed - plane for closed, plane in zip(beside, self._light, strict=True))
        skin = np.logical_and(*(plane > percentile(plane, 50) - 0.25 for plane in beside))
        return (blue > darker) & (blue > 0.6 * green) & skin

    @cached_property
    def _light(self) -> list[np.ndarray]:
        return [_logarithm(plane, 0.004) for plane in self.planes[1:]]


def measure(image: np.ndarray | View) -> dict[str, float]:
    """All scores of an image, by name."""
    view = View.of(image)
    return {name: score(view) for name, score in SCORES.items()}


def hairs(image: np.ndarray | View) -> float:
    """Area of the field under strands of hair, 1 from HAIRY on."""
    view = View.of(image)
    return min(float((view.strands | straight_hairs(view)).mean()) / HAIRY, 1.0)


def ruler(image: np.ndarray | View) -> float:
    """How much darker (in logarithms, 1 from EVERY_TICK on) nearly every tick along an edge is than the gaps beside it.

    The best edge, period and phase count, so that a few hairs across an edge are no ruler.
    """
    return max(View.of(image).ticks)


def dark_corners(image: np.ndarray | View) -> float:
    """How dark the second brightest corner is against the middle of the image: 0 as bright, 1 black."""
    view = View.of(image)
    c = round(0.07 * len(view.image))
    sides = (slice(c), slice(-c, None))
    corners = [view.luminance[y, x].mean() for y in sides for x in sides]
    return float(np.clip(1 - sorted(corners)[-2] / max(view.bright, 1), 0, 1))


def ink(image: np.ndarray | View) -> float:
    """Area of violet or blue strokes of a pen on the skin around the lesion, 1 from INKED on.

    Strokes are narrow, bluer than grey, and have skin beside them: patches of a lesion have the lesion.
    """
    view = View.of(image)
    size = len(view.image)
    lightness, _, b = planes_to_lab(ndimage.gaussian_filter(view.planes, 0.005 * size, axes=(1, 2)))
    fall = percentile(lightness, 65) - lightness
    bluer = percentile(b, 60) - b
    inked = (bluer > np.maximum(BLUER, 0.7 * fall)) & (b < COLD) & (fall > DARKER)
    inked &= (away(size) >= CORE) & ~view.outside
    pieces, _ = ndimage.label(inked, np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())
    if sizes[1:].max(initial=0) < BLOT * size**2:
        return 0.0
    wide = ~filters.grow(~inked, THICK * size)
    reach = max(round(0.02 * size), 2)
    area = 0
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        if sizes[number] < BLOT * size**2:
            continue
        box = tuple(slice(max(side.start - reach - 1, 0), side.stop + reach + 1) for side in box)
        piece = pieces[box] == number
        beside = filters.grow(piece, reach) & ~filters.grow(piece, 1.5) & ~inked[box]
        is_stroke = not (wide[box] & piece).any()
        if is_stroke and not (beside.any() and (fall[box] > 12)[beside].mean() > 0.3):
            area += sizes[number]
    return min(float(area) / (INKED * size**2), 1.0)


def gel(image: np.ndarray | View) -> float:
    """How bright the clearest round rim of a bubble is, in logarithms: nearly all the way round, 1 from RIMMED on."""
    view = View.of(image)
    size = len(view.image)
    light = [_logarithm(plane, 0.003) for plane in view.planes[1:]]
    above = np.minimum(*(plane - percentile(plane, 50) - BRIM for plane in light))
    if not (above > 0).any():
        return 0.0
    radius = max(round(0.016 * size), 2)
    rim = np.minimum(*(plane - filters.open_by_disc(plane, radius) for plane in light))
    rim = np.minimum(rim, above).clip(0)
    reach = int(np.ceil(RADII.max() * size)) + 1
    padded = np.pad(rim, reach)
    flat, bright, width = padded.ravel(), padded.ravel() > 0, padded.shape[1]
    margin = reach * (width + 1)
    angles = 2 * np.pi * np.arange(AROUND) / AROUND
    best = 0.0
    for radius in RADII * size:
        steps = np.rint(radius * np.stack([np.sin(angles), np.cos(angles)], -1)).astype(int) @ (width, 1)
        # few middles have bright pixels nearly all the way round
        around = sum(bright[margin + step : flat.size - margin + step].view(np.uint8) for step in steps)
        chosen = margin + np.flatnonzero(around >= AROUND - 1)
        if chosen.size:
            best = max(best, float(np.partition(flat[chosen[:, None] + steps], 1)[:, 1].max()))
    return min(best / RIMMED, 1.0)


SCORES = {"hairs": hairs, "ruler": ruler, "dark_corners": dark_corners, "ink": ink, "gel": gel}


def straight_hairs(view: View) -> np.ndarray:
    """Thin hairs, fainter than strands, which are straight for a while. bool [S, S]"""
    size = len(view.image)
    dark = view.dark_lines(radius=0.018, darker=0.05) & ~view.outside
    return long_pieces(straight_pieces(dark, STRAIGHT * size, DIRECTIONS), LONG * size, 0.15)


def _ticks(luminance: np.ndarray, corners: np.ndarray) -> float:
    """The score of a ruler along the lower edge of an image with these dark corners, bool [S, S]."""
    size = len(luminance)
    rows = slice(round(0.948 * size), round(0.985 * size))
    light = np.log(luminance[rows].mean(0) / 255 + 0.04)
    visible = np.flatnonzero(~corners[rows].any(0))
    if np.ptp(light) < THRESHOLDS["ruler"] * EVERY_TICK or len(visible) < 0.3 * size:
        return 0.0
    best = 0.0
    for places in _rulers(size, int(visible[0]), int(visible[-1])):
        at, left, right = np.interp(places, np.arange(size), light)
        darker = np.sort(np.minimum(left, right) - at, axis=1)
        place = (darker.shape[1] - 1) / 5  # the percentile 20, between two ticks
        low, high = darker[:, int(place)], darker[:, int(place) + 1]
        best = max(best, float((low + (place - int(place)) * (high - low)).max()))
    return min(best / EVERY_TICK, 1.0)


@lru_cache(64)  # dark corners end anywhere
def _rulers(size: int, first: int, last: int) -> list[np.ndarray]:
    """Where the ticks of every ruler between two columns would be, and halfway to the left and right of each.

    Columns, float [3, rulers, ticks], those with the same number of ticks in one array.
    """
    start, stop = first / size, last / size
    rulers = {}
    for period in np.linspace(*TICKS, 7):
        phases = start + period * np.linspace(0.5, 1.5, 13)[:-1, None]
        ticks = phases + period * np.arange(int((stop - start) / period) - 1)
        shifted = np.stack([(ticks + shift * period) * size - 0.5 for shift in (0, -0.5, 0.5)])
        rulers.setdefault(ticks.shape[1], []).append(shifted)
    return [np.concatenate(each, axis=1) for each in rulers.values()]


def _logarithm(plane: np.ndarray, smoothing: float) -> np.ndarray:
    """The logarithm of a plane [S, S], smoothed a little, far from black: float32."""
    return np.log(blur(plane.astype(np.float32), smoothing * len(plane)) / 255 + 0.04)
