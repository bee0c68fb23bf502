"""The photographs of a manifest, and experts' masks of them, as squares that are decoded once and kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dermjax import run_folder
from dermjax.data import images, records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.training.disk_cache import digest_of, load_or_compute

SIDE = 512  # pixels that photographs are kept at


def read(manifest: str, split: str, side: int, workdir: Path) -> np.ndarray:
    """Returns the kept photographs of one split of a manifest, uint8 [N, side, side, 3].

    Raises:
      UserError: the manifest is broken, or has none.
    """

    def decode(given: Manifest, chosen: list[Record]) -> np.ndarray:
        return images.load_all([given.path(record) for record in chosen], side, f"{split} photographs")

    return _kept("photographs", manifest, split, side, workdir, decode)


def read_masks(manifest: str, split: str, side: int, workdir: Path) -> np.ndarray:
    """Returns the masks of the same photographs, uint8 [N, side, side], 255 on the lesion; UserError without one."""

    def decode(given: Manifest, chosen: list[Record]) -> np.ndarray:
        without = [record.image for record in chosen if not given.mask(record)]
        if without:
            raise UserError(f"{manifest}: {without[0]} has no mask beside it, nor have {len(without) - 1} others")
        masks = images.load_all([given.mask(record) for record in chosen], side, f"{split} masks")
        return np.ascontiguousarray(masks[..., 1])

    return _kept("masks", manifest, split, side, workdir, decode)


def _kept(
    name: str, manifest: str, split: str, side: int, workdir: Path,
    decode: Callable[[Manifest, list[Record]], np.ndarray],
) -> np.ndarray:  # fmt: skip
    given = records.read(Path(manifest))
    chosen = given.split(split)
    if not chosen:
        raise UserError(f"{manifest}: no kept image in its {split} split; make the manifest with `prepare`")
    digests = "".join(record.sha256 for record in chosen).encode()
    causes = {
        run_folder.NUMERIC_VERSIONS: {"images": images.NUMERIC_VERSION},
        run_folder.SUBJECT: f"{split}, {side} px",
        "images": digest_of([np.frombuffer(digests, np.uint8)]),
    }
    return load_or_compute(workdir, name, causes, lambda: decode(given, chosen))
