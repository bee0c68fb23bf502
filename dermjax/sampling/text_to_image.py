"""DeepCache: the depths of the UNet change slowly along a ladder, so most evaluations borrow them (arXiv 2312.00858).

A declared approximation: off unless asked for, and named in the record of every image that it made.

B batch, h w latent, C channels.

From text, or text and an image, to images: context, start noise, sampler, decoder, pixels, compiled as a whole.

Each function returns a compiled one. Its `params` are the model's; `tokens` and `negative` are int [B, N], negative
None means no guidance and half the arithmetic; `seeds` are integers [B]: an image depends on its own seed and prompt,
not on its batch; `guidance` is a `denoiser.Guidance`, and other numbers in it compile nothing. Images are uint8
[B, H, W, 3].

B batch, H W image, h w latent, C latent channels, N tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion.denoiser import (
    Ask,
    Context,
    Denoiser,
    Guidance,
    Network,
    beside,
    denoiser,
    guided,
    keeping,
    plain,
)
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.samplers import Sampler, normal
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import StableDiffusion

Array = jax.Array


class Deep(Protocol):
    """A UNet that can be asked for its depths, and be given those of an earlier evaluation."""

    def whole(self, x: Array, t: Array, words: Context) -> tuple[Array, Array]:
        """Returns the prediction and the depths."""

    def shallow(self, x: Array, t: Array, words: Context, depths: Array) -> Array:
        """Returns the prediction over given depths."""


def deep_cache(unet: Deep, interval: int, x: jax.ShapeDtypeStruct, words: Context) -> Network:
    """Returns the network that makes its depths anew where they are `interval` evaluations old; 1 is always: exact.

    x [B, h, w, C] and words are what one pass of a batch takes; a guided pass, of twice the batch, has depths of its
    own. The memory is in references, which the sampler's scan carries along unseen.
    """
    if interval == 1:
        return lambda x, t, words: unet.whole(x, t, words)[0]
    now = jax.new_ref(jnp.int32(0))  # evaluations so far
    memory = {}
    for batch in (x.shape[0], 2 * x.shape[0]):
        given = jax.tree.map(lambda a, batch=batch: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), (x, words))
        t = jax.ShapeDtypeStruct((batch,), jnp.float32)
        depths = jax.eval_shape(lambda x, t, words: unet.whole(x, t, words)[1], given[0], t, given[1])
        made = jnp.int32(-interval)  # at which evaluation
        memory[batch] = jax.new_ref(jnp.zeros(depths.shape, depths.dtype)), jax.new_ref(made)

    def network(x: Array, t: Array, words: Context) -> Array:
        depths, made = memory[len(x)]
        fresh = now[...] - made[...] >= interval

        def borrowing(x, t, words, depths):
            return unet.shallow(x, t, words, depths), depths

        def making(x, t, words, depths):
            return unet.whole(x, t, words)

        prediction, depths[...] = jax.lax.cond(fresh, making, borrowing, x, t, words, depths[...])
        made[...] = jnp.where(fresh, now[...], made[...])
        now[...] += 1
        return prediction

    return network


# Of images, besides the networks' own versions: raise it where samplers, ladders, guidance or noise give others
NUMERIC_VERSION = 2
GREY = 127.5  # 0 in the model's range: what diffusers puts where an image is masked out


@dataclass(frozen=True)
class Pipeline:
    """A model and how it is sampled.

    interval is DeepCache's, 1 for none; watch, or None, makes a denoiser for a ladder one that is watched (`previews`).
    """

    model: StableDiffusion
    sampler: Sampler
    ladder: Ladder
    interval: int
    watch: Callable[[Denoiser, Ladder], Denoiser] | None

    def ask(
        self, params: dict, tokens: Array, negative: Array | None, guidance: Guidance, shape: tuple[int, ...]
    ) -> Ask:
        """Returns the network for the words of a batch, guided away from the negative ones unless they are None.

        What attention makes of the words is made here, once, not at every step. shape is that of the latents.
        """
        unet = self.model.network(params)
        words = unet.words(self.model.encode_text(params, tokens))
        x = jax.ShapeDtypeStruct((*shape[:-1], self.model.configs["unet"]["in_channels"]), jnp.float32)
        network = deep_cache(unet, self.interval, x, words)
        if negative is None:
            return plain(network, words)
        against = unet.words(self.model.encode_text(params, negative))
        return guided(network, words, against, guidance, self.ladder)

    def denoiser(self, ask: Ask) -> Denoiser:
        """Returns the denoiser of the model asked through `ask`."""
        denoise = denoiser(ask, self.model.prediction, self.ladder)
        return self.sampler.bounded(denoise, self.model.configs["scheduler"])

    def latents(self, denoise: Denoiser, x: Array, keys: Array) -> Array:
        """Returns the latents at the end of the ladder; one that ends above sigma 0 ends at an x_t: diffusers' PLMS."""
        denoise = self.watch(denoise, self.ladder) if self.watch else denoise
        return self.sampler.sample(denoise, x, self.ladder, keys) * (1 + self.ladder.sigmas[-1] ** 2) ** -0.5


def text_to_image(pipeline: Pipeline, size: int) -> Callable[..., Array]:
    """Returns the compiled images(params, tokens, negative, seeds, guidance) -> uint8 [B, size, size, 3].

    A size that the model cannot halve is a UserError.
    """
    model, ladder = pipeline.model, pipeline.ladder
    check_sides(model, size, size)
    side = size // model.factor

    @jax.jit
    def images(params: dict, tokens: Array, negative: Array | None, seeds: Array, guidance: Guidance) -> Array:
        shape = (len(seeds), side, side, model.configs["vae"]["latent_channels"])
        ask = pipeline.ask(params, tokens, negative, guidance, shape)
        to_start, to_walk = keys_of(seeds)
        x = ladder.start * normal(to_start, shape[1:])
        return pixels(model.decode(params, pipeline.latents(pipeline.denoiser(ask), x, to_walk)))

    return images


