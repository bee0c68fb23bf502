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
        "sampler": "Euler a", "steps": 12, "guidance": 3.0, "model": "0123", "size": 128}  # fmt: skip
CAUSES = {"model": "0123", "precision": "float32", "size": 128}


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
        ("malignant mole", "smaller", "tiny malignant mole"),
        ("one huge mole", "smaller", "one tiny mole"),
        ("dermoscopy of an irregular mole", "larger", "dermoscopy of a large irregular mole"),
        ("dermoscopy of seborrheic keratosis", "larger", "dermoscopy of large seborrheic keratosis"),
        ("dermoscopy of one small mole, tan skin", "more", "dermoscopy of two small moles, tan skin"),
        ("dermoscopy of a benign mole", "more", "dermoscopy of two benign moles"),
        ("benign mole", "more", "two benign moles"),
        ("a dermoscopy photo of a benign mole", "more", "a dermoscopy photo of two benign moles"),
        ("dermoscopy of a single nevus", "more", "dermoscopy of two nevi"),
        ("skin with three melanoma lesions", "more", "skin with four melanoma lesions"),
        ("dermoscopy of one small mole, tan skin", "dark skin", "dermoscopy of one small mole, dark skin"),
        ("a mole on very light skin", "dark skin", "a mole on dark skin"),
        ("benign mole", "dark skin", "benign mole, dark skin"),
        ("malignant skin mole", "dark skin", "malignant skin mole, dark skin"),
    ],
)
def test_words_are_exchanged(prompt, asked, changed):
    assert jobs.change_prompt(prompt, asked) == changed


def test_a_prompt_that_says_so_already_is_named():
    for prompt, asked in (
        ("one large mole", "larger"), ("one huge mole", "larger"), ("four moles", "more"), ("several moles", "more"),
        ("a mole on Dark skin", "dark skin"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="says so already"):
            jobs.change_prompt(prompt, asked)
    for asked in ("larger", "more"):
        with pytest.raises(UserError, match=f"no word that {asked} can be said of, such as mole, .*: dermoscopy of nv"):
            jobs.change_prompt("dermoscopy of nv", asked)


def test_by_prompt_seed_and_sampler_stay(manifest):
    job = jobs.plan_job(subject(manifest), "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES)
    assert job.request.prompt == "dermoscopy of one large benign mole, pale skin"
    assert (job.request.seed, job.request.sampler, job.request.steps, job.request.guidance) == (77, "Euler a", 12, 3.0)
    assert job.sketch is None and job.request.deep_cache == 1
    unusual = replace(manifest.records[0], generation=MADE | {"deep_cache": 3, "guidance_interval": [0.3, 5.0]})
    again = jobs.plan_job(
        replace(subject(manifest), record=unusual), "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES
    ).request
    assert (again.deep_cache, again.guidance_interval) == (3, (0.3, 5.0))
    unknown = replace(subject(manifest), record=replace(manifest.records[0], generation={}))
    with pytest.raises(UserError, match="does not say what it was generated with"):
        jobs.plan_job(unknown, "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES)


@pytest.mark.parametrize("other", [
    {"model": "4567"}, {"lora": "89ab", "lora_weight": 0.8}, {"size": 256}, {"embeddings": {"<mole>": "cdef"}},
    {"init_image": "f" * 64, "strength": 0.5},
])  # fmt: skip
def test_an_image_that_its_seed_would_not_make_again_here_is_left_out(manifest, other):
    """Its words alone would not be what changes."""
    made = replace(subject(manifest), record=replace(manifest.records[0], generation=MADE | other))
    with pytest.raises(UserError, match=rf"its record's {', '.join(other)}: not as in this run"):
        jobs.plan_job(made, "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES)
    causes = CAUSES | {name: value for name, value in other.items() if name in ("model", "lora", "lora_weight", "size")}
    if {"embeddings", "init_image"}.isdisjoint(other):
        jobs.plan_job(made, "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS, causes)
    jobs.plan_job(made, "larger", "inpaint", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES)


def test_a_negative_prompt_that_nobody_read_is_not_said_again(manifest):
    unguided = replace(manifest.records[0], generation=MADE | {"negative_prompt": "hair", "guidance": 1})
    request = jobs.plan_job(
        replace(subject(manifest), record=unguided), "larger", "prompt", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES
    ).request
    assert (request.guidance, request.negative) == (1, "")


def test_a_sketch_is_asked_for_in_words_of_what_it_shows(manifest):
    job = jobs.plan_job(subject(manifest), "more", "inpaint", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES)
    assert job.request.prompt == "dermoscopy of two medium benign moles, pale skin"
    digest = manifest.records[0].sha256
    assert job.request.image == f"images/inpaint/more/benign/{digest[:16]}.png" and job.request.seed == 5
    assert job.description == {"asked": "more", "way": "inpaint", "of_sha256": digest}
    dark = jobs.plan_job(subject(manifest), "dark skin", "image_to_image", TEMPLATE, 1.5, 0.5, SETTINGS, CAUSES)
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
