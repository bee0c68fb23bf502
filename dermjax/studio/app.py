"""The app: the table of calls, the page and its files, behind the guard."""

from collections.abc import Collection
from functools import partial
from importlib import metadata
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from dermjax.errors import UserError
from dermjax.studio import classifiers, comparison, generation, prepared, reader_study, review, runs, transformation
from dermjax.studio.annotations import Annotations
from dermjax.studio.calls import FILE, PICTURE, Call, Field, openapi, refusal
from dermjax.studio.classifiers import Classifiers
from dermjax.studio.folder import Folder
from dermjax.studio.generation import Studio
from dermjax.studio.guard import Guard
from dermjax.studio.jobs import Queue
from dermjax.studio.prepared import Prepared
from dermjax.studio.reader_study import ReaderStudies
from dermjax.studio.review import Review
from dermjax.studio.runs import Watch
from dermjax.studio.transformation import Transformations

STATIC = Path(__file__).with_name("static")
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SENTENCES = {404: "there is nothing at this address", 405: "this address takes another method"}
JOB = {"job": Field(kind=str, summary="the key of a job", most=40)}
IMAGE = {"image": Field(kind=str, summary="the key of an image", most=40)}
MANIFEST = {"manifest": review.FIELDS["manifest"]}
TRAINING = Field(kind=str, summary="a run with the images that the generator learnt")
SOURCE = {"source": transformation.FIELDS["source"]}
STUDY = {"study": reader_study.KEY}


