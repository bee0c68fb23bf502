"""`generate`: from a tuned model and a plan to a folder of synthetic lesions with their manifest.

An image follows from its request and the model alone, so the stage resumes from what is there: an image file that is
complete and says that it was made for its request is kept, the rest is made, and the manifest is written last and at
once. Processes divide the batches among themselves and meet only in the folder.
"""

import os
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dermjax import config_file, machine, sharding
from dermjax.data import records
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest
from dermjax.diffusion import samplers
from dermjax.errors import UserError
from dermjax.generation import card
from dermjax.generation.plan import Plan, table
from dermjax.models.stable_diffusion import count
from dermjax.progress import bar, cost, duration, say
from dermjax.run_folder import write_atomically
from dermjax.sampling import credentials, init_images, previews, provenance, render
from dermjax.sampling.init_images import InitImages
from dermjax.sampling.model import Model, load_model
from dermjax.sampling.render import Accounts, Renderer, produce
from dermjax.sampling.requests import Request, batches, rounds
from dermjax.weights import model_files

TEXTS = 4096  # bytes of a file besides its pixels, and of its record
SECONDS_BETWEEN_CHECKS = 1.0  # of what the other processes have made


@dataclass(frozen=True)
class Generation:
    """The images that are requested, how they are divided into batches, what makes them, and their side in pixels."""

    requests: list[Request]
    batches: list[list[Request]]
    model: Model
    init: InitImages
    size: int
    batch: int

    def origin(self, request: Request) -> dict:
        """Returns what the file and the record of an image say of how it was made."""
        return provenance.generation(request, self.size, self.model.digests | self.init.provenance(request))

    def missing(self, workdir: Path, requests: Collection[Request]) -> tuple[set[Request], str]:
        """Returns the requests whose image is not there, damaged or made otherwise, and how (`provenance.missing`)."""
        return provenance.missing(workdir, {request: self.origin(request) for request in requests})


def check(config: ConfigDict) -> None:
    """Raises UserError for options that no prompts and no model would make right."""
    config_file.check(config)
    Plan(**{key: value for key, value in config.plan.to_dict().items() if key != "batch"}).settings()


def load(config: ConfigDict) -> Generation:
    """Returns what a config requests, loaded; what cannot be done is a UserError, before anything is computed."""
    check(config)
    settings = config.plan.to_dict()
    batch = settings.pop("batch")
    requests = Plan(**settings).requests()
    init = init_images.read(config.init.images, config.init.mask, config.init.strength, requests)
    model = load_model(config.model, config.lora, config.lora_weight, config.embeddings, config.long_prompts,
                       config.precision)  # fmt: skip
    size = model.size(config.size)
    for sampler, steps, spacing in {(r.sampler, r.steps, r.spacing) for r in requests}:
        # what it cannot walk fails here
        samplers.get_sampler(sampler).ladder(model.sd.configs["scheduler"], steps, spacing)
    divided = batches(requests, model.largest_batch(batch, size), model.kind)  # a prompt too long fails here
    for warning in card.tuned_warnings(Path(config.lora or model_files.locate(config.model)), settings["prompts"]):
        say(f"generate: {warning}")
    return Generation(requests, divided, model, init, size, max(map(len, divided)))


def run(config: ConfigDict, workdir: Path) -> None:
    """Makes the images that config.plan asks config.model for, and workdir/manifest.jsonl with a record of each."""
    generation = load(config)
    process, processes = jax.process_index(), jax.process_count()
    mine = generation.batches[process::processes]
    own = {request for batch in mine for request in batch}
    missing, differing = generation.missing(workdir, own)
    if differing:
        say(f"generate: {differing}")
    if missing:
        sign = credentials.signer(**config.credentials.to_dict())
        check_storage(workdir, missing, generation.size)
        _make(generation, mine, missing, sign, config.preview_every, workdir)
    left = set(generation.requests) - own
    while left := generation.missing(workdir, left)[0]:  # other processes are at them
        time.sleep(SECONDS_BETWEEN_CHECKS)
    if process == 0:
        entries = tuple(
            provenance.record(workdir, request.image, request.label, generation.origin(request))
            for request in generation.requests
        )
        labels = tuple(sorted(config.plan.prompts))
        sources = [Path(each) for each in (config.model, config.lora, *config.embeddings) if each]
        training_images.pass_on(sources, workdir)
        records.write(workdir / records.FILE, Manifest(labels=labels, root=workdir, records=entries))
        say(f"generate: {len(entries)} images in {workdir / records.FILE}")


def dry_run(config: ConfigDict) -> None:
    """Prints what `run` would make, and how long it would take."""
    generation = load(config)
    say(table(generation.requests, generation.size, generation.batch, generation.model.grid.size))
    _report_cost(generation, generation.requests)


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


def _make(
    generation: Generation,
    mine: list[list[Request]],
    missing: set[Request],
    sign: Callable[[bytes, dict], bytes],
    preview_every: int,
    workdir: Path,
) -> None:
    """Makes the missing images of this process; what is complete stays, though its batch is computed again."""
    model = generation.model
    total = sum(map(len, mine))
    _report_cost(generation, missing)

    def write(request: Request, image: np.ndarray) -> None:
        origin = generation.origin(request)
        write_atomically(workdir / request.image, sign(provenance.png(image, origin), origin))

    with bar(total, "generate", "images", total - len(missing)) as progress:
        placed = model.placed()
        watch = previews.watching(placed.sd, placed.params, preview_every, workdir / previews.FILE, progress)
        renderer = Renderer(placed, watch)
        begin = partial(renderer.begin, init=generation.init, size=generation.size, batch=generation.batch)
        incomplete = [batch for batch in mine if not missing.isdisjoint(batch)]
        work = rounds(incomplete, renderer.grid.size, model.kind)
        accounts = produce(work, begin, missing, write, progress.update)
    say(f"generate: {_summary(accounts, renderer.grid.size)}")


def _report_cost(generation: Generation, missing: Collection[Request]) -> None:
    """Says what it will cost; how long, where that has been measured: on a CPU."""
    model, size, batch = generation.model, generation.size, generation.batch
    grid, seconds = model.grid, {}
    if sharding.platform(grid) == "cpu":
        # strength is the share of the steps that are taken from an init image
        work = render.processor_seconds(model.sd, model.params, missing, size)
        seconds["seconds"] = generation.init.strength * work
    need, have = render.memory(model.sd, model.params, size, grid), sharding.free_memory(grid)
    room = f"up to {machine.format_bytes(needed_disk(len(missing), size))} of disk"
    cost("generate", devices=grid.size, parameters=count(model.params), images=len(missing),
         steps=generation.requests[0].steps, memory=f"about {machine.format_bytes(need(batch))} of memory", room=room,
         **seconds)  # fmt: skip
    if need(batch) > have:
        fitting = next((n for n in range(batch - 1, 0, -1) if need(n) < have), None)
        other = f"config.plan.batch = {fitting}" if fitting else "a smaller config.size"
        say(f"generate: warning: {machine.format_bytes(have)} of memory are free; give {other}")


def _summary(accounts: Accounts, devices: int) -> str:
    """Returns the accounts in words."""
    rate, share = accounts.images / accounts.seconds, accounts.device_seconds / accounts.seconds
    worked = "the device was" if devices == 1 else f"the {devices} devices were"
    return (
        f"{rate:.3g} images a second since the first batch began, {duration(accounts.seconds)} in all, "
        f"in {share:.1%} of which {worked} at work"
    )
