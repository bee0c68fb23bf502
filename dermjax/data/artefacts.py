"""Artefacts of dermoscopy: how phantoms come by them, and how much any image looks as if it had them.

Place in the flow: `PAINTERS` -> phantom; an image -> SCORES -> was the artefact that a prompt asked for drawn?
A score goes from 0 to 1; from its threshold in THRESHOLDS on, the artefact is there. All lengths are fractions of the
field.

Shape legend: S side in pixels, C = 3 channels. Painters take and give float images, scores take uint8 ones.
"""

import numpy as np
from scipy import ndimage

from dermjax.data.fields import blend, grid, noise, smoothstep

TICKS = (0.085, 0.1)  # distance between two ticks of the ruler
STRIP = 0.10  # height of the ruler

HAIRY = 0.04
EVERY_TICK = 0.8
THRESHOLDS = {"hairs": 0.2, "ruler": 0.15, "dark_corners": 0.5}


def _hairs(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A few dark strands, parabolas that cross most of the field, 1.8 to 2.8 px wide at 128 px."""
    size = len(image)
    x, y = grid(size)
    shade = np.zeros((size, size), np.float32)
    main = rng.uniform(0, np.pi)
    for _ in range(rng.integers(3, 7)):
        angle = main + rng.normal(0, 0.5)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along, across = (x - 0.5) * c + (y - 0.5) * s, (y - 0.5) * c - (x - 0.5) * s
        bend, offset, start = rng.uniform(-0.7, 0.7), rng.uniform(-0.45, 0.45), rng.uniform(-0.7, -0.2)
        stop, width = start + rng.uniform(0.75, 1.2), rng.uniform(0.014, 0.022)
        distance = np.abs(across - offset - bend * along**2) / np.sqrt(1 + (2 * bend * along) ** 2)
        strand = np.clip((0.5 * width - distance) * size + 0.5, 0, 1)
        shade = np.maximum(shade, strand * ((along > start) & (along < stop)))
    colour = np.array(rng.uniform(0.05, 0.13) * np.array([1.25, 1.0, 0.9]), np.float32)
    return blend(image, 0.92 * shade, colour), shade > 0.5


def _ruler(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A row of black ticks along the lower edge, every fifth longer."""
    size = len(image)
    x, y = grid(size)
    period = rng.uniform(*TICKS)
    place = (x - rng.uniform(0, period)) / period
    tick = np.floor(place + 0.5)
    beside = np.abs(place - tick) * period
    length = np.where((tick + rng.integers(5)) % 5 == 0, 0.095, 0.06)
    shade = np.clip((0.012 - beside) * size + 0.5, 0, 1) * np.clip((y - 1 + length) * size + 0.5, 0, 1)
    return blend(image, 0.93 * shade, np.array([0.05, 0.05, 0.06], np.float32)), shade > 0.5


def _dark_corners(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The round aperture of the dermatoscope: black outside of a circle."""
    size = len(image)
    x, y = grid(size)
    cx, cy = rng.uniform(0.485, 0.515, 2)
    distance = np.hypot(x - cx, y - cy)
    shade = smoothstep((distance - rng.uniform(0.555, 0.60)) / 0.03 + 0.5)
    return blend(image, shade, np.array([0.03, 0.03, 0.035], np.float32)), shade > 0.5


def _pen_ring(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A ring of violet marker around the middle, partly outside of the field."""
    size = len(image)
    x, y = grid(size)
    cx, cy = rng.uniform(0.47, 0.53, 2)
    uneven = noise(rng, 12, size)
    distance = np.abs(np.hypot(x - cx, y - cy) - rng.uniform(0.55, 0.58) + 0.004 * uneven)
    shade = smoothstep((0.019 - distance) / 0.014 + 0.5)
    ink = image * np.array(rng.uniform([0.36, 0.22, 0.55], [0.46, 0.32, 0.75]), np.float32) + np.float32(0.06)
    return image + (shade * np.clip(0.9 + 0.1 * uneven, 0, 1))[..., None] * (ink - image), shade > 0.5


def _gel_bubbles(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Air in the immersion gel: bright rims with a highlight."""
    size = len(image)
    x, y = grid(size)
    glow, mask = np.zeros((size, size), np.float32), np.zeros((size, size), bool)
    for _ in range(rng.integers(4, 10)):
        (cx, cy), radius = rng.uniform(0.03, 0.97, 2), rng.uniform(0.018, 0.045)
        distance = np.hypot(x - cx, y - cy)
        rim = np.exp(-(((distance - radius) / 0.007) ** 2))
        spot = np.exp(-((x - cx + 0.35 * radius) ** 2 + (y - cy + 0.35 * radius) ** 2) / (0.28 * radius) ** 2)
        glow = np.maximum(glow, np.maximum(0.55 * rim, 0.8 * spot) + 0.08 * (distance < radius))
        mask |= distance < radius + 0.006
    return blend(image, glow, np.array([1.0, 0.98, 0.96], np.float32)), mask


# In the order in which they lie on the image.
PAINTERS = {
    "pen_ring": _pen_ring,
    "hairs": _hairs,
    "gel_bubbles": _gel_bubbles,
    "ruler": _ruler,
    "dark_corners": _dark_corners,
}


def hairs(image: np.ndarray) -> float:
    """Area of the field under strands of hair, 1 from HAIRY on."""
    return min(float(strands(image).mean()) / HAIRY, 1.0)


def ruler(image: np.ndarray) -> float:
    """How much darker (in logarithms, 1 from EVERY_TICK on) nearly every tick of a ruler is than the gaps beside it.

    The best period and phase count, so that a few hairs across the lower edge are no ruler.
    """
    size = len(image)
    rows = slice(round(0.948 * size), round(0.985 * size))
    light = np.log(image[rows].astype(np.float32).mean(-1).mean(0) / 255 + 0.04)
    seen = np.flatnonzero(~_corners(image)[rows].any(0))
    if len(seen) < 0.3 * size:
        return 0.0
    start, stop = seen[[0, -1]] / size
    best = 0.0
    for period in np.linspace(*TICKS, 7):
        first = start + period * np.linspace(0.5, 1.5, 13)[:-1, None]
        ticks = first + period * np.arange(int((stop - start) / period) - 1)
        at, left, right = (
            np.interp((ticks + shift * period) * size - 0.5, np.arange(size), light) for shift in (0, -0.5, 0.5)
        )
        best = max(best, float(np.percentile(np.minimum(left, right) - at, 20, axis=1).max()))
    return min(best / EVERY_TICK, 1.0)


def dark_corners(image: np.ndarray) -> float:
    """How dark the second brightest corner is against the middle of the image: 0 as bright, 1 black."""
    size = len(image)
    c = round(0.07 * size)
    luminance = image.astype(np.float32).mean(-1)
    corners = [luminance[y, x].mean() for y in (slice(c), slice(-c, None)) for x in (slice(c), slice(-c, None))]
    return float(np.clip(1 - sorted(corners)[-2] / max(np.percentile(luminance, 60), 1), 0, 1))


def strands(image: np.ndarray) -> np.ndarray:
    """Long thin dark structures on skin, which hairs are. bool [S, S]

    They are what a black top-hat finds, is long for its area, takes as much blue light as green (pen ink does not) and
    has skin on both sides (the mesh of a lesion has not).
    """
    size = len(image)
    light = np.log(ndimage.gaussian_filter(image[..., 1:].astype(np.float32), (0.004 * size,) * 2 + (0,)) / 255 + 0.04)
    disc = _disc(max(round(0.03 * size), 2))
    beside = np.stack([ndimage.grey_closing(light[..., c], footprint=disc) for c in range(2)], -1)
    green, blue = np.moveaxis(beside - light, -1, 0)
    skin = (beside > np.median(beside, (0, 1)) - 0.25).all(-1)
    dark = (blue > 0.18) & (blue > 0.6 * green) & skin & ~outside(image)
    pieces, _ = ndimage.label(dark, np.ones((3, 3)))
    found = np.zeros(pieces.shape, bool)
    for piece, box in enumerate(ndimage.find_objects(pieces), 1):
        place = pieces[box] == piece
        length = np.hypot(*place.shape)
        if length > 0.2 * size and place.sum() < 0.2 * length**2:
            found[box] |= place
    return found


def outside(image: np.ndarray) -> np.ndarray:
    """What is neither skin nor lesion: dark corners, where there are any, and a ruler's strip. bool [S, S]"""
    hidden = _corners(image)
    if ruler(image) >= THRESHOLDS["ruler"]:
        hidden[round((1 - STRIP) * len(image)) :] = True
    return hidden


def _corners(image: np.ndarray) -> np.ndarray:
    """The dark corners with their soft edge; nothing where there are none. bool [S, S]"""
    size = len(image)
    if dark_corners(image) < THRESHOLDS["dark_corners"]:
        return np.zeros((size, size), bool)
    luminance = ndimage.gaussian_filter(image.astype(np.float32).mean(-1), 0.006 * size)
    dark, _ = ndimage.label(luminance < 0.5 * np.percentile(luminance, 60))
    corners = {dark[0, 0], dark[0, -1], dark[-1, 0], dark[-1, -1]} - {0}
    return ndimage.distance_transform_edt(~np.isin(dark, list(corners))) <= 0.025 * size


def _disc(radius: int) -> np.ndarray:
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return rows**2 + columns**2 <= radius**2 + 0.5


SCORES = {"hairs": hairs, "ruler": ruler, "dark_corners": dark_corners}
