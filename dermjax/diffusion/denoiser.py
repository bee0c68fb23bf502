"""From a network's prediction to `denoised = denoise(x, sigma)`, all that a sampler knows of a model.

x = latents + sigma noise is the sampler's variable. The network was trained on x_t = x / sqrt(1 + sigma^2), which has
unit variance at every t, and predicts the noise, the velocity or the latents. In between stands `predict(x_t, t)`: the
network with its context, plain or guided. Everything here is float32, whatever the network computes in.

B batch, h w latent, C channels, N tokens, D context width; sigma and t are scalars.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.schedule import check_prediction

Array = jax.Array
Context = Any  # a tree of arrays [B, ...]: [B, N, D], or the keys and values that the UNet makes of it
Network = Callable[[Array, Array, Context], Array]  # x_t [B, h, w, C], t [B], context
Predict = Callable[[Array, Array], Array]  # x_t [B, h, w, C], t -> prediction [B, h, w, C]


@dataclass(frozen=True)
class Denoiser:
    """The best guess at the latents behind x at noise level sigma.

    predict(x, sigma) is the network's prediction; denoised(prediction, x, sigma) the latents in it. A multistep method
    that averages predictions calls the two, every other the denoiser itself. bound(latents), or None, holds them within
    the bounds of a model's scheduler file.
    """

    predict: Predict
    denoised: Callable[[Array, Array, Array], Array]
    bound: Callable[[Array], Array] | None = None

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Returns the denoised latents [B, h, w, C], within their bounds."""
        latents = self.denoised(self.predict(x, sigma), x, sigma)
        return self.bound(latents) if self.bound else latents


# what a prediction at (x, sigma) means (Karras et al. 2022, arXiv 2206.00364, table 1), by diffusers' prediction_type
DENOISED = {
    "epsilon": lambda noise, x, sigma: x - sigma * noise,
    "v_prediction": lambda v, x, sigma: x / (1 + sigma**2) - sigma / jnp.sqrt(1 + sigma**2) * v,
    "sample": lambda latents, x, sigma: latents,
}


def denoiser(predict: Predict, prediction: str, ladder: Ladder) -> Denoiser:
    """Returns the denoiser of a network at the times of a ladder; an unknown prediction is a UserError."""
    check_prediction(prediction)

    def predict_at(x: Array, sigma: Array) -> Array:
        return predict(x / jnp.sqrt(1 + sigma**2), ladder.time(sigma)).astype(jnp.float32)

    return Denoiser(predict_at, DENOISED[prediction])


def bound(scheduler: dict, known: tuple[str, ...]) -> Callable[[Array], Array] | None:
    """Returns what a scheduler file does to denoised latents, of the options that a sampler knows; None for nothing.

    clip_sample: they are cut off at -clip_sample_range and clip_sample_range. thresholding goes before it: those of an
    image are cut off where only a share of them, 1 - dynamic_thresholding_ratio, is further from 0, and brought back to
    [-1, 1] (Saharia et al. 2022, arXiv 2205.11487, section 2.3). All as in diffusers.
    """
    if "thresholding" in known and scheduler.get("thresholding", False):
        share = scheduler.get("dynamic_thresholding_ratio", 0.995)
        most = scheduler.get("sample_max_value", 1.0)

        def thresholded(latents: Array) -> Array:
            far = jnp.quantile(jnp.abs(latents), share, axis=(1, 2, 3), keepdims=True)
            far = jnp.minimum(jnp.maximum(far, 1.0), most)
            return jnp.clip(latents, -far, far) / far

        return thresholded
    clips = scheduler.get("_class_name") in ("DDIMScheduler", "DDPMScheduler")  # where the file says nothing
    if "clip_sample" in known and scheduler.get("clip_sample", clips):
        end = scheduler.get("clip_sample_range", 1.0)
        return lambda latents: jnp.clip(latents, -end, end)
    return None


def keeping(denoise: Denoiser, latents: Array, noise: Array, mask: Array, first: float) -> Denoiser:
    """Returns the denoiser that gives back the latents [B, h, w, C] wherever the mask [B, h, w, 1] is 0.

    There the network sees the latents under noise of their own [B, h, w, C] whatever the sampler adds: inpainting by
    blending, as diffusers' pipeline does it between the steps. At the sigma `first`, where a walk begins, it sees x.
    """

    def predict(x: Array, sigma: Array) -> Array:
        there = jnp.where(sigma < first, latents + sigma * noise, x)
        return denoise.predict(mask * x + (1 - mask) * there, sigma)

    def blended(prediction: Array, x: Array, sigma: Array) -> Array:
        return mask * denoise.denoised(prediction, x, sigma) + (1 - mask) * latents

    def held(latents_now: Array) -> Array:
        return mask * denoise.bound(latents_now) + (1 - mask) * latents

    return Denoiser(predict, blended, held if denoise.bound else None)


def beside(predict: Predict, channels: Array) -> Predict:
    """Returns the network given more channels [B, h, w, c] behind those of x_t: inpainting models take nine."""
    return lambda x, t: predict(jnp.concatenate([x, channels], axis=-1), t)


def plain(network: Network, context: Context) -> Predict:
    """Returns the network for one context: one pass an evaluation."""
    return lambda x, t: network(x, jnp.full(len(x), t), context)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guidance:
    """How the prompt steers: numbers that a compiled function takes, so that changing them compiles nothing.

    scale: 1 is not at all. rescale: the share, 0 to 1, by which the spread of the unguided prediction is restored (Lin
    et al. 2023, arXiv 2305.08891, section 3.4, for v-prediction), or None. interval: guide only at sigmas above the
    first number and up to the second (Kynkäänniemi et al. 2024, arXiv 2404.07724), or None for everywhere.
    """

    scale: Array
    rescale: Array | None
    interval: tuple[Array, Array] | None


def guided(network: Network, context: Context, negative: Context, guidance: Guidance, ladder: Ladder) -> Predict:
    """Returns classifier-free guidance (Ho and Salimans 2022): both contexts in one pass of twice the batch.

    An image's two halves lie side by side, so that a batch spread over devices stays where it is. Outside of the
    guidance's interval an evaluation is one plain pass, chosen inside the scan.
    """
    pairs = jax.tree.map(lambda without, within: rearrange([without, within], "two B ... -> (B two) ..."),
                         negative, context)  # fmt: skip

    def predict(x: Array, t: Array) -> Array:
        answers = plain(network, pairs)(repeat(x, "B h w C -> (B two) h w C", two=2), t)
        without, within = rearrange(answers.astype(jnp.float32), "(B two) h w C -> two B h w C", two=2)
        steered = without + guidance.scale * (within - without)
        return steered if guidance.rescale is None else respread(steered, within, guidance.rescale)

    def unguided(x: Array, t: Array) -> Array:
        return plain(network, context)(x, t).astype(jnp.float32)

    if guidance.interval is None:
        return predict
    low, high = (ladder.time(sigma) for sigma in guidance.interval)
    low = jnp.where(guidance.interval[0] < ladder.table[0], -1.0, low)  # below the schedule is below its first time, 0
    return lambda x, t: jax.lax.cond((low < t) & (t <= high), predict, unguided, x, t)


def respread(steered: Array, within: Array, share: Array) -> Array:
    """Returns the steered prediction with its spread brought back to that of `within` by a share, image by image."""
    spread = within.std((1, 2, 3), keepdims=True) / steered.std((1, 2, 3), keepdims=True)
    return steered * (share * spread + 1 - share)
