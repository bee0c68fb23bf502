"""Phantoms: procedural dermoscopy with known truth, the data set that is embedded in the program.

Place in the flow: seed -> `appearance.draw` -> skin, lesions and artefacts painted -> `captions.caption` -> Phantom.

Pigment is painted as an absorbing layer (Beer and Lambert): log image = log skin - density * absorption, so that
borders fall off softly and the same mole is plausible on every tone. All lengths are fractions of the field; every
random field lives on a coarse grid that no size changes, so a phantom looks the same at every size.

Shape legend: S side in pixels, C = 3 channels.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from dermjax.data.imaging import colour
from dermjax.data.imaging.artefacts import TICKS
from dermjax.data.imaging.fields import blend, coordinates, dots, noise, smoothstep
from dermjax.data.phantoms import appearance, captions
from dermjax.errors import UserError

SIDES = (64, 512)  # the least and the greatest side in pixels
GAP = 0.105  # least distance between two lesions: more than one and a half latent cells of 1/16
DIRECTIONS = 256  # samples of an outline
LOBES = 0.12  # how far, in radii, the most irregular border wanders

# Absorption of the three channels: on light skin, exp(-absorption) is the colour of the lesion over that of the skin.
ABSORPTION = {
    "golden": (0.22, 0.52, 1.00),
    "brown": (0.58, 1.02, 1.50),
    "chocolate": (1.02, 1.50, 1.80),
    "black": (1.85, 1.88, 1.72),
    "reddish": (0.24, 0.95, 0.80),
    "red": (0.42, 1.30, 1.12),
    "blue": (1.25, 1.05, 0.78),
}


@dataclass(frozen=True)
class Phantom:
    """One image and everything that is true of it."""

    image: np.ndarray  # uint8 [S, S, C]
    mask: np.ndarray  # bool [S, S], all lesions
    label: str
    caption: str
    parameters: dict  # see appearance.draw; JSON-able
    artefacts: dict[str, np.ndarray]  # name -> bool [S, S], those that cover some of the image


def phantom(seed: int, size: int, **requested) -> Phantom:
    """The phantom of `seed`, `size` pixels wide, a multiple of 8 within SIDES; `requested` overrides parameters.

    The same seed gives the same pixels on one machine; another processor may round a few of them one step differently.
    """
    if size % 8 or not SIDES[0] <= size <= SIDES[1]:
        raise UserError(f"phantom: size {size} is not a multiple of 8 from {SIDES[0]} to {SIDES[1]}")
    parameters = appearance.draw(seed, requested)
    rng = np.random.default_rng([seed, 1])
    light = _skin(parameters, rng, size)
    mask = np.zeros((size, size), bool)
    outlines = [_outline(parameters, rng) for _ in range(parameters["number"])]
    for outline, disc in zip(outlines, _layout(parameters, outlines, rng), strict=True):
        _lesion(light, mask, parameters, outline, disc, rng)
    pixels, artefacts = _photographed(light, parameters, rng)
    caption = captions.caption(parameters, np.random.default_rng([seed, 2]))
    return Phantom(pixels, mask, parameters["label"], caption, parameters, artefacts)


def bare_skin(seed: int, size: int) -> np.ndarray:
    """Skin without a lesion, with the tone and the artefacts of the phantom of `seed`: uint8 [S, S, C]."""
    parameters, rng = appearance.draw(seed, {}), np.random.default_rng([seed, 1])
    return _photographed(_skin(parameters, rng, size), parameters, rng)[0]


def _photographed(
    light: np.ndarray, parameters: dict, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The pixels of the logarithm of an image, with artefacts and blur, and where each artefact is."""
    image, artefacts = np.exp(light), {}
    for name, paint in PAINTERS.items():
        if parameters[name]:
            image, artefacts[name] = paint(image, rng)
    if parameters["blur"]:
        image = gaussian_filter(image, (rng.uniform(0.011, 0.017) * len(image),) * 2 + (0,))
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), artefacts


def _skin(parameters: dict, rng: np.random.Generator, size: int) -> np.ndarray:
    """Logarithm of the bare skin: uneven light, pink mottling, fine texture and follicles. float32 [S, S, C]."""
    x, y = coordinates(size)
    lightness = 50 + parameters["yellowness"] * np.tan(np.radians(parameters["ita"]))
    bare = colour.lab_to_rgb(np.array([lightness, parameters["redness"], parameters["yellowness"]]))
    tilt = rng.uniform(-0.09, 0.09, 2)
    vignette = rng.uniform(0.08, 0.40) * ((x - 0.5) ** 2 + (y - 0.5) ** 2 - 1 / 6)
    coarse, middle, fine = (noise(rng, cells, size) for cells in (5, 14, 44))
    brightness = tilt[0] * (x - 0.5) + tilt[1] * (y - 0.5) - vignette
    brightness = brightness + 0.016 * coarse + 0.014 * middle + rng.uniform(0.008, 0.026) * fine
    blood = rng.uniform(0.012, 0.045) * noise(rng, 7, size) + rng.uniform(0.008, 0.03) * noise(rng, 24, size)
    melanin = rng.uniform(0.004, 0.016) * noise(rng, 16, size)
    follicles = rng.uniform(0.0, 0.16) * dots(rng, size, 0.085, 0.013, 0.4)
    light = np.log(np.maximum(bare, 0.01))[None, None] + brightness[..., None]
    light = light + _absorb(blood, (0.15, 1.0, 0.8)) - _absorb(melanin + follicles, (0.55, 0.85, 1.1))
    return light.astype(np.float32)


