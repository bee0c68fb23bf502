"""`prepare` on every kind of folder: the manifest that it should write, or one line and nothing written."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermjax.data import digests, images, records, splits, thumbnails
from dermjax.errors import UserError
from dermjax.preparation.run import run

PHOTOGRAPHS = Path(__file__).parents[2] / ".." / "shared" / "data" / "dermoscopy"
CLASSES = ("benign", "malignant")


def test_a_folder_of_classes_gets_three_splits_and_stays_where_it_is(folder, tmp_path, prepare):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = prepare(folder, tmp_path / "run")
    assert manifest.labels == CLASSES and manifest.root == folder.resolve() and len(manifest.records) == 40
    for name in records.SPLITS:
        assert {record.label for record in manifest.split(name)} == set(CLASSES)
    assert all(manifest.path(record) in before for record in manifest.records)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "examined.jsonl", "manifest.jsonl", "report.html", "thumbnails"
    ]  # fmt: skip


@pytest.mark.parametrize("inside", ["", "run", "runs/prepare"])
def test_a_workdir_within_the_images_is_refused(folder, prepare, inside):
    """Whatever a run leaves there would be read as images when it goes on."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"lies in the folder of images, .*; give another --workdir"):
        prepare(folder, folder / inside)
    assert [path for path in sorted(folder.rglob("*")) if path.is_file()] == [each for each in before if each.is_file()]


def test_the_same_seed_writes_the_same_manifest(folder, tmp_path, prepare):
    for name in ("one", "two"):
        prepare(folder, tmp_path / name)
    prepare(folder, tmp_path / "other", seed=1)
    texts = [(tmp_path / name / "manifest.jsonl").read_text() for name in ("one", "two", "other")]
    assert texts[0] == texts[1] != texts[2]


def test_a_test_folder_is_kept_and_validation_comes_from_train(divided, tmp_path, prepare):
    manifest = prepare(divided, tmp_path / "run")
    assert len(manifest.split("test")) == 24
    assert all(record.image.startswith("test/") for record in manifest.split("test"))
    assert manifest.split("validation") and len(manifest.split("train") + manifest.split("validation")) == 24


def test_images_that_a_model_made_are_marked_and_all_for_training(divided, tmp_path, prepare, refused):
    """Whatever folders they lie in, and copies of each other as well."""
    (divided / "test/benign/again.png").write_bytes((divided / "train/benign/3.png").read_bytes())
    manifest = prepare(divided, tmp_path / "run", synthetic=True)
    assert len(manifest.records) == 49 and all(each.kept and each.synthetic for each in manifest.split("train"))
    assert len(manifest.split("train")) == 49
    told = "config.synthetic: images that a model made are for training"
    for changed in ({"folds": 2}, {"previous": str(tmp_path / "run")}):
        refused(divided, told, synthetic=True, **changed)
    refused("phantoms", told, synthetic=True)


def test_copies_and_near_copies_of_an_image_stay_on_one_side(folder, tmp_path, picture, prepare):
    for number in range(20):
        pixels = images.load(folder / "benign" / f"{number}.png", 64)
        (folder / "benign" / f"again{number}.png").write_bytes(picture(number))
        (folder / "benign" / f"brighter{number}.png").write_bytes(
            images.encode_png(np.clip(pixels, 0, 240) + np.uint8(9))
        )
    manifest = prepare(folder, tmp_path / "run")
    side = {record.image: record.split for record in manifest.records}
    for number in range(20):
        assert len({side[f"benign/{name}{number}.png"] for name in ("", "again", "brighter")}) == 1


def test_near_copies_in_two_given_splits_are_set_aside_said_and_shown(divided, tmp_path, capsys, prepare):
    pixels = images.load(divided / "train/benign/3.png", 64)
    (divided / "test/benign/copy.png").write_bytes(images.encode_png(np.clip(pixels, 0, 240) + np.uint8(9)))
    manifest = prepare(divided, tmp_path / "run")
    assert [record.image for record in manifest.records if not record.kept] == ["train/benign/3.png"]
    assert "share an image, a lesion or a patient with validation or test images: 1" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Groups of near-duplicates in two splits: 1" in page and "test/benign/copy.png (test, benign)" in page


