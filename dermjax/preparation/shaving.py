"""The images of a manifest without their dark hairs, written beside it: an ablation, see `data.hair`."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from dermjax import machine, progress
from dermjax.data import digests, hair, images
from dermjax.data.records import Manifest, Record


def shaved(manifest: Manifest, workdir: Path) -> Manifest:
    """Writes images/<image>.png for every record; the manifest of these, which say what was done to them."""
    with (
        ThreadPoolExecutor(machine.cores()) as pool,
        progress.bar(len(manifest.records), "removing hairs", "images", 0) as bar,
    ):
        records = []
        for record in pool.map(partial(_shaved, manifest, workdir), manifest.records):
            records.append(record)
            bar.update()
    return Manifest(labels=manifest.labels, root=workdir, records=tuple(records))


def _shaved(manifest: Manifest, workdir: Path, record: Record) -> Record:
    image = f"images/{record.image}.png"
    images.keep(workdir / image, images.png(hair.without_hair(images.whole(manifest.path(record)))))
    told, mask = record.attributes | {"hairs_removed": "as DullRazor"}, manifest.mask(record)
    if mask:
        kept = f"masks/{record.image}{mask.suffix}"
        images.keep(workdir / kept, mask.read_bytes())
        told["mask"] = told["mask"] | {"image": kept}
    return replace(record, image=image, sha256=digests.sha256(workdir / image), attributes=told)
