"""Batches come at least as fast as PyTorch's loader makes them, and memory stays flat over a long epoch.

Both sides decode JPEGs of 224 px and draw the same kinds of changes; each runs in a process of its own, in turns. On
PyTorch's side they are what torchvision's transforms call for Pillow images (its wheels need a CUDA build of PyTorch):
RandomResizedCrop, RandomRotation, RandomHorizontalFlip, ColorJitter, ToTensor, Normalize.
"""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SIDE, IMAGES, ROUNDS = 224, 1600, 3

OURS = """
import sys, time
from pathlib import Path
import numpy as np
from dermjax.data import pipelines
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest, Record
folder, augment, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
kind = {"split": "train", "source": "speed", "image_manipulation": "none"}
names = sorted(path.name for path in folder.glob("*.jpg"))
records = tuple(
    Record(image=name, sha256=sha256(folder / name), label="ab"[row % 2], **kind) for row, name in enumerate(names)
)
pipelines.CACHE_BYTES = 0
plan = pipelines.MixturePlan(
    real=Manifest(labels=("a", "b"), root=folder, records=records), synthetic=None, synthetic_fraction=0.0, batch=32,
    rows=np.arange(32), seed=0, mixing="none",
)
batches = pipelines.training_batches(plan, size=224, augment=augment)
for _ in range(8):
    next(batches)
began, spent = time.perf_counter(), time.process_time()
for _ in range(count // 32):
    next(batches)
print(count / (time.perf_counter() - began), count / (time.process_time() - spent))
"""

THEIRS = """
import math, random, resource, sys, time
from pathlib import Path
import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset
folder, augment, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
paths = sorted(folder.glob("*.jpg"))
MEAN = STD = torch.full((3, 1, 1), 0.5)

def resized_crop(image):
    wide, high = image.size
    area, aspect = wide * high * random.uniform(0.5, 1), math.exp(random.uniform(math.log(0.8), math.log(1.25)))
    w, h = min(wide, round(math.sqrt(area * aspect))), min(high, round(math.sqrt(area / aspect)))
    x, y = random.randint(0, wide - w), random.randint(0, high - h)
    return image.crop((x, y, x + w, y + h)).resize((224, 224), Image.Resampling.BILINEAR)

def hue(image, by):
    h, s, v = image.convert("HSV").split()
    turned = np.array(h, dtype=np.uint8) + np.int32(by * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")

def jitter(image, share, turn):
    changes = [lambda i: ImageEnhance.Brightness(i).enhance(random.uniform(1 - share, 1 + share)),
               lambda i: ImageEnhance.Contrast(i).enhance(random.uniform(1 - share, 1 + share))]
    if turn:
        changes += [lambda i: ImageEnhance.Color(i).enhance(random.uniform(1 - share, 1 + share)),
                    lambda i: hue(i, random.uniform(-turn, turn))]
    random.shuffle(changes)
    for change in changes:
        image = change(image)
    return image

class Photographs(Dataset):
    def __len__(self):
        return count + 8 * 32

    def __getitem__(self, index):
        with open(paths[index % len(paths)], "rb") as file:
            image = Image.open(file).convert("RGB")
        if augment == "strong":
            image = resized_crop(image).rotate(random.uniform(-180, 180), Image.Resampling.BILINEAR)
        else:
            image = image.transpose(random.choice([Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180]))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = jitter(image, *((0.2, 8 / 360) if augment == "strong" else (0.1, 0)))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.sub_(MEAN).div_(STD), index % 2

batches = iter(DataLoader(Photographs(), batch_size=32, num_workers=2))
for _ in range(8):
    next(batches)
began, spent = time.perf_counter(), time.process_time()
for _ in range(count // 32):
    next(batches)
seconds, spent = time.perf_counter() - began, time.process_time() - spent
del batches  # so that its workers end and are counted
workers = resource.getrusage(resource.RUSAGE_CHILDREN)
print(count / seconds, count / (spent + (workers.ru_utime + workers.ru_stime) * count / (count + 8 * 32)))
"""

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
    """A folder of JPEGs with as much detail as photographs have: about 15 kB each."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(200):
        coarse = rng.integers(60, 230, (28, 28, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (SIDE, SIDE, 3))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:03d}.jpg", quality=85)
    return folder


def run(program, *arguments):
    ended = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True)
    return [float(word) for word in ended.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["mild", "strong"])
def test_batches_come_as_fast_as_pytorchs(photographs, augment):
    pytest.importorskip("torch")
    rounds = [
        (run(OURS, photographs, augment, IMAGES), run(THEIRS, photographs, augment, IMAGES)) for _ in range(ROUNDS)
    ]
    (ours, ours_a_core), (theirs, theirs_a_core) = np.median(rounds, axis=0)
    print(f"{augment}: ours {ours:.0f}, PyTorch's {theirs:.0f} images/s; {ours_a_core:.0f}, {theirs_a_core:.0f} a core")
    assert ours >= theirs


@pytest.mark.slow
def test_memory_is_flat_over_a_hundred_thousand_records(photographs):
    before, after = run(FLAT, photographs, 100_000)
    print(f"{before:.0f} MiB after a hundredth of the epoch, {after:.0f} MiB at its end")
    assert after - before < 50
