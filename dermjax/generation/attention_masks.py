"""Where a model sees the lesion: cross-attention to the word for it, on a finished image, as a mask.

The image is encoded, a little noise laid on it, and the network asked once with the image's own prompt: no matter which
sampler made it. A UNet attends at half the latents' resolution or less, so the latents are also shifted by the cells in
between. Where the weight of the word stands out of the rest of the image, there is the lesion.

Shapes: B batch, S side, h w latent, N tokens.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from scipy import ndimage

from dermjax.diffusion import schedule
from dermjax.errors import UserError
from dermjax.models.attention_maps import cross_attention
from dermjax.models.stable_diffusion import Params, StableDiffusion

Array = jax.Array
TIME = 0.05  # share of the training times: as much noise as lets the words be read and the lesion be seen
SHARE = 0.48  # between the usual weight (0) and the highest (1), from which on a place is the lesion
USUAL = 20  # percentile of the weights that is the skin's


def mapper(
    model: StableDiffusion, params: Params, seed: int
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Returns maps(images uint8 [B, S, S, 3], tokens int32 [B, N], words bool [B, N]) -> weights float32 [B, h, w].

    words: which tokens are the word. The weights have mean 1 over an image.
    """
    alpha_bar = schedule.alphas_cumprod(model.configs["scheduler"])
    time = round(TIME * (len(alpha_bar) - 1))

    @jax.jit
    def maps(params: Params, images: Array, tokens: Array, words: Array) -> Array:
        moments = model.encode(params, images.astype(jnp.float32) / 127.5 - 1)
        latents = model.sample_latents(moments, jnp.zeros((*moments.shape[:3], moments.shape[3] // 2)))
        context = model.encode_text(params, tokens)
        noise = jax.random.normal(jax.random.key(seed), latents.shape[1:])[None]
        times = jnp.full(len(images), time, jnp.int32)
        shares = words / words.sum(1, keepdims=True)
        side = latents.shape[1]

        def seen(shift: tuple[int, int]) -> tuple[Array, int]:
            moved = jnp.roll(latents, shift, (1, 2))
            noisy = schedule.add_noise(alpha_bar, moved, noise, times)
            weights = cross_attention(model, params, noisy, times.astype(jnp.float32), context)
            finest = max(weight.shape[1] for weight in weights)
            chosen = [jnp.einsum("BnN,BN->Bn", w, shares) for w in weights if w.shape[1] == finest]
            one = sum(weight / weight.mean(1, keepdims=True) for weight in chosen) / len(chosen)
            cells = round(finest**0.5)
            wide = repeat(rearrange(one, "B (h w) -> B h w", h=cells), "B h w -> B (h a) (w b)",
                          a=side // cells, b=side // cells)  # fmt: skip
            return jnp.roll(wide, (-shift[0], -shift[1]), (1, 2)), side // cells

        first, between = seen((0, 0))
        shifts = [(down, across) for down in range(between) for across in range(between)][1:]
        return (first + sum(seen(shift)[0] for shift in shifts)) / (1 + len(shifts))

    return lambda images, tokens, words: np.asarray(maps(params, images, tokens, words.astype(np.float32)))


def mask(weights: np.ndarray, size: int) -> np.ndarray:
    """The mask bool [size, size] of weights [h, w]."""
    wide = ndimage.zoom(weights, size // len(weights), order=3, mode="nearest", grid_mode=True)
    usual, most = np.percentile(wide, USUAL), wide.max()
    return wide > usual + SHARE * (most - usual)


def places(tokens: np.ndarray, spelt: Sequence[Sequence[int]], prompt: str) -> np.ndarray:
    """Which of the tokens int [N] spell one of some words, bool [N]; UserError where none does."""
    found = np.zeros(len(tokens), bool)
    for word in spelt:
        for start in range(len(tokens) - len(word) + 1):
            if list(tokens[start : start + len(word)]) == list(word):
                found[start : start + len(word)] = True
    if not found.any():
        raise UserError(f"prompt {prompt!r}: none of config.words is in it; name the word for the lesion there")
    return found
