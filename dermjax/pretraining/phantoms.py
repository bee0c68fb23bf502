"""The captioned phantoms that the base model learns from, as files of the run folder.

Phantoms are made once, in chunks, by one process a core; a chunk that is there is whole and is not made again.
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from dermjax import machine
from dermjax.data.phantom import dataset
from dermjax.progress import bar
from dermjax.run_folder import write_atomically

CHUNK = 500


def make(folder: Path, number: int, size: int, first_seed: int) -> tuple[np.ndarray, list[str]]:
    """Returns images uint8 [number, size, size, 3] (memory-mapped) and their captions; makes what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"{at:06d}", range(first_seed + at, first_seed + min(at + CHUNK, number)), size)
            for at in range(0, number, CHUNK)]  # fmt: skip
    missing = [job for job in jobs if not job[0].with_suffix(".json").exists()]
    done = number - sum(len(job[1]) for job in missing)
    spawn = multiprocessing.get_context("spawn")  # a forked child of a process that runs JAX can hang
    with bar(number, "phantoms", "images", done) as progress, ProcessPoolExecutor(machine.cores(), spawn) as pool:
        for made in pool.map(chunk, missing):
            progress.update(made)
    whole = folder / f"images_{number}.npy"
    if not whole.exists():
        join([job[0].with_suffix(".npy") for job in jobs], whole, (number, size, size, 3))
    captions = [text for job in jobs for text in json.loads(job[0].with_suffix(".json").read_text())]
    return np.load(whole, mmap_mode="r"), captions


def chunk(job: tuple[Path, range, int]) -> int:
    """Makes one chunk: the images first, the captions last, whose presence says that both are there."""
    path, seeds, size = job
    images, captions = zip(*((p.image, p.caption) for p in dataset(seeds, size)), strict=True)
    np.save(path.with_suffix(".npy"), np.stack(images))
    write_atomically(path.with_suffix(".json"), json.dumps(captions))
    return len(seeds)


def join(parts: list[Path], whole: Path, shape: tuple[int, ...]) -> None:
    """Joins the chunks into one file that can be mapped, and removes their images."""
    temporary = whole.with_suffix(".part")
    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    at = 0
    for part in parts:
        images = np.load(part)
        out[at : at + len(images)] = images
        at += len(images)
    out.flush()
    os.replace(temporary, whole)
    for part in parts:
        part.unlink()
