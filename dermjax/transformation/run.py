"""From jobs of one way to their images: sketches to files, files to the model, pixels pasted and written.

An image that is whole and says what it was made from is not made again.

`transform`: existing images with their lesions larger, smaller, more, or on another skin, each change measured.

Place in the flow: a manifest, or a picture -> jobs -> sketches/ and regions/ to start from -> the model -> images/,
masks/, manifest.jsonl, transformations.json and report.html. A change that was not reached is tried again with another
seed and closer to its sketch, as often as there are strengths.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from dermjax import run_folder
from dermjax.config_file import LARGEST_SEED
from dermjax.data import digests, images, records
from dermjax.data.imaging import segmentation
from dermjax.data.imaging.segmentation import segment
from dermjax.data.records import Manifest, Record
from dermjax.diffusion import ladders
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import count
from dermjax.progress import bar, cost, say
from dermjax.run_folder import write_atomically
from dermjax.sampling import model, provenance
from dermjax.sampling.init_images import NOISE, Picture, Source
from dermjax.sampling.model import Model
from dermjax.sampling.render import produce, renderer, rounds
from dermjax.sampling.requests import Request, check_settings, side
from dermjax.transformation import jobs, measures, report
from dermjax.transformation.jobs import WAYS, Job
from dermjax.transformation.report import Outcome
from dermjax.transformation.sketches import SKETCHES

FEATHER = 0.03  # of the field: how far within the region the painted pixels fade in


@dataclass(frozen=True)
class Studio:
    """What makes images of jobs: a model, their side in pixels, the images a batch, and the folder that they go to."""

    maker: Model
    size: int
    batch: int
    workdir: Path

    def sketch(self, jobs: Collection[Job]) -> None:
        """Writes what the jobs start from: sketches/ and regions/."""
        for job in jobs:
            if job.sketch is not None:
                images.write_if_changed(self.file("sketches", job), images.encode_png(job.sketch.image))
                region = np.repeat(job.sketch.region[..., None], 3, axis=-1).astype(np.uint8) * 255
                images.write_if_changed(self.file("regions", job), images.encode_png(region))

    def file(self, folder: str, job: Job) -> Path:
        """The file of a job in a folder of the run."""
        return self.workdir / folder / Path(job.request.image).relative_to("images")

    def generation(self, job: Job) -> dict:
        """What the file and the record of an image say of how it was made."""
        of = job.subject.record
        told = {"asked": job.asked, "way": job.way, "of": of.image, "of_sha256": of.sha256}
        digests = self.maker.digests | self._source([job]).named(job.request)
        return provenance.generation(job.request, self.size, digests) | {"transformation": told}

    def make(self, jobs: Sequence[Job]) -> None:
        """Makes those images of the jobs, all of one way and strength, that are not there yet."""
        of = {job.request: job for job in jobs}
        left, _ = provenance.missing(self.workdir, {r: self.generation(job) for r, job in of.items()})
        missing = {request: job for request, job in of.items() if request in left}
        if not missing:
            return
        groups = [list(group) for _, group in groupby(sorted(missing, key=self._kind), key=self._kind)]
        batches = [group[n : n + self.batch] for group in groups for n in range(0, len(group), self.batch)]
        maker, source = self.maker, self._source(list(missing.values()))
        begin = renderer(maker.sd, maker.placed(), maker.tokens, source, None, self.size, self.batch, maker.grid)

        def write(request: Request, image: np.ndarray) -> None:
            job = missing[request]
            path = self.workdir / request.image
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, provenance.png(pasted(job, image), self.generation(job)))

        with bar(len(missing), f"transform, {jobs[0].way}", "images", 0) as progress:
            produce(rounds(batches, maker.grid.size, self._kind), begin, missing, write, progress.update)

    def _kind(self, request: Request) -> tuple:
        """What requests have in common that one compiled function makes."""
        return request.sampler, request.steps, request.guidance, self.maker.tokens(request).shape

    def _source(self, jobs: Sequence[Job]) -> Source:
        """What the images of jobs, all of one way and strength, start from."""
        if jobs[0].sketch is None:
            return NOISE
        pictures = {}
        for job in jobs:
            sketch, region = self.file("sketches", job), self.file("regions", job)
            painted = region if job.way == "inpaint" else None
            digests = {"init_image": _digest(sketch)} | ({"init_mask": _digest(region)} if painted else {})
            pictures[job.request] = Picture(sketch, painted, digests)
        return Source(pictures, jobs[0].strength)


def pasted(job: Job, image: np.ndarray) -> np.ndarray:
    """An inpainted image uint8 [S, S, 3] with the source's own pixels outside of the region; others as they are."""
    if job.way != "inpaint":
        return image
    depth = ndimage.distance_transform_edt(job.sketch.region)
    share = np.clip(depth / (FEATHER * len(image)), 0, 1)[..., None]
    return np.rint(share * image + (1 - share) * job.subject.pixels).astype(np.uint8)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Of sketches, measures and what counts as reached: raise it where a transformation comes out otherwise
