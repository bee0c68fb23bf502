"""What frozen networks make of images and texts, computed once and kept on disk under a digest of its causes.

So a resumed or repeated run does not compute it again, runs may share a folder, and another model or data set, another
arithmetic or other code never meets stale arrays.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from jax.experimental import multihost_utils

from dermjax import run_folder
from dermjax.errors import UserError


def load_or_compute(folder: Path, name: str, causes: Mapping, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the array that compute() gives, mapped from the folder's file of what follows from `causes`.

    causes: as `run_folder.derived` takes them. Where there is no such file, every process computes the array and the
    first one writes it.

    Raises:
      UserError: the file is damaged.
    """
    path = run_folder.derived(folder, name, causes).with_suffix(".npy")
    # the first process looks: on NFS one that has looked in vain does not see for a while what another one writes
    if not multihost_utils.broadcast_one_to_all(np.array(jax.process_index() == 0 and path.exists())):
        if jax.process_index() == 0:
            run_folder.report_stale(path, causes)
        array = compute()
        if jax.process_index() == 0:
            run_folder.write_causes(path, causes)
            write_array(path, array)
        multihost_utils.sync_global_devices(f"dermjax: {name} written")
    try:
        # as a plain array: jax.device_put takes no memmap to the devices of several processes
        return np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and it is computed again") from error


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as np.save does, complete or not at all; OSError where there is no room.

    Into a file that it knows numpy writes by C's library, whose errors have no number, and loses the end of an array
    without one: so it gets a file that is nothing but a place to write to.
    """
    with run_folder.writing(path) as file:
        np.save(SimpleNamespace(write=file.write), array)


def digest_of(arrays: Iterable[np.ndarray], config: Mapping | None = None) -> str:
    """Returns the digest of arrays, as of a network's parameters, and of its config: 16 hex digits."""
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode() if config else b"")
    for each in arrays:
        total.update(np.ascontiguousarray(each))
    return total.hexdigest()[:16]
