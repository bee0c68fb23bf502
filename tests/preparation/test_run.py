"""`prepare` on every kind of folder: the manifest that it should write, or one line and nothing written."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dermjax.data import duplicates, images, records
from dermjax.data.phantom import Phantom
from dermjax.errors import UserError
from dermjax.preparation import phantoms
from dermjax.preparation.run import run

CONFIG = Path(__file__).parents[2] / "configs" / "prepare.py"
PHOTOGRAPHS = Path(__file__).parents[2] / ".." / "shared" / "data" / "dermoscopy"


def settings(variant=None, **changes):
    config = runpy.run_path(str(CONFIG))["get_config"](variant)
    config.lock().update_from_flattened_dict({"attributes": False} | changes)
    return config


def picture(number):
    """PNG bytes of an image that no other number gives, nor a near one."""
    coarse = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return images.png(coarse.repeat(4, axis=0).repeat(4, axis=1))


def fill(root, folders, count):
    """`count` different images in each folder; returns the root."""
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(picture(1000 * place + number))
    return root


CLASSES = ("benign", "malignant")
SPLIT = ("train/benign", "train/malignant", "test/benign", "test/malignant")


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "moles", CLASSES, 20)


@pytest.fixture
def divided(tmp_path):
    return fill(tmp_path / "moles", SPLIT, 12)


def prepare(images, workdir, **changes):
    """The manifest that a fresh run writes."""
    workdir.mkdir()
    run(settings(images=str(images), **changes), workdir)
    return records.read(workdir)


def refused(images, tmp_path, told, **changes):
    """A run that must be refused in one line and leave nothing in its folder."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    with pytest.raises(UserError, match=told) as caught:
        run(settings(images=str(images), **changes), workdir)
    assert "\n" not in str(caught.value)
    assert not list(workdir.iterdir())