NUMERIC_VERSION = 1
PATHS = ("images", "masks", "model", "lora")  # what these name counts, by its contents
SEEDS_APART = 1_000_003  # between two attempts


def run(config: ConfigDict, workdir: Path) -> None:
    """Makes every transformation that the config asks for, measures it, and writes what came of it."""
    _refuse(config)
    manifest = _sources(config.images, config.label)
    maker = model.read(config.model, config.lora, config.lora_weight, (), "refuse", config.precision)
    causes = _causes(config, manifest, maker)
    if run_folder.is_finished(workdir, records.FILE, causes):
        say(f"transform: {workdir} is finished; nothing to do")
        return
    studio = Studio(maker, side(config.size, maker.sd), config.batch, workdir)
    todo = _todo(config, manifest, studio)
    cost("transform", parameters=count(maker.params), images=len(todo), steps=config.steps)
    studio.sketch(todo)
    done, waiting = {}, todo
    for attempt, strength in enumerate(config.strengths):
        tried = [_again(job, attempt, strength) for job in waiting]
        for way in config.ways:
            studio.make([job for job in tried if job.way == way])
        for job in tried:
            done[job.request.image] = _outcome(job, studio, attempt + 1, config.tone_tolerance)
        waiting = [job for job in waiting if not done[job.request.image].met and job.way != "prompt"]
    found = [done[job.request.image] for job in todo]
    kept = tuple(_record(outcome, studio) for outcome in found)
    write_atomically(workdir / "transformations.json", json.dumps([each.told() for each in found], indent=1) + "\n")
    result = Manifest(labels=manifest.labels, root=workdir, records=kept)
    write_atomically(workdir / "report.html", report.page(found, config.gallery))
    records.write(workdir / records.FILE, result)
    run_folder.mark_finished(workdir, causes)
    for line in report.lines(found):
        say(line)


def _causes(config: ConfigDict, manifest: Manifest, maker: Model) -> dict:
    """What the transformed images and their measures follow from."""
    versions = maker.digests[run_folder.NUMERIC_VERSIONS] | {
        "segmentation": segmentation.NUMERIC_VERSION, "transformations": NUMERIC_VERSION,
    }  # fmt: skip
    masks = sorted(Path(config.masks).glob("*.png")) if config.masks else []
    return maker.digests | {
        run_folder.NUMERIC_VERSIONS: versions,
        "config": {name: value for name, value in config.to_dict().items() if name not in PATHS},
        "images": hashlib.sha256(repr(manifest.records).encode()).hexdigest()[:16],
        "masks": [digests.cached_sha256(path) for path in masks],
    }


