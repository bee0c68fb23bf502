"""Where a network's parameters begin, drawn by numpy: Flax's own initialisers compile one program a shape, which
takes thirteen seconds of processor time for MobileNetV2 and would be a sixth of the demo's training.
"""

import numpy as np


def draw(shapes: dict, config: dict, rng: np.random.Generator) -> dict:
    """Returns the float32 arrays of nested dicts of shapes, each by the rule of its leaf's name."""
    return {
        name: draw(value, config, rng)
        if isinstance(value, dict)
        else np.float32(LEAVES[name](value.shape, config, rng))
        for name, value in shapes.items()
    }


def lecun_normal(shape: tuple[int, ...], config: dict, rng: np.random.Generator) -> np.ndarray:
    """Variance 1 / inputs, which keeps that of the signal (LeCun et al. 1998, Efficient BackProp)."""
    return rng.normal(0.0, np.prod(shape[:-1]) ** -0.5, shape)


def small_normal(shape: tuple[int, ...], config: dict, rng: np.random.Generator) -> np.ndarray:
    """The config's deviation, 0.02 in every published ViT."""
    return rng.normal(0.0, config["initializer_range"], shape)


LEAVES = {
    "kernel": lecun_normal,
    "bias": lambda shape, config, rng: np.zeros(shape),
    "scale": lambda shape, config, rng: np.ones(shape),
    "mean": lambda shape, config, rng: np.zeros(shape),
    "var": lambda shape, config, rng: np.ones(shape),
    "cls_token": small_normal,
    "position_embeddings": small_normal,
    "embedding": lambda shape, config, rng: rng.normal(0.0, 0.02, shape),  # CLIP's own, of tokens and of positions
    "lambda1": lambda shape, config, rng: np.full(shape, config["layerscale_value"]),
}