def test_a_folder_of_classes_gets_three_splits_and_stays_where_it_is(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = prepare(folder, tmp_path / "run")
    assert manifest.labels == CLASSES and manifest.root == folder.resolve() and len(manifest.records) == 40
    for name in records.SPLITS:
        assert {record.label for record in manifest.split(name)} == set(CLASSES)
    assert all(manifest.path(record) in before for record in manifest.records)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.jsonl", "report.html"]


def test_the_same_seed_writes_the_same_manifest(folder, tmp_path):
    for name in ("one", "two"):
        prepare(folder, tmp_path / name)
    prepare(folder, tmp_path / "other", seed=1)
    texts = [(tmp_path / name / "manifest.jsonl").read_text() for name in ("one", "two", "other")]
    assert texts[0] == texts[1] != texts[2]


def test_a_test_folder_is_kept_and_validation_comes_from_train(divided, tmp_path):
    manifest = prepare(divided, tmp_path / "run")
    assert len(manifest.split("test")) == 24
    assert all(record.image.startswith("test/") for record in manifest.split("test"))
    assert manifest.split("validation") and len(manifest.split("train") + manifest.split("validation")) == 24


def test_copies_and_near_copies_of_an_image_stay_on_one_side(folder, tmp_path):
    for number in range(20):
        pixels = images.load(folder / "benign" / f"{number}.png", 64)
        (folder / "benign" / f"again{number}.png").write_bytes(picture(number))
        (folder / "benign" / f"brighter{number}.png").write_bytes(images.png(np.clip(pixels, 0, 240) + np.uint8(9)))
    manifest = prepare(folder, tmp_path / "run")
    side = {record.image: record.split for record in manifest.records}
    for number in range(20):
        assert len({side[f"benign/{name}{number}.png"] for name in ("", "again", "brighter")}) == 1


def test_near_copies_in_two_given_splits_are_set_aside_said_and_shown(divided, tmp_path, capsys):
    pixels = images.load(divided / "train/benign/3.png", 64)
    (divided / "test/benign/copy.png").write_bytes(images.png(np.clip(pixels, 0, 240) + np.uint8(9)))
    manifest = prepare(divided, tmp_path / "run")
    assert [record.image for record in manifest.records if not record.kept] == ["train/benign/3.png"]
    assert "near-duplicates of images that others are judged on: 1" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Near-duplicates in two splits: 1" in page and "test/benign/copy.png (test)" in page


def test_a_limit_is_taken_evenly_before_anything_is_decoded(divided, tmp_path):
    kept = {record.image for record in prepare(divided, tmp_path / "first", limit=5).records}
    assert len(kept) == 20
    for path in divided.rglob("*.png"):
        if path.relative_to(divided).as_posix() not in kept:
            path.write_bytes(b"broken, but never looked at")
    manifest = prepare(divided, tmp_path / "run", limit=5)
    assert {record.image for record in manifest.records} == kept
    assert len([record for record in manifest.split("test") if record.label == "benign"]) == 5


def test_a_bad_image_is_named_or_skipped_as_asked(folder, tmp_path, capsys):
    (folder / "benign" / "7.png").write_bytes(picture(7)[:-300])
    (folder / "malignant" / "8.png").write_bytes(b"<html>")
    refused(folder, tmp_path, r"benign/7\.png: cannot be decoded.*on_bad_image=skip")
    (tmp_path / "run").rmdir()
    manifest = prepare(folder, tmp_path / "run", on_bad_image="skip")
    assert len(manifest.records) == 38
    assert "bad images skipped: 2" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Bad images skipped: 2" in page and "benign/7.png" in page and "malignant/8.png" in page


def test_a_link_out_of_the_folder_is_a_bad_image(folder, tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(picture(99))
    (folder / "benign" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    refused(folder, tmp_path, r"link\.png: a link that leaves its folder")
    (tmp_path / "run").rmdir()
    assert len(prepare(folder, tmp_path / "run", on_bad_image="skip").records) == 40


def test_what_is_no_image_is_said_and_listed(folder, tmp_path, capsys):
    (folder / "benign" / "slice.dcm").write_bytes(b"")
    prepare(folder, tmp_path / "run")
    assert "left out as no images: 1" in capsys.readouterr().out
    assert "benign/slice.dcm" in (tmp_path / "run" / "report.html").read_text()


def test_file_names_that_are_markup_or_no_text_do_no_harm(folder, tmp_path):
    (folder / "benign" / "<b>&.png").write_bytes(picture(501))
    (folder / "benign" / "\udcff.png").write_bytes(picture(502))
    names = {record.image for record in prepare(folder, tmp_path / "run").records}
    assert {"benign/<b>&.png", "benign/\udcff.png"} <= names
    assert "<b>&" not in (tmp_path / "run" / "report.html").read_text()


def test_a_finished_run_is_left_alone(folder, tmp_path, capsys):
    prepare(folder, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    run(settings(images=str(folder)), tmp_path / "run")
    assert "finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}


def test_the_same_file_in_two_splits_is_refused_with_both_names(divided, tmp_path):
    (divided / "test/benign/copy.png").write_bytes((divided / "train/benign/3.png").read_bytes())
    refused(divided, tmp_path, r"test/benign/copy\.png \(test\) and train/benign/3\.png \(train\)")


def test_one_image_under_two_classes_is_refused(folder, tmp_path):
    (folder / "malignant/copy.png").write_bytes((folder / "benign/3.png").read_bytes())
    refused(folder, tmp_path, r"under two classes: benign/3\.png and malignant/copy\.png")


def test_a_class_that_loses_all_its_images_is_refused(divided, tmp_path):
    for path in (divided / "test/malignant").iterdir():
        path.write_bytes(b"")
    refused(divided, tmp_path, "class 'malignant' has no sound image in test", on_bad_image="skip")


@pytest.mark.parametrize(
    "folders, told",
    [
        ((), "no images"),
        (("benign",), "only one class"),
        (("train/a", "train/b", "dev/a"), "dev beside a split"),
        (("train/a", "train/b", "test/a"), "class 'b' is missing in test"),
    ],
)
def test_folders_that_cannot_be_learned_from(tmp_path, folders, told):
    (tmp_path / "moles").mkdir()
    refused(fill(tmp_path / "moles", folders, 2), tmp_path, told)


def test_a_class_without_images_and_a_missing_folder(folder, tmp_path):
    (folder / "nevus").mkdir()
    refused(folder, tmp_path, "nevus: a class without images")
    (tmp_path / "run").rmdir()
    refused(tmp_path / "gone", tmp_path, re.escape(f"folder {tmp_path / 'gone'}: no such folder"))


def test_a_class_with_too_few_images(tmp_path):
    refused(fill(tmp_path / "moles", CLASSES, 2), tmp_path, "'benign': 2 distinct images are too few")


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"images": ""}, "config.images is empty"),
        ({"on_bad_image": "ignore"}, "config.on_bad_image 'ignore'"),
        ({"limit": -1}, "config.limit -1"),
        ({"ratios.test": 0.95}, "config.ratios"),
        ({"ratios.validation": -0.1}, "config.ratios"),
        ({"images": "phantoms", "phantoms_per_class": 3}, "phantoms_per_class 3: too few for validation"),
        ({"images": "phantoms", "phantoms_per_class": 500_001}, "phantoms_per_class 500001"),
        ({"images": "phantoms", "size": 100}, "size 100"),
    ],
)
def test_settings_that_cannot_be_meant(folder, tmp_path, changes, told):
    refused(changes.get("images", folder), tmp_path, told, **{k: v for k, v in changes.items() if k != "images"})


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="no variant 'paper'"):
        settings("paper")