def _todo(config: ConfigDict, manifest: Manifest, studio: Studio) -> list[Job]:
    """The jobs; what cannot be done on an image is told and left out, and nothing at all is a UserError."""
    of = {label: [record for record in manifest.split("train") if record.label == label] for label in manifest.labels}
    chosen = [record for label in manifest.labels for record in of[label][: config.limit or None]]
    settings = Request(
        image="", label="", prompt="", negative=config.negative_prompt, seed=config.seed,
        sampler=named(config.sampler).name, steps=config.steps, spacing="", guidance=float(config.guidance),
        guidance_rescale=0.0, guidance_interval=(), deep_cache=1,
    )  # fmt: skip
    found, left_out = [], []
    for subject in jobs.subjects(manifest, chosen, config.masks, studio.size):
        for asked in config.transformations:
            for way in config.ways:
                seeded = replace(settings, seed=config.seed + len(found))
                try:
                    found.append(
                        jobs.job(subject, asked, way, config.prompt, config.factor, config.strengths[0], seeded)
                    )
                except UserError as error:
                    left_out.append(f"{subject.record.image}, {asked}, {way}: {error}")
    if left_out:
        say(f"transform: {len(left_out)} left out, such as {left_out[0]}")
    if not found:
        raise UserError(f"transform: nothing can be done with {config.images}: no lesion is seen, or there is no room")
    for each in found:
        studio.maker.tokens(each.request)  # a prompt too long fails here
    return found


def _outcome(job: Job, studio: Studio, attempts: int, tolerance: float) -> Outcome:
    """The image of a job, measured, its mask written."""
    pixels = images.decode(studio.workdir / job.request.image)
    seen = segment(pixels)
    images.write_if_changed(
        studio.file("masks", job), images.encode_png(np.repeat(seen.mask[..., None] * np.uint8(255), 3, axis=-1))
    )
    after, before = measures.measured(seen), job.subject.measure
    outside = measures.decibels(job.subject.pixels, pixels, ~job.sketch.region) if job.way == "inpaint" else None
    return Outcome(job, pixels, before, after, measures.met(job.asked, before, after, tolerance), attempts, outside)


def _record(outcome: Outcome, studio: Studio) -> Record:
    """The record of a transformed image: synthetic, for training, tied to its source's lesion and patient."""
    job = outcome.job
    of, path = job.subject.record, studio.workdir / job.request.image
    mask = studio.file("masks", job).relative_to(studio.workdir).as_posix()
    masks = {"lesions": mask, "count": outcome.after.count, "area": outcome.after.area}  # as in `mask`
    return Record(
        image=job.request.image,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        label=of.label,
        split="train",
        source="dermjax",
        image_manipulation="synthetic",
        lesion_id=of.lesion_id,
        patient_id=of.patient_id,
        licence=of.licence or provenance.USE,
        attributes={"masks": masks, "transformation": outcome.told()},
        generation=studio.generation(job),
    )


def _again(job: Job, attempt: int, strength: float) -> Job:
    """The job as it is tried for another time: with another seed, and as close to its sketch as that."""
    if job.sketch is None:
        return job
    seed = (job.request.seed + attempt * SEEDS_APART) % (LARGEST_SEED + 1)
    return replace(job, request=replace(job.request, seed=seed), strength=float(strength))


def _sources(path: str, label: str) -> Manifest:
    """The manifest of the images to transform; a single picture, of the class `label`, is one as well."""
    if not path:
        raise UserError("config.images is empty; give a picture, or a manifest, such as runs/prepare")
    file = Path(path)
    if file.is_dir() or file.suffix == Path(records.FILE).suffix:
        manifest = records.read(file)
        if not manifest.split("train"):
            raise UserError(f"manifest {path}: no kept training image; others would carry answers into training")
        return manifest
    if not label:
        raise UserError(f"config.label: which class does {path} show?")
    images.load(file, 8)  # that it is a picture
    known = {"label": label, "split": "train", "source": file.resolve().parent.name, "image_manipulation": "none"}
    record = Record(image=file.name, sha256=digests.sha256(file), **known)
    return Manifest(labels=(label,), root=file.resolve().parent, records=(record,))


def _refuse(config: ConfigDict) -> None:
    """Raises UserError for what no image could be asked."""
    for key, known in (("transformations", SKETCHES), ("ways", WAYS)):
        strange = [each for each in config[key] if each not in known]
        if strange or not config[key]:
            named_ = repr(strange[0]) if strange else "empty"
            raise UserError(f"config.{key}: {named_}; there are: {', '.join(known)}")
    if config.batch < 1 or config.factor <= 1 or not config.strengths:
        raise UserError("config.batch is at least 1, config.factor more than 1, config.strengths at least one number")
    check_settings((config.sampler,), config.steps, "", config.guidance, 0.0, (), 1)
    for strength in config.strengths:
        ladders.kept(config.steps, strength)
