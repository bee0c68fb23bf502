"""What the frozen autoencoder makes of the training images, once: the moments of their latents.

The moments (mean and log-variance, not a draw) are kept in the `cache`. Images are divided over all devices of all
processes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dermjax import run_folder, sharding
from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.models.vae import NUMERIC_VERSION
from dermjax.progress import bar
from dermjax.tuning import cache
from dermjax.tuning.concepts import digested
from dermjax.weights import model_files

PIXELS = 2**17  # that a CPU encodes at a time: a gigabyte in the layers of Stable Diffusion's autoencoder


def moments(
    sd: StableDiffusion,
    params: Params,
    sources: list[tuple[Manifest, Record]],
    size: int,
    batch: int,
    folder: Path,
    grid: Mesh,
) -> np.ndarray:
    """Returns moments float16 [N, 2, h, w, 2 Z] of N images and of their mirror images, mapped from folder's file."""
    causes = {
        run_folder.SUBJECT: f"{sources[0][1].split} images",
        run_folder.NUMERIC_VERSIONS: {"images": images.NUMERIC_VERSION, "vae": NUMERIC_VERSION},
        "arithmetic": sharding.arithmetic(sd.dtype, grid),
        "vae": cache.fingerprint(params["vae"], sd.configs["vae"]),
        "size": size,
        "images": digested(sources),
    }
    return cache.once(folder, "moments", causes, lambda: _encode(sd, params, sources, size, batch, grid))


def _encode(
    sd: StableDiffusion, params: Params, sources: list[tuple[Manifest, Record]], size: int, batch: int, grid: Mesh
) -> np.ndarray:
    def both(vae: Params, image: jax.Array) -> jax.Array:
        flipped = jnp.concatenate([image, image[:, :, ::-1]])
        return jnp.stack(jnp.split(sd.encode({"vae": vae}, flipped), 2), axis=1)

    if sharding.platform(grid) == "cpu":  # where more at a time take memory and are no quicker
        batch = min(batch, max(1, PIXELS // size**2))
    batch = -(-batch // grid.size) * grid.size
    own = sharding.own(batch, grid)
    step = jax.jit(both, out_shardings=sharding.replicated(grid))
    vae = model_files.place(params["vae"], sharding.replicated(grid))
    rows = []
    with bar(len(sources), "latents", "images", 0) as progress:
        for at in range(0, len(sources), batch):
            some = sources[at : at + batch]
            mine = [some[row] for row in own if row < len(some)]
            pixels = [images.load(manifest.path(record), size) for manifest, record in mine]
            filled = np.zeros((len(own), size, size, 3), np.uint8)
            filled[: len(pixels)] = np.reshape(pixels, (-1, size, size, 3))
            encoded = step(vae, sharding.place(images.to_model(filled), grid))
            rows.append(np.asarray(encoded, np.float16)[: len(some)])
            progress.update(len(some))
    return np.concatenate(rows)
