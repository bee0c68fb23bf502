"""How an autoencoder gives back pictures: how far from them, which is what it learns by, and how it looks.

`pretrain` and `tune` train autoencoders by one distance. What derm-tiny must keep is the colour, the border and the
number of drawn lesions, hairs and rulers, and for these plain distances on pixels, edges and patch means are enough,
given that thin lines weigh more than their few pixels.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from PIL import Image

from dermjax.data import thumbnails
from dermjax.data.images import from_model, load_any, to_model
from dermjax.diffusion.objective import example_keys
from dermjax.diffusion.schedule import normal
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.training.loop import Evaluate
from dermjax.training.state import State

LOOKED_AT, SHOWN, SIZE = 32, 8, 224  # photographs; photographs in the picture; the side in pixels of derm-base's
BATCH = 8
LINE = 9  # side in pixels of the window that a thin dark line does not fill: three times the widest hair
DECODER = ("decoder", "post_quant_conv")


def divide(vae: Params) -> tuple[Params, Params]:
    """Returns the autoencoder's decoder and its encoder, each with its 1x1 convolution."""
    decoder, encoder = ({name: vae[name] for name in vae if (name in DECODER) == half} for half in (True, False))
    return decoder, encoder


def learn(
    sd: StableDiffusion,
    vae: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    kl: float,
    weights: dict,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Returns (what comes back of batch["image"] [B, H, W, 3], its loss, figures to log).

    The loss is `distance` with these weights + kl * the divergence of the latents from a standard normal, a mean over
    elements. batch["index"] numbers the images for their draws of latents.
    """
    mean, log_variance = jnp.split(sd.encode({"vae": vae}, batch["image"]), 2, axis=-1)
    again = sd.reconstruct({"vae": vae}, draw(mean, log_variance, example_keys(key, batch["index"])))
    total, scalars = distance(again, batch["image"], **weights)
    divergence = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance).mean()
    return again, total + kl * divergence, scalars | {"kl": divergence}


def draw(mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns one draw of latents, [B, h, w, Z], from one key an example."""
    return mean + jnp.exp(0.5 * log_variance) * normal(keys, mean.shape[1:])


def distance(
    again: jax.Array, image: jax.Array, *, lines: float, standout: float, edges: float, patches: float, chroma: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns how far a reconstruction is from its image, both [B, H, W, 3], and figures to log.

    L1 on pixels, each weighted by 1 + lines * `thin_dark` + standout * `contrast` + edges * L1 on differences of
    neighbours + patches * L1 on means of 8 x 8 pixels + chroma * L1 on the two opponent colours of means of 4 x 4
    pixels, weighted by 1 + standout * `contrast`.

    Without the term in chroma, red and blue lesions stay brown for a long time: brown is right in brightness, and hue
    is a small part of the other terms. Without the weight of lines, hairs and the ticks of a ruler vanish: they are few
    pixels, and where a line may be in one of several places the median of L1 is skin. Without the weight of what stands
    out, skin, nine tenths of most images, decides.
    """
    error = again - image
    stands = standout * contrast(image)
    l1 = jnp.abs(error).mean()
    weighted = (jnp.abs(error) * (1 + lines * thin_dark(image) + stands)).mean()
    edge = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    patch = jnp.abs(reduce(error, "B (h 8) (w 8) C -> B h w C", "mean")).mean()
    red, green, blue = jnp.unstack(reduce(error, "B (h 4) (w 4) C -> B h w C", "mean"), axis=-1)
    opponent = jnp.abs(red - green) + jnp.abs(blue - 0.5 * (red + green))
    hue = (opponent * (1 + reduce(stands, "B (h 4) (w 4) 1 -> B h w", "mean"))).mean()
    psnr = -10 * jnp.log10(jnp.square(error / 2).mean())
    total = weighted + edges * edge + patches * patch + chroma * hue
    return total, {"l1": l1, "patch": patch, "hue": hue, "psnr": psnr}


def contrast(image: jax.Array) -> jax.Array:
    """How far each pixel is from the median colour of its image, which is skin: [B, H, W, 3] to [B, H, W, 1]."""
    return jnp.abs(image - jnp.median(image, axis=(1, 2), keepdims=True)).mean(-1, keepdims=True)


def thin_dark(image: jax.Array) -> jax.Array:
    """How much darker each pixel is than both sides of the line it lies on: the black top-hat of the brightness.

    From [B, H, W, 3] in [-1, 1] to [B, H, W, 1] in [0, 2]; 0 inside of anything wider than LINE.
    """
    window, once = (1, LINE, LINE, 1), (1, 1, 1, 1)
    brightness = image.mean(-1, keepdims=True)
    dilated = jax.lax.reduce_window(brightness, -jnp.inf, jax.lax.max, window, once, "SAME")
    return jax.lax.reduce_window(dilated, jnp.inf, jax.lax.min, window, once, "SAME") - brightness


def reconstruct(sd: StableDiffusion, vae: Params, image: jax.Array) -> jax.Array:
    """Returns what comes back of images [B, H, W, 3] in [-1, 1] from the means of their latents."""
    mean, _ = jnp.split(sd.encode({"vae": vae}, image), 2, axis=-1)
    return jnp.clip(sd.reconstruct({"vae": vae}, mean), -1, 1)


def looked_at(pictures: Sequence, most: int = LOOKED_AT) -> list:
    """Returns at most so many of some pictures, evenly spaced over all: they may stand class by class."""
    count = min(len(pictures), most)
    return [pictures[number * len(pictures) // count] for number in range(count)]


def watch(sd: StableDiffusion, photographs: np.ndarray, size: int = SIZE) -> Evaluate:
    """Returns evaluate(state, constants) -> figures and a picture of uint8 photographs [N, S, S, 3]; {} where N is 0.

    psnr in dB, a mean over photographs; gradients: the sum of absolute differences of neighbouring pixels over that of
    the photographs, below 1 where they are blurred.
    """
    if not len(photographs):
        return lambda state, constants: {}
    originals = to_model(np.stack([load_any(image, size) for image in looked_at(photographs)]))
    step, shown = jax.jit(partial(reconstruct, sd)), looked_at(range(len(originals)), SHOWN)

    def evaluate(state: State, constants: dict) -> dict[str, float | np.ndarray]:
        vae = constants["vae"] | state.smooth["vae"]
        again = np.concatenate([
            np.asarray(step(vae, originals[at : at + BATCH])) for at in range(0, len(originals), BATCH)
        ])  # fmt: skip
        return figures(originals, again) | {"reconstructions": side_by_side(originals[shown], again[shown])}

    return evaluate


def side_by_side(originals: np.ndarray, again: np.ndarray) -> np.ndarray:
    """Returns one picture uint8 of photographs [N, H, W, 3] in [-1, 1] and, below, what came back, marked synthetic."""
    side = (thumbnails.SIDE, thumbnails.SIDE)
    above = [np.asarray(Image.fromarray(image).resize(side)) for image in from_model(originals)]
    return np.concatenate([np.concatenate(above, axis=1), np.asarray(thumbnails.grid([from_model(again)]))])


def figures(originals: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """Returns psnr and gradients, see `watch`, of images [N, H, W, 3] in [-1, 1] and what came back."""
    error = np.square((again - originals) / 2).mean((1, 2, 3))
    steps = [sum(np.abs(np.diff(images, axis=axis)).sum() for axis in (1, 2)) for images in (again, originals)]
    kept = steps[0] / max(steps[1], 1)  # flat images have none
    return {"psnr": float(-10 * np.log10(error).mean()), "gradients": float(kept)}
