"""Colours as people see them: sRGB <-> CIELAB (D65), and the individual typology angle of skin.

CIELAB: L* 0 to 100, a* green to red, b* blue to yellow (CIE 15:2004; sRGB matrices of IEC 61966-2-1).
"""

import numpy as np

WHITE = np.array([0.95047, 1.0, 1.08883])
TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """sRGB in 0 to 1, clipped to what a screen can show. [..., 3] -> [..., 3]"""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * WHITE
    linear = np.clip(xyz @ TO_RGB.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def rgb_to_lab(image: np.ndarray) -> np.ndarray:
    """CIELAB of a uint8 sRGB image. [..., 3] -> float32 [..., 3]"""
    return np.moveaxis(planes_to_lab(np.moveaxis(image, -1, 0)), 0, -1)


def planes_to_lab(planes: np.ndarray) -> np.ndarray:
    """CIELAB of the uint8 planes of red, green and blue. [3, ...] -> float32 [3, ...]"""
    red, green, blue = (_LINEAR.take(plane) for plane in planes)
    x, y, z = (_curve(r * red + g * green + b * blue) for r, g, b in (TO_XYZ / WHITE[:, None]).astype(np.float32))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def typology_angle(lab: np.ndarray) -> float:
    """Individual typology angle in degrees of one colour [3]: atan2(L* - 50, b*). Light skin is high."""
    return float(np.degrees(np.arctan2(lab[0] - 50, lab[2])))


def _curve(share: np.ndarray) -> np.ndarray:
    """The cube root of a share of white, and a line where it is small, as CIELAB has it."""
    dark = share <= (6 / 29) ** 3
    root = np.cbrt(share)
    if dark.any():
        root[dark] = share[dark] / (3 * (6 / 29) ** 2) + np.float32(4 / 29)
    return root


def _linear(levels: np.ndarray) -> np.ndarray:
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


_LINEAR = _linear(np.arange(256) / 255).astype(np.float32)
