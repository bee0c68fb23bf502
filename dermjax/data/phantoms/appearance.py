"""What a phantom looks like: its parameters, drawn from a seed, before anything is painted.

Place in the flow: a seed -> `draw` -> parameters -> `painting` (their pixels) and `captions` (their words).

Benign and malignant follow the ABCD rule of dermoscopy (Stolz et al. 1994): asymmetry, border, colour and
differential structures all grow with one hidden severity, which is normal with the same spread in both classes
and means that lie SEPARATION apart. So the classes overlap, and the AUROC of the best possible classifier is at most
Phi(SEPARATION / sqrt 2). Tone, number and artefacts do not depend on the label.

All lengths are fractions of the field (the side of the image).
"""

from collections.abc import Collection, Sequence

import numpy as np

from dermjax.errors import UserError

LABELS = ("benign", "malignant")
SEPARATION = 3.3

# Individual typology angle in degrees, light to dark (Del Bino et al. 2006), with gaps between the five words.
TONES = {
    "pale": (60.0, 70.0),
    "light": (45.0, 53.0),
    "intermediate": (31.0, 40.0),
    "tan": (13.0, 26.0),
    "dark": (-42.0, -12.0),
}
# b* (yellowness) of each tone; L* follows from ITA = atan2(L* - 50, b*).
YELLOWNESS = {"pale": (9, 13), "light": (14, 18), "intermediate": (16, 20), "tan": (17, 21), "dark": (14, 18)}
REDNESS = {"pale": (6, 22), "light": (10, 26), "intermediate": (11, 25), "tan": (13, 24), "dark": (11, 18)}

# Diameter of the disc of the same area. The smallest is 14 px of 128, wider than one and a half latent cells of 8 px.
SIZES = {"tiny": (0.115, 0.14), "small": (0.17, 0.20), "medium": (0.235, 0.27), "large": (0.32, 0.50)}
CROWDED = {1: 0.50, 2: 0.42, 3: 0.345, 4: 0.345}  # number -> upper bound of the diameter, so that gaps remain
NUMBERS = {1: 0.4, 2: 0.25, 3: 0.2, 4: 0.15}

# Probability of each colour, texture and second colour at the benign and at the malignant end of severity.
COLOURS = {
    "golden": (0.28, 0.10),
    "brown": (0.38, 0.24),
    "chocolate": (0.20, 0.26),
    "black": (0.04, 0.24),
    "reddish": (0.10, 0.16),
}
TEXTURES = {
    "uniform": (0.36, 0.08),
    "mottled": (0.14, 0.34),
    "network": (0.26, 0.18),
    "globules": (0.18, 0.18),
    "streaks": (0.06, 0.22),
}
SECOND_COLOURS = ("black", "blue", "red")
VARIEGATED = 0.55  # from this variegation on a lesion has patches of a second colour
VEIL = 0.5  # probability of a blue-white veil at the malignant end

ARTEFACTS = {
    "hairs": 0.25,
    "ruler": 0.15,
    "dark_corners": 0.20,
    "pen_ring": 0.08,
    "gel_bubbles": 0.10,
    "blur": 0.08,
}


def draw(seed: int, requested: dict) -> dict:
    """Parameters of the phantom of `seed`; `requested` ones replace what would have been drawn.

    One number is drawn for each parameter whatever is requested, so requesting one leaves the others as they were.

    Returns a dict that can be written as JSON: label, tone, ita (degrees), redness and yellowness (a*, b* of the skin),
    number, size_name, diameters (one a lesion), colour, second_colour ("" when there is none), irregularity,
    asymmetry and variegation (0 to 1), texture, veil and each artefact (bool).
    """
    rng = np.random.default_rng([seed, 0])
    u, n = rng.random(24), rng.standard_normal(8)
    jitter = rng.random(4)
    left = dict(requested)

    def choose(name, drawn, known=()):
        value = left.pop(name, drawn)
        if known and value not in known:
            raise UserError(f"phantom: {name} {value!r} is unknown; take one of {', '.join(map(str, known))}")
        return value

    label = choose("label", LABELS[int(u[0] < 0.5)], LABELS)
    severity = float(n[0] + SEPARATION * (LABELS.index(label) - 0.5))
    grade = _logistic(1.5 * severity)

    tone = choose("tone", tuple(TONES)[int(u[1] * len(TONES))], tuple(TONES))
    number = choose("number", _pick(NUMBERS, list(NUMBERS.values()), u[2]), tuple(NUMBERS))
    tilt = 0.06 * (2 * grade - 1) * np.array([-1.5, -0.5, 0.5, 1.5])  # the D of ABCD, slight
    size_name = choose("size_name", _pick(SIZES, 0.25 + tilt, u[3]), tuple(SIZES))
    low, high = SIZES[size_name]
    bounds = low, min(high, CROWDED[number])
    diameters = [_within(bounds, 0.7 * u[9] + 0.3 * each) for each in jitter[:number]]  # alike, none the same
    variegation = choose("variegation", _logistic(1.15 * (severity + 0.9 * n[1])))
    colour = choose("colour", _pick(COLOURS, _between(COLOURS, grade), u[4]))
    others = [c for c in SECOND_COLOURS if c[:3] != colour[:3]]
    second = others[int(u[5] * len(others))] if variegation > VARIEGATED else ""
    parameters = {
        "label": label,
        "tone": tone,
        "ita": choose("ita", _within(TONES[tone], u[6])),
        "yellowness": choose("yellowness", _within(YELLOWNESS[tone], u[7])),
        "redness": choose("redness", _within(REDNESS[tone], u[8])),
        "number": number,
        "size_name": size_name,
        "diameters": choose("diameters", diameters),
        "colour": colour,
        "second_colour": choose("second_colour", second),
        "irregularity": choose("irregularity", _logistic(1.15 * (severity + 0.9 * n[2]))),
        "asymmetry": choose("asymmetry", _logistic(0.9 * (severity + 1.1 * n[3]))),
        "variegation": variegation,
        "texture": choose("texture", _pick(TEXTURES, _between(TEXTURES, grade), u[10])),
        "veil": choose("veil", bool(u[11] < VEIL * grade)),
    }
    for i, (name, probability) in enumerate(ARTEFACTS.items()):
        parameters[name] = choose(name, bool(u[12 + i] < probability))
    if left:
        raise UserError(f"phantom: unknown parameter {', '.join(sorted(left))}; known are {', '.join(parameters)}")
    return parameters


def _pick(names: Collection, probabilities: Sequence[float], u: float):
    """The name in whose share of the unit interval u falls."""
    return list(names)[min(int(np.searchsorted(np.cumsum(probabilities), u, side="right")), len(names) - 1)]


def _between(table: dict, grade: float) -> list[float]:
    return [(1 - grade) * benign + grade * malignant for benign, malignant in table.values()]


def _within(bounds: tuple, u: float) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * u)


def _logistic(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))
