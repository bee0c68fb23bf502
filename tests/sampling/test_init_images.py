"""Initial pictures and masks: whose turn it is, what the batch gets, and what is refused before any work."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermjax.data import digests, images, records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.sampling import init_images
from dermjax.sampling.requests import Request

FIRST = Request(
    image="images/benign/00000.png",
    label="benign",
    prompt="a mole",
    negative="",
    seed=0,
    sampler="Euler",
    steps=20,
    spacing="",
    guidance=1.0,
    guidance_rescale=0.0,
    guidance_interval=(),
    deep_cache=1,
)
ASKED = [
    replace(FIRST, image=f"images/{label}/{n:05d}.png", label=label, seed=n)
    for label in ("benign", "malignant")
    for n in range(3)
]


def picture(path, size=(24, 16), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def mask(path, size=(24, 16)):
    """White in its left half."""
    white = Image.new("L", size, 0)
    white.paste(255, (0, 0, size[0] // 2, size[1]))
    white.save(path)
    return str(path)


@pytest.fixture
def manifest(tmp_path):
    """Two training images of each class, and one of another split."""
    made = []
    for label, split, n in [(label, split, n) for label in ("benign", "malignant") for n, split in
                            enumerate(("train", "validation", "train"))]:  # fmt: skip
        name = f"{label}{n}.png"
        picture(tmp_path / name, seed=len(made))
        made.append(Record(image=name, sha256=digests.sha256(tmp_path / name), label=label, split=split, source="x",
                           image_manipulation="none"))  # fmt: skip
    path = tmp_path / "manifest.jsonl"
    records.write(path, Manifest(labels=("benign", "malignant"), root=tmp_path, records=tuple(made)))
    return path


def test_without_pictures_images_start_from_noise():
    none = init_images.read("", "", 0.5, ASKED)
    assert none.arrays(ASKED, 16) == {} and none.provenance(FIRST) == {}


def test_training_images_of_a_class_take_turns(manifest):
    for path in (manifest, manifest.parent):
        found = init_images.read(str(path), "", 0.5, ASKED).images
        for label in ("benign", "malignant"):
            first, second, third = (found[request].image.name for request in ASKED if request.label == label)
            assert {first, second} == {f"{label}0.png", f"{label}2.png"} and third == first


def test_few_images_begin_in_all_archives_of_a_manifest():
    """Which stand in it one behind the other."""
    records = tuple(
        Record(image=f"{n:03d}.png", sha256=f"{n:064x}", label="benign", split="train", source="ab"[n // 50],
               image_manipulation="none")
        for n in range(100)
    )  # fmt: skip
    manifest = Manifest(labels=("benign",), root=Path(), records=records)
    sources = [record.source for record in init_images.in_turns(manifest, "benign")[:40]]
    assert 10 < sources.count("a") < 30


def test_rows_of_a_batch(tmp_path):
    """The picture as training sees it, centre-cropped to the square; the mask is cropped with it."""
    read = init_images.read(picture(tmp_path / "mole.png"), mask(tmp_path / "mask.png"), 0.5, ASKED)
    rows = read.arrays(ASKED, 16)
    assert rows["image"].shape == (6, 16, 16, 3) and rows["image"].dtype == np.uint8
    with Image.open(tmp_path / "mole.png") as whole:
        np.testing.assert_array_equal(rows["image"][5], np.asarray(whole)[:, 4:20])
    assert rows["mask"].shape == (6, 16, 16) and rows["mask"][:, :, :8].all() and not rows["mask"][:, :, 8:].any()


@pytest.mark.parametrize("colour", ["white", "red"])
def test_a_mask_of_strokes_on_a_layer_of_their_own_paints_where_they_are(tmp_path, colour):
    """White strokes on a transparent ground painted everywhere, red ones all but where they are."""
    on_black, layer = Image.new("RGB", (24, 16)), Image.new("RGBA", (24, 16))
    for each in (on_black, layer):
        each.paste(colour, (4, 2, 12, 9))
    on_black.save(tmp_path / "black.png"), layer.save(tmp_path / "layer.png")
    (tmp_path / "memory.png").write_bytes(images.encode_mask(layer))
    expected, *others = (images.load_mask(tmp_path / f"{name}.png", 16) for name in ("black", "layer", "memory"))
    assert 0 < expected.mean() < 0.5
    assert all((each == expected).all() for each in others)


def test_a_mask_of_0_and_1_paints(tmp_path):
    """As arrays and programs that draw masks have them, almost black."""
    dark = Image.open(mask(tmp_path / "mask.png")).point(lambda level: level // 255)
    dark.save(tmp_path / "dark.png")
    image = picture(tmp_path / "mole.png")
    bright, painted = (
        init_images.read(image, str(tmp_path / name), 0.5, ASKED).arrays(ASKED, 16)["mask"]
        for name in ("mask.png", "dark.png")
    )
    np.testing.assert_array_equal(painted, bright)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, 3, 16)])
def test_a_mask_that_paints_nothing_is_refused(tmp_path, box):
    """One that is black, and one that is white only where the square is cut off."""
    nothing = Image.new("L", (24, 16), 0)
    nothing.paste(255, box)
    nothing.save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"mask .*m\.png: paints nothing in the middle square"):
        init_images.read(picture(tmp_path / "a.png"), str(tmp_path / "m.png"), 0.5, ASKED)


def test_a_folder_of_masks(tmp_path, manifest):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("benign0", "benign2", "malignant0", "malignant2"):
        mask(folder / f"{name}.png")
    found = init_images.read(str(manifest), str(folder), 0.5, ASKED).images
    assert all(picture.mask == folder / picture.image.name for picture in found.values())


def test_two_images_of_one_name_share_no_mask(tmp_path):
    (tmp_path / "two").mkdir()
    paths = [tmp_path / "a.png", tmp_path / "two" / "a.jpg"]
    with pytest.raises(UserError, match=r"config.init.mask M: 2 images are named a, and masks go by name"):
        init_images.refuse_shared_names(paths, "config.init.mask M")
    init_images.refuse_shared_names(paths[:1], "config.init.mask M")
    init_images.refuse_shared_names([], "config.init.mask M")


def test_records_tell_the_start_by_its_content(tmp_path):
    read = init_images.read(picture(tmp_path / "a.png"), mask(tmp_path / "m.png"), 0.5, ASKED)
    named = read.provenance(FIRST)
    assert named["strength"] == 0.5 and len(named["init_image"]) == len(named["init_mask"]) == 64
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    moved = init_images.read(str(tmp_path / "b.png"), str(tmp_path / "m.png"), 0.5, ASKED)
    assert moved.provenance(FIRST) == named
    picture(tmp_path / "b.png", seed=1)
    assert (
        init_images.read(str(tmp_path / "b.png"), "", 0.5, ASKED).provenance(FIRST)["init_image"] != named["init_image"]
    )


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (0.0, "strength 0: give more than 0 and at most 1"),
        (1.5, "strength 1.5: give more than 0 and at most 1"),
        (0.01, "strength 0.01 of 20 steps leaves none; give at least 0.05"),
    ],
)
def test_strength_out_of_range(tmp_path, strength, message):
    with pytest.raises(UserError, match=message):
        init_images.read(picture(tmp_path / "a.png"), "", strength, ASKED)


def test_files_that_do_not_do(tmp_path, manifest):
    image, small = picture(tmp_path / "a.png"), mask(tmp_path / "m.png", (16, 24))
    (tmp_path / "bad.png").write_bytes(b"<html>")
    cases = [
        ((image, small), f"mask {small}: 16x24 px, but {image} is 24x16 px; give a mask of its size"),
        (("", small), "config.init.mask needs config.init.images"),
        ((str(tmp_path / "bad.png"), ""), "bad.png: cannot be decoded"),
        ((str(tmp_path / "none.png"), ""), "none.png: cannot be decoded (No such file or directory)"),
        ((image, str(tmp_path / "bad.png")), "bad.png: cannot be decoded"),
    ]
    for (pictures, masks), message in cases:
        with pytest.raises(UserError) as told:
            init_images.read(pictures, masks, 0.5, ASKED)
        assert message in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(UserError, match="no training image is labelled 'naevus', as the plan asks"):
        init_images.read(str(manifest), "", 0.5, [replace(FIRST, label="naevus")])


def test_a_picture_that_is_not_the_one_of_its_manifest_is_refused(manifest, tmp_path):
    picture(tmp_path / "benign0.png", seed=99)
    with pytest.raises(UserError, match=r"benign0\.png: not the bytes that the manifest names"):
        init_images.read(str(manifest), "", 0.5, ASKED)