def test_several_archives_become_one_manifest_and_what_they_share_is_set_aside(folder, tmp_path, capsys, fill, prepare):
    other = fill(tmp_path / "kaggle", ("train/benign", "train/malignant", "test/benign", "test/malignant"), 3)
    for label in CLASSES:  # of the other folder's test images some stand here, one of them turned and compressed
        for number in range(3):
            pixels = np.random.default_rng(777 + number + 10 * (label == "benign")).integers(
                0, 256, (16, 16, 3), np.uint8
            )
            pixels = pixels.repeat(4, axis=0).repeat(4, axis=1)
            (other / "test" / label / f"{number}.png").write_bytes(images.encode_png(pixels))
            (folder / label / f"again{number}.png").write_bytes(
                images.encode_png(np.rot90(pixels) if number else pixels)
            )
    manifest = prepare(f"{folder},{other}", tmp_path / "run", **{"ratios.test": 0.0})
    assert manifest.root == tmp_path.resolve() and len(manifest.records) == 58
    aside = [record.image for record in manifest.records if record.rejected == ("near_duplicate_of_evaluation",)]
    assert aside == [f"moles/{label}/again{number}.png" for label in CLASSES for number in range(3)]
    assert all(record.image.startswith("kaggle/test/") for record in manifest.split("test"))
    assert {record.source for record in manifest.records} == {"moles", "kaggle"}
    assert f"{other} is read as kaggle" in capsys.readouterr().out


def test_what_a_model_made_is_set_aside_and_said(folder, tmp_path, capsys, prepare):
    rows = [f"{path.name},{path.parent.name}" for path in sorted(folder.rglob("*.png")) if path.parent.name == "benign"]
    for path in sorted((folder / "malignant").iterdir()):
        path.rename(folder / f"m{path.name}")
        rows.append(f"m{path.name},malignant")
    rows = [f"{row},{'synthetic' if place % 4 == 0 else 'none'}" for place, row in enumerate(rows)]
    (folder / "metadata.csv").write_text("isic_id,diagnosis_1,image_manipulation\n" + "\n".join(rows))
    manifest = prepare(folder, tmp_path / "run")
    made = [record for record in manifest.records if record.synthetic]
    assert len(made) == 10 and all((each.split, each.rejected) == ("train", ("synthetic",)) for each in made)
    assert len(manifest.split("train") + manifest.split("validation") + manifest.split("test")) == 30
    assert "set aside, as a model made them: 10" in capsys.readouterr().out


def test_what_is_done_to_pixels_and_the_camera_are_in_the_attributes_and_said(folder, tmp_path, capsys, prepare):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Leica", "D7", 6
    Image.open(folder / "benign/3.png").save(folder / "benign/turned.jpg", exif=exif)
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(folder / "benign/deep.png")
    told = {record.image: record.attributes for record in prepare(folder, tmp_path / "run").records}
    assert told["benign/turned.jpg"] == {"device": "Leica D7", "decoded": ["turned upright"]}
    assert told["benign/deep.png"] == {"decoded": ["16-bit grey scaled to 8"]} and told["benign/3.png"] == {}
    assert "1 16-bit grey scaled to 8, 1 turned upright" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Leica D7 1" in page and "the file itself is not: 1, turned upright" in page


def test_thumbnails_are_kept_by_digest_and_not_made_again(folder, tmp_path, monkeypatch, prepare):
    manifest = prepare(folder, tmp_path / "run")
    kept = {path.stem for path in (tmp_path / "run" / thumbnails.FOLDER).iterdir()}
    assert kept and kept <= {record.sha256 for record in manifest.records}
    record = next(record for record in manifest.records if record.sha256 in kept)
    before = thumbnails.thumbnail(manifest, record, "")
    monkeypatch.setattr(images, "load", None)
    assert thumbnails.thumbnail(manifest, record, "") == before


def test_near_copies_under_two_classes_are_said_and_shown_first(folder, tmp_path, capsys, prepare):
    pixels = images.load(folder / "benign/3.png", 64)
    (folder / "malignant/copy.png").write_bytes(images.encode_png(np.clip(pixels, 0, 240) + np.uint8(9)))
    prepare(folder, tmp_path / "run")
    assert "under two classes, shown in report.html: 1 pairs" in capsys.readouterr().out
    assert "near-duplicates under two classes: 1." in (tmp_path / "run" / "report.html").read_text()


def test_a_limit_is_taken_evenly_before_anything_is_decoded(divided, tmp_path, prepare):
    kept = {record.image for record in prepare(divided, tmp_path / "first", limit=5).records}
    assert len(kept) == 20
    for path in divided.rglob("*.png"):
        if path.relative_to(divided).as_posix() not in kept:
            path.write_bytes(b"broken, but never looked at")
    manifest = prepare(divided, tmp_path / "run", limit=5)
    assert {record.image for record in manifest.records} == kept
    assert len([record for record in manifest.split("test") if record.label == "benign"]) == 5