def table(folder: Folder, studio: Studio) -> list[Call]:
    """Every call of the studio."""
    judged, studies, classifying = Review(folder), ReaderStudies(folder), Classifiers(folder)
    told = Annotations(folder, judged)
    changing, watch, ready = Transformations(folder, studio), Watch(folder), Prepared(folder)
    digest = {"sha256": review.VERDICT_FIELDS["sha256"]}
    place = {"place": reader_study.ANSWER_FIELDS["place"]}
    get, post = partial(Call, method="GET"), partial(Call, method="POST")
    return [
        get(path="/api/runs", function=partial(runs.listed, folder), summary="The runs, newest first."),
        get(path="/api/runs/progress", function=watch.progress, fields=runs.FIELDS,
            summary="The curves of a run, how far it is and the seconds left."),
        get(path="/api/runs/samples", function=watch.samples, fields=runs.FIELDS, media="image/png",
            summary="The newest samples of a run; all are synthetic."),
        get(path="/api/prepared", function=ready.listed, summary="Configs below the folder that can be started."),
        post(path="/api/prepared/start", function=ready.start, fields=prepared.FIELDS,
             summary="Starts a prepared config, or goes on with it."),
        post(path="/api/prepared/stop", function=ready.stop, fields=prepared.FIELDS,
             summary="Stops it; a training saves its step."),
        get(path="/runs/{path:path}", function=partial(runs.report, folder), summary="The report of a run.",
            fields={"path": Field(kind=str, summary="RUN/report.html", most=500)}, media="text/html"),
        get(path="/api/models", function=studio.models, summary="Models, samplers, menus and defaults."),
        post(path="/api/prompt", function=generation.written_prompt, summary="The prompt that the menus write.",
             fields=generation.MENU_FIELDS),
        post(path="/api/generate", function=studio.submit, summary="Puts images into the queue; all are synthetic.",
             fields=generation.FIELDS, asks_who=True),
        post(path="/api/compare", function=partial(comparison.submit, studio), fields=comparison.FIELDS, asks_who=True,
             summary="Puts a grid over two settings into the queue, all from the same noise."),
        get(path="/api/jobs/{job}", function=lambda job: studio.state(job), summary="How far a job is.", fields=JOB),
        get(path="/api/jobs/{job}/preview", function=lambda job: studio.preview(job), summary="What a job is at.",
            fields=JOB, media="image/png"),
        post(path="/api/jobs/{job}/stop", function=lambda job: studio.stop(job), summary="Stops a job.", fields=JOB),
        get(path="/api/images/{image}", function=lambda image: studio.image(image), fields=IMAGE, media="image/png",
            summary="A synthetic image: a PNG that says how it was made."),
        post(path="/api/settings", function=studio.settings, upload=PICTURE,
             summary="The settings in a PNG of ours or of AUTOMATIC1111."),
        post(path="/api/sources", function=changing.upload, upload=PICTURE, summary="An image to transform, measured."),
        post(path="/api/sources/made", function=changing.pick_made, fields=IMAGE, summary="A made image to transform."),
        post(path="/api/sources/listed", function=changing.pick_listed, fields=MANIFEST | digest,
             summary="An image of a manifest to transform; one of a validation or test split is refused."),
        get(path="/api/sources/{source}/picture", function=changing.picture, fields=SOURCE, media="image/png",
            summary="The square of an image that is transformed."),
        get(path="/api/sources/{source}/mask", function=changing.mask, fields=SOURCE, media="image/png",
            summary="Where its lesions are: white."),
        post(path="/api/sources/{source}/mask", function=changing.paint, fields=SOURCE, upload=PICTURE,
             summary="Another mask, painted; the answer is what it measures."),
        post(path="/api/transform", function=changing.submit, fields=transformation.FIELDS, asks_who=True,
             summary="Puts a change into the queue: larger, smaller, more, another skin. The result is synthetic."),
        get(path="/api/zip", function=studio.zipped, media="application/zip",
            summary="Images with a manifest, marked as synthetic.",
            fields={"images": Field(kind=str, summary="keys of images, divided by commas", most=8000)}),
        get(path="/api/classifiers", function=classifying.listed, summary="The saved classifiers of the runs."),
        post(path="/api/classify", function=classifying.classify, upload=PICTURE, fields=classifiers.FIELDS,
             summary="What a classifier says of an image. Research use only, not a diagnosis."),
        get(path="/api/review/images", function=judged.images, fields=review.FIELDS,
            summary="A manifest's images, largest doubt first."),
        get(path="/api/review/picture", function=judged.picture, fields=MANIFEST | digest, media="image/jpeg",
            summary="An image of a manifest; a synthetic one has its mark in the pixels."),
        post(path="/api/review/verdicts", function=judged.judge, fields=review.VERDICT_FIELDS,
             summary="Saves a verdict, in the file that curate takes as config.verdicts."),
        get(path="/api/review/nearest", function=judged.nearest, fields=MANIFEST | digest | {"training": TRAINING},
            summary="The nearest training image, by how many bits of their hashes differ."),
        get(path="/api/review/label_studio", function=told.tasks, fields=MANIFEST,
            summary="A manifest as tasks of Label Studio, with scores as predictions."),
        get(path="/api/review/labelling", function=told.labelling, fields=MANIFEST,
            summary="The interface of Label Studio for them, and the folders of the images."),
        post(path="/api/review/label_studio", function=told.take, fields=MANIFEST, upload=FILE,
             summary="Verdicts out of an export of Label Studio, JSON or JSON-MIN."),
        get(path="/api/review/fiftyone", function=told.labels, fields=MANIFEST,
            summary="A manifest as labels.json of FiftyOne's image classification data sets."),
        get(path="/api/review/agreement", function=judged.agreement, fields=MANIFEST,
            summary="Cohen's kappa of every two reviewers, and what they disagree on."),
        post(path="/api/studies", function=studies.begin, fields=reader_study.FIELDS,
             summary="Begins a reader study: real or synthetic?"),
        get(path="/api/studies/{study}", function=studies.state, fields=STUDY, summary="How far a study is."),
        get(path="/api/studies/{study}/pictures/{place}", function=studies.picture, fields=STUDY | place,
            media="image/jpeg", summary="The image at a place, blinded."),
        post(path="/api/studies/{study}/answers", function=studies.answer, fields=reader_study.ANSWER_FIELDS,
             summary="Keeps an answer."),
        get(path="/api/studies/{study}/result", function=studies.result, fields=STUDY,
            summary="Accuracy with its exact interval, after the last answer."),
        get(path="/api/studies/{study}/table", function=studies.table, fields=STUDY, media="text/csv",
            summary="The answers as CSV, after the last."),
    ]  # fmt: skip


def app(runs_folder: str, photographs: str, token: str, warm: bool, names: Collection[str] = ()) -> ASGIApp:
    """The studio over a folder of runs.

    token: "" asks for none. warm: compiles at once what most ask for first. names: of this machine, to be answered to.
    """
    folder = Folder(runs_folder, photographs)
    studio = Studio(folder, Queue())
    calls = table(folder, studio)
    if warm:
        studio.warm()
    described = openapi(calls, metadata.version("dermjax"))
    calls.append(Call(method="GET", path="/api/openapi.json", function=lambda: described, summary="This description."))
    files = [
        Call(method="GET", path="/" if path.name == "index.html" else f"/{path.name}", summary="A file of the page.",
             function=partial(_file, path)) for path in sorted(STATIC.iterdir()) if path.suffix in KINDS
    ]  # fmt: skip

    def said(request: Request, error: Exception) -> JSONResponse:
        return refusal(error, folder.say)

    handlers = {UserError: said, HTTPException: _http_error, Exception: said}
    return Guard(
        Starlette(routes=[each.route() for each in [*calls, *files]], exception_handlers=handlers), token, names
    )


def _file(path: Path) -> Response:
    return Response(path.read_bytes(), media_type=f"{KINDS[path.suffix]}; charset=utf-8")


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": SENTENCES.get(error.status_code, "this cannot be answered")}, error.status_code)
