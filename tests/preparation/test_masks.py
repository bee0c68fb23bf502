"""Masks beside photographs: known as masks, of the right photograph, and never photographs themselves."""

import numpy as np
import pytest
from PIL import Image

from dermjax.data import images
from dermjax.errors import UserError


@pytest.mark.parametrize(
    "name",
    ["benign/0_segmentation.png", "benign/0_mask.jpg", "benign/0_Segmentation.PNG", "masks/0.png",
     "masks/benign/0_mask.png", "ISIC_Part1_GroundTruth/0_segmentation.png", "benign/0_lesion.bmp"],
)  # fmt: skip
def test_a_mask_beside_its_image_is_its_mask_and_no_photograph(put, read, told, mask, name):
    put("benign/0.png", 0), put("benign/1.png", 1), put("malignant/2.png", 2)
    mask(put, name)
    _, found = read(put("notes.txt", ""))
    assert told(found) == {"benign/0.png": "benign", "benign/1.png": "benign", "malignant/2.png": "malignant"}
    assert found.records[0].attributes["mask"] == {"image": name}
    assert (name, "used as the mask of its image") in found.ignored


def test_a_mask_of_the_very_name_of_its_photograph_is_no_photograph(put, read, told, mask):
    put("benign/0.jpg", 0), put("malignant/1.JPG", 1), put("malignant/1.png", 2), put("malignant/2.png", 3)
    mask(put, "benign/0.png")
    _, found = read(put("notes.txt", ""))
    assert set(told(found)) == {"benign/0.jpg", "malignant/1.JPG", "malignant/1.png", "malignant/2.png"}
    assert found.records[0].attributes["mask"] == {"image": "benign/0.png"}


def test_a_mask_that_may_be_of_several_images_is_nobodys(put, read, mask):
    put("benign/0.png", 0), put("malignant/0.png", 2)
    mask(put, "masks/0.png")
    _, found = read(put("notes.txt", ""))
    assert found.ignored == (("masks/0.png", "a mask that may be of several images"),)
    assert not any("mask" in record.attributes for record in found.records)


def test_superpixels_and_masks_of_many_levels_are_no_photographs_either(put, read, told, mask):
    put("benign/0.png", 0), put("malignant/2.png", 2)
    put("benign/0_superpixels.png", 7), put("malignant/2_mask.png", 8), put("benign/0_lesion.png", 9)
    mask(put, "malignant/2_attribute_globules.png")
    _, found = read(put("notes.txt", ""))
    assert set(told(found)) == {"benign/0.png", "benign/0_lesion.png", "malignant/2.png"}, (
        "a photograph may be a lesion"
    )
    assert set(found.ignored) == {
        ("benign/0_superpixels.png", "superpixels or attributes of an image"),
        ("malignant/2_mask.png", "a mask of many levels"),
        ("malignant/2_attribute_globules.png", "superpixels or attributes of an image"),
    }


def test_masks_beside_images_of_a_table(put, mask, prepare, tmp_path):
    for number in range(20):
        put(f"ISIC_{number:07d}.png", number)
        mask(put, f"ISIC_{number:07d}_segmentation.png", levels=(0, 1 + number))
    rows = "".join(f"ISIC_{number:07d},{('Benign', 'Malignant')[number % 2]}\n" for number in range(20))
    manifest = prepare(put("metadata.csv", f"isic_id,diagnosis_1\n{rows}"), tmp_path / "run")
    assert len(manifest.records) == 20
    assert all(manifest.mask(each).name == f"{each.image[:-4]}_segmentation.png" for each in manifest.records)
    manifest.mask(manifest.records[0]).write_bytes(b"other")
    with pytest.raises(UserError, match=r"_segmentation\.png: not the bytes that the manifest names"):
        manifest.mask(manifest.records[0])


def test_images_deeper_in_a_class_folder_are_counted_and_masks_there_are_masks(put, read, mask):
    put("a/1.png", 1), put("b/2.png", 2), put("b/more/3.png", 3), put("b/more/deep/4.png", 4)
    mask(put, "a/masks/1.png")
    _, found = read(put("b/empty/notes.txt", "x"))
    assert found.records[0].attributes["mask"] == {"image": "a/masks/1.png"}
    assert sorted(found.ignored) == [
        ("a/masks/1.png", "used as the mask of its image"), ("b/empty", "no image"),
        ("b/more/3.png", "in a folder within a class folder"),
        ("b/more/deep/4.png", "in a folder within a class folder"),
    ]  # fmt: skip


def test_a_folder_of_masks_within_a_split_is_no_class(put, read, mask):
    for number, split in enumerate(("train", "test")):
        put(f"{split}/a/{number}.png", number), put(f"{split}/b/{number}_b.png", 5 + number)
        mask(put, f"{split}/masks/{number}.png"), mask(put, f"{split}/masks/{number}_other.png")
    _, found = read(put("notes.txt", "x"))
    assert found.labels == ("a", "b")
    assert [r.attributes.get("mask") for r in found.records if r.label == "a"] == [
        {"image": "test/masks/1.png"}, {"image": "train/masks/0.png"},
    ]  # fmt: skip
    assert ("train/masks/0_other.png", "outside of the class folders") in found.ignored


@pytest.mark.parametrize(
    "turn, size, mask_size, mask_turn, kept",
    [(1, (80, 60), (80, 60), 1, True), (1, (80, 60), (40, 30), 1, True), (1, (80, 60), (40, 40), 1, False),
     (6, (80, 60), (80, 60), 1, False), (6, (80, 60), (60, 80), 1, True), (6, (80, 60), (80, 60), 6, True),
     (3, (80, 60), (80, 60), 1, False), (6, (80, 80), (80, 80), 1, False), (1, (80, 61), (27, 20), 1, True)],
)  # fmt: skip
def test_a_mask_that_is_not_shaped_or_turned_as_its_image_is_left_out(
    put, read, turn, size, mask_size, mask_turn, kept
):
    def save(name, size, turn, pixels):
        image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        exif = image.getexif()
        exif[images.EXIF_ORIENTATION] = turn
        image.save(put(name, b"") / name, exif=exif)

    save("a/1.jpg", size, turn, np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    save("a/1_mask.png", mask_size, mask_turn, np.eye(8, dtype=np.uint8) * 255)
    _, found = read(put("b/2.png", 2))
    assert ("mask" in found.records[0].attributes) == kept and len(found.records) == 2
    why = "used as the mask of its image" if kept else "a mask that is shaped or turned otherwise than its image"
    assert found.ignored == (("a/1_mask.png", why),)


@pytest.mark.parametrize("folder", ["gt", "labels", "Annotations", "seg"])
def test_masks_in_a_folder_that_may_be_a_class_are_known_by_their_levels(put, read, mask, folder):
    for number in range(2):
        put(f"images/{number}.png", number)
        mask(put, f"{folder}/{number}.png")
    with pytest.raises(UserError, match=f"{folder}: a class without images"):
        read(put("notes.txt", "x"))
    _, found = read(put("m.csv", "file,label\n0.png,mole\n1.png,cancer\n"))
    assert [(r.image, r.attributes["mask"]["image"]) for r in found.records] == [
        (f"images/{number}.png", f"{folder}/{number}.png") for number in range(2)
    ]  # fmt: skip


def test_photographs_of_a_class_of_such_a_name_are_photographs(put, read):
    for number, name in enumerate(("lesion/0.png", "skin/0.png", "hair/0.png")):
        root = put(name, number)
    assert len(read(root)[1].records) == 3
