"""Where the lesions of an image are, by a U-Net that learnt from experts' masks, and how sure it is of them.

Place in the flow: an image, photograph, phantom or generated -> `segment` -> number, size and place of the lesions, the
tone of the skin around them; `prepare`, `transform`, `mask` and `curate` measure by it.

The network's probabilities are calibrated on photographs that it has not learnt (`pretrain`, variant segmenter). From
them follows how far the mask is expected to overlap with an expert's: below SURE nobody should rely on it unseen. The
classical segmentation (`data.imaging.segmentation`) learnt nothing and errs otherwise: it is the second opinion.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dermjax.data.images import load_any, to_model
from dermjax.data.imaging import filters
from dermjax.data.imaging.artefacts import View
from dermjax.data.imaging.segmentation import SMALLEST, Segmentation, measure_mask
from dermjax.models import segmenter
from dermjax.weights import segmenters

# Of segmentations, for whatever is kept of them: raise it where `segment` gives others of the same pixels
NUMERIC_VERSION = 3
SIDE = 128  # pixels along the image that the network sees
SURE = 0.7  # expected overlap (IoU) with an expert's mask


def segment(image: np.ndarray | View) -> Segmentation:
    """The lesions of a uint8 sRGB image [S, S, 3], each connected piece one."""
    view = View.of(image)
    share = probabilities(view.image)
    mask = filters.fill_holes(share > 0.5)
    return measure_mask(view, mask, smallest=SMALLEST, certainty=expected_overlap(share, mask))


def probabilities(image: np.ndarray) -> np.ndarray:
    """The calibrated probability of each pixel of a uint8 image [S, S, 3] to be lesion, float32 [S, S]."""
    run, params = _network()
    logits = np.asarray(run(params, jnp.asarray(to_model(load_any(image, SIDE))[None])))[0]
    side = len(image)
    wide = Image.fromarray(logits).resize((side, side), Image.Resampling.BILINEAR)
    return 1 / (1 + np.exp(-np.asarray(wide)))


def expected_overlap(share: np.ndarray, mask: np.ndarray) -> float:
    """The expected intersection of a mask and the truth over their expected union, by calibrated probabilities.

    Of an empty mask it is the probability that no pixel is lesion, as far as the likeliest one tells.
    """
    if not mask.any():
        return float(1 - share.max())
    return float(share[mask].sum() / (mask.sum() + share[~mask].sum()))


@cache
def _network():
    """The compiled network and its parameters, whose last layer is divided by the temperature."""
    params, config = segmenters.read(segmenters.SHIPPED)
    params["conv_out"] = jax.tree.map(lambda leaf: leaf / config["temperature"], params["conv_out"])
    return jax.jit(segmenter.logits), jax.device_put(params)  # numpy arrays would be copied for every image