def _outline(parameters: dict, rng: np.random.Generator) -> np.ndarray:
    """Radius of one lesion over that of the disc of the same area, in DIRECTIONS directions."""
    angle = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False)
    irregularity, asymmetry = parameters["irregularity"], parameters["asymmetry"]
    radius = 1 + rng.uniform(0.03, 0.13) * np.cos(2 * angle + rng.uniform(0, 6.3))
    radius += 0.11 * asymmetry * np.cos(3 * angle + rng.uniform(0, 6.3))
    for k in range(4, 8):
        radius += 0.05 * irregularity * rng.uniform(0.2, 1.2) * np.cos(k * angle + rng.uniform(0, 6.3))
    for _ in range(round(3.2 * max(irregularity - 0.35, 0))):  # notches
        away = np.angle(np.exp(1j * (angle - rng.uniform(0, 6.3))))
        radius -= rng.uniform(0.2, 0.36) * np.exp(-((away / 0.27) ** 2))
    if parameters["number"] > 2 and parameters["size_name"] == "large":
        radius = 1 + 0.6 * (radius - radius.mean())  # calmer, to fit
    radius = np.clip(radius / np.sqrt(np.mean(radius**2)), 0.55, 1.38)
    return radius / np.sqrt(np.mean(radius**2))


def _layout(parameters: dict, outlines: list[np.ndarray], rng: np.random.Generator) -> list[tuple]:
    """(x, y, radius) of each lesion, at least GAP apart, clear of the edge, the ruler's strip and dark corners.

    Centres start at random and push each other apart; what still does not fit is tried again, a little smaller.
    """
    edges = np.array([[0.03, 0.97], [0.03, 0.97]])  # x, y
    edges[1, 1] -= 0.10 * parameters["ruler"]
    reach = 0.53 if parameters["dark_corners"] or parameters["pen_ring"] else 0.8
    radii = np.array(parameters["diameters"]) / 2
    spread = np.array([outline.max() for outline in outlines])
    pairs = [(i, j) for i in range(len(radii)) for j in range(i)]
    while True:
        extent = radii * (spread + LOBES * parameters["irregularity"])
        low, high = edges[:, :1] + extent, np.maximum(edges[:, 1:] - extent, edges[:, :1] + extent)
        middle = (low + high) / 2 if len(radii) > 1 else 0.5
        shrink = 0.75 if len(radii) > 1 else 0.4
        centres = middle + shrink * (rng.uniform(0, 1, low.shape) - 0.5) * (high - low)
        for _ in range(40):
            moved = False
            for i, j in pairs:
                apart = centres[:, i] - centres[:, j]
                distance = max(float(np.hypot(*apart)), 1e-6)
                missing = extent[i] + extent[j] + GAP - distance
                if missing > 1e-4:
                    step = (0.5 * missing + 1e-3) * apart / distance
                    centres[:, i] += step
                    centres[:, j] -= step
                    moved = True
            centres = np.clip(centres, low, high)
            out = np.maximum(np.hypot(*(centres - 0.5)) / np.maximum(reach - extent, 0.02), 1)
            centres = 0.5 + (centres - 0.5) / out
            if not moved:
                return [(x, y, r) for x, y, r in zip(*centres, radii, strict=True)]
        radii = radii * 0.985


