"""What the frozen parts of the model make of the training images, once: VAE moments and text contexts.

The moments (mean and log-variance, not a draw) are kept on disk under a digest of the images and of the model, so
that a resumed or repeated run does not encode again, and another model or data set never meets stale ones.
"""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.data.tokens import tokenizer, tokens
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar


def moments(
    sd: StableDiffusion, params: Params, sources: list[tuple[Manifest, Record]], size: int, batch: int, folder: Path
) -> np.ndarray:
    """Returns moments float16 [N, 2, h, w, 2 Z] of N images and of their mirror images, from disk where they are."""
    name = hashlib.sha256(repr((size, fingerprint(params), [r.sha256 for _, r in sources])).encode()).hexdigest()[:16]
    path = folder / f"moments_{name}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, _encode(sd, params, sources, size, batch))
        part.rename(path)
    return np.load(path)


def fingerprint(params: Params) -> str:
    """Returns a digest of the autoencoder's parameters."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(params["vae"]):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def contexts(sd: StableDiffusion, params: Params, prompts: list[str]) -> jax.Array:
    """Returns the context float32 [P, N, D] of each prompt; a data set has few, so they are computed once."""
    return jax.jit(sd.encode_text)(params, tokens(tokenizer(sd.tokenizer), prompts))


def _encode(sd: StableDiffusion, params: Params, sources, size: int, batch: int) -> np.ndarray:
    def both(image):
        flipped = jnp.concatenate([image, image[:, :, ::-1]])
        return jnp.stack(jnp.split(sd.encode(params, flipped), 2), axis=1)

    step, rows = jax.jit(both), []
    with bar(len(sources), "latents", "images", 0) as progress:
        for at in range(0, len(sources), batch):
            some = sources[at : at + batch]
            pixels = np.stack([images.load(manifest.path(record), size) for manifest, record in some])
            filled = np.concatenate([pixels, np.zeros((batch - len(some), size, size, 3), np.uint8)])
            rows.append(np.asarray(step(images.to_model(filled)), np.float16)[: len(some)])
            progress.update(len(some))
    return np.concatenate(rows)
