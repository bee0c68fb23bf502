"""Prompts get the words that a transformation asks for, masks must fit, and what cannot be done is said."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dermjax.data import digests, images
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.sampling.requests import Request
from dermjax.transformation import jobs

SETTINGS = Request(
    image="", label="", prompt="", negative="", seed=5, sampler="Euler", steps=20, spacing="", guidance=4.0,
    guidance_rescale=0.0, guidance_interval=(), deep_cache=1,
)  # fmt: skip
TEMPLATE = "dermoscopy of {number} {size} {label} mole(s)[, {tone} skin]"
MADE = {"prompt": "dermoscopy of one medium benign mole, pale skin", "negative_prompt": "", "seed": 77,
        "sampler": "Euler a", "steps": 12, "guidance": 3.0}  # fmt: skip


@pytest.fixture
def manifest(tmp_path):
    made = phantom(2, 128, number=1, size_name="medium", tone="pale", ruler=False, dark_corners=False, hairs=False)
    (tmp_path / "x.png").write_bytes(images.encode_png(made.image))
    record = Record(image="x.png", sha256=digests.sha256(tmp_path / "x.png"), label="benign", split="train", source="t",
                    image_manipulation="synthetic", generation=MADE)  # fmt: skip
    return Manifest(labels=("benign",), root=tmp_path, records=(record,))


def subject(manifest, masks=""):
    return next(jobs.subjects(manifest, manifest.records, masks, 128))


@pytest.mark.parametrize(
    "prompt, asked, changed",
    [
        ("dermoscopy of one small mole, tan skin", "larger", "dermoscopy of one large mole, tan skin"),
        ("malignant mole", "smaller", "malignant tiny mole"),
        ("dermoscopy of one small mole, tan skin", "more", "dermoscopy of two small moles, tan skin"),
        ("dermoscopy of a benign mole", "more", "dermoscopy of two benign moles"),
        ("benign mole", "more", "two benign moles"),
        ("dermoscopy of one small mole, tan skin", "dark skin", "dermoscopy of one small mole, dark skin"),
        ("a mole on very light skin", "dark skin", "a mole on dark skin"),
        ("benign mole", "dark skin", "benign mole, dark skin"),
    ],
)
def test_words_are_exchanged(prompt, asked, changed):
    assert jobs.change_prompt(prompt, asked) == changed


def test_a_prompt_that_says_so_already_is_named():
    for prompt, asked in (("one large mole", "larger"), ("four moles", "more"), ("a mole on dark skin", "dark skin")):
        with pytest.raises(UserError, match="says so already"):
            jobs.change_prompt(prompt, asked)


def test_by_prompt_seed_and_sampler_stay(manifest):
    job = jobs.plan_job(subject(manifest), "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS)
    assert job.request.prompt == "dermoscopy of one large benign mole, pale skin"
    assert (job.request.seed, job.request.sampler, job.request.steps, job.request.guidance) == (77, "Euler a", 12, 3.0)
    assert job.sketch is None and job.request.deep_cache == 1
    unusual = replace(manifest.records[0], generation=MADE | {"deep_cache": 3, "guidance_interval": [0.3, 5.0]})
    again = jobs.plan_job(
        replace(subject(manifest), record=unusual), "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS
    ).request
    assert (again.deep_cache, again.guidance_interval) == (3, (0.3, 5.0))
    unknown = replace(subject(manifest), record=replace(manifest.records[0], generation={}))
    with pytest.raises(UserError, match="does not say what it was generated with"):
        jobs.plan_job(unknown, "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS)


def test_a_sketch_is_asked_for_in_words_of_what_it_shows(manifest):
    job = jobs.plan_job(subject(manifest), "more", "inpaint", TEMPLATE, 1.5, 0.5, SETTINGS)
    assert job.request.prompt == "dermoscopy of two medium benign moles, pale skin"
    digest = manifest.records[0].sha256
    assert job.request.image == f"images/inpaint/more/benign/{digest[:16]}.png" and job.request.seed == 5
    assert job.description == {"asked": "more", "way": "inpaint", "of_sha256": digest}
    dark = jobs.plan_job(subject(manifest), "dark skin", "image_to_image", TEMPLATE, 1.5, 0.5, SETTINGS)
    assert dark.request.prompt == "dermoscopy of one medium benign mole, dark skin"


@pytest.mark.parametrize("white", [1, 255])
def test_a_mask_that_prepare_found_beside_the_image_is_taken(manifest, tmp_path, white):
    given = np.zeros((128, 128, 3), np.uint8)
    given[20:40, 30:50] = white
    (tmp_path / "x_mask.png").write_bytes(images.encode_png(given))
    told = {"mask": {"image": "x_mask.png", "sha256": digests.sha256(tmp_path / "x_mask.png")}}
    masked = replace(manifest, records=(replace(manifest.records[0], attributes=told),))
    found = subject(masked)
    assert (found.measure.count, found.measure.area) == (1, pytest.approx(400 / 128**2, abs=1e-6))


def test_masks_are_taken_and_must_fit(manifest, tmp_path):
    (tmp_path / "masks").mkdir()
    given = np.zeros((128, 128, 3), np.uint8)
    given[20:40, 30:50] = 255
    (tmp_path / "masks" / "x.png").write_bytes(images.encode_png(given))
    found = subject(manifest, str(tmp_path / "masks"))
    assert (found.measure.count, found.measure.area) == (1, pytest.approx(400 / 128**2, abs=1e-6))
    (tmp_path / "masks" / "x.png").write_bytes(images.encode_png(given[:64]))
    with pytest.raises(UserError, match="128x64 px and 128x128 px; give a mask of its size"):
        subject(manifest, str(tmp_path / "masks"))


@pytest.mark.parametrize("turn", [3, 6])
def test_a_mask_that_may_be_turned_otherwise_than_its_image_is_refused(manifest, tmp_path, turn):
    """Of a square, or of one turned upside down, the size does not tell."""
    (tmp_path / "masks").mkdir()
    given = np.zeros((128, 128, 3), np.uint8)
    given[20:40, 30:50] = 255
    (tmp_path / "masks" / "x.png").write_bytes(images.encode_png(given))
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = turn
    Image.fromarray(images.decode(tmp_path / "x.png")).save(tmp_path / "turned.png", exif=exif)
    record = replace(manifest.records[0], image="turned.png", sha256=digests.sha256(tmp_path / "turned.png"))
    (tmp_path / "turned.png").rename(tmp_path / "x.png")
    turned = replace(manifest, records=(replace(record, image="x.png"),))
    with pytest.raises(UserError, match=rf"x\.png and its image have the EXIF orientations 1 and {turn}, so that"):
        subject(turned, str(tmp_path / "masks"))
