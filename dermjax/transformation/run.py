"""`transform`: existing images with their lesions larger, smaller, more, or on another skin, each change measured.

Place in the flow: a manifest, or an image -> jobs -> sketches/ and regions/ to start from -> the model -> images/,
masks/, manifest.jsonl, transformations.json and report.html. A change that was not reached is tried again with another
seed and closer to its sketch, as often as there are strengths. An image that is complete and says what it was made from
is not made again. S is the side of the images.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from dermjax import parts, run_folder, segmentation
from dermjax.config_file import LARGEST_SEED
from dermjax.data import digests, images, records
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest, Record
from dermjax.diffusion import ladders, samplers
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import count
from dermjax.progress import bar, cost, say
from dermjax.run_folder import write_atomically
from dermjax.sampling import provenance
from dermjax.sampling.init_images import NOISE, InitImage, InitImages, refuse_shared_names
from dermjax.sampling.model import Model, load_model
from dermjax.sampling.render import Renderer, produce
from dermjax.sampling.requests import Request, batches, rounds
from dermjax.segmentation import segment
from dermjax.transformation import measures, report
from dermjax.transformation.jobs import WAYS, Job, plan_job, subjects
from dermjax.transformation.report import Outcome
from dermjax.transformation.sketches import SKETCHES, Sketch

FEATHER = 0.03  # of the field: how far within the region the painted pixels fade in
NUMERIC_VERSION = 4  # of the changes and of their names
PATHS = ("images", "masks", "model", "lora", "part")  # what these name counts, by its contents
SEEDS_APART = 1_000_003  # between two attempts
NO_PIXELS = np.empty((0, 0, 3), np.uint8)  # of what stands in files meanwhile


@dataclass(frozen=True)
class JobRenderer:
    """What makes images of jobs: a model, their side in pixels, the images a batch, and the folder that they go to.

    Its jobs are `bare`: of a whole archive, photographs and sketches are more than memory holds, so that each is read
    from the manifest's files and the folder when its turn comes.
    """

    model: Model
    size: int
    batch: int
    workdir: Path
    manifest: Manifest

    @cached_property
    def renderer(self) -> Renderer:
        """The model on its devices, with what has been compiled for it."""
        return Renderer(self.model.placed(), None)

    def file(self, folder: str, job: Job) -> Path:
        """Returns the file of a job in a folder of the run."""
        return self.workdir / folder / Path(job.request.image).relative_to("images")

    def bare(self, job: Job) -> Job:
        """Returns a job without pixels; what it starts from is written: sketches/ and regions/."""
        if job.sketch is not None:
            images.write_if_changed(self.file("sketches", job), images.encode_png(job.sketch.image))
            images.write_if_changed(self.file("regions", job), measures.mask_png(job.sketch.region))
        lesions = replace(job.subject.lesions, mask=NO_PIXELS, labels=NO_PIXELS)
        sketch = job.sketch and Sketch(NO_PIXELS, NO_PIXELS)
        return replace(job, subject=replace(job.subject, pixels=NO_PIXELS, lesions=lesions), sketch=sketch)

    def source(self, job: Job) -> np.ndarray:
        """Returns the pixels of a job's source, uint8 [S, S, 3]."""
        return images.load(self.manifest.path(job.subject.record), self.size)

    def inpainted(self, job: Job) -> Job:
        """Returns a bare job that inpaints with the pixels of its source and the region of its sketch."""
        region = images.decode(self.file("regions", job))[..., 0] > 0
        return replace(job, subject=replace(job.subject, pixels=self.source(job)), sketch=Sketch(NO_PIXELS, region))

    def origin(self, job: Job) -> dict:
        """Returns what the file and the record of an image say of how it was made."""
        digests = self.model.digests | self._init([job]).provenance(job.request)
        return provenance.generation(job.request, self.size, digests) | {"transformation": job.description}

    def make(self, jobs: Sequence[Job]) -> None:
        """Makes those images of the jobs, all of one way and strength, that are not there yet."""
        by_request = {job.request: job for job in jobs}
        missing, _ = provenance.missing(self.workdir, {r: self.origin(job) for r, job in by_request.items()},
                                        signed=False)  # fmt: skip
        if not missing:
            return
        left = [request for request in by_request if request in missing]
        init = self._init([by_request[request] for request in left])

        def write(request: Request, image: np.ndarray) -> None:
            job = by_request[request]
            path = self.workdir / request.image
            path.parent.mkdir(parents=True, exist_ok=True)
            made = pasted(self.inpainted(job), image) if job.way == "inpaint" else image
            write_atomically(path, provenance.png(made, self.origin(job)))

        with bar(len(left), f"transform, {jobs[0].way}", "images", 0) as progress:
            begin = partial(self.renderer.begin, init=init, size=self.size, batch=self.batch)
            divided = batches(left, self.batch, self.model.kind)
            work = rounds(divided, self.renderer.grid.size, self.model.kind)
            produce(work, begin, missing, write, progress.update)

    def _init(self, jobs: Sequence[Job]) -> InitImages:
        """Returns what the images of jobs, all of one way and strength, start from."""
        if jobs[0].sketch is None:
            return NOISE
        init = {}
        for job in jobs:
            sketch, region = self.file("sketches", job), self.file("regions", job)
            names = {"init_image": sketch} | ({"init_mask": region} if job.way == "inpaint" else {})
            hashes = {name: digests.cached_sha256(path) for name, path in names.items()}
            init[job.request] = InitImage(sketch, names.get("init_mask"), hashes)
        return InitImages(init, jobs[0].strength)


