"""Folders as people keep them: wrapped, linked, littered, with tables and captions beside classes."""

import json
import os
import shutil
import socket
import unicodedata

import pytest

from dermjax.data import images, splits
from dermjax.errors import UserError


def test_a_nested_copy_of_class_folders_is_left_out_too(put, read, tmp_path):
    for number, name in enumerate(("benign/0.png", "malignant/0.png")):
        put(name, number), put(f"copy/{name}", number)
    _, found = read(tmp_path / "data")
    assert len(found.records) == 2 and [name for name, _ in found.ignored] == ["copy"]


@pytest.mark.parametrize("around", ["archive", "archive/melanoma_set", "a/b/c"])
def test_a_single_wrapping_folder_is_entered(put, read, around):
    for number, name in enumerate(("benign/1.png", "malignant/1.png")):
        put(f"{around}/{name}", number)
    name, found = read(put("README.txt", "as Kaggle zips it"))
    assert name == "class folders" and {record.label for record in found.records} == {"benign", "malignant"}


def test_a_wrapping_folder_around_splits_and_within_a_split(put, read):
    for number, (split, label) in enumerate((s, c) for s in ("train", "test") for c in "ab"):
        root = put(f"set/{split}/images/{label}/1.png", number)
    name, found = read(root)
    assert name == "split folders" and sorted({(r.split, r.label) for r in found.records}) == [
        ("test", "a"), ("test", "b"), ("train", "a"), ("train", "b")
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("place", ["a split", "the root"])
def test_imagefolder_of_hugging_face(put, read, form, place):
    rows = []
    for number, split in enumerate(("train", "train", "test", "test")):
        put(f"{split}/{number}.png", number)
        name = f"{number}.png" if place == "a split" else f"{split}/{number}.png"
        rows.append((split, {"file_name": name, "label": ("mole", "cancer")[number % 2], "text": f"a, {number}"}))
    for where in {"a split": ("train", "test"), "the root": ("",)}[place]:
        own = [row for split, row in rows if where in ("", split)]
        lines = [json.dumps(row) for row in own]
        if form == "csv":
            lines = ["file_name,label,text", *(f'{row["file_name"]},{row["label"]},"{row["text"]}"' for row in own)]
        root = put(f"{where}/metadata.{form}".lstrip("/"), "\n".join(lines) + "\n")
    _, found = read(root)
    assert [(r.image, r.label, r.split, r.attributes["caption"]) for r in found.records] == [
        ("test/2.png", "mole", "test", "a, 2"), ("test/3.png", "cancer", "test", "a, 3"),
        ("train/0.png", "mole", "train", "a, 0"), ("train/1.png", "cancer", "train", "a, 1"),
    ]  # fmt: skip


def test_captions_and_patients_of_a_table_beside_class_folders_are_kept(put, read):
    for number, label in enumerate(("benign", "malignant")):
        put(f"{label}/{number}.png", number)
    root = put("metadata.jsonl", "\n".join(
        json.dumps({"file_name": f"{label}/{n}.png", "text": f"of {n}", "patient_id": f"P{n}"})
        for n, label in enumerate(("benign", "malignant"))))  # fmt: skip
    name, found = read(root)
    assert name == "class folders"
    assert [(r.attributes["caption"], r.patient_id) for r in found.records] == [("of 0", "P0"), ("of 1", "P1")]


def test_a_table_beside_class_folders_of_which_no_column_is_known_is_said(put, read, capsys):
    for number, label in enumerate(("gut", "schlecht")):
        root = put(f"{label}/{number}.png", number)
    put("Befunde.csv", "Bild;Patientin\n0.png;A\n1.png;B\n")
    _, found = read(root)
    assert "not read, as no column is known: Befunde.csv ('Bild', 'Patientin'); config.col" in capsys.readouterr().out
    assert len(found.records) == 2


def test_linked_class_folders_and_images_are_followed(put, read, prepare, tmp_path):
    for number in range(20):
        root = put(f"../elsewhere/{number}.png", number) if number < 10 else put(f"malignant/{number}.png", number)
    elsewhere = tmp_path / "elsewhere"
    (root / "benign").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(root)
    (root / "malignant" / "30.png").symlink_to(root / "malignant" / "10.png")
    manifest = prepare(root, tmp_path / "run")
    assert manifest.root == tmp_path.resolve() and len(manifest.records) == 20
    assert {record.label for record in manifest.records if record.image.startswith("elsewhere/")} == {"benign"}
    assert all(manifest.path(record).is_file() for record in manifest.records)
    assert "a link to an image that is listed already" in (tmp_path / "run" / "report.html").read_text()
    (root / "malignant" / "31.png").symlink_to(elsewhere / "1.png")
    with pytest.raises(UserError, match=r"benign/1\.png and malignant/31\.png are links to one image"):
        read(root)


def test_linked_images_of_a_table_are_followed_and_circles_end(put, read, told, tmp_path):
    put("../elsewhere/deep/ISIC_0000001.png", 1), put("../elsewhere/deep/blob", 2)
    root = put("m.csv", "isic_id,diagnosis_1\nISIC_0000001,Benign\nISIC_0000002,Malignant\n")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(root)
    (root / "ISIC_0000002.png").symlink_to(tmp_path / "elsewhere" / "deep" / "blob")
    _, found = read(root)
    assert told(found) == {"elsewhere/deep/ISIC_0000001.png": "benign", "elsewhere/deep/blob": "malignant"}
    assert ("isic_id", "ISIC_0000002") in splits.identities(found.records[0]) + splits.identities(found.records[1])
    assert any(why == "a link to a folder around it" for _, why in found.ignored)


def special(root):
    os.mkfifo(root / "pipe.png")
    (root / "device.png").symlink_to("/dev/zero")
    held = socket.socket(socket.AF_UNIX)
    held.bind(str(root / "s.png"))
    held.close()
    return {("pipe.png", "a named pipe"), ("device.png", "a device"), ("s.png", "a socket")}


def test_pipes_devices_and_sockets_are_left_out_with_a_line(put, read, tmp_path, monkeypatch):
    put("benign/1.png", 1), put("malignant/2.png", 2)
    monkeypatch.chdir(tmp_path / "data" / "benign")  # a socket's path is short
    left = special(tmp_path / "data" / "benign")
    _, found = read(tmp_path / "data")
    assert {(f"benign/{name}", why) for name, why in left} == set(found.ignored) and len(found.records) == 2
    os.mkfifo(tmp_path / "data" / "metadata.csv")
    put("table.csv", "isic_id,diagnosis_1\n1,Benign\n2,Malignant\n")
    _, found = read(tmp_path / "data")
    assert ("metadata.csv", "a named pipe") in found.ignored and len(found.records) == 2


def test_what_no_installed_package_reads_is_left_out_with_its_name(put, read, monkeypatch):
    monkeypatch.setattr(images, "_is_there", lambda module: False)
    put("benign/1.png", 1), put("malignant/2.png", 2), put("benign/3.HEIC", b""), put("malignant/4.dcm", b"")
    _, found = read(put("notes.txt", ""))
    assert [why for _, why in found.ignored] == [
        "HEIC, which pillow-heif reads where it is installed: pip install 'dermjax[formats]'",
        "DICOM, which pydicom reads where it is installed: pip install 'dermjax[formats]'",
    ]
    shutil.rmtree(put("notes.txt", "") / "malignant")
    put("malignant/4.dcm", b"")
    with pytest.raises(UserError, match=r"malignant: a class without images; .*there are 1 DICOM, which pydicom reads"):
        read(put("notes.txt", ""))
    root = put("m.csv", "isic_id,diagnosis_1\n1,Benign\n4,Malignant\n")
    with pytest.raises(UserError, match="line 3: '4' is DICOM, which pydicom reads"):
        read(root)


@pytest.mark.parametrize("labels", [("Benign", "benign", "Malignant"), ("nævus", "melanom", "Nævus"),
                                    ("basal cell", "basal_cell", "mole"),
                                    ("naevus é", unicodedata.normalize("NFD", "naevus é"), "mole")])  # fmt: skip
@pytest.mark.parametrize("form", ["table", "folders", "splits"])
def test_one_class_in_two_spellings_is_refused(put, read, labels, form):
    """Three classes where two are meant would be trained without a word."""
    for number, label in enumerate(labels):
        if form == "table":
            root = put(f"{number}.png", number)
        else:
            root = put(f"{'train/' if form == 'splits' else ''}{label}/{number}.png", number)
    if form == "table":
        put("t.csv", "file,label\n" + "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels)))
    with pytest.raises(UserError, match=r"are one class in two spellings; write them alike") as error:
        read(root)
    assert str(root) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("litter", ["@eaDir/a.png/SYNOFILE_THUMB_M.png", "#recycle/benign/a.png", "$RECYCLE.BIN/x.png",
                                    "lost+found/x.png", "System Volume Information/x.png", "__MACOSX/benign/._a.png",
                                    ".ipynb_checkpoints/a-checkpoint.png", "benign/@eaDir/a.png/T.png",
                                    "benign/._a.png", "benign/Thumbs.db", ".DS_Store"])  # fmt: skip
def test_what_disks_and_file_managers_leave_is_no_class_and_no_image(put, read, told, litter):
    put("benign/a.png", 1), put("malignant/b.png", 2)
    root = put(litter, 3)
    assert told(read(root)[1]) == {"benign/a.png": "benign", "malignant/b.png": "malignant"}


@pytest.mark.parametrize("name, said", [("a.zip", "is a file; unpack it"), ("t.csv", "give the folder that it lies")])
def test_a_file_in_place_of_a_folder(put, read, name, said):
    with pytest.raises(UserError, match=said):
        read(put(name, "image,label\n") / name)


@pytest.mark.parametrize("skip", [True, False])
def test_a_link_to_itself_is_a_bad_image_and_no_traceback(put, read, told, skip):
    root = put("benign/a.png", 1)
    put("malignant/b.png", 2)
    (root / "benign" / "c.png").symlink_to("c.png")
    assert set(told(read(root, skip=skip)[1])) == {"benign/a.png", "malignant/b.png", "benign/c.png"}
    with pytest.raises(UserError, match=r"c\.png: cannot be decoded .*symbolic links"):
        images.load(root / "benign" / "c.png", 8)


def test_what_two_tables_know_of_an_image_is_joined_beside_class_folders(put, read):
    put("benign/0.png", 0), put("malignant/1.png", 1)
    put("a_patients.csv", "file,patient_id\n0.png,P0\n1.png,P1\n")
    root = put("b_captions.csv", "file,patient_id,caption\n0.png,,of 0\n1.png,unknown,of 1\n")
    _, found = read(root)
    assert [(r.patient_id, r.attributes["caption"]) for r in found.records] == [("P0", "of 0"), ("P1", "of 1")]
    put("c.csv", "file,patient_id\n1.png,P9\n")
    with pytest.raises(UserError, match=r"c\.csv line 2: patient_id of malignant/1\.png is 'P9', and 'P1' in .*a_pati"):
        read(root)


def test_a_doubled_column_beside_class_folders_is_refused_where_it_is_read(put, read):
    put("a/0.png", 0), put("b/1.png", 1)
    with pytest.raises(UserError, match=r"p\.csv: the column 'patient_id' stands there 2 times"):
        read(put("p.csv", "file,patient_id,patient_id\n0.png,A,B\n1.png,C,D\n"))
