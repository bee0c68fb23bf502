"""What frozen networks make of images and prompts, computed once and kept on disk under a digest of its causes.

So a resumed or repeated run does not compute it again, runs may share a folder, and another model or data set never
meets stale arrays.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params


def fingerprint(params: Params) -> str:
    """Returns a digest of parameters."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def once(folder: Path, name: str, of: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the array that make() gives, mapped from the folder's file for `of`, a tuple of digests and numbers.

    Where there is no such file, every process makes the array and the first one writes it.

    Raises:
      UserError: the file is damaged.
    """
    digest = hashlib.sha256(repr(of).encode()).hexdigest()[:16]
    path = folder / f"{name}_{digest}.npy"
    if not multihost_utils.broadcast_one_to_all(np.array(path.exists())):
        made = make()
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part.npy")
            np.save(part, made)
            part.rename(path)
        multihost_utils.sync_global_devices(f"dermjax: {name} written")
    try:
        # as a plain array: jax.device_put takes no memmap to the devices of several processes
        return np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and it is computed again") from error