def image_to_image(pipeline: Pipeline, strength: float) -> Callable[..., Array]:
    """Returns the compiled images(params, tokens, negative, seeds, guidance, image) -> uint8 [B, H, W, 3].

    The image is taken through the lower part of the ladder, int(steps * strength) rungs (SDEdit, Meng et al. 2021,
    arXiv 2108.01073): 1 leaves little of it. A strength outside (0, 1] and sides that the model cannot halve are a
    UserError.
    """
    pipeline = replace(pipeline, ladder=pipeline.ladder.below(strength))
    model = pipeline.model

    @jax.jit
    def images(
        params: dict, tokens: Array, negative: Array | None, seeds: Array, guidance: Guidance, image: Array
    ) -> Array:
        latents = latents_of(model, params, image)
        ask = pipeline.ask(params, tokens, negative, guidance, latents.shape)
        to_start, to_walk = keys_of(seeds)
        x = latents + pipeline.ladder.sigmas[0] * normal(to_start, latents.shape[1:])
        return pixels(model.decode(params, pipeline.latents(pipeline.denoiser(ask), x, to_walk)))

    return images


def inpaint(pipeline: Pipeline, strength: float) -> Callable[..., Array]:
    """Returns the compiled images(params, tokens, negative, seeds, guidance, image, mask) -> uint8 [B, H, W, 3].

    mask is [B, H, W], not 0 where to paint; strength 1 starts from noise alone. A model whose UNet takes 9
    channels is shown the mask and the rest of the image; of any other the rest is blended in at every evaluation. The
    rest has been through the autoencoder: paste the original over it where its pixels count. Sides that do not fit are
    a UserError.
    """
    pipeline = replace(pipeline, ladder=pipeline.ladder.below(strength))
    model = pipeline.model
    shown = model.configs["unet"]["in_channels"] == 9

    @jax.jit
    def images(
        params: dict, tokens: Array, negative: Array | None, seeds: Array, guidance: Guidance, image: Array, mask: Array
    ) -> Array:
        if mask.shape != image.shape[:3]:
            raise UserError(f"mask {_sides(mask)}: the image is {_sides(image)}; give a mask of its size")
        latents = latents_of(model, params, image)
        paint = (mask[:, :: model.factor, :: model.factor, None] > 0).astype(jnp.float32)  # nearest, as in diffusers
        ask = pipeline.ask(params, tokens, negative, guidance, latents.shape)
        to_start, to_walk = keys_of(seeds)
        noise = normal(to_start, latents.shape[1:])
        first = np.float32(pipeline.ladder.sigmas[0])
        if shown:
            rest = latents_of(model, params, jnp.where(mask[..., None] > 0, GREY, image))
            denoise = pipeline.denoiser(beside(ask, jnp.concatenate([paint, rest], axis=-1)))
        else:
            denoise = keeping(pipeline.denoiser(ask), latents, noise, paint, first)
        x = pipeline.ladder.start * noise if strength == 1 else latents + first * noise
        painted = pipeline.latents(denoise, x, to_walk)
        return pixels(model.decode(params, painted if shown else jnp.where(paint > 0, painted, latents)))

    return images


def keys_of(seeds: Array) -> tuple[Array, Array]:
    """Returns the keys [B] for the start noise and those for the noise of the walk."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
    return keys[:, 0], keys[:, 1]


def latents_of(model: StableDiffusion, params: dict, image: Array) -> Array:
    """Returns the most likely latents [B, h, w, C] of images [B, H, W, 3] in 0..255; diffusers draws some at random."""
    check_sides(model, *image.shape[1:3])
    moments = model.encode(params, image.astype(jnp.float32) / 127.5 - 1)
    return model.sample_latents(moments, jnp.zeros((*moments.shape[:3], moments.shape[3] // 2)))


def check_sides(model: StableDiffusion, height: int, width: int) -> None:
    """Raises UserError for an image with a side that is no whole number of latent cells."""
    cell = model.factor
    if height % cell or width % cell:
        raise UserError(f"image {width}x{height} px: this model takes sides that are multiples of {cell} px; resize it")


def pixels(image: Array) -> Array:
    """Returns values in [-1, 1] as uint8 in 0..255, rounded to the nearest; an image with any NaN is 0 all over."""
    whole = jnp.isfinite(image).all(axis=(1, 2, 3), keepdims=True)
    return jnp.where(whole, jnp.clip(jnp.round((image + 1) * 127.5), 0, 255), 0).astype(jnp.uint8)


def check_drawn(image: np.ndarray, what: str) -> None:
    """Raises UserError for an image uint8 [H, W, 3] of one colour everywhere: numbers that overflowed, no picture."""
    if (image == image[:1, :1]).all():
        colour = ", ".join(map(str, image[0, 0]))
        raise UserError(
            f"{what}: the model made one colour everywhere ({colour}), which is no picture and is not written; its "
            "weights, a LoRA or an embedding are damaged or too strong, or numbers overflow: try float32, a lower "
            "weight or rate, or less guidance"
        )


def _sides(image: Array) -> str:
    return f"{image.shape[2]}x{image.shape[1]} px"
