"""From jobs of one way to their images: sketches to files, files to the model, pixels pasted and written.

An image that is whole and says what it was made from is not made again.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy import ndimage

from dermjax.data import images
from dermjax.generation import provenance
from dermjax.generation.jobs import Job
from dermjax.generation.model import Model
from dermjax.generation.plan import Request
from dermjax.generation.production import produce, rounds
from dermjax.generation.render import renderer
from dermjax.generation.source import NOISE, Picture, Source
from dermjax.progress import bar
from dermjax.run_folder import write_atomically

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
                images.keep(self.file("sketches", job), images.png(job.sketch.image))
                region = np.repeat(job.sketch.region[..., None], 3, axis=-1).astype(np.uint8) * 255
                images.keep(self.file("regions", job), images.png(region))

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
