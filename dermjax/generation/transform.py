"""`transform`: existing images with their lesions larger, smaller, more, or on another skin, each change measured.

Place in the flow: a manifest, or a picture -> jobs -> sketches/ and regions/ to start from -> the model -> images/,
masks/, manifest.jsonl, transformations.json and report.html. A change that was not reached is tried again with another
seed and closer to its sketch, as often as there are strengths.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dermjax import run_folder
from dermjax.config_file import LARGEST_SEED
from dermjax.data import digests, images, records, segmentation
from dermjax.data.records import Manifest, Record
from dermjax.data.segmentation import segment
from dermjax.diffusion import ladders
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.generation import jobs, measures, model, outcomes, provenance, refusals
from dermjax.generation.jobs import WAYS, Job
from dermjax.generation.model import Model
from dermjax.generation.outcomes import Outcome
from dermjax.generation.plan import Request
from dermjax.generation.sketches import SKETCHES
from dermjax.generation.studio import Studio
from dermjax.generation.work import side
from dermjax.models.stable_diffusion import count
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically

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
    if run_folder.finished(workdir, records.FILE, causes):
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
    write_atomically(workdir / "report.html", outcomes.page(found, config.gallery))
    records.write(workdir / records.FILE, result)
    run_folder.finish(workdir, causes)
    for line in outcomes.lines(found):
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
        "masks": [digests.of(path) for path in masks],
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
    pixels = images.whole(studio.workdir / job.request.image)
    seen = segment(pixels)
    images.keep(studio.file("masks", job), images.png(np.repeat(seen.mask[..., None] * np.uint8(255), 3, axis=-1)))
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
    refusals.settings((config.sampler,), config.steps, "", config.guidance, 0.0, (), 1)
    for strength in config.strengths:
        ladders.kept(config.steps, strength)
