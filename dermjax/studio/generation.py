"""Making images: the models there are, menus that write prompts, a job a request, and the images it leaves.

Images are made one a device at a time, whatever their number: the first is there soonest, a stop waits for no other,
and an image has the same bytes alone and among others. They live in memory, the last GALLERY of them, until somebody
takes them home.
"""

import io
import secrets
import tempfile
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from starlette.responses import Response

from dermjax import machine, sharding
from dermjax.config_file import LARGEST_SEED
from dermjax.data import images, records
from dermjax.data.phantoms import captions
from dermjax.data.phantoms.appearance import COLOURS, SECOND_COLOURS, SIZES
from dermjax.data.records import Manifest
from dermjax.diffusion import samplers
from dermjax.errors import Stopped, UserError
from dermjax.run_folder import write_atomically
from dermjax.sampling import init_images, previews, provenance
from dermjax.sampling.model import load_model
from dermjax.sampling.render import Renderer, memory, produce
from dermjax.sampling.requests import Request, SamplerSettings, batches, rounds
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder
from dermjax.studio.jobs import Job, Queue
from dermjax.studio.uploads import own_text
from dermjax.weights import model_files

SHIPPED = ("derm-base", "derm-tiny")
PROMPT = "dermoscopy photo of one medium brown mole with irregular borders, light skin"
GALLERY = 128  # images that are kept
TEXT = 2000  # characters of a prompt
LABEL = "lesion"
README = """SYNTHETIC IMAGES, FOR RESEARCH USE ONLY. Not a medical device.

Every image here was made by a generative model; none shows a person. Each file says so itself, with the prompt, seed,
sampler and model that it follows from, and so does its line in manifest.jsonl (image_manipulation: synthetic). Keep
these files together, and never test a classifier on them.
"""
MENUS = {
    "number": tuple(captions.NUMBER_WORDS.values()),
    "size": (*SIZES, *captions.LARGER_SIZES),
    "colour": ("any", *COLOURS),
    "second_colour": ("none", *SECOND_COLOURS),
    "borders": tuple(captions.BORDERS),
    "texture": ("any", *captions.TEXTURE_WORDS),
    "tone": ("any", *captions.ANGLES),
    "artefact": ("none", *captions.ARTEFACT_WORDS),
}
MENU_FIELDS = {
    name: Field(kind=str, summary=f"the {name.replace('_', ' ')}", choices=choices) for name, choices in MENUS.items()
} | {"photograph": Field(kind=bool, summary="whether it should look like a photograph, not a drawing", default=True)}
FIELDS = {
    "prompt": Field(kind=str, summary="what to draw", default=PROMPT, least=1, most=TEXT),
    "negative_prompt": Field(kind=str, summary="what not to draw", default="", most=TEXT),
    "model": Field(kind=str, summary="a name out of /api/models", default=SHIPPED[0]),
    "sampler": Field(kind=str, summary="a name out of /api/models", default="DPM++ 2M"),
    "steps": Field(kind=int, summary="steps of the sampler", default=20, least=1, most=150),
    "guidance": Field(kind=float, summary="how closely the prompt is followed; 1 is not guided", default=3.5, least=1,
                      most=30),
    "seed": Field(kind=int, summary="of the first image; the next ones count up", default=0, most=LARGEST_SEED),
    "count": Field(kind=int, summary="images to make", default=4, least=1, most=16),
    "size": Field(kind=int, summary="side in pixels; 0 is the model's own", default=0, most=1024),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """An image: the bytes of its PNG file, which say how it was made, and the same as a dict; `model` is its name."""

    png: bytes
    generation: dict
    model: str

    @property
    def name(self) -> str:
        """The name of its file, without what would make it unique."""
        return f"synthetic_{self.model.replace('/', '-')}_{self.generation['seed']}"


class Studio:
    """One model at a time, on the devices, and the gallery."""

    def __init__(self, folder: Folder, queue: Queue):
        self.folder, self.queue = folder, queue
        self.gallery: OrderedDict[str, Made] = OrderedDict()
        self.held: tuple[str, str, Renderer] | None = None  # name, digest, renderer of the last model
        self.job: Job | None = None  # that the renderer works for
        self.before = 0  # steps of the images of the job that are made
        self.lock = threading.Lock()

    def models(self) -> dict:
        """The names of models and samplers, and what the menus offer."""
        return {
            "models": list(self._paths()),
            "samplers": [each.name for each in samplers.SAMPLERS.values()],
            "menus": MENUS,
            "defaults": {name: each.default for name, each in FIELDS.items()},
        }

    def submit(self, *, client: str, model: str, count: int, seed: int, size: int, **given: Any) -> dict:
        """Puts a request into the queue; what no sampler can do is Refused here, before it waits."""
        if model not in self._paths():
            raise Refused("there is no such model; the list of models has their names", 404)
        prompt, negative = (" ".join(given.pop(name).split()) for name in ("prompt", "negative_prompt"))
        settings = SamplerSettings(**given | {"sampler": samplers.get_sampler(given["sampler"]).name})
        settings.check("")
        seeds = [(seed + n) % (LARGEST_SEED + 1) for n in range(count)]
        asked = [
            Request(image=f"image {n}", label="", prompt=prompt, negative=negative, seed=each, **vars(settings))
            for n, each in enumerate(seeds, 1)
        ]
        work = partial(self._make, model=model, asked=asked, size=size)
        job = self.queue.put(Job(client=client, work=work, total=count * settings.steps))
        return self.state(job.key)

    def state(self, key: str) -> dict:
        """How far a job is."""
        job = self.queue.get(key)
        left = job.seconds_left
        return {
            "job": job.key,
            "state": job.state,
            "before_it": self.queue.place(job),
            "step": job.step,
            "steps": job.total,
            "seconds_left": None if left is None else round(left, 1),
            "images": [self._described(each) for each in list(job.images) if each in self.gallery],
            "error": self.folder.say(job.error),
        }

    def stop(self, key: str) -> dict:
        """Stops a job at its next preview."""
        self.queue.stop(self.queue.get(key))
        return self.state(key)

    def preview(self, key: str) -> Response:
        """What a job is at, a small PNG; Refused before the first step."""
        job = self.queue.get(key)
        if not job.preview:
            raise Refused("there is nothing to see yet", 404)
        return Response(job.preview, media_type="image/png")

    def image(self, key: str) -> Response:
        """The file of an image."""
        made = self._get(key)
        headers = {"content-disposition": f'inline; filename="{made.name}.png"'}
        return Response(made.png, media_type="image/png", headers=headers)

    def settings(self, body: bytes) -> dict:
        """The settings that a PNG of ours carries; model "" where it is none of those here."""
        text = own_text(body)
        if text is None:
            raise Refused("this image does not say how it was made; drop a PNG that dermjax made")
        given = {name: text.get("negative_prompt" if name == "negative_prompt" else name) for name in FIELDS}
        given |= {"model": self._named(text.get("model")), "count": 1}
        try:
            return {
                name: given[name] if name == "model" else each.read(name, given[name]) for name, each in FIELDS.items()
            } | {"synthetic": text.get("synthetic") is True}
        except Refused as refusal:
            raise Refused(f"the settings in this image are damaged: {refusal}") from None

    def zipped(self, images: str) -> Response:
        """A zip of images, keys divided by commas: their files, a manifest, and a README that says what they are."""
        keys = list(dict.fromkeys(filter(None, images.split(","))))
        if not keys:
            raise Refused("choose at least one image")
        chosen = {key: self._get(key) for key in keys}
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "images").mkdir()
            lines = []
            for number, made in enumerate(chosen.values(), 1):
                file = f"images/{made.name}_{number:03d}.png"
                write_atomically(root / file, made.png)
                lines.append(provenance.record(root, file, LABEL, made.generation))
            records.write(root / records.FILE, Manifest(labels=(LABEL,), root=root, records=tuple(lines)))
            write_atomically(root / "README.txt", README)
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(each for each in root.rglob("*") if each.is_file()):
                    archive.write(path, f"dermjax_synthetic/{path.relative_to(root).as_posix()}")
        headers = {"content-disposition": 'attachment; filename="dermjax_synthetic.zip"'}
        return Response(buffer.getvalue(), media_type="application/zip", headers=headers)

    def _make(self, job: Job, *, model: str, asked: list[Request], size: int) -> None:
        """The work of a job, in the queue's thread."""
        name, _, renderer = self._renderer(model)
        size, self.job, self.before = renderer.model.size(size), job, 0
        placed = renderer.model
        _check_memory(renderer, size)
        work = rounds(batches(asked, 1, placed.kind), renderer.grid.size, placed.kind)
        init = init_images.read("", "", 1.0, asked)

        def keep(request: Request, pixels: np.ndarray) -> None:
            generation = provenance.generation(request, size, placed.digests)
            key = secrets.token_urlsafe(12)
            with self.lock:
                self.gallery[key] = Made(provenance.png(pixels, generation), generation, name)
                job.images.append(key)
                while len(self.gallery) > GALLERY:
                    self.gallery.popitem(last=False)

        for each in work:  # a round at a time, so that its images are there before the next one begins
            if job.told_to_stop:
                raise Stopped("stopped")
            produce([each], partial(renderer.begin, init=init, size=size, batch=1), asked, keep, lambda n: None)
            self.before += sum(map(len, each)) * asked[0].steps
        job.step = job.total

    def _renderer(self, model: str) -> tuple[str, str, Renderer]:
        path = self._paths()[model]
        digest = model_files.digest(model_files.locate(path))
        if not self.held or self.held[:2] != (model, digest):
            self.held = None  # before the next one is loaded: there is memory for one
            placed = load_model(path, "", 1.0, (), "refuse", "").placed()
            channels = placed.sd.configs["vae"]["latent_channels"]
            decode = jax.jit(placed.sd.decode)  # as one program: a third of the time of one by one
            colours = previews.colours_of(lambda latents: decode(placed.params, latents), channels)
            watch = partial(previews.watched, every=1, colours=colours, show=self._show)
            self.held = (model, digest, Renderer(placed, watch))
        return self.held

    def _show(self, step: np.ndarray, pixels: np.ndarray) -> None:
        """Called by the sampler after every step; what it raises ends the computation there."""
        preview = images.encode_png(previews.image_grid(np.asarray(pixels)))
        self.job.reach(min(self.before + int(step), self.job.total), preview)

    def _paths(self) -> dict[str, str]:
        """The models by name: those that ship, and the tuned ones of the runs."""
        paths = {name: name for name in SHIPPED}
        for path, names in self.folder.folders():
            index = path / "model" / "model_index.json"
            if "model" in names and Path(index.resolve()).is_relative_to(self.folder.root) and index.is_file():
                name = self.folder.name(path / "model")
                paths[name] = str(path / "model")
        return paths

    def _named(self, digest: Any) -> str:
        """The name of the model with a digest, "" for none."""
        known = ((name, model_files.digest(model_files.locate(path))) for name, path in self._paths().items())
        return next((name for name, each in known if each == digest), "")

    def _get(self, key: str) -> Made:
        if key not in self.gallery:
            raise Refused("this image is no longer kept; make it again from its settings", 404)
        return self.gallery[key]

    def _described(self, key: str) -> dict:
        made = self._get(key)
        told = ("prompt", "negative_prompt", "seed", "sampler", "steps", "guidance", "size")
        return {"image": key, "synthetic": True, "name": made.name, "model": made.model} | {
            name: made.generation[name] for name in told
        }


