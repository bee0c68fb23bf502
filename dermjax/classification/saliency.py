"""Where a classifier looks: Grad-CAM for MobileNetV2 (Selvaraju et al. 2017, arXiv 1610.02391), attention rollout for
transformers (Abnar & Zuidema 2020, arXiv 2005.00928), into whichever tokens the head reads.

Such maps show where, never why; untrained networks give convincing ones too.

Shapes: B batch, S side of the image, h w patches or features, N = 1 + h w tokens.
"""

import base64

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from PIL import Image

from dermjax.data import images
from dermjax.data.thumbnails import Thumbnail
from dermjax.models.classifier import Classifier, Params

Array = jax.Array
SIDE = 176  # pixels of a thumbnail on a page
HOT = np.array([255, 196, 60], np.float32)  # the colour of what counted; the rest is dark


def heat(classifier: Classifier, params: Params, variables: Params, image: np.ndarray) -> np.ndarray:
    """Returns [B, h, w] from 0 to 1, for images [B, S, S, 3] in [-1, 1] and the class that each is called."""
    method = grad_cam if classifier.config["model_type"] == "mobilenet_v2" else rollout
    maps = jax.jit(lambda p, v, x: method(classifier, p, v, x))(params, variables, jnp.asarray(image))
    maps = np.asarray(maps, np.float64)
    low, high = (reduce(maps, axis=(1, 2), keepdims=True) for reduce in (np.min, np.max))
    return (maps - low) / np.maximum(high - low, 1e-12)


def grad_cam(classifier: Classifier, params: Params, variables: Params, image: Array) -> Array:
    """Returns [B, h, w]: the head's features, each weighed by the gradient of the winning logit, where they add to it.

    The head is linear in the mean of the features, so the gradient is its column of that class.
    """
    maps = classifier.maps(params, variables, image)
    kernel = params["classifier"]["kernel"]
    called = (maps.mean((1, 2)) @ kernel + params["classifier"]["bias"][None]).argmax(-1)
    return jax.nn.relu(jnp.einsum("BhwC,CB->Bhw", maps, kernel[:, called]))


def rollout(classifier: Classifier, params: Params, variables: Params, image: Array) -> Array:
    """Returns [B, h, w]: what of each patch reaches the tokens that the head reads, half of every layer being residual.

    These are the class token, or the mean of the patches, or for DINOv2 both.
    """
    attention = classifier.attentions(params, variables, image)  # [layers, B, N, N]
    mixed = (attention + jnp.eye(attention.shape[-1])[None, None]) / 2
    reached = mixed[0]
    for layer in mixed[1:]:
        reached = layer @ reached
    side = round((attention.shape[-1] - 1) ** 0.5)
    token, patches = reached[:, 0, 1:], reached[:, 1:, 1:].mean(1)
    pooling = "both" if classifier.config["model_type"] == "dinov2" else classifier.config["pooling"]
    read = {"token": token, "mean": patches, "both": (token + patches) / 2}[pooling]
    return rearrange(read, "B (h w) -> B h w", h=side)


def overlay(image: np.ndarray, heat: np.ndarray, words: str, caption: str) -> Thumbnail:
    """Returns the thumbnail of an image, uint8 [S, S, 3], darkened where `heat` [h, w] is low, lit where it is high."""
    shown = np.asarray(Image.fromarray(image).resize((SIDE, SIDE)), np.float32)
    scale = Image.fromarray(np.float32(heat), mode="F").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(scale), 0, 1)[..., None]
    lit = shown * (0.35 + 0.65 * share) + HOT * 0.35 * share**2
    source = "data:image/png;base64," + base64.b64encode(images.encode_png(np.uint8(np.clip(lit, 0, 255)))).decode()
    return Thumbnail(uri=source, alt=words, caption=caption)