def _lesion(
    light: np.ndarray, mask: np.ndarray, parameters: dict, outline: np.ndarray, disc: tuple, rng: np.random.Generator
) -> None:
    """Paints one lesion into `light` (logarithm of the image) and `mask`, both in place; disc: x, y and radius."""
    size = len(mask)
    cx, cy, radius = disc
    reach = radius * outline.max() * 1.15 + 0.03
    rows, columns = (slice(max(int((c - reach) * size), 0), int((c + reach) * size) + 2) for c in (cy, cx))
    x, y = (axis[rows, columns] for axis in np.broadcast_arrays(*coordinates(size)))
    dx, dy = (x - cx) / radius, (y - cy) / radius  # in radii of the lesion
    away, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    turn = (angle * (DIRECTIONS / (2 * np.pi))) % DIRECTIONS
    border = np.interp(turn, np.arange(DIRECTIONS + 1), np.append(outline, outline[0])).astype(np.float32)

    def cloud(features):
        """Noise with that many features across the lesion's diameter."""
        return noise(rng, min(round(0.5 * features / radius), 64), size)[rows, columns]

    irregularity, asymmetry = parameters["irregularity"], parameters["asymmetry"]
    lobes, mottle, grain, dust = cloud(3), cloud(4), cloud(9), cloud(20)
    wobble = (0.01 + LOBES * irregularity) * np.clip(lobes, -1.6, 1.6)
    wobble = wobble + (0.004 + 0.035 * irregularity) * np.clip(grain, -2, 2)
    inside = (border - away + wobble) * radius  # depth under the border, in fields
    mask[rows, columns] |= inside > 0
    softness = rng.uniform(0.018, 0.030) + 0.22 * radius * rng.uniform(0.2, 1) * (1 - 0.6 * irregularity)
    feathered = inside + (0.06 + 0.16 * irregularity) * softness * (grain + 0.5 * dust)
    cover = smoothstep(feathered / softness + 0.5)

    slope, rim = rng.uniform(0, 6.3), rng.uniform(0.1, 0.5)
    ring = smoothstep(1.25 * away / border - 0.25)
    density = 1.0 - rim * ring + 0.5 * rim
    density = density + 0.12 * mottle + 0.11 * grain + 0.08 * dust
    density = density + 0.30 * asymmetry * (np.cos(slope) * dx + np.sin(slope) * dy)
    density = density * TEXTURES[parameters["texture"]](rng, size, rows, columns, away / border, angle, mottle)
    pigment = cover * np.clip(density, 0.3, 1.7) * rng.uniform(0.85, 1.08)
    warmth = cover * (0.10 * lobes + 0.35 * rim * (ring - 0.5))  # the thin rim is lighter and more orange
    painted = _absorb(pigment, ABSORPTION[parameters["colour"]]) + _absorb(warmth, (-0.6, 0.1, 0.6))
    if parameters["second_colour"]:
        share = 0.92 * cover * _patches(rng, dx, dy, mottle + 0.7 * grain, 0.26 + 0.36 * parameters["variegation"])
        other = _absorb(cover * np.clip(density, 0.6, 1.3), ABSORPTION[parameters["second_colour"]])
        painted = painted + share[..., None] * (other - painted)
    patch = light[rows, columns] - painted
    if parameters["veil"]:
        haze = 0.75 * cover * _patches(rng, dx, dy, mottle + 0.7 * grain, 0.5)
        level = np.log(np.exp(light[rows, columns]).mean()) - 0.45 + 0.06 * dust[..., None]
        patch = patch + haze[..., None] * (level + np.array([-0.09, 0.01, 0.14]) - patch)
    light[rows, columns] = patch


def _patches(rng, dx, dy, ragged, extent: float) -> np.ndarray:
    """Share (0 to 1) of one or two soft, eccentric blots, `extent` of the lesion's radius wide."""
    share = np.zeros_like(dx)
    for _ in range(rng.integers(1, 3)):
        angle, away = rng.uniform(0, 6.3), rng.uniform(0.2, 0.6)
        distance = np.hypot(dx - away * np.cos(angle), dy - away * np.sin(angle))
        share = np.maximum(share, smoothstep((extent - distance + 0.17 * ragged) / 0.65 + 0.5))
    return share


def _absorb(density: np.ndarray, absorption) -> np.ndarray:
    """How much a layer of pigment takes from the logarithm of the image. [...] -> float32 [..., C]"""
    return density[..., None] * np.asarray(absorption, np.float32)


# A texture is a factor of the density of pigment in the window [rows, columns] of one lesion. It gets the depth (0 in
# the middle, 1 at the border) and angle of each pixel, and the lesion's own mottling.


def _mottled(rng, size, rows, columns, depth, angle, mottle):
    """Blotches, as large on a small lesion as on a large one."""
    return 1 + 0.40 * np.clip(noise(rng, 17, size)[rows, columns], -1.6, 1.6)


def _network(rng, size, rows, columns, depth, angle, mottle):
    """Dark mesh with light holes: a warped honeycomb, the sum of three cosines 60 degrees apart."""
    x, y = (axis[rows, columns] for axis in np.broadcast_arrays(*coordinates(size)))
    x, y = (axis + 0.008 * noise(rng, 13, size)[rows, columns] for axis in (x, y))
    turn, phase, frequency = rng.uniform(0, 1.05), rng.uniform(0, 6.3, 3), 2 * np.pi / rng.uniform(0.040, 0.050)
    phase[1] = phase[0] + phase[2]  # so that the three crests meet in the holes
    wave = 0.0
    for i in range(3):
        c, s = np.cos(turn + i * np.pi / 3), np.sin(turn + i * np.pi / 3)
        wave = wave + np.cos(np.float32(frequency * c) * x + np.float32(frequency * s) * y + np.float32(phase[i]))
    return 1.08 - (0.19 + 0.08 * np.clip(mottle, -2, 2)) * np.clip(wave, -1.4, 1.9)


