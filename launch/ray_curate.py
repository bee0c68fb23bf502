#!/usr/bin/env python3
"""What `dermjax curate` measures on every image, by Ray Data: on this machine, or on all of a Ray cluster.

  pip install "ray[data]", where dermjax is installed; then, from the repository's root:
  python launch/ray_curate.py --config=configs/curate.py --manifest=runs/generate --workdir=runs/curate
  dermjax curate --config=configs/curate.py --config.manifest=runs/generate --config.training=runs/prepare \\
      --workdir=runs/curate

The first leaves looks.jsonl in the workdir, a line an image; killed, the same command goes on. The second finds them
there, measures the real images alone and judges the set, so that its manifest is the one that it writes by itself.

More than 100,000 images are better judged in parts: with --parts=8 the looks of each part lie in its own folder, where
`dermjax curate --config.part=0/8 …` to 7/8 find them, and `dermjax merge runs/curate` joins these.

On a cluster (KubeRay, SkyPilot, `ray job submit`) the manifest and the workdir are on storage that all machines see,
and dermjax is installed on each; images may be in a bucket. --size is for `curate` with another config.size.
"""

import argparse
import pickle
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from dermjax import config_file, progress, run_folder
from dermjax.curation import measurements, run
from dermjax.data import records
from dermjax.errors import UserError
from dermjax.parts import Part

try:
    import ray
except ImportError:  # it is no part of dermjax
    ray = None

BLOCK = 64  # images of a task: some seconds, which is what a kill loses on each core


def map_on_ray(function: Callable, items: Collection, tick: Callable[[], None]) -> Iterator:
    """Yields function(item) of each item, in any order, computed on the cores of all machines."""
    if not items:
        return
    rows = [{"pickled": pickle.dumps(item)} for item in items]
    images = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // BLOCK))
    for row in images.map(lambda row: {"pickled": pickle.dumps(function(pickle.loads(row["pickled"])))}).iter_rows():
        yield pickle.loads(row["pickled"])
        tick()


def measure(manifest: str, workdir: Path, size: int, parts: int) -> None:
    """Leaves the looks of a manifest's images in a workdir, or in the folders of so many parts there."""
    path = records.named(manifest, "manifest")
    total = records.count(path)
    if not ray:
        raise UserError('Ray is not installed; pip install "ray[data]"')
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one
    ray.init(log_to_driver=False)  # on the cluster of RAY_ADDRESS, else on this machine
    with run_folder.lock(workdir, alone=True), progress.bar(total, "curate, by Ray", "images", 0) as bar:
        for part in (Part(parts, index) for index in range(parts)):
            part.check(total, "images")
            folder = workdir / part.folder if parts > 1 else workdir
            run_folder.make_folder(folder)
            found = records.read(path, part.block(total))
            measurements.measure_all(found, found.records, size, folder, bar.update, map_on_ray)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="of curate")
    parser.add_argument("--manifest", required=True, help="of the images")
    parser.add_argument("--workdir", required=True, type=Path, help="of curate")
    parser.add_argument("--size", type=int, help="in pixels (else config.size)")
    parser.add_argument("--parts", type=int, default=1, help="that curate will have (1)")
    given = parser.parse_args()
    try:
        config = config_file.load(given.config)
        config.size = given.size or config.size
        run.check(config)
        if given.parts < 1:
            raise UserError(f"--parts={given.parts}: give 1 or more")
        measure(given.manifest, given.workdir.absolute(), config.size, given.parts)
    except UserError as error:
        print(f"launch/ray_curate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
