"""What the frozen autoencoder makes of the training images, once: the moments of their latents.

The moments (mean and log-variance, not a draw) are kept on disk under a digest of the images and of the model, so
that a resumed or repeated run does not encode again, and another model or data set never meets stale ones. Images are
divided over all devices of all processes; the first process writes.
"""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dermjax import sharding
from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar


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
    digests = [record.sha256 for _, record in sources]
    name = hashlib.sha256(repr((size, fingerprint(params), digests)).encode()).hexdigest()[:16]
    path = folder / f"moments_{name}.npy"
    if not multihost_utils.broadcast_one_to_all(np.array(path.exists())):
        encoded = _encode(sd, params, sources, size, batch, grid)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part.npy")
            np.save(part, encoded)
            part.rename(path)
        multihost_utils.sync_global_devices("dermjax: moments written")
    return np.load(path, mmap_mode="r")


def fingerprint(params: Params) -> str:
    """Returns a digest of the autoencoder's parameters."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(params["vae"]):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def _encode(
    sd: StableDiffusion, params: Params, sources: list[tuple[Manifest, Record]], size: int, batch: int, grid: Mesh
) -> np.ndarray:
    def both(vae: Params, image: jax.Array) -> jax.Array:
        flipped = jnp.concatenate([image, image[:, :, ::-1]])
        return jnp.stack(jnp.split(sd.encode({"vae": vae}, flipped), 2), axis=1)

    batch = -(-batch // grid.size) * grid.size
    own = sharding.own(batch)
    step = jax.jit(both, out_shardings=sharding.replicated(grid))
    vae = jax.device_put(params["vae"], sharding.replicated(grid))
    rows = []
    with bar(len(sources), "latents", "images", 0) as progress:
        for at in range(0, len(sources), batch):
            some = sources[at : at + batch]
            pixels = [images.load(manifest.path(record), size) for manifest, record in some[own]]
            filled = np.zeros((own.stop - own.start, size, size, 3), np.uint8)
            filled[: len(pixels)] = np.reshape(pixels, (-1, size, size, 3))
            encoded = step(vae, sharding.place(images.to_model(filled), grid))
            rows.append(np.asarray(encoded, np.float16)[: len(some)])
            progress.update(len(some))
    return np.concatenate(rows)