def _globules(rng, size, rows, columns, depth, angle, mottle):
    """Round dark dots on a paler ground."""
    return 0.74 + 0.85 * dots(rng, size, 0.054, 0.0155, 0.8)[rows, columns]


def _streaks(rng, size, rows, columns, depth, angle, mottle):
    """Radial fingers of uneven strength that darken the rim and let light in between."""
    count = 2 * rng.integers(9, 14)
    strength = rng.uniform(0.3, 1.0, count + 1) * np.where(np.arange(count + 1) % 2, 1.0, -1.0)
    strength[-1] = strength[0]
    fingers = np.interp((angle / (2 * np.pi) + 0.02 * mottle) % 1, np.linspace(0, 1, count + 1), strength)
    rim = np.exp(-(((depth - 0.9) / 0.28) ** 2))
    return (1 + rim * (0.75 * fingers + 0.05)).astype(np.float32)


TEXTURES = {
    "uniform": lambda *_: np.float32(1.0),
    "mottled": _mottled,
    "network": _network,
    "globules": _globules,
    "streaks": _streaks,
}


def _hairs(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A few dark strands, parabolas that cross most of the field, 1.8 to 2.8 px wide at 128 px."""
    size = len(image)
    x, y = coordinates(size)
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
    x, y = coordinates(size)
    period = rng.uniform(*TICKS)
    position = (x - rng.uniform(0, period)) / period
    tick = np.floor(position + 0.5)
    beside = np.abs(position - tick) * period
    length = np.where((tick + rng.integers(5)) % 5 == 0, 0.095, 0.06)
    shade = np.clip((0.012 - beside) * size + 0.5, 0, 1) * np.clip((y - 1 + length) * size + 0.5, 0, 1)
    return blend(image, 0.93 * shade, np.array([0.05, 0.05, 0.06], np.float32)), shade > 0.5


def _dark_corners(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The round aperture of the dermatoscope: black outside of a circle."""
    size = len(image)
    x, y = coordinates(size)
    cx, cy = rng.uniform(0.485, 0.515, 2)
    distance = np.hypot(x - cx, y - cy)
    shade = smoothstep((distance - rng.uniform(0.555, 0.60)) / 0.03 + 0.5)
    return blend(image, shade, np.array([0.03, 0.03, 0.035], np.float32)), shade > 0.5


def _pen_ring(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A ring of violet marker around the middle, partly outside of the field."""
    size = len(image)
    x, y = coordinates(size)
    cx, cy = rng.uniform(0.47, 0.53, 2)
    uneven = noise(rng, 12, size)
    distance = np.abs(np.hypot(x - cx, y - cy) - rng.uniform(0.55, 0.58) + 0.004 * uneven)
    shade = smoothstep((0.019 - distance) / 0.014 + 0.5)
    ink = image * np.array(rng.uniform([0.36, 0.22, 0.55], [0.46, 0.32, 0.75]), np.float32) + np.float32(0.06)
    return image + (shade * np.clip(0.9 + 0.1 * uneven, 0, 1))[..., None] * (ink - image), shade > 0.5


def _gel_bubbles(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Air in the immersion gel: bright rims with a highlight."""
    size = len(image)
    x, y = coordinates(size)
    glow, mask = np.zeros((size, size), np.float32), np.zeros((size, size), bool)
    for _ in range(rng.integers(4, 10)):
        (cx, cy), radius = rng.uniform(0.03, 0.97, 2), rng.uniform(0.018, 0.045)
        distance = np.hypot(x - cx, y - cy)
        rim = np.exp(-(((distance - radius) / 0.007) ** 2))
        spot = np.exp(-((x - cx + 0.35 * radius) ** 2 + (y - cy + 0.35 * radius) ** 2) / (0.28 * radius) ** 2)
        glow = np.maximum(glow, np.maximum(0.55 * rim, 0.8 * spot) + 0.08 * (distance < radius))
        mask |= distance < radius + 0.006
    return blend(image, glow, np.array([1.0, 0.98, 0.96], np.float32)), mask


# In the order in which they lie on the image. A painter takes a float image [S, S, C] and returns the painted one and
# the mask of what it covers, bool [S, S].
PAINTERS = {
    "pen_ring": _pen_ring,
    "hairs": _hairs,
    "gel_bubbles": _gel_bubbles,
    "ruler": _ruler,
    "dark_corners": _dark_corners,
}
