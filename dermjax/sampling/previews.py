"""Previews: a batch while it is made, every few steps from within the scan, as a small PNG file in the run folder.

Its images are a linear map of the denoised latents, a pixel a latent cell: no decoder runs while the sampler does.

B batch, h w latent, C channels.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat

from dermjax.data import images
from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import Ladder
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import PlainLines, TerminalBar
from dermjax.run_folder import write_atomically

Array = jax.Array
Show = Callable[[np.ndarray, np.ndarray], None]  # the number of the step, from 1, and images uint8 [B, h, w, 3]
FILE = "preview.png"
PIXELS = 4  # a latent cell's side


def watching(
    model: StableDiffusion, params: Params, every: int, path: Path, progress: TerminalBar | PlainLines
) -> Callable[[Denoiser, Ladder], Denoiser] | None:
    """Returns what makes a denoiser one whose batch is written to a PNG file every `every` steps; None for 0: never."""
    if not every:
        return None

    def show(step: np.ndarray, pixels: np.ndarray) -> None:
        write_atomically(path, images.encode_png(image_grid(np.asarray(pixels))))
        progress.update(0, step=int(step))

    channels = model.configs["vae"]["latent_channels"]
    colours = colours_of(lambda latents: model.decode(params, latents), channels)
    return partial(watched, every=every, colours=colours, show=show)


def watched(denoise: Denoiser, ladder: Ladder, every: int, colours: np.ndarray, show: Show) -> Denoiser:
    """Returns the denoiser that calls show(step, images) once in every `every` steps, as the scan runs.

    colours [C + 1, 3] make RGB in [-1, 1] of latents, the last row being what is added; see `colours_of`.
    """
    rungs = ladder.sigmas[:-1].astype(np.float32)
    shown = jax.new_ref(jnp.int32(0))  # the last step; a method may ask twice at one sigma

    def predict(x: Array, sigma: Array) -> Array:
        prediction = denoise.predict(x, sigma)
        step = jnp.sum(rungs >= sigma, dtype=jnp.int32)
        due = (step % every == 0) & (step > shown[...])
        shown[...] = jnp.where(due, step, shown[...])

        def call() -> None:
            latents = denoise.denoised(prediction, x, sigma)
            rgb = jnp.einsum("bhwc,cd->bhwd", latents, colours[:-1]) + colours[-1][None, None, None]
            jax.debug.callback(show, step, jnp.clip(jnp.round((rgb + 1) * 127.5), 0, 255).astype(jnp.uint8))

        jax.lax.cond(due, call, lambda: None)
        return prediction

    return replace(denoise, predict=predict)


def colours_of(decode: Callable[[Array], Array], channels: int) -> np.ndarray:
    """Returns the linear map from latents to the mean colours that a decoder gives their cells, float32 [C + 1, 3].

    decode makes images [B, H, W, 3] in [-1, 1] of latents [B, h, w, C]. Fitted to 64 patches of 4 x 4 cells, of which
    the inner cells are free of their neighbours.
    """
    drawn = np.random.default_rng(0).normal(size=(8, 8, channels)).astype(np.float32)
    image = np.asarray(decode(jnp.asarray(repeat(drawn, "h w c -> 1 (h a) (w b) c", a=4, b=4))))[0]
    cell = image.shape[0] // 32
    inner = rearrange(image, "(h a) (w b) d -> h w a b d", h=8, w=8)[:, :, cell:-cell, cell:-cell]
    colours = reduce(inner, "h w a b d -> (h w) d", "mean")
    latents = np.concatenate([rearrange(drawn, "h w c -> (h w) c"), np.ones((64, 1), np.float32)], axis=1)
    return np.linalg.lstsq(latents, colours, rcond=None)[0].astype(np.float32)


def image_grid(pixels: np.ndarray) -> np.ndarray:
    """Returns images uint8 [B, h, w, 3] enlarged in rows on black, as square as they can stand."""
    columns = math.ceil(len(pixels) ** 0.5)
    black = np.zeros((-len(pixels) % columns, *pixels.shape[1:]), np.uint8)
    rows = rearrange(np.concatenate([pixels, black]), "(R c) h w C -> (R h) (c w) C", c=columns)
    return repeat(rows, "H W C -> (H a) (W b) C", a=PIXELS, b=PIXELS)