def fake(seed, size, *, label):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), bool)
    return Phantom(pixels, mask, label, f"phantom of seed {seed}", {"seed": seed, "number": 1}, {})


def paint(workdir, seed=0, per_class=20):
    asked = {"images": "phantoms", "size": 64, "phantoms_per_class": per_class, "seed": seed, "ratios.test": 0.25}
    run(settings("demo", **asked), workdir)
    return records.read(workdir)


def files(workdir):
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_phantoms_are_divided_alike_and_never_of_a_seed_that_the_base_model_saw(tmp_path, monkeypatch):
    monkeypatch.setattr(phantoms, "phantom", fake)
    manifest = paint(tmp_path, seed=3)
    for name, count in (("train", 13), ("validation", 2), ("test", 5)):
        assert [r.label for r in manifest.split(name)].count("benign") == count == len(manifest.split(name)) / 2
    seeds = [record.attributes["parameters"]["seed"] for record in manifest.records]
    assert sorted(seeds) == list(range(13_000_000, 13_000_040))
    first = manifest.records[0]
    assert (first.image, first.source) == ("images/benign/00000.png", "phantom")
    assert first.sha256 == duplicates.sha256(manifest.path(first))
    assert first.attributes["caption"] == f"phantom of seed {seeds[0]}"
    np.testing.assert_array_equal(images.load(manifest.path(first), 64), fake(seeds[0], 64, label="benign").image)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(phantoms, "phantom", fake)
    (tmp_path / "whole").mkdir()
    paint(tmp_path / "whole")

    def killed(seed, size, *, label):
        if seed == 10_000_017:
            raise KeyboardInterrupt
        return fake(seed, size, label=label)

    (tmp_path / "killed").mkdir()
    monkeypatch.setattr(phantoms, "phantom", killed)
    with pytest.raises(KeyboardInterrupt):
        paint(tmp_path / "killed")
    assert len(files(tmp_path / "killed")) == 17
    (tmp_path / "killed" / "images/benign/00002.png").write_bytes(b"half an ima")
    kept = tmp_path / "killed" / "images/benign/00001.png"
    written = kept.stat().st_mtime_ns
    monkeypatch.setattr(phantoms, "phantom", fake)
    paint(tmp_path / "killed")
    whole, resumed = files(tmp_path / "whole"), files(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(whole[path] == resumed[path] for path in whole if path.name != "report.html")
    assert kept.stat().st_mtime_ns == written


def test_real_phantoms(tmp_path):
    manifest = paint(tmp_path, per_class=8)
    assert manifest.labels == CLASSES and len(manifest.records) == 16
    assert all(record.attributes["parameters"]["label"] == record.label for record in manifest.records)
    assert not any(label in record.attributes["caption"] for record in manifest.records for label in CLASSES)


def test_real_photographs(tmp_path):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared photographs are not here")
    manifest = prepare(PHOTOGRAPHS, tmp_path / "run", limit=30)
    counts = {name: len(manifest.split(name)) for name in records.SPLITS}
    assert counts["test"] == 60 and counts["train"] + counts["validation"] == 60 and counts["validation"] >= 2


def test_the_page_loads_nothing_from_outside_and_shows_every_class_and_split(folder, tmp_path):
    prepare(folder, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    for label in CLASSES:
        for name in records.SPLITS:
            assert f"<h3>{label} <small>{name}</small></h3>" in page


def test_the_stage_needs_no_jax():
    told = "import sys, dermjax.preparation.run; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from dermjax.data import images
from dermjax.preparation.run import run
load, seen = images.load, []
def until(path, size):
    seen.append(path)
    if len(seen) == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(path, size)
images.load = until
config = runpy.run_path(sys.argv[1])["get_config"]()
config.images, config.attributes = sys.argv[2], False
run(config, Path(sys.argv[3]))
"""


def test_a_killed_examination_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch):
    prepare(folder, tmp_path / "whole")
    (tmp_path / "run").mkdir()
    arguments = [sys.executable, "-c", KILLED, str(CONFIG), str(folder), str(tmp_path / "run")]
    assert subprocess.run(arguments, check=False).returncode == -9
    journal = (tmp_path / "run" / "examined.jsonl").read_bytes()
    assert 0 < journal.count(b"\n") < 40
    with (tmp_path / "run" / "examined.jsonl").open("ab") as torn:
        torn.write(b'{"image": "beni')
    looked = []
    load = images.load
    monkeypatch.setattr(images, "load", lambda path, size: looked.append((path, size)) or load(path, size))
    run(settings(images=str(folder)), tmp_path / "run")
    examined = [path for path, size in looked if size == duplicates.HASHED]
    assert len(examined) == 40 - journal.count(b"\n")
    names = ("manifest.jsonl",)
    assert [(tmp_path / "run" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]
    assert not (tmp_path / "run" / "examined.jsonl").exists()
