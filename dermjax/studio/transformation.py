"""Transform: lesions of an image made larger, smaller, more, or on another skin; before and after are measured.

Place in the flow: an upload, a made image or one of a manifest -> a mask, proposed by `segment` or painted -> a job of
`transformation` (the sketch, the region, the pasted pixels) -> the queue and the gallery of Generate. Uploads live in
memory alone, the last KEPT of them. S is the side of a model's images.
"""

import secrets
import tempfile
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.responses import Response

from dermjax.config_file import LARGEST_SEED
from dermjax.data import digests, images
from dermjax.data.imaging.segmentation import Segmentation, measure_mask
from dermjax.data.records import Record
from dermjax.diffusion import ladders
from dermjax.errors import UserError
from dermjax.sampling import provenance
from dermjax.sampling.init_images import InitImage, InitImages
from dermjax.sampling.requests import Request
from dermjax.segmentation import segment
from dermjax.studio import generation
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder
from dermjax.studio.generation import LABEL, Made, Studio
from dermjax.studio.jobs import Job
from dermjax.studio.uploads import decoded, digest, open_upload, other_text, own_text
from dermjax.transformation import measures
from dermjax.transformation.jobs import Job as PlannedJob
from dermjax.transformation.jobs import Subject, plan_job
from dermjax.transformation.report import Outcome
from dermjax.transformation.run import pasted
from dermjax.transformation.sketches import SKETCHES