def _check_memory(renderer: Renderer, size: int) -> None:
    """Refuses a size whose attention would take more memory than there is, and the studio with it."""
    model, grid = renderer.model, renderer.grid
    need, have = memory(model.sd, model.params, size, grid)(1), sharding.free_memory(grid)
    if need > have:
        raise UserError(
            f"{size} px take about {machine.format_bytes(need)} of memory and {machine.format_bytes(have)} are free; "
            "give a smaller size"
        )


def written_prompt(**chosen: Any) -> dict:
    """The prompt that the menus write, in the words that the base models know."""
    texture, borders = chosen["texture"], chosen["borders"]
    parameters = {
        "photograph": chosen["photograph"],
        "number": next(n for n, word in captions.NUMBER_WORDS.items() if word == chosen["number"]),
        "size_name": chosen["size"],
        "colour": "" if chosen["colour"] == "any" else chosen["colour"],
        "second_colour": "" if chosen["second_colour"] == "none" else chosen["second_colour"],
        "irregularity": captions.BORDERS[borders],
        "texture": "" if texture == "any" else texture,
        "veil": False,
        "tone": "" if chosen["tone"] == "any" else chosen["tone"],
        "blur": False,
        chosen["artefact"]: True,
    }
    return {"prompt": captions.caption(parameters, None)}
