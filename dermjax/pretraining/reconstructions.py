"""How an autoencoder gives back photographs that it has not learnt: figures, and a picture of both."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dermjax.data import thumbnails
from dermjax.data.images import from_model, load_any, to_model
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.training.loop import Evaluate
from dermjax.training.state import State

LOOKED_AT, SHOWN, SIZE = 32, 8, 224  # photographs; photographs in the picture; their side in pixels
BATCH = 8


def watch(sd: StableDiffusion, photographs: np.ndarray) -> Evaluate:
    """Returns evaluate(state, constants) -> figures and a picture of uint8 photographs [N, S, S, 3]; {} where N is 0.

    psnr in dB, a mean over photographs; gradients: the sum of absolute differences of neighbouring pixels over that of
    the photographs, below 1 where they are blurred.
    """
    if not len(photographs):
        return lambda state, constants: {}
    chosen = photographs[:: max(1, len(photographs) // LOOKED_AT)][:LOOKED_AT]
    originals = to_model(np.stack([load_any(image, SIZE) for image in chosen]))

    @jax.jit
    def reconstruct(params: Params, image: jax.Array) -> jax.Array:
        mean, _ = jnp.split(sd.encode(params, image), 2, axis=-1)
        return jnp.clip(sd.reconstruct(params, mean), -1, 1)

    def evaluate(state: State, constants: dict) -> dict[str, float | np.ndarray]:
        params = {"vae": constants["vae"] | state.smooth["vae"]}
        again = np.concatenate([
            np.asarray(reconstruct(params, originals[at : at + BATCH])) for at in range(0, len(originals), BATCH)
        ])  # fmt: skip
        return figures(originals, again) | {"reconstructions": side_by_side(originals[:SHOWN], again[:SHOWN])}

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
    return {"psnr": float(-10 * np.log10(error).mean()), "gradients": float(steps[0] / steps[1])}