KEPT = 16  # images that can be transformed, of all clients
SIDE = 512  # pixels of such an image
TEMPLATE = "dermoscopy photo of {number} {size} mole(s)[, {tone} skin]"
TOLERANCE = 5.0  # degrees that skin may be outside of what its word stands for, as configs/transform.py has it
FIELDS = {
    "source": Field(kind=str, summary="the key of an image that is transformed", most=40),
    "transformation": Field(kind=str, summary="what changes", choices=tuple(SKETCHES)),
    "factor": Field(kind=float, summary="how many times as wide, or as narrow", default=1.5, least=1.05, most=4),
    "strength": Field(kind=float, summary="how far from the sketch: 0.2 varies details, 1 leaves little", default=0.5,
                      least=0.05, most=1),
} | {name: each for name, each in generation.FIELDS.items() if name not in ("prompt", "count")} | {
    "count": Field(kind=int, summary="images to make, each with a seed of its own", default=1, least=1, most=4),
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """An image to transform: uint8 [SIDE, SIDE, 3], its lesions at that side, and the record that it has or would."""

    pixels: np.ndarray
    lesions: Segmentation
    record: Record

    def measured(self) -> dict:
        """What is shown of it: number, area and tone of its lesions, how sure the mask is, whether it is synthetic."""
        measure = asdict(measures.measure(self.lesions))
        return measure | {"certainty": round(self.lesions.certainty, 3), "synthetic": self.record.synthetic}


@dataclass(frozen=True)
class Change:
    """What is asked for: the source, a request an image, and the values of FIELDS."""

    source: Source
    requests: tuple[Request, ...]
    asked: dict[str, Any]

    def planned(self, side: int) -> dict[Request, PlannedJob]:
        """What the stage would plan for each image of `side` pixels, all from one sketch, by its request."""
        pixels = images.load_any(self.source.pixels, side)
        mask = np.asarray(Image.fromarray(self.source.lesions.mask).resize((side, side)))
        lesions = measure_mask(pixels, mask)
        if not lesions.count:
            raise UserError(f"the lesions are too small to be seen at {side} px; give a larger side, or paint more")
        subject = Subject(self.source.record, pixels, lesions, measures.measure(lesions))
        transformation, factor, strength = (self.asked[name] for name in ("transformation", "factor", "strength"))
        first = plan_job(subject, transformation, "inpaint", TEMPLATE, factor, strength, self.requests[0], {})
        jobs = [replace(first, request=replace(first.request, seed=each.seed)) for each in self.requests]
        return {each.request: each for each in jobs}


class Transformations:
    """The images that are transformed."""

    def __init__(self, folder: Folder, studio: Studio):
        self.folder, self.studio = folder, studio
        self.sources: OrderedDict[str, Source] = OrderedDict()

    def upload(self, body: bytes) -> dict:
        """An image that somebody drops; its own word, or AUTOMATIC1111's, makes it synthetic."""
        told = own_text(body) or other_text(body)
        manipulation = "synthetic" if told and told.get("synthetic") else "none"
        with open_upload(body) as image:
            return self._keep(decoded(image, SIDE), _record("upload", digest(body), manipulation, told or {}))

    def pick_made(self, image: str) -> dict:
        """An image of the gallery."""
        made = self.studio.made(image)
        record = _record(made.name, digest(made.png), "synthetic", made.generation)
        return self._keep(images.load_any(Image.open(BytesIO(made.png)), SIDE), record)

    def pick_listed(self, manifest: str, sha256: str) -> dict:
        """A training image of a manifest: any other would carry the answer into training."""
        read, record = self.folder.record(manifest, sha256)
        if record.split != "train":
            raise Refused(f"this image is of the {record.split} split; made from it, images would carry answers into"
                          " training")  # fmt: skip
        return self._keep(images.load(read.path(record), SIDE), record)

    def picture(self, source: str) -> Response:
        """The pixels that are transformed."""
        return Response(images.encode_png(self._get(source).pixels), media_type="image/png")

    def mask(self, source: str) -> Response:
        """The mask, white on lesions."""
        return Response(measures.mask_png(self._get(source).lesions.mask), media_type="image/png")

    def paint(self, source: str, body: bytes) -> dict:
        """Takes a painted mask, light where lesions are, in place of the one that is there."""
        known = self._get(source)
        with open_upload(body) as image:
            mask = decoded(image, SIDE).mean(-1) > 127
        if not mask.any():
            raise Refused("the mask is empty; paint where the lesions are")
        self.sources[source] = replace(known, lesions=measure_mask(known.pixels, mask))
        return self.sources[source].measured()

    def submit(self, *, client: str, source: str, count: int, **asked: Any) -> dict:
        """Puts a change into the queue: `count` images with seeds that count up, `asked` for by the other FIELDS."""
        known = self._get(source)
        if not known.lesions.count:
            raise Refused("no lesion is seen in this image; paint the mask")
        self.studio.check(asked["model"], asked["lora"])
        ladders.walked_steps(asked["steps"], asked["strength"])
        seeds = [(asked["seed"] + n) % (LARGEST_SEED + 1) for n in range(count)]
        requests = [generation.request_of(asked | {"prompt": "", "seed": seed}, 0) for seed in seeds]
        change = Change(known, tuple(requests), asked)
        total = count * asked["steps"]
        job = self.studio.queue.put(Job(client=client, work=partial(self._make, change=change), total=total))
        return self.studio.state(job.key)

    def _make(self, job: Job, *, change: Change) -> None:
        """The work of a job, in the queue's thread."""
        self.studio.begin(job)
        asked = change.asked
        renderer = self.studio.renderer(asked["model"], asked["lora"], asked["lora_weight"] if asked["lora"] else 0.0)
        side, strength = renderer.model.size(asked["size"]), asked["strength"]
        planned = change.planned(side)
        places = {request: place for place, request in enumerate(planned)}
        sketch = next(iter(planned.values())).sketch
        with tempfile.TemporaryDirectory() as name:
            files = {"init_image": Path(name) / "sketch.png", "init_mask": Path(name) / "region.png"}
            files["init_image"].write_bytes(images.encode_png(sketch.image))
            files["init_mask"].write_bytes(measures.mask_png(sketch.region))
            hashes = {each: digests.sha256(path) for each, path in files.items()}
            init = InitImages(dict.fromkeys(planned, InitImage(*files.values(), hashes)), strength)

            def write(request: Request, image: np.ndarray) -> None:
                of_model = renderer.model.digests | init.provenance(request)
                png, said, known = _finished(planned[request], image, provenance.generation(request, side, of_model))
                self.studio.keep(job, Made(png, said, asked["model"], asked["lora"], places[request], known))

            self.studio.sample(job, renderer, init, list(planned), side, write)
        job.step = job.total

    def _keep(self, pixels: np.ndarray, record: Record) -> dict:
        key, source = secrets.token_urlsafe(12), Source(pixels, segment(pixels), record)
        self.sources[key] = source
        while len(self.sources) > KEPT:
            self.sources.popitem(last=False)
        return {"source": key} | source.measured()

    def _get(self, key: str) -> Source:
        if key not in self.sources:
            raise Refused("this image is no longer kept; choose it again", 404)
        return self.sources[key]


def _finished(job: PlannedJob, image: np.ndarray, generation: dict) -> tuple[bytes, dict, dict]:
    """A transformed image: its PNG, its generation, and what its record says of it, as the stage's does."""
    image, source = pasted(job, image), job.subject.record
    after = measures.measure(segment(image))
    outside = measures.decibels(job.subject.pixels, image, ~job.sketch.region)
    met = measures.met(job.transformation, job.subject.measure, after, TOLERANCE)
    outcome = Outcome(job, job.subject.measure, after, met, 1, outside).as_json()
    generation |= {"transformation": job.description}
    known = {"label": source.label, "lesion_id": source.lesion_id, "patient_id": source.patient_id}
    known |= {"licence": source.licence or provenance.USE, "attributes": {"transformation": outcome}}
    return provenance.png(image, generation), generation, known


def _record(name: str, sha256: str, manipulation: str, told: dict) -> Record:
    return Record(image=name, sha256=sha256, label=LABEL, split="train", source="studio",
                  image_manipulation=manipulation, generation=told)  # fmt: skip