def pasted(job: Job, image: np.ndarray) -> np.ndarray:
    """Returns an inpainted image uint8 [S, S, 3] with the source's pixels outside the region."""
    depth = ndimage.distance_transform_edt(job.sketch.region)
    share = np.clip(depth / (FEATHER * len(image)), 0, 1)[..., None]
    return np.rint(share * image + (1 - share) * job.subject.pixels).astype(np.uint8)


def run(config: ConfigDict, workdir: Path) -> None:
    """Makes every transformation that the config asks for, measures it, and writes the outcomes."""
    _check(config)
    manifest, part = _sources(config.images, config.label), parts.read(config.part)
    root, chosen = parts.root(workdir, part), _chosen(manifest, config.limit)
    if config.masks:
        refuse_shared_names((Path(record.image) for record in chosen), "config.masks")
    if part:
        part.check(len(chosen), "images")
    share = part.block(len(chosen)) if part else range(len(chosen))
    model = load_model(config.model, config.lora, config.lora_weight, (), "refuse", config.precision)
    causes = _causes(config, manifest, model)
    shared, causes = causes, causes | ({"part": str(part)} if part else {})
    if parts.is_finished(workdir, part, records.FILE, causes):
        say(f"transform: {workdir} is finished; nothing to do")
        return
    size, most = model.size(config.size), len(chosen) * len(config.transformations)  # of one way, in all parts together
    batch = min(model.largest_batch(config.batch, size), -(-most // model.grid.size))
    renderer = JobRenderer(model, size, batch, root, manifest)
    parts.begin(workdir)
    placed = _jobs(config, manifest, chosen, share, renderer)
    jobs = list(placed.values())
    if not jobs and not part:
        raise UserError(f"transform: nothing can be done with {config.images}: no lesion is seen, or there is no room")
    cost("transform", parameters=count(model.params), images=len(jobs), steps=config.steps)
    latest, waiting = {}, jobs
    for attempt, strength in enumerate(config.strengths):
        tried = [_again(job, attempt, strength) for job in waiting]
        for way in config.ways:
            renderer.make([job for job in tried if job.way == way])
        for job in tried:
            latest[job.request.image] = _outcome(job, renderer, attempt + 1, config.tone_tolerance)
        waiting = [job for job in waiting if not latest[job.request.image].met and job.way != "prompt"]
    outcomes = [latest[job.request.image] for job in jobs]
    entries = tuple(_record(outcome, renderer) for outcome in outcomes)
    training_images.pass_on([*model.sources, Path(config.images)], workdir)
    text = json.dumps([each.as_json() for each in outcomes], indent=1)
    write_atomically(workdir / "transformations.json", text + "\n")
    write_atomically(workdir / "report.html", report.page(outcomes, config.gallery, partial(_pictures, renderer)))
    records.write(workdir / records.FILE, Manifest(labels=manifest.labels, root=root, records=entries))
    if part:
        each = len(config.transformations) * len(config.ways)
        left_out = [place for place in range(share.start * each, share.stop * each) if place not in placed]
        done = parts.Finished(stage="transform", part=str(part), total=len(chosen) * each, places=list(placed),
                              left_out=left_out, causes=shared, findings={})  # fmt: skip
        parts.finish(workdir, done)
    run_folder.mark_finished(workdir, causes)
    for line in report.lines(outcomes):
        say(line)


def _check(config: ConfigDict) -> None:
    """Raises UserError for what could be asked of no image."""
    for key, known in (("transformations", SKETCHES), ("ways", WAYS)):
        unknown = [each for each in config[key] if each not in known]
        if unknown or not config[key]:
            fault = repr(unknown[0]) if unknown else "empty"
            raise UserError(f"config.{key}: {fault}; there are: {', '.join(known)}")
    if config.batch < 1 or config.factor <= 1 or not config.strengths:
        raise UserError("config.batch is at least 1, config.factor more than 1, config.strengths at least one number")
    Request(image="", label="", prompt="", negative=config.negative_prompt, seed=config.seed, sampler=config.sampler,
            steps=config.steps, guidance=config.guidance).check("config.")  # fmt: skip
    for strength in config.strengths:
        ladders.walked_steps(config.steps, strength)


def _sources(path: str, label: str) -> Manifest:
    """Returns the manifest of the images to transform; of a single image, of the class `label`, as well."""
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
    images.load(file, 8)  # that it is an image
    source = file.parent.resolve()  # a link's name is in its own folder, not in that of what it leads to
    known = {"label": label, "split": "train", "source": source.name, "image_manipulation": "none"}
    record = Record(image=file.name, sha256=digests.sha256(file), **known)
    return Manifest(labels=(label,), root=source, records=(record,))


def _causes(config: ConfigDict, manifest: Manifest, model: Model) -> dict:
    """Returns what the transformed images and their measures follow from."""
    versions = model.digests[run_folder.NUMERIC_VERSIONS] | {
        "segmentation": segmentation.NUMERIC_VERSION, "transformations": NUMERIC_VERSION,
    }  # fmt: skip
    masks = sorted(Path(config.masks).glob("*.png")) if config.masks else []
    return model.digests | {
        run_folder.NUMERIC_VERSIONS: versions,
        "config": {name: value for name, value in config.to_dict().items() if name not in PATHS},
        "images": digests.of_text(repr(manifest.records)),
        "masks": [digests.cached_sha256(path) for path in masks],
    }


def _chosen(manifest: Manifest, limit: int) -> list[Record]:
    """Returns the training images to transform, class by class, at most `limit` of each unless that is 0."""
    return [record for label in manifest.labels for record in manifest.split("train", label)[: limit or None]]


def _jobs(
    config: ConfigDict, manifest: Manifest, chosen: Sequence[Record], share: range, renderer: JobRenderer
) -> dict[int, Job]:
    """Returns the jobs of a share of the chosen images, by their place among all that could be done with these.

    The place gives the seed. What cannot be done on an image is reported and left out.
    """
    first = Request(
        image="", label="", prompt="", negative=config.negative_prompt, seed=config.seed,
        sampler=samplers.get_sampler(config.sampler).name, steps=config.steps, guidance=float(config.guidance),
    )  # fmt: skip
    changes = [(transformation, way) for transformation in config.transformations for way in config.ways]
    causes = renderer.model.digests | {"size": renderer.size}
    named = Counter((record.label, record.sha256) for record in chosen)
    jobs, left_out = {}, []
    for number in share:
        seen = list(subjects(manifest, [chosen[number]], config.masks, renderer.size))
        left_out += [] if seen else [f"{chosen[number].image}: no lesion is seen"] * len(changes)
        for subject in seen:
            for place, (transformation, way) in enumerate(changes, start=number * len(changes)):
                request = replace(first, seed=config.seed + place)
                try:
                    job = plan_job(subject, transformation, way, config.prompt, config.factor,
                                   config.strengths[0], request, causes)  # fmt: skip
                    if named[subject.record.label, subject.record.sha256] > 1:
                        image = f"{job.request.image.removesuffix('.png')}_{number}.png"
                        job = replace(job, request=replace(job.request, image=image))
                    jobs[place] = renderer.bare(job)
                except UserError as error:
                    left_out.append(f"{subject.record.image}, {transformation}, {way}: {error}")
    if left_out:
        say(f"transform: {len(left_out)} left out, such as {left_out[0]}")
    for job in jobs.values():
        renderer.model.tokens(job.request)  # a prompt too long fails here
    return jobs


def _again(job: Job, attempt: int, strength: float) -> Job:
    """Returns the job as it is tried another time: with another seed, and as close to its sketch as that."""
    if job.sketch is None:
        return job
    seed = (job.request.seed + attempt * SEEDS_APART) % (LARGEST_SEED + 1)
    return replace(job, request=replace(job.request, seed=seed), strength=float(strength))


def _outcome(job: Job, renderer: JobRenderer, attempts: int, tolerance: float) -> Outcome:
    """Returns how the image of a job came out, measured, its mask written."""
    pixels, outside = images.decode(renderer.workdir / job.request.image), None
    lesions = segment(pixels)
    images.write_if_changed(renderer.file("masks", job), measures.mask_png(lesions.mask))
    after, before = measures.measure(lesions), job.subject.measure
    if job.way == "inpaint":
        inpainted = renderer.inpainted(job)
        outside = measures.decibels(inpainted.subject.pixels, pixels, ~inpainted.sketch.region)
    met = measures.met(job.transformation, before, after, tolerance)
    return Outcome(job, before, after, met, attempts, outside)


def _pictures(renderer: JobRenderer, outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source and the image of an outcome, uint8 [S, S, 3]."""
    return renderer.source(outcome.job), images.decode(renderer.workdir / outcome.job.request.image)


def _record(outcome: Outcome, renderer: JobRenderer) -> Record:
    """Returns the record of a transformed image: synthetic, for training, tied to its source's lesion and patient."""
    job, source = outcome.job, outcome.job.subject.record
    mask = renderer.file("masks", job).relative_to(renderer.workdir).as_posix()
    masks = {"lesions": mask, "count": outcome.after.count, "area": outcome.after.area}  # as in `mask`
    return provenance.record(
        renderer.workdir, job.request.image, source.label, renderer.origin(job), lesion_id=source.lesion_id,
        patient_id=source.patient_id, licence=source.licence or provenance.USE,
        attributes={"masks": masks, "transformation": outcome.as_json()},
    )  # fmt: skip
