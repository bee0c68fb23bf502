"""What a model was tuned for, as the card beside it says: the classes and the prompts that it learnt.

The work that a config of `generate` comes to: what is asked for and what makes it, all of it checked.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import config_file, sharding
from dermjax.data.records import Record
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.generation import plan
from dermjax.models.stable_diffusion import count
from dermjax.progress import say
from dermjax.sampling import init_images, model, previews, provenance
from dermjax.sampling.init_images import Source
from dermjax.sampling.model import Model
from dermjax.sampling.requests import Request, batches, check_settings, side
from dermjax.weights import model_files

CARD = "README.md"
CONFIG = re.compile(r"^## Config\n+```json\n(.*?)\n```$", re.DOTALL | re.MULTILINE)  # as `tune` writes it


def tuned_prompts(path: Path) -> dict[str, str] | None:
    """Returns label -> prompt of the tuning that a model folder or a file came from, None where no card tells.

    The card is in the folder, or beside the file.
    """
    card = (path if path.is_dir() else path.parent) / CARD
    found = CONFIG.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    try:
        told = json.loads(found[1])["prompts"] if found else None
    except (ValueError, KeyError):  # a card of somebody else's
        return None
    return told if isinstance(told, dict) else None


def tuned_warnings(path: Path, asked: Collection[str]) -> list[str]:
    """Returns what to say before a model, or the LoRA that is merged into one, is asked for classes it may not know."""
    taught = tuned_prompts(path)
    if taught is None:
        return [
            f"warning: nothing beside {path} says which classes it was tuned for; images of "
            f"{' and '.join(sorted(asked))} may not show their class"
        ]
    return [
        f"warning: {path} was not tuned for the class {label!r}, only for {', '.join(sorted(taught))}; images of it "
        "may show anything"
        for label in sorted(set(asked) - set(taught))
    ]


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
    previews.check(config.preview_every)
    asked = config.plan
    if asked.batch < 1:
        raise UserError(f"plan.batch = {asked.batch}: give at least 1")
    check_settings(asked.samplers, asked.steps, asked.spacing, asked.guidance, asked.guidance_rescale,
                      asked.guidance_interval, asked.deep_cache)  # fmt: skip
    config_file.check(config)


def read(config: ConfigDict) -> Work:
    """Returns the work of a config; whatever it cannot do is a UserError, before anything is computed."""
    check(config)
    settings = config.plan.to_dict()
    batch = settings.pop("batch")
    asked = plan.requests(**settings)
    start = init_images.read(config.init.images, config.init.mask, config.init.strength, asked)
    maker = model.read(config.model, config.lora, config.lora_weight, config.embeddings, config.long_prompts,
                       config.precision)  # fmt: skip
    size = side(config.size, maker.sd)
    for sampler, steps, spacing in {(r.sampler, r.steps, r.spacing) for r in asked}:
        named(sampler).ladder(maker.sd.configs["scheduler"], steps, spacing)  # what it cannot walk fails here
    lengths = {request: maker.tokens(request).shape[1] for request in asked}  # a prompt too long fails here
    for warning in tuned_warnings(Path(config.lora or model_files.locate(config.model)), settings["prompts"]):
        say(f"generate: {warning}")
    if sharding.is_large(count(maker.params)):
        batch = min(batch, max(1, PIXELS // size**2))
    divided = batches(asked, batch, lengths)
    return Work(asked, divided, lengths, maker, start, size, max(map(len, divided)))
