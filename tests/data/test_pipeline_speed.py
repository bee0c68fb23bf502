"""The memory of batches stays flat over a long epoch; how fast they come is a case of `dermjax bench`."""

import subprocess
import sys

import pytest

from dermjax.bench.run import draw

FLAT = """
import sys
from pathlib import Path
import numpy as np
from dermjax.data import pipelines
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest, Record
folder, count = Path(sys.argv[1]), int(sys.argv[2])
kind = {"split": "train", "source": "memory", "image_manipulation": "none"}
names = sorted(path.name for path in folder.glob("*.jpg"))
digests = [sha256(folder / name) for name in names]
records = tuple(
    Record(image=names[row % len(names)], sha256=digests[row % len(names)], label="ab"[row % 2], **kind)
    for row in range(count)
)
pipelines.CACHE_BYTES = 0
plan = pipelines.MixturePlan(
    real=Manifest(labels=("a", "b"), root=folder, records=records), synthetic=None, synthetic_fraction=0.0, batch=100,
    rows=np.arange(100), seed=0, mixing="none",
)
batches = pipelines.training_batches(plan, size=32, augment="mild")
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
for number in range(count // 100):
    next(batches)
    if number == count // 1000:
        before = resident()
print(before, resident())
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of JPEGs with as much detail as photographs have."""
    folder = tmp_path_factory.mktemp("data") / "photographs"
    draw(folder)
    return folder


def run(program, *arguments):
    ended = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True)
    return [float(word) for word in ended.stdout.split()]


@pytest.mark.slow
def test_memory_is_flat_over_a_hundred_thousand_records(photographs):
    before, after = run(FLAT, photographs, 100_000)
    print(f"{before:.0f} MiB after a hundredth of the epoch, {after:.0f} MiB at its end")
    assert after - before < 50