def test_a_bad_image_is_named_or_skipped_as_asked(folder, tmp_path, capsys, picture, prepare, refused):
    (folder / "benign" / "7.png").write_bytes(picture(7)[:-300])
    (folder / "malignant" / "8.png").write_bytes(b"<html>")
    refused(folder, r"benign/7\.png: cannot be decoded.*on_bad_image=skip")
    manifest = prepare(folder, tmp_path / "run", on_bad_image="skip")
    assert len(manifest.records) == 38
    assert "bad images skipped: 2" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Bad images skipped: 2" in page and "benign/7.png" in page and "malignant/8.png" in page


def test_a_link_out_of_the_folder_is_followed_as_the_user_named_the_folder(folder, tmp_path, picture, prepare):
    (tmp_path / "elsewhere.png").write_bytes(picture(99))
    (folder / "benign" / "ISIC_0000001.png").symlink_to(tmp_path / "elsewhere.png")
    manifest = prepare(folder, tmp_path / "run")
    (linked,) = [each for each in manifest.records if each.image == "elsewhere.png"]
    assert len(manifest.records) == 41 and manifest.root == tmp_path.resolve() and linked.label == "benign"
    assert linked.attributes["linked_as"] == "benign/ISIC_0000001.png"
    assert ("isic_id", "ISIC_0000001") in splits.identities(linked)


