"""Artefacts of dermoscopy, as phantoms come by them; `artefact_scores` finds them in any image.

Place in the flow: `PAINTERS` -> phantom. A painter takes a float image [S, S, C] and gives the painted one and its mask
bool [S, S]. All lengths are fractions of the field.

Shape legend: S side in pixels, C = 3 channels.
"""

import numpy as np

from dermjax.data.fields import blend, grid, noise, smoothstep

TICKS = (0.085, 0.1)  # distance between two ticks of the ruler
STRIP = 0.10  # height of the ruler


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
