"""The layout of a folder is told by what lies in it, or by who knows better; either way it is said."""

import json
import re
from dataclasses import replace

import pytest

from dermjax.data import digests, export, records
from dermjax.data.archives import tfds
from dermjax.data.archives.table_records import TableOptions
from dermjax.errors import UserError
from dermjax.preparation.listing import list_folder, list_images, split_paths, with_positive

COLUMNS = dict.fromkeys(("image", "label", "split", "lesion_id", "patient_id", "licence", "age"), "")
HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization\nL1,0,nv,x,1,male,back\nL2,1,mel,x,1,male,back\n"


def listing(folder, layout="detect", classes="binary", **columns):
    options = TableOptions(classes=classes, skip=False, kind="dermoscopic", own_splits=False, into=folder / "run")
    return list_folder(folder, layout=layout, columns=COLUMNS | columns, options=options)


@pytest.mark.parametrize(
    "folders, name",
    [
        (("benign", "malignant"), "class folders"),
        (("train/nevus", "train/melanoma", "test/nevus", "test/melanoma"), "split folders"),
        (("train/benign", "train/malignant", "test/benign", "test/malignant"), "kaggle-malignant-vs-benign, without"),
    ],
)
def test_folders_are_told_apart(tmp_path, fill, folders, name):
    said, found = listing(fill(tmp_path / "moles", folders, 2))
    assert said.startswith(name) and len(found.records) == 2 * len(folders)


def test_a_table_wins_over_folders_unless_told_otherwise(tmp_path, fill, capsys):
    root = fill(tmp_path / "moles", ("0", "1"), 1)
    (root / "1" / "0.png").rename(root / "1" / "1.png")
    (root / "metadata.csv").write_text(HAM)
    assert listing(root)[0] == "ham10000" and listing(root)[1].labels == ("benign", "malignant")
    assert listing(root, "ham10000", "diagnoses")[1].labels == ("nevus", "melanoma")
    assert "not read, as config.layout is folders" not in capsys.readouterr().out
    assert listing(root, "folders")[0] == "class folders" and listing(root, "folders")[1].labels == ("0", "1")
    assert f"not read, as config.layout is folders: {root}/metadata.csv; lesions" in capsys.readouterr().out
    name, found = listing(root, image="image_id", label="dx", lesion_id="lesion_id")
    assert name == "table" and found.labels == ("nv", "mel") and found.records[0].lesion_id == "L1"


def test_images_sorted_into_train_are_taken_so_whatever_table_lies_there(tmp_path, fill):
    root = fill(tmp_path / "moles", ("train/a", "train/b"), 1)
    assert listing(root)[0] == "split folders"
    (root / "metadata.csv").write_text(HAM)
    assert listing(root, "folders")[0] == "split folders"
    with pytest.raises(UserError, match=r"0 may be train/a/0.png or train/b/0.png"):
        listing(root)
    (root / "train/b/0.png").rename(root / "train/b/1.png")
    assert listing(root)[0] == "split folders"
    (root / "train/b/1.png").rename(root / "train/b/0.png")
    with pytest.raises(UserError, match=r"0 may be train/a/0.png or train/b/0.png"):
        listing(root, "ham10000")


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"layout": "isic"}, "config.layout 'isic': give one of detect, folders, table, tfds, ham10000"),
        ({"classes": "seven"}, "config.classes 'seven': give one of binary, diagnoses"),
        ({"layout": "table"}, "config.columns: give the columns of the image and the label"),
        ({"layout": "isic-2019"}, "no table with columns image"),
        ({"layout": "tfds"}, "not a data set of images with labels in array_record"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, fill, asked, told):
    with pytest.raises(UserError, match=told):
        listing(fill(tmp_path / "moles", ("a", "b"), 1), **asked)


