"""Where images go: whether they can be written, and whether there is room, before the first of them is made.

`generate`: from a tuned model and a plan to a folder of synthetic lesions with their manifest.

An image follows from its request and the model alone, so the stage resumes by looking: an image file that is whole and
says that it was made for its request is kept, the rest is made, and the manifest is written last and at once. Processes
divide the batches among themselves and meet only in the folder.
"""

import os
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dermjax import machine, sharding
from dermjax.data import records
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest
from dermjax.errors import UserError
from dermjax.generation import plan, work
from dermjax.generation.work import Work
from dermjax.models.stable_diffusion import count
from dermjax.progress import bar, cost, duration, say
from dermjax.run_folder import write_atomically
from dermjax.sampling import credentials, previews, provenance, render
from dermjax.sampling.render import Accounts, Batches, processor_seconds, produce, renderer, rounds
from dermjax.sampling.requests import Request

TEXTS = 4096  # bytes of a file besides its pixels, and of its record


def needed_disk(images: int, size: int) -> int:
    """Returns the bytes that so many images of `size` pixels need at most: PNG makes noise no smaller."""
    return images * (3 * size * size + TEXTS)


def check_storage(workdir: Path, missing: Collection[Request], size: int) -> None:
    """Makes the folders of the images; UserError where there is no room for the missing ones or no way to write."""
    machine.check_disk(workdir, needed_disk(len(missing), size), f"{len(missing)} images of {size} px")
    for folder in sorted({(workdir / request.image).parent for request in missing}):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            os.close(file)
            os.unlink(name)
        except OSError as error:
            raise UserError(f"folder {folder}: cannot be written ({error.strerror}); give another --workdir") from error


SECONDS_BETWEEN_LOOKS = 1.0  # at what the other processes have made


def run(config: ConfigDict, workdir: Path) -> None:
    """Makes the images that config.plan asks config.model for, and workdir/manifest.jsonl with a record of each."""
    todo = work.read(config)
    process, processes = sharding.process()
    mine = todo.batches[process::processes]
    own = {request for batch in mine for request in batch}
    missing, otherwise = todo.missing(workdir, own)
    if otherwise:
        say(f"generate: {otherwise}")
    if missing:
        sign = credentials.signer(**config.credentials.to_dict())
        check_storage(workdir, missing, todo.size)
        _make(todo, mine, missing, sign, config.preview_every, workdir)
    left = set(todo.asked) - own
    while left := todo.missing(workdir, left)[0]:  # other processes are at them
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process == 0:
        entries = tuple(todo.record(request, workdir) for request in todo.asked)
        labels = tuple(sorted(config.plan.prompts))
        training_images.pass_on(
            [Path(each) for each in (config.model, config.lora, *config.embeddings) if each], workdir
        )
        records.write(workdir / records.FILE, Manifest(labels=labels, root=workdir, records=entries))
        say(f"generate: {len(todo.asked)} images in {workdir / records.FILE}")


def dry_run(config: ConfigDict) -> None:
    """Prints what `run` would make, and how long it would take."""
    todo = work.read(config)
    grid = todo.maker.grid
    say(plan.table(todo.asked, todo.size, todo.batch, grid.size))
    _tell_cost(todo, todo.asked, grid)


def _make(todo: Work, mine: Batches, missing: set[Request], sign: Callable, preview_every: int, workdir: Path) -> None:
    """Makes the missing images of this process; what is whole stays, though its batch is computed again."""
    maker, grid = todo.maker, todo.maker.grid
    batches = [batch for batch in mine if not missing.isdisjoint(batch)]
    total = sum(map(len, mine))
    _tell_cost(todo, missing, grid)

    def write(request: Request, image: np.ndarray) -> None:
        generation = todo.generation(request)
        write_atomically(workdir / request.image, sign(provenance.png(image, generation), generation))

    with bar(total, "generate", "images", total - len(missing)) as progress:
        params = maker.placed()
        watch = previews.watching(maker.sd, params, preview_every, workdir / previews.FILE, progress)
        begin = renderer(maker.sd, params, maker.tokens, todo.start, watch, todo.size, todo.batch, grid)
        accounts = produce(rounds(batches, grid.size, todo.kind), begin, missing, write, progress.update)
    say(f"generate: {_told(accounts, grid)}")


def _tell_cost(todo: Work, missing: Collection[Request], grid: Mesh) -> None:
    """Says what it will cost; how long, where that has been measured: on a CPU."""
    maker, seconds = todo.maker, {}
    if grid.devices.flat[0].platform == "cpu":
        # strength is the share of the steps that are taken from a picture
        seconds["seconds"] = todo.start.strength * processor_seconds(maker.sd, maker.params, missing, todo.size)
    need, have = render.memory(maker.sd, maker.params, todo.size, grid), sharding.free_memory(grid)
    room = f"up to {machine.format_bytes(needed_disk(len(missing), todo.size))} of disk"
    cost("generate", devices=grid.size, parameters=count(maker.params), images=len(missing), steps=todo.asked[0].steps,
         memory=f"about {machine.format_bytes(need(todo.batch))} of memory", room=room, **seconds)  # fmt: skip
    if need(todo.batch) > have:
        fitting = next((n for n in range(todo.batch - 1, 0, -1) if need(n) < have), None)
        other = f"config.plan.batch = {fitting}" if fitting else "a smaller config.size"
        say(f"generate: warning: {machine.format_bytes(have)} of memory are free; give {other}")


def _told(accounts: Accounts, grid: Mesh) -> str:
    """Returns the accounts in words."""
    rate, share = accounts.images / accounts.seconds, accounts.device_seconds / accounts.seconds
    worked = "the device was" if grid.size == 1 else f"the {grid.size} devices were"
    return (
        f"{rate:.3g} images a second since the first batch began, {duration(accounts.seconds)} in all, "
        f"in {share:.1%} of which {worked} at work"
    )
