"""The work that a config of `generate` comes to: what is asked for and what makes it, all of it checked."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import config_file, sharding
from dermjax.data.records import Record
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.generation import model, plan, preview, provenance, refusals, source, tuned
from dermjax.generation.model import Model
from dermjax.generation.plan import Request
from dermjax.generation.source import Source
from dermjax.models.stable_diffusion import StableDiffusion, count
from dermjax.progress import say
from dermjax.weights import model_files

PIXELS = 2**17  # that a CPU makes of a large model at a time: more take memory and are no quicker


@dataclass(frozen=True)
class Work:
    """The images that are asked for, how they are divided into batches, what makes them, and their side in pixels."""

    asked: list[Request]
    batches: list[list[Request]]
    lengths: Mapping[Request, int]  # in tokens
    maker: Model
    start: Source
    size: int
    batch: int

    def generation(self, request: Request) -> dict:
        """Returns what the file and the record of an image say of it."""
        return provenance.generation(request, self.size, self.maker.digests | self.start.named(request))

    def kind(self, request: Request) -> tuple:
        """Returns what requests have in common that one compiled function makes."""
        return request.sampler, self.lengths[request]

    def missing(self, workdir: Path, asked: Collection[Request]) -> tuple[set[Request], str]:
        """Returns the requests whose image is not there, damaged or made otherwise, and how (`provenance.missing`)."""
        return provenance.missing(workdir, {request: self.generation(request) for request in asked})

    def record(self, request: Request, workdir: Path) -> Record:
        """Returns the record of a finished image: synthetic, for training only."""
        return Record(
            image=request.image,
            sha256=hashlib.sha256((workdir / request.image).read_bytes()).hexdigest(),
            label=request.label,
            split="train",
            source="dermjax",
            image_manipulation="synthetic",
            licence=provenance.USE,
            generation=self.generation(request),
        )


def check(config: ConfigDict) -> None:
    """Raises UserError for options that no prompts and no model would make right."""
    preview.check(config.preview_every)
    asked = config.plan
    if asked.batch < 1:
        raise UserError(f"plan.batch = {asked.batch}: give at least 1")
    refusals.settings(asked.samplers, asked.steps, asked.spacing, asked.guidance, asked.guidance_rescale,
                      asked.guidance_interval, asked.deep_cache)  # fmt: skip
    config_file.check(config)


def read(config: ConfigDict) -> Work:
    """Returns the work of a config; whatever it cannot do is a UserError, before anything is computed."""
    check(config)
    settings = config.plan.to_dict()
    batch = settings.pop("batch")
    asked = plan.requests(**settings)
    start = source.read(config.init.images, config.init.mask, config.init.strength, asked)
    maker = model.read(config.model, config.lora, config.lora_weight, config.embeddings, config.long_prompts,
                       config.precision)  # fmt: skip
    size = side(config.size, maker.sd)
    for sampler, steps, spacing in {(r.sampler, r.steps, r.spacing) for r in asked}:
        named(sampler).ladder(maker.sd.configs["scheduler"], steps, spacing)  # what it cannot walk fails here
    lengths = {request: maker.tokens(request).shape[1] for request in asked}  # a prompt too long fails here
    for warning in tuned.warnings(Path(config.lora or model_files.locate(config.model)), settings["prompts"]):
        say(f"generate: {warning}")
    if sharding.large(count(maker.params)):
        batch = min(batch, max(1, PIXELS // size**2))
    batches = plan.batches(asked, batch, lengths)
    return Work(asked, batches, lengths, maker, start, size, max(map(len, batches)))


def side(size: int, sd: StableDiffusion) -> int:
    """Returns the side in pixels of the images, the model's own for 0; a part of a latent cell is a UserError."""
    if size < 0 or size % sd.factor:
        near = max(1, round(size / sd.factor)) * sd.factor
        raise UserError(f"size = {size}: this model makes multiples of {sd.factor} px; give {near}, or 0 for its own")
    return size or sd.size
