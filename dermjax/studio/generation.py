"""Making images: the models there are, menus that write prompts, a job a request, and the images it leaves.

Images are made one a device at a time, whatever their number: the first is there soonest, a stop waits for no other,
and an image has the same bytes alone and among others. They live in memory, the last GALLERY of them, until somebody
takes them home.
"""

import io
import re
import secrets
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
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
from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import Ladder
from dermjax.errors import Stopped, UserError
from dermjax.run_folder import write_atomically
from dermjax.sampling import init_images, previews, provenance
from dermjax.sampling.init_images import InitImages
from dermjax.sampling.model import Model, load_model
from dermjax.sampling.render import Renderer, memory, produce
from dermjax.sampling.requests import Request, batches, rounds
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder
from dermjax.studio.jobs import Job, Queue
from dermjax.studio.uploads import other_text, own_text
from dermjax.weights import lora, model_files, tensor_files

SHIPPED = ("derm-base", "derm-tiny")
PROMPT = "dermoscopy photo of one medium brown mole with irregular borders, light skin"
GALLERY = 128  # images that are kept
TEXT = 2000  # characters of a prompt
LABEL = "lesion"
# of what an image says: what shapes it and cannot be asked for here, and what every image says that has a value for it
NOT_FIELDS = ("spacing", "guidance_rescale", "guidance_interval", "deep_cache", "embeddings", "init_image", "init_mask",
              "strength", "transformation")  # fmt: skip
SAID = ("sampler", "steps", "guidance", "seed", "size")
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
    "lora": Field(kind=str, summary="a name out of /api/models; empty for none", default="", most=300),
    "lora_weight": Field(kind=float, summary="1 is as trained", default=0.8, least=-2, most=2),
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
    """An image: the bytes of its PNG file, which say how it was made, and the same as a dict.

    model and lora are their names here; place is which of the images of its job it is, from 0; known are further
    fields of its record.
    """

    png: bytes
    generation: dict
    model: str
    lora: str
    place: int
    known: dict

    @property
    def name(self) -> str:
        """The name of its file, without what would make it unique, in characters that a header of HTTP can say."""
        model = re.sub(r"[^\w.-]", "-", self.model, flags=re.ASCII)
        return f"synthetic_{model}_{self.generation['seed']}"


@dataclass(frozen=True)
class Held:
    """The model on the devices: its name and digest, the digest ("" for none) and weight of the LoRA in it."""

    model: tuple[str, str]
    lora: tuple[str, float]
    renderer: Renderer


