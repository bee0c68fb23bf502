"""`generate`: from a tuned model and a plan to a folder of synthetic lesions with their manifest.

An image follows from its request and the model alone, so the stage resumes from what is there: an image file that is
complete and says that it was made for its request is kept, the rest is made, and the manifest is written last and at
once. Images are files, or lie in shards of so many. Processes divide the batches, or the shards, among themselves and
meet only in the folder; parts (`parts`) do not even meet there.
"""

import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import jax
import numpy as np
from ml_collections import ConfigDict

from dermjax import buckets, config_file, machine, parts, sharding
from dermjax.data import records, shards, templates
from dermjax.data.archives import layouts
from dermjax.data.export import Item
from dermjax.data.leaks import training_images
from dermjax.diffusion import samplers
from dermjax.errors import UserError
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
CARD = "README.md"
CARD_CONFIG = re.compile(r"^## Config\n+```json\n(.*?)\n```$", re.DOTALL | re.MULTILINE)  # as `tune` writes it


@dataclass(frozen=True)
class Generation:
    """The images that are requested, how they are divided into batches, what makes them, and their side in pixels.

    requests: those of this part, in the order of the plan, and their `places` among its `total`. causes: what all parts
    have in common: the model, and the digest of all requests with what they start from. units: what stays together when
    processes divide the work, each a list of batches: those of a shard, or a single one. signed: whether each file has
    content credentials.
    """

    requests: list[Request]
    places: list[int]
    total: int
    causes: dict[str, object]
    units: list[list[list[Request]]]
    model: Model
    init: InitImages
    size: int
    batch: int
    labels: tuple[str, ...]
    signed: bool

    def origin(self, request: Request) -> dict:
        """Returns what the file and the record of an image say of how it was made."""
        return provenance.generation(request, self.size, self.model.digests | self.init.provenance(request))

    def missing(self, workdir: Path, requests: Collection[Request]) -> tuple[set[Request], str]:
        """Returns the requests whose image is not there, damaged or made otherwise, and how (`provenance.missing`)."""
        return provenance.missing(workdir, {request: self.origin(request) for request in requests}, signed=self.signed)


def check(config: ConfigDict) -> None:
    """Raises UserError for options that no prompts and no model would make right."""
    config_file.check(config)
    Plan(**{key: value for key, value in config.plan.to_dict().items() if key != "batch"}).settings()


def check_words(config: ConfigDict, template: str) -> None:
    """Raises UserError where one template for all classes and the words of a plan do not go together; what a quota
    asks of a class is not looked at, as the classes need not be known."""
    templates.check(template)
    settings = {key: value for key, value in config.plan.to_dict().items() if key != "batch"}
    Plan(**settings | {"prompts": dict.fromkeys(("one", "other"), (template,)), "quotas": {}}).check_words()


def load(config: ConfigDict) -> Generation:
    """Returns what a config requests, loaded; what cannot be done is a UserError, before anything is computed."""
    check(config)
    settings = config.plan.to_dict()
    batch = settings.pop("batch")
    requests, part = Plan(**settings).requests(), parts.read(config.part)
    model = load_model(config.model, config.lora, config.lora_weight, config.embeddings, config.long_prompts,
                       config.precision)  # fmt: skip
    size = model.size(config.size)
    for sampler, steps, spacing in {(r.sampler, r.steps, r.spacing) for r in requests}:
        # what it cannot walk fails here
        samplers.get_sampler(sampler).ladder(model.sd.configs["scheduler"], steps, spacing)
    divided = batches(requests, model.largest_batch(batch, size), model.kind)  # a prompt too long fails here
    units = [[each] for each in divided]
    if config.shard:
        requests, units = _into_shards(requests, divided, config.shard)
    init = init_images.read(config.init.images, config.init.mask, config.init.strength, requests)
    warnings = tuned_warnings(Path(config.lora or model_files.locate(config.model)), settings["prompts"])
    asked = ((r.label, (r.prompt, r.negative, init.image(r))) for r in requests)  # a photograph shows its class too
    for warning in filter(None, [*warnings, templates.same_prompts(asked)]):
        say(f"generate: {warning}")
    if part:
        part.check(len(units), "shards" if config.shard else "batches")
    own = units[part.index :: part.count] if part else units
    wanted = {request for unit in own for each in unit for request in each}
    places = [place for place, request in enumerate(requests) if request in wanted]
    labels = layouts.ordered(set(config.plan.prompts))  # as `prepare` has them
    mine, most = [requests[place] for place in places], max(map(len, divided))
    causes = model.digests | {"plan": _digest(requests, init)}
    signed = any(config.credentials.values())
    return Generation(mine, places, len(requests), causes, own, model, init, size, most, labels, signed)


