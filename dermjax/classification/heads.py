"""The linear head, rewritten so that the whole classifier says the same: {"kernel": [D, L], "bias": [L]}, numpy.

A probe learns best on standardised features, and probabilities are honest after division by a temperature (Guo et al.
2017, arXiv 1706.04599). Both are linear, so both end in the kernel and the bias, and the folder stays one that anybody
loads.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

TEMPERATURES = (0.05, 20.0)


def standardised(head: dict, mean: np.ndarray, deviation: np.ndarray) -> dict:
    """Returns the head that says of (x - mean) / deviation what `head` says of x."""
    kernel = np.asarray(head["kernel"])
    return _float32(kernel * deviation[:, None], head["bias"] + mean @ kernel)


def plain(head: dict, mean: np.ndarray, deviation: np.ndarray) -> dict:
    """Returns the head that says of x what `head` says of (x - mean) / deviation."""
    kernel = np.asarray(head["kernel"]) / deviation[:, None]
    return _float32(kernel, head["bias"] - mean @ kernel)


def cooled(head: dict, temperature: float) -> dict:
    """Returns the head whose logits are divided by the temperature."""
    return _float32(np.asarray(head["kernel"]) / temperature, np.asarray(head["bias"]) / temperature)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature under which logits [n, L] give labels [n] the highest likelihood, within TEMPERATURES."""

    def surprise(log_temperature: float) -> float:
        said = log_softmax(logits / np.exp(log_temperature), axis=-1)
        return -float(said[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(surprise, bounds=np.log(TEMPERATURES), method="bounded").x))


def _float32(kernel: np.ndarray, bias: np.ndarray) -> dict:
    return {"kernel": np.asarray(kernel, np.float32), "bias": np.asarray(bias, np.float32)}
