"""What frozen networks make of images and prompts, computed once and kept on disk under a digest of its causes.

So a resumed or repeated run does not compute it again, runs may share a folder, and another model or data set, another
arithmetic or other code never meets stale arrays.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dermjax import run_folder
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params


def fingerprint(params: Params, config: Mapping) -> str:
    """Returns a digest of a network: its parameters and its config."""
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for leaf in jax.tree.leaves(params):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()[:16]


def once(folder: Path, name: str, causes: Mapping, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the array that make() gives, mapped from the folder's file of what follows from `causes` (`run_folder`).

    Where there is no such file, every process makes the array and the first one writes it.

    Raises:
      UserError: the file is damaged.
    """
    path = run_folder.derived(folder, name, causes).with_suffix(".npy")
    if not multihost_utils.broadcast_one_to_all(np.array(path.exists())):
        if jax.process_index() == 0:
            run_folder.tell(path, causes)
        made = make()
        if jax.process_index() == 0:
            run_folder.note(path, causes)
            part = path.with_suffix(f".{os.getpid()}.part.npy")
            np.save(part, made)
            part.rename(path)
        multihost_utils.sync_global_devices(f"dermjax: {name} written")
    try:
        # as a plain array: jax.device_put takes no memmap to the devices of several processes
        return np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and it is computed again") from error