def test_folders_are_divided_by_commas_unless_there_is_one_of_that_name(tmp_path):
    assert split_paths(f"{tmp_path}/a, {tmp_path}/b") == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "a,b").mkdir()
    assert split_paths(f"{tmp_path}/a,b") == [tmp_path / "a,b"]
    for stray in (f"{tmp_path}/a,", f", {tmp_path}/a", f"{tmp_path}/a,,{tmp_path}/b"):
        with pytest.raises(UserError, match="a comma with no folder beside it"):
            split_paths(stray)


def test_a_map_of_columns_is_for_the_folders_that_have_them(tmp_path, fill, capsys):
    sorted_, clinic = fill(tmp_path / "sorted", ("benign", "malignant"), 2), fill(tmp_path / "clinic", ("x",), 2)
    (clinic / "list.csv").write_text("file;dx\n0.png;mel\n1.png;nv\n")
    options = TableOptions(classes="binary", skip=False, kind="dermoscopic", own_splits=False, into=tmp_path / "run")
    asked = {"layout": "detect", "positive": "", "options": options}
    found = list_images(f"{sorted_},{clinic}", columns=COLUMNS | {"image": "file", "diagnosis": "dx"}, **asked)
    assert [(each.image, each.label) for each in found.records if each.source == "table"] == [
        ("clinic/x/0.png", "malignant"), ("clinic/x/1.png", "benign")
    ]  # fmt: skip
    assert len(found.records) == 6 and "clinic is read as table" in capsys.readouterr().out
    (clinic / "who.csv").write_text("file;Wer\n0.png;p\n1.png;q\n")
    columns = COLUMNS | {"image": "file", "diagnosis": "dx", "patient_id": "Wer"}
    found = list_images(f"{sorted_},{clinic}", columns=columns, **asked)
    assert [each.patient_id for each in found.records if each.source == "table"] == ["p", "q"]


def test_the_positive_class_may_be_named(tmp_path, fill):
    _, found = listing(fill(tmp_path / "moles", ("a", "b", "c"), 1))
    assert with_positive(found, "").labels == ("a", "b", "c") and with_positive(found, "a").labels == ("b", "c", "a")
    with pytest.raises(UserError, match=r"config.positive 'd': the classes are a, b, c"):
        with_positive(found, "d")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"splits": 3}', "\x00"])
def test_a_damaged_data_set_is_named(tmp_path, content):
    for name in ("dataset_info.json", "features.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(f"folder {tmp_path}: not a data set")):
        listing(tmp_path)


def test_a_data_set_that_is_refused_later_leaves_none_of_its_images(tmp_path, fill, prepare, refused):
    manifest = prepare(fill(tmp_path / "moles", ("benign", "malignant"), 4), tmp_path / "run")
    few = replace(manifest, records=tuple(replace(each, split="train") for each in manifest.records[2:6]))
    export.write(few, tmp_path / "out", "array_record", name="moles", card="")
    refused(tmp_path / "out", "2 distinct images are too few")


def test_a_data_set_of_something_else_is_named(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "mnist", "version": "1.0.0", "splits": []}))
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(UserError, match="not a data set of images"):
        listing(tmp_path)


def test_an_image_of_a_data_set_whose_label_is_kept_back_is_left_out(tmp_path, picture):
    class Labels(tuple):
        def index(self, label):  # tensorflow-datasets' word for no label
            return -1 if label == "unlabelled" else super().index(label)

    entries = []
    for number, (label, split) in enumerate((("a", "train"), ("b", "train"), ("unlabelled", "test"))):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        entries.append(records.Record(
            image=f"{number}.png", sha256=digests.sha256(tmp_path / f"{number}.png"), label=label, split=split,
            source="s", image_manipulation="none"))  # fmt: skip
    manifest = records.Manifest(labels=Labels(("a", "b")), root=tmp_path, records=tuple(entries))
    export.write(manifest, tmp_path / "set", "array_record", "moles", "")
    found = tfds.scan(tmp_path / "set", tmp_path / "run")
    assert [record.label for record in found.records] == ["a", "b"]
    assert found.ignored == (("data_set_images/dermjax/test/000000.png", "without a label"),)