class Studio:
    """One model at a time, on the devices, and the gallery."""

    def __init__(self, folder: Folder, queue: Queue):
        self.folder, self.queue = folder, queue
        self.gallery: OrderedDict[str, Made] = OrderedDict()
        self.held: Held | None = None
        self.job: Job | None = None  # that the renderer works for
        self.before = 0  # steps of the images of the job that are made
        self.lock = threading.Lock()

    def models(self) -> dict:
        """The names of models, LoRAs and samplers, and what the menus offer."""
        return {
            "models": list(self._paths()),
            "loras": list(self._loras()),
            "samplers": [each.name for each in samplers.SAMPLERS.values()],
            "menus": MENUS,
            "defaults": {name: each.default for name, each in FIELDS.items()},
        }

    def submit(self, *, client: str, count: int, seed: int, **given: Any) -> dict:
        """Puts a request into the queue: the FIELDS of so many images, whose seeds count up."""
        return self.put(client, [given | {"seed": (seed + n) % (LARGEST_SEED + 1)} for n in range(count)])

    def put(self, client: str, asked: Sequence[dict]) -> dict:
        """Puts images of one model, LoRA and size into the queue, each as FIELDS but `count` has them.

        What no sampler can do is Refused here, before it waits.
        """
        model, adapter, size = (asked[0][name] for name in ("model", "lora", "size"))
        self.check(model, adapter)
        requests = {request_of(each, n): each["lora_weight"] if adapter else 0.0 for n, each in enumerate(asked, 1)}
        work = partial(self._make, model=model, adapter=adapter, asked=requests, size=size)
        job = self.queue.put(Job(client=client, work=work, total=sum(each.steps for each in requests)))
        return self.state(job.key)

    def warm(self) -> None:
        """Compiles what an untouched page asks for, as a job of nobody's, so that the first person does not wait."""
        usual = {name: each.default for name, each in FIELDS.items()}

        def work(job: Job) -> None:
            self.begin(job)
            renderer, request = self.renderer(usual["model"], "", 0.0), request_of(usual, 0)
            size = renderer.model.size(usual["size"])
            self.sample(job, renderer, init_images.NOISE, [request], size, lambda request, pixels: None)

        self.queue.put(Job(client="", work=work, total=usual["steps"]))

    def check(self, model: str, adapter: str) -> None:
        """Refused where there is no model or, unless it is "", no LoRA of these names."""
        if model not in self._paths():
            raise Refused("there is no such model; the list of models has their names", 404)
        if adapter and adapter not in self._loras():
            raise Refused("there is no such LoRA; the list of models has their names", 404)

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
        made = self.made(key)
        headers = {"content-disposition": f'inline; filename="{made.name}.png"'}
        return Response(made.png, media_type="image/png", headers=headers)

    def settings(self, body: bytes) -> dict:
        """The settings that a PNG of ours or of AUTOMATIC1111 carries; "notes" say what of them is not restored."""
        own = own_text(body)
        text = other_text(body) if own is None else own
        if text is None:
            raise Refused("this image does not say how it was made; drop a PNG of dermjax or of AUTOMATIC1111")
        found, notes = {"model": self._named(text.get("model")), "lora": self._lora_named(text), "count": 1}, []
        for name, title in (("model", "its model"), ("lora", "its LoRA")):
            if text.get(name) and not found[name]:
                notes.append(f"{title} is none of those here")
        left_out = [name for name in NOT_FIELDS if text.get(name)] + [name for name in SAID if name not in text]
        notes += [f"its {name.replace('_', ' ')} is left out" for name in left_out]
        given = {name: found.get(name, text.get(name)) for name in FIELDS}
        for name, each in FIELDS.items():
            try:
                found[name] = given[name] if name == "model" else each.read(name, given[name])
                if name == "sampler":
                    found[name] = samplers.get_sampler(found[name]).name
            except UserError as error:
                if own is not None:
                    raise Refused(f"this image was made with what cannot be asked for here: {error}") from None
                found[name] = each.default
                notes.append(f"its {name.replace('_', ' ')} is left out ({error})")
        return found | {"synthetic": text.get("synthetic") is True, "notes": "; ".join(notes)}

    def zipped(self, images: str) -> Response:
        """A zip of images, keys divided by commas: their files, a manifest, and a README that says what they are."""
        keys = list(dict.fromkeys(filter(None, images.split(","))))
        if not keys:
            raise Refused("choose at least one image")
        gone = sum(key not in self.gallery for key in keys)
        if gone:
            raise Refused(f"{gone} of {len(keys)} images are no longer kept; load the page again for the others", 404)
        chosen = {key: self.made(key) for key in keys}
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "images").mkdir()
            lines, labels = [], sorted({each.known["label"] for each in chosen.values()})
            for number, made in enumerate(chosen.values(), 1):
                file = f"images/{made.name}_{number:03d}.png"
                write_atomically(root / file, made.png)
                lines.append(provenance.record(root, file, generation=made.generation, **made.known))
            records.write(root / records.FILE, Manifest(labels=tuple(labels), root=root, records=tuple(lines)))
            write_atomically(root / "README.txt", README)
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(each for each in root.rglob("*") if each.is_file()):
                    archive.write(path, f"dermjax_synthetic/{path.relative_to(root).as_posix()}")
        headers = {"content-disposition": 'attachment; filename="dermjax_synthetic.zip"'}
        return Response(buffer.getvalue(), media_type="application/zip", headers=headers)

    def _make(self, job: Job, *, model: str, adapter: str, asked: dict[Request, float], size: int) -> None:
        """The work of a job, in the queue's thread: requests with the weight of the LoRA on each."""
        self.begin(job)
        places = {request: n for n, request in enumerate(asked)}
        for weight in sorted(set(asked.values())):
            renderer = self.renderer(model, adapter, weight)
            placed, some = renderer.model, [request for request in asked if asked[request] == weight]
            side = placed.size(size)

            def write(request: Request, pixels: np.ndarray, placed: Model = placed, side: int = side) -> None:
                generation = provenance.generation(request, side, placed.digests)
                png = provenance.png(pixels, generation)
                self.keep(job, Made(png, generation, model, adapter, places[request], {"label": LABEL}))

            self.sample(job, renderer, init_images.read("", "", 1.0, some), some, side, write)
        job.step = job.total

    def begin(self, job: Job) -> None:
        """Has previews go to a job that begins."""
        self.job, self.before = job, 0

    def sample(
        self, job: Job, renderer: Renderer, init: InitImages, asked: Sequence[Request], size: int,
        write: Callable[[Request, np.ndarray], None],
    ) -> None:  # fmt: skip
        """Makes the images of a job's requests, a round at a time, so that its images are there before the next one."""
        _check_memory(renderer, size)
        kind, begin = renderer.model.kind, partial(renderer.begin, init=init, size=size, batch=1)
        for each in rounds(batches(asked, 1, kind), renderer.grid.size, kind):
            if job.told_to_stop:
                raise Stopped("stopped")
            produce([each], begin, asked, write, lambda n: None)
            self.before += sum(request.steps for batch in each for request in batch)

    def keep(self, job: Job, made: Made) -> None:
        """Adds an image of a job to the gallery, which forgets its oldest."""
        key = secrets.token_urlsafe(12)
        with self.lock:
            self.gallery[key] = made
            job.images.append(key)
            while len(self.gallery) > GALLERY:
                self.gallery.popitem(last=False)

    def renderer(self, model: str, adapter: str, weight: float) -> Renderer:
        """The model that is held, or another in its place; what is compiled for a model serves every LoRA on it."""
        path = self._paths()[model]
        file = self._loras()[adapter] if adapter else ""
        wanted = (model, model_files.digest(model_files.locate(path)))
        with_lora = (lora.digest(Path(file)) if file else "", weight)
        compiled = None
        if self.held and self.held.model == wanted:
            if self.held.lora == with_lora:
                return self.held.renderer
            compiled = (self.held.renderer.watch, self.held.renderer.functions, self.held.renderer.compiled)
        self.held = None  # before the next one is loaded: there is memory for one
        placed = load_model(path, file, weight, (), "refuse", "").placed()
        renderer = Renderer(placed, compiled[0] if compiled else self._watch(placed))
        if compiled:
            _, renderer.functions, renderer.compiled = compiled
        self.held = Held(wanted, with_lora, renderer)
        return renderer

    def _watch(self, placed: Model) -> Callable[[Denoiser, Ladder], Denoiser]:
        """What shows every step of a model's denoiser."""
        channels = placed.sd.configs["vae"]["latent_channels"]
        decode = jax.jit(placed.sd.decode)  # as one program: a third of the time of one by one
        colours = previews.colours_of(lambda latents: decode(placed.params, latents), channels)
        return partial(previews.watched, every=1, colours=colours, show=self._show)

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

    def _loras(self) -> dict[str, str]:
        """The LoRAs by name: files of tensors in the folders of the runs that hold nothing else."""
        paths = {}
        for folder, names in self.folder.folders():
            for path in (folder / name for name in sorted(names) if name.endswith(".safetensors")):
                if path.is_file() and path.resolve().is_relative_to(self.folder.root) and _is_lora(path):
                    paths[self.folder.name(path)] = str(path)
        return paths

    def _lora_named(self, text: dict) -> str:
        """The name of the LoRA that a text names by its digest, or as AUTOMATIC1111 does by its file; "" for none."""
        wanted = text.get("lora")
        if not wanted:
            return ""  # or all files would be hashed for nothing
        known = ((name, (lora.digest(Path(path)), Path(path).stem)) for name, path in self._loras().items())
        return next((name for name, each in known if wanted in each), "")

    def _named(self, digest: Any) -> str:
        """The name of the model with a digest, "" for none."""
        known = ((name, model_files.digest(model_files.locate(path))) for name, path in self._paths().items())
        return next((name for name, each in known if each == digest), "")

    def made(self, key: str) -> Made:
        """The image of a key; Refused where it is kept no longer."""
        if key not in self.gallery:
            raise Refused("this image is no longer kept; make it again from its settings", 404)
        return self.gallery[key]

    def _described(self, key: str) -> dict:
        made = self.made(key)
        told = ("prompt", "negative_prompt", "seed", "sampler", "steps", "guidance", "size")
        own = {"image": key, "synthetic": True, "name": made.name, "place": made.place}
        own |= {"model": made.model, "lora": made.lora, "lora_weight": made.generation.get("lora_weight", 0.0)}
        own["transformation"] = made.known.get("attributes", {}).get("transformation")
        return own | {name: made.generation[name] for name in told}


def request_of(asked: dict, number: int) -> Request:
    """The request for an image; UserError for what no sampler can do."""
    prompt, negative = (" ".join(asked[name].split()) for name in ("prompt", "negative_prompt"))
    sampler = samplers.get_sampler(asked["sampler"]).name
    request = Request(image=f"image {number}", label="", prompt=prompt, negative=negative, seed=asked["seed"],
                      sampler=sampler, steps=asked["steps"], guidance=asked["guidance"])  # fmt: skip
    request.check("")
    return request


def _is_lora(path: Path) -> bool:
    return _kind(path, path.stat().st_mtime_ns) == tensor_files.LORA


@cache
def _kind(path: Path, changed: int) -> str:
    """What a file of tensors is, "" where it is none; asked once for each state of it."""
    try:
        return tensor_files.kind(tensor_files.open_file(path)[0])
    except UserError:
        return ""


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