def _digest(requests: Iterable[Request], init: InitImages) -> str:
    """Returns the digest of requests with what they start from."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(repr((request, init.provenance(request))).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _into_shards(
    requests: list[Request], divided: list[list[Request]], images: int
) -> tuple[list[Request], list[list[list[Request]]]]:
    """Returns the requests, each for an image in a shard of at most `images`, or a batch, and the batches by shard."""
    each = max(1, images // max(map(len, divided)))
    placed, units = {}, []
    for number, first in enumerate(range(0, len(divided), each)):
        shard = f"shards/{number:06d}{shards.SUFFIX}"
        units.append([])
        for batch in divided[first : first + each]:
            placed |= {r: replace(r, image=f"{shard}/{PurePosixPath(r.image).relative_to('images')}") for r in batch}
            units[-1].append([placed[request] for request in batch])
    return [placed[request] for request in requests], units


def run(config: ConfigDict, workdir: Path) -> None:
    """Makes the images that config.plan asks config.model for, and workdir/manifest.jsonl with a record of each.

    Of a part, workdir is its folder, and the images go to the folder above it.
    """
    generation, part = load(config), parts.read(config.part)
    sign, root = credentials.signer(**config.credentials.to_dict()), parts.root(workdir, part)
    process, processes = jax.process_index(), jax.process_count()
    units = generation.units[process::processes]
    own = {request for unit in units for batch in unit for request in batch}
    missing, differing = generation.missing(root, own)
    if differing:
        say(f"generate: {differing}")
    if missing:
        parts.begin(workdir)
        check_storage(root, missing, generation.size)
        _make(generation, units, missing, sign, config.preview_every, workdir, root)
    left = set(generation.requests) - own
    while left := generation.missing(root, left)[0]:  # other processes are at them
        time.sleep(SECONDS_BETWEEN_CHECKS)
    if process == 0:
        entries = (
            provenance.record(root, request.image, request.label, generation.origin(request))
            for request in generation.requests
        )
        training_images.pass_on(generation.model.sources, workdir)
        records.write_stream(workdir / records.FILE, generation.labels, root, entries)
        say(f"generate: {len(generation.requests)} images in {buckets.shown(workdir / records.FILE)}")
        if part:
            done = parts.Finished(stage="generate", part=str(part), total=generation.total, places=generation.places,
                                  left_out=[], causes=generation.causes, findings={})  # fmt: skip
            parts.finish(workdir, done)


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
    for folder in sorted({shards.container(workdir / request.image).parent for request in missing}):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            os.close(file)
            os.unlink(name)
        except OSError as error:
            raise UserError(f"folder {folder}: cannot be written ({error.strerror}); give another --workdir") from error


def _make(
    generation: Generation,
    units: list[list[list[Request]]],
    missing: set[Request],
    sign: Callable[[bytes, dict], bytes],
    preview_every: int,
    workdir: Path,
    root: Path,
) -> None:
    """Makes the missing images of this process; what is complete stays, though its batch is computed again."""
    model, mine = generation.model, [batch for unit in units for batch in unit]
    total, write = sum(map(len, mine)), _write_file
    if shards.container(root / mine[0][0].image) != root / mine[0][0].image:
        incomplete = [unit for unit in units if not all(missing.isdisjoint(batch) for batch in unit)]
        missing = {request for unit in incomplete for batch in unit for request in batch}
        write = Shards(incomplete, generation).write
    _report_cost(generation, missing)

    def finish(request: Request, image: np.ndarray) -> None:
        origin = generation.origin(request)
        write(root, request, sign(provenance.png(image, origin), origin))

    with bar(total, "generate", "images", total - len(missing)) as progress:
        placed = model.placed()
        watch = previews.watching(placed.sd, placed.params, preview_every, workdir / previews.FILE, progress)
        renderer = Renderer(placed, watch)
        begin = partial(renderer.begin, init=generation.init, size=generation.size, batch=generation.batch)
        incomplete = [batch for batch in mine if not missing.isdisjoint(batch)]
        work = rounds(incomplete, renderer.grid.size, model.kind)
        accounts = produce(work, begin, missing, finish, progress.update)
    say(f"generate: {_summary(accounts, renderer.grid.size)}")


def _write_file(root: Path, request: Request, content: bytes) -> None:
    write_atomically(root / request.image, content)


class Shards:
    """Holds the images of each shard until all are there, and writes it then: what is killed before makes it again."""

    def __init__(self, units: list[list[list[Request]]], generation: Generation):
        self.generation, self.lock, self.held = generation, threading.Lock(), {}
        self.wanted = {_shard(unit[0][0]): [request for batch in unit for request in batch] for unit in units}

    def write(self, root: Path, request: Request, content: bytes) -> None:
        """Takes an image; the last one of a shard writes it."""
        shard = _shard(request)
        with self.lock:
            held = self.held.setdefault(shard, {})
            held[request] = content
            if len(held) < len(self.wanted[shard]):
                return
            del self.held[shard]
        shards.write(root / shard, (file for each in self.wanted[shard] for file in self._files(each, held[each])))

    def _files(self, request: Request, content: bytes) -> Iterable[tuple[str, bytes]]:
        path = PurePosixPath(request.image).relative_to(_shard(request))
        entry = provenance.entry(request.image, content, request.label, self.generation.origin(request))
        return Item(str(path.with_suffix("")), path, entry).files(content, self.generation.labels).items()


def _shard(request: Request) -> PurePosixPath:
    """Returns the shard of a request's image, relative to the stage's folder."""
    return PurePosixPath(request.image).parents[1]


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


def tuned_prompts(path: Path) -> dict[str, str] | None:
    """Returns label -> prompt of the tuning that a model folder or a file came from, None where no card says.

    The card is in the folder, or beside the file.
    """
    card = (path if path.is_dir() else path.parent) / CARD
    config = CARD_CONFIG.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    try:
        prompts = json.loads(config[1])["prompts"] if config else None
    except (ValueError, KeyError):  # a card of somebody else's
        return None
    return prompts if isinstance(prompts, dict) else None


def tuned_warnings(path: Path, labels: Collection[str]) -> list[str]:
    """Returns the warnings for classes that a model, or the LoRA that is merged into one, may not know."""
    tuned = tuned_prompts(path)
    if tuned is None:
        return [
            f"warning: nothing beside {path} says which classes it was tuned for; images of "
            f"{' and '.join(sorted(labels))} may not show their class"
        ]
    return [
        f"warning: {path} was not tuned for the class {label!r}, only for {', '.join(sorted(tuned))}; images of it "
        "may show anything"
        for label in sorted(set(labels) - set(tuned))
    ]