def test_a_manifest_from_elsewhere_may_not_follow_links_out_of_its_root(folder, tmp_path, picture, prepare):
    manifest = prepare(folder, tmp_path / "run")
    (folder / "benign" / "0.png").unlink()
    (tmp_path / "elsewhere.png").write_bytes(picture(99))
    (folder / "benign" / "0.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(UserError, match=r"line 2: benign/0\.png: a link that leaves the image root"):
        records.read(tmp_path / "run")
    assert manifest.records[0].image == "benign/0.png"


def test_what_is_no_image_is_said_and_listed(folder, tmp_path, capsys, prepare):
    (folder / "benign" / "notes.txt").write_bytes(b"")
    prepare(folder, tmp_path / "run")
    assert "left out: 1 no image, listed" in capsys.readouterr().out
    assert "benign/notes.txt" in (tmp_path / "run" / "report.html").read_text()


def test_file_names_that_are_markup_or_no_text_do_no_harm(folder, tmp_path, picture, prepare):
    (folder / "benign" / "<b>&.png").write_bytes(picture(501))
    (folder / "benign" / "\udcff.png").write_bytes(picture(502))
    names = {record.image for record in prepare(folder, tmp_path / "run").records}
    assert {"benign/<b>&.png", "benign/\udcff.png"} <= names
    assert "<b>&" not in (tmp_path / "run" / "report.html").read_text()


def test_a_finished_run_is_left_alone(folder, tmp_path, capsys, settings, prepare):
    prepare(folder, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    run(settings(images=str(folder)), tmp_path / "run")
    assert "finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}


def test_the_same_file_in_two_splits_is_refused_with_both_names(divided, refused):
    (divided / "test/benign/copy.png").write_bytes((divided / "train/benign/3.png").read_bytes())
    refused(divided, r"test/benign/copy\.png \(test\) and train/benign/3\.png \(train\)")


def test_one_image_under_two_classes_is_refused(folder, refused):
    (folder / "malignant/copy.png").write_bytes((folder / "benign/3.png").read_bytes())
    refused(folder, r"under two classes: benign/3\.png and malignant/copy\.png")


def test_a_class_that_loses_all_its_images_is_refused(divided, refused):
    for path in (divided / "test/malignant").iterdir():
        path.write_bytes(b"")
    refused(divided, "class 'malignant' has no sound image in test", on_bad_image="skip")


@pytest.mark.parametrize(
    "folders, told",
    [
        ((), "no images"),
        (("benign",), "only one class"),
        (("train/a", "train/b", "dev/a"), "dev beside a split"),
        (("train/a", "train/b", "test/a"), "class 'b' is missing in test"),
    ],
)
def test_folders_that_cannot_be_learned_from(tmp_path, folders, told, fill, refused):
    (tmp_path / "moles").mkdir()
    refused(fill(tmp_path / "moles", folders, 2), told)


def test_a_class_without_images_and_a_missing_folder(folder, tmp_path, refused):
    (folder / "nevus").mkdir()
    refused(folder, "nevus: a class without images")
    refused(tmp_path / "gone", re.escape(f"folder {tmp_path / 'gone'}: no such folder"))


def test_a_class_with_too_few_images(tmp_path, fill, refused):
    refused(fill(tmp_path / "moles", CLASSES, 2), "'benign': 2 distinct images are too few")


def test_more_folds_than_lesions_of_a_class_are_refused(tmp_path, picture, fill, refused, prepare):
    """A copy is no further lesion: two folds would test the same one."""
    root = fill(tmp_path / "few", CLASSES, 5)
    (root / "benign" / "again.png").write_bytes(picture(0))
    refused(root, r"config.folds = 6: class 'benign' has 5 distinct lesions; give no more", folds=6)
    assert prepare(root, tmp_path / "run", folds=5).split("test")


def test_hairs_are_taken_out_of_copies_when_asked_for(folder, tmp_path, prepare):
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    manifest = prepare(folder, tmp_path / "run", remove_hairs=True)
    plain = prepare(folder, tmp_path / "plain")
    assert manifest.root == tmp_path.resolve() / "run"
    assert [each.split for each in manifest.records] == [each.split for each in plain.records]
    assert [each.image for each in manifest.records] == [f"images/{each.image}.png" for each in plain.records]
    assert all(each.sha256 == digests.sha256(manifest.path(each)) for each in manifest.records)
    assert all(each.attributes["hairs_removed"] for each in manifest.records)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize("later", [True, False])
def test_copies_without_hairs_keep_their_sides(folder, tmp_path, picture, prepare, later):
    """With and without hairs they are one photograph, to a later run and to an audit."""
    first = prepare(folder, tmp_path / "first", remove_hairs=True, seed=5)
    sides = {each.image.removeprefix("images/"): each.split for each in first.records}
    for number in range(10):
        (folder / "benign" / f"new{number}.png").write_bytes(picture(900 + number))
    second = prepare(folder, tmp_path / "second", remove_hairs=later, previous=str(tmp_path / "first"))
    names = [each.image.removeprefix("images/") if later else f"{each.image}.png" for each in second.records]
    again = {name: each.split for name, each in zip(names, second.records, strict=True)}
    assert len(again) == 50 and all(again[image] == side for image, side in sides.items())
    tied = [set(splits.identities(each)) for each in (first.records[0], second.records[0])]
    assert tied[0] & tied[1]


def test_copies_without_hairs_of_an_older_version_are_no_guide(folder, tmp_path, prepare):
    first = prepare(folder, tmp_path / "first", remove_hairs=True)
    unnamed = tuple(replace(each, attributes={"hairs_removed": "as DullRazor"}) for each in first.records)
    records.write(tmp_path / "first" / records.FILE, replace(first, records=unnamed))
    with pytest.raises(UserError, match=r"config\.previous: .* is a copy without hairs by an older version, which did"):
        prepare(folder, tmp_path / "second", previous=str(tmp_path / "first"))


@pytest.mark.parametrize(("images", "masks"), [("images", ""), ("images/moles", ""), ("moles", "masks")])
def test_copies_without_hairs_stay_out_of_the_user_s_folders(tmp_path, fill, prepare, images, masks):
    root = fill(tmp_path / images, CLASSES, 20)
    if masks:
        (tmp_path / masks).symlink_to(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(
        UserError, match=r"copies without hairs would lie in .*, among the images of .*; give another --w"
    ):
        prepare(root, tmp_path, remove_hairs=True)
    assert sorted(root.rglob("*")) == before
    assert prepare(root, tmp_path).records


@pytest.mark.parametrize("attributes, limit", [(False, 30), (True, 6)])
def test_real_photographs(attributes, limit, tmp_path, prepare):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared photographs are not here")
    manifest = prepare(PHOTOGRAPHS, tmp_path / "run", limit=limit, attributes=attributes)
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("dark corners" in page) == ("a proxy at best" in page) == attributes
    counts = {name: len(manifest.split(name)) for name in records.SPLITS}
    assert counts["test"] == 2 * limit == counts["train"] + counts["validation"] and counts["validation"] >= 2


def test_the_page_loads_nothing_from_outside_and_shows_every_class_and_split(folder, tmp_path, prepare):
    prepare(folder, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    for label in CLASSES:
        for name in records.SPLITS:
            assert f"<h3>{label} <small>{name}</small></h3>" in page


def test_the_stage_needs_no_jax():
    told = "import sys, dermjax.preparation.run; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
