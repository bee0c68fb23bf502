"""From text, or text and an image, to images: context, start noise, sampler, decoder, pixels, compiled as one function.

Place in the flow: `render` gives it batches, `tuning` its samples. An image depends on its own seed and prompt, not on
its batch. `deep_cache` is an approximation: off unless asked for, and named in the record of every image made so.

B batch, H W image, h w latent, C latent channels, N tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Denoiser, Guidance, Predict, beside, denoiser, guided, keeping, plain
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.samplers import Sampler
from dermjax.diffusion.schedule import normal
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import say
from dermjax.sampling.deep_cache import deep_cache
from dermjax.sampling.requests import SamplerSettings

Array = jax.Array
# Of images, besides the networks' own versions: raise it where samplers, ladders, guidance or noise give others
# 3: ladders of single files that others wrote, grey masks; 4: all vectors of a tuned model's words, and of words that
# touch other letters
NUMERIC_VERSION = 4
GREY = 127.5  # 0 in the model's range: what diffusers puts where an image is masked out


@dataclass(frozen=True)
class LatentDiffusion:
    """A model with its sampler and the ladder that it walks.

    interval is DeepCache's, 1 for none; watch, or None, makes a denoiser for a ladder one that is watched (`previews`).
    """

    model: StableDiffusion
    sampler: Sampler
    ladder: Ladder
    interval: int
    watch: Callable[[Denoiser, Ladder], Denoiser] | None

    def ask(
        self, params: Params, tokens: Array, negative: Array | None, guidance: Guidance, shape: tuple[int, ...]
    ) -> Predict:
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

    def denoiser(self, ask: Predict) -> Denoiser:
        """Returns the denoiser of the model asked through `ask`."""
        denoise = denoiser(ask, self.model.prediction, self.ladder)
        return self.sampler.bounded(denoise, self.model.configs["scheduler"])

    def latents(self, denoise: Denoiser, x: Array, keys: Array) -> Array:
        """Returns the latents at the end of the ladder; one that ends above sigma 0 ends at an x_t: diffusers' PLMS."""
        denoise = self.watch(denoise, self.ladder) if self.watch else denoise
        return self.sampler.sample(denoise, x, self.ladder, keys) * (1 + self.ladder.sigmas[-1] ** 2) ** -0.5


def latent_diffusion(
    model: StableDiffusion, settings: SamplerSettings, watch: Callable[[Denoiser, Ladder], Denoiser] | None
) -> LatentDiffusion:
    """Returns a model with the sampler of some settings; says what of the model's scheduler file it does not heed."""
    sampler, scheduler = samplers.get_sampler(settings.sampler), model.configs["scheduler"]
    for warning in sampler.unheeded(scheduler):
        say(warning)
    ladder = sampler.ladder(scheduler, settings.steps, settings.spacing)
    return LatentDiffusion(model, sampler, ladder, settings.deep_cache, watch)


def text_to_image(process: LatentDiffusion, size: int, strength: float = 1.0) -> Callable[..., Array]:
    """Returns the compiled images(params, tokens, negative, seeds, guidance, image, mask) -> uint8 [B, H, W, 3].

    tokens and negative are int [B, N]; negative None means no guidance and half the arithmetic. seeds are integers [B].
    Other numbers in `guidance` compile nothing. Without an image, sides are `size`.

    image [B, H, W, 3], in 0..255, is taken through the lower part of the ladder, int(steps * strength) rungs (SDEdit,
    Meng et al. 2021, arXiv 2108.01073): strength 1 leaves little of it. mask [B, H, W] is not 0 where to paint; then
    strength 1 starts from noise alone. A model whose UNet takes 9 channels is shown the mask and the rest of the image;
    of any other the rest is blended in at every evaluation. The rest has been through the autoencoder: paste the
    original over it where its pixels count.

    Raises:
      UserError: strength is not in (0, 1], a side is no multiple of the model's cell, a mask is of another size, or a
        model of 9 channels gets none.
    """
    process = replace(process, ladder=process.ladder.below(strength))
    model, ladder = process.model, process.ladder
    check_sides(model, size, size)
    paints = model.configs["unet"]["in_channels"] == 9

    @jax.jit
    def images(
        params: Params,
        tokens: Array,
        negative: Array | None,
        seeds: Array,
        guidance: Guidance,
        image: Array | None = None,
        mask: Array | None = None,
    ) -> Array:
        if paints and mask is None:
            raise UserError("this model paints into pictures: give config.init.images and config.init.mask (image= and "
                            "mask= in Python)")  # fmt: skip
        if mask is not None and mask.shape != image.shape[:3]:
            raise UserError(f"mask {_sides(mask)}: the image is {_sides(image)}; give a mask of its size")
        if image is None:
            shape = (len(seeds), size // model.factor, size // model.factor, model.configs["vae"]["latent_channels"])
        else:
            latents = latents_of(model, params, image)
            shape = latents.shape
        ask = process.ask(params, tokens, negative, guidance, shape)
        to_start, to_walk = keys_of(seeds)
        noise, first = normal(to_start, shape[1:]), np.float32(ladder.sigmas[0])
        if mask is not None:
            paint = (mask[:, :: model.factor, :: model.factor, None] > 0).astype(jnp.float32)  # nearest: as diffusers
        if paints:
            rest = latents_of(model, params, jnp.where(mask[..., None] > 0, GREY, image))
            ask = beside(ask, jnp.concatenate([paint, rest], axis=-1))
        denoise = process.denoiser(ask)
        if mask is not None and not paints:
            denoise = keeping(denoise, latents, noise, paint, first)
        from_noise = image is None or (mask is not None and strength == 1)
        x = ladder.start * noise if from_noise else latents + first * noise
        denoised = process.latents(denoise, x, to_walk)
        if mask is not None and not paints:
            denoised = jnp.where(paint > 0, denoised, latents)
        return pixels(model.decode(params, denoised))

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
