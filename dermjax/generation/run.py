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
from dermjax.data.tokens import tokenizer, tokens
from dermjax.errors import UserError
from dermjax.generation import plan, provenance
from dermjax.generation.plan import Request
from dermjax.generation.render import processor_seconds, renderer
from dermjax.models.stable_diffusion import Params, StableDiffusion, count
from dermjax.progress import bar, cost, say
from dermjax.run_folder import write_atomically
from dermjax.weights import diffusers


def run(config: ConfigDict, workdir: Path) -> None:
    """Makes the images that config.plan asks config.model for, and workdir/manifest.jsonl with a record of each."""
    settings = config.plan.to_dict()
    batch = settings.pop("batch")
    asked = plan.requests(**settings)
    grid, folder = _mesh(batch), _folder(config.model)
    model, params = _model(folder, asked)
    size = _size(config.size, model)
    digest = diffusers.digest(folder)
    generations = {request: provenance.generation(request, size, digest) for request in asked}
    missing = {r for r in asked if provenance.read(workdir / r.image) != generations[r]}

    if missing:
        cost("generate", devices=grid.size, parameters=count(params), images=len(missing), steps=config.plan.steps,
             **_expected(grid, model, params, missing, size))  # fmt: skip
        render = renderer(model, params, tokenizer(model.tokenizer), size, batch, grid)
        with bar(len(asked), "generate", "images", len(asked) - len(missing)) as progress:
            for requests in plan.batches(asked, missing, batch):
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


def _expected(grid: Mesh, model: StableDiffusion, params: Params, missing: set[Request], size: int) -> dict:
    """Returns how long it may take, where that has been measured: on a CPU."""
    on_cpu = grid.devices.flat[0].platform == "cpu"
    return {"seconds": processor_seconds(model, params, missing, size)} if on_cpu else {}


def _folder(model: str) -> Path:
    """Returns the model folder that the config names; one that is none is a UserError."""
    if not model:
        raise UserError("config.model is empty; give a model folder in diffusers' layout, such as runs/tune/model")
    if not (Path(model) / "model_index.json").is_file():
        raise UserError(f"model {model}: no model_index.json; give a folder in diffusers' layout")
    return Path(model)


def _model(folder: Path, asked: list[Request]) -> tuple[StableDiffusion, Params]:
    """Returns the model of a folder once its tokenizer has taken every prompt, so that a long one fails at once."""
    tokens(tokenizer(folder / "tokenizer"), sorted({text for r in asked for text in (r.prompt, r.negative)}))
    return diffusers.read(folder)


def _size(size: int, model: StableDiffusion) -> int:
    """Returns the side in pixels of the images, the model's own for 0; one the UNet cannot halve is a UserError."""
    cell = model.factor * 2 ** (len(model.configs["unet"]["block_out_channels"]) - 1)
    if size < 0 or size % cell:
        near = max(1, round(size / cell)) * cell
        raise UserError(f"size = {size}: this model makes multiples of {cell} px; give {near}, or 0 for its own")
    return size or model.size


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
