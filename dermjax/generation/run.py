"""`generate`: from a tuned model and a plan to a folder of synthetic lesions with their manifest.

An image follows from its request and the model alone, so the stage resumes by looking: an image file that is whole and
says that it was made for its request is kept, the rest is made, and the manifest is written last and at once.
"""

import hashlib
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.generation import model, plan, preview, provenance, source
from dermjax.generation.model import Model
from dermjax.generation.plan import Request
from dermjax.generation.render import processor_seconds, renderer
from dermjax.models.stable_diffusion import StableDiffusion, count
from dermjax.progress import bar, cost, say
from dermjax.run_folder import write_atomically


def run(config: ConfigDict, workdir: Path) -> None:
    """Makes the images that config.plan asks config.model for, and workdir/manifest.jsonl with a record of each."""
    settings = config.plan.to_dict()
    batch = settings.pop("batch")
    asked = plan.requests(**settings)
    start = source.read(config.init.images, config.init.mask, config.init.strength, asked)
    grid = _mesh(batch)
    maker = model.read(config.model, config.lora, config.lora_weight, config.embeddings, config.long_prompts)
    size = _size(config.size, maker.sd)
    for sampler, steps, spacing in {(r.sampler, r.steps, r.spacing) for r in asked}:
        named(sampler).ladder(maker.sd.configs["scheduler"], steps, spacing)  # what it cannot walk fails here
    lengths = {request: maker.tokens(request).shape[1] for request in asked}  # a prompt too long fails here
    generations = {r: provenance.generation(r, size, maker.digests | start.named(r)) for r in asked}
    missing = {r for r in asked if provenance.read(workdir / r.image) != generations[r]}

    if missing:
        cost("generate", devices=grid.size, parameters=count(maker.params), images=len(missing),
             steps=config.plan.steps, **_expected(grid, maker, missing, size, start.strength))  # fmt: skip
        with bar(len(asked), "generate", "images", len(asked) - len(missing)) as progress:
            watch = preview.watching(maker.sd, maker.params, config.preview_every, workdir / preview.FILE, progress)
            render = renderer(maker.sd, maker.params, maker.tokens, start, watch, size, batch, grid)
            for requests in plan.batches(asked, missing, batch, lengths):
                for request, image in zip(requests, render(requests), strict=True):
                    if request in missing:  # what is whole stays, though its batch is computed again
                        _write(workdir / request.image, provenance.png(image, generations[request]))
                        progress.update()

    entries = tuple(_record(request, workdir, generations[request]) for request in asked)
    labels = tuple(sorted(settings["prompts"]))
    records.write(workdir / records.FILE, Manifest(labels=labels, root=workdir, records=entries))
    say(f"generate: {len(asked)} images in {workdir / records.FILE}")


def _mesh(batch: int) -> Mesh:
    """Returns the mesh of all devices; a batch that does not divide over it is a UserError."""
    if batch < 1:
        raise UserError(f"plan.batch = {batch}: give at least 1")
    if jax.process_count() > 1:
        raise UserError(f"generate runs in one process, here are {jax.process_count()}; start it without the others")
    grid = sharding.mesh(0, 1)
    sharding.check_batch(batch, grid)
    return grid


def _expected(grid: Mesh, maker: Model, missing: set[Request], size: int, strength: float) -> dict:
    """Returns how long it may take, where that has been measured: on a CPU. Strength is the share of steps taken."""
    on_cpu = grid.devices.flat[0].platform == "cpu"
    return {"seconds": strength * processor_seconds(maker.sd, maker.params, missing, size)} if on_cpu else {}


def _size(size: int, sd: StableDiffusion) -> int:
    """Returns the side in pixels of the images, the model's own for 0; one the UNet cannot halve is a UserError."""
    cell = sd.factor * 2 ** (len(sd.configs["unet"]["block_out_channels"]) - 1)
    if size < 0 or size % cell:
        near = max(1, round(size / cell)) * cell
        raise UserError(f"size = {size}: this model makes multiples of {cell} px; give {near}, or 0 for its own")
    return size or sd.size


def _write(path: Path, file: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file)


def _record(request: Request, workdir: Path, generation: dict) -> Record:
    """Returns the record of a finished image: synthetic, for training only."""
    return Record(
        image=request.image,
        sha256=hashlib.sha256((workdir / request.image).read_bytes()).hexdigest(),
        label=request.label,
        split="train",
        source="dermjax",
        image_manipulation="synthetic",
        licence=provenance.USE,
        generation=generation,
    )
