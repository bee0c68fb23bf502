"""That published images were made by a model and show no patient: each file says so itself, and none is a photograph.

A manifest may be mistaken or forged. So the file's own text must say that it is synthetic, and the file must not be a
near-duplicate of a photograph of the training manifest, also mirrored, turned or cropped.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from dermjax import machine, progress
from dermjax.data import examined, neighbours, origin, resemblance
from dermjax.data.examined import Look
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError


def refuse(curated: Manifest, training: Manifest, name: str) -> None:
    """Raises UserError for the first kept image that does not say of itself that it is synthetic, or that is near to a
    photograph of the training manifest; every file's bytes must be those that its manifest names."""
    kept = [record for record in curated.records if record.kept]
    photographs = [record for record in training.records if not record.synthetic]
    with ThreadPoolExecutor(machine.cores()) as pool:
        said = list(pool.map(lambda record: origin.read(curated.path(record)) or {}, kept))
        silent = [record for record, told in zip(kept, said, strict=True) if told.get("synthetic") is not True]
        if silent:
            raise UserError(f"manifest {name}: {silent[0].image} does not say of itself that a model made it (one of "
                            f"{len(silent)} such files); publish files as `generate` wrote them")  # fmt: skip
        known = examined.read(training.home) if training.home else {}
        both = [(curated, record) for record in kept] + [(training, record) for record in photographs]
        looks = []
        with progress.bar(len(both), "comparing with photographs", "images", 0) as bar:
            for look in pool.map(partial(_look, known), both):
                looks.append(look)
                bar.update()
    near = resemblance.confirmed(
        neighbours.near(np.stack([look.views for look in looks])), np.stack([look.cells for look in looks])
    )
    copies = [(kept[one], photographs[other - len(kept)]) for one, other in near[:, :2].tolist()
              if one < len(kept) <= other]  # fmt: skip
    if copies:
        copy, photograph = copies[0]
        raise UserError(f"manifest {name}: {copy.image} is nearly equal to the training photograph {photograph.image} "
                        f"(one of {len(copies)} such pairs); put a verdict against each and curate again")  # fmt: skip


def _look(known: Mapping[str, Look], of: tuple[Manifest, Record]) -> Look:
    """What is kept of the same bytes, else what a look at the image says."""
    manifest, record = of
    return known.get(record.sha256) or examined.look(manifest.path(record), record.sha256, measured=False)
