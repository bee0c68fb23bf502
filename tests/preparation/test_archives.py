"""Archives as their publishers and Kaggle give them, and folders as people keep them, each listed as it comes."""

import json
import os
import re
import shutil
import socket
import unicodedata

import numpy as np
import pytest
from PIL import Image

from dermjax.data import images, splits
from dermjax.data.archives.table_records import TableOptions
from dermjax.errors import UserError
from dermjax.preparation.listing import list_folder, list_images

COLUMNS = dict.fromkeys(("image", "label", "diagnosis", "split", "lesion_id", "patient_id", "licence", "age"), "")
EIGHT = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
MILK = "lesion_id,AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC"


@pytest.fixture
def put(picture, tmp_path):
    """(name, content or the number of an image) writes a file below tmp_path/data, which it returns."""

    def write(name, content):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(content) if isinstance(content, int) else
                         content if isinstance(content, bytes) else content.encode())  # fmt: skip
        return tmp_path / "data"

    return write


def read(folder, layout="detect", classes="binary", kind="dermoscopic", own=False, skip=False, **columns):
    into = folder.parent / "run"
    options = TableOptions(classes=classes, skip=skip, kind=kind, own_splits=own, into=into)
    return list_folder(folder, layout=layout, columns=COLUMNS | columns, options=options)


def told(listing):
    return {record.image: record.label for record in listing.records}


def test_rows_without_a_diagnosis_are_left_out_and_counted_also_where_their_image_is_not_there(put):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("m.csv", "isic_id,diagnosis_1\na,Malignant\nb,Benign\nc,\nnot_downloaded,\n")
    _, found = read(root)
    assert told(found) == {"a.png": "malignant", "b.png": "benign"}
    assert found.ignored == (("not_downloaded", "without a diagnosis"), ("c.png", "without a diagnosis"))


def test_a_row_of_a_challenge_without_any_mark_is_left_out(put):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("m.csv", f"{EIGHT}\na,1,0,0,0,0,0,0,0,0\nb,0,1,0,0,0,0,0,0,0\nc,,,,,,,,,\n")
    assert read(root)[1].ignored == (("c.png", "without a diagnosis"),)


HAM = "lesion_id,image_id,dx,age\n"


def test_repeated_rows_are_one_and_contradicting_ones_a_line_with_both(put):
    put("a.png", 1), put("b.png", 2)
    root = put("HAM10000_metadata", HAM.replace(",", "\t") + "L1\ta\tmel\t80.0\nL2\tb\tnv\t\nL2\tb\tnv\t\n")
    put("HAM10000_metadata.csv", HAM + "L1,a,mel,80\nL2,b,nv,40\nL2,b,nv,40\n")
    _, found = read(root)
    assert told(found) == {"a.png": "malignant", "b.png": "benign"}
    assert [record.attributes.get("age") for record in found.records] == ["80.0", "40"]
    put("HAM10000_metadata.csv", HAM + "L1,a,mel,80\nL2,b,nv,40\nL2,b,bcc,40\n")
    with pytest.raises(UserError, match=r"metadata.csv line 4: dx of b is 'bcc', and 'nv' in .*metadata line 3; keep"):
        read(root)
    put("HAM10000_metadata.csv", HAM + "L1,a,mel,80\nL9,b,nv,40\n")
    with pytest.raises(UserError, match="lesion_id of b is 'L9', and 'L2'"):
        read(root)


@pytest.mark.parametrize(("table", "file"), [("_downsampled", ""), ("", "_downsampled"), ("_DOWNSAMPLED", "")])
def test_isic_2019_is_matched_whichever_side_says_downsampled(put, table, file):
    put(f"in/ISIC_0000001{file}.png", 1), put(f"in/ISIC_0000002{file}.png", 2)
    root = put("ISIC_2019_Training_GroundTruth.csv",
               f"{EIGHT}\nISIC_0000001{table},1,0,0,0,0,0,0,0,0\nISIC_0000002,0,1,0,0,0,0,0,0,0\n")  # fmt: skip
    put("ISIC_2019_Training_Metadata.csv", f"image,lesion_id\nISIC_0000001,L1\nISIC_0000002{table},L2\n")
    _, found = read(root)
    assert [(each.label, each.lesion_id) for each in found.records] == [("malignant", "L1"), ("benign", "L2")]


def test_an_image_that_is_there_both_ways_is_taken_as_it_is_called(put):
    for number, name in enumerate(("ISIC_0000001", "ISIC_0000001_downsampled")):
        put(f"{name}.png", number)
    root = put("m.csv", f"{EIGHT}\nISIC_0000001_downsampled,1,0,0,0,0,0,0,0,0\nISIC_0000001,0,1,0,0,0,0,0,0,0\n")
    assert told(read(root)[1]) == {"ISIC_0000001_downsampled.png": "malignant", "ISIC_0000001.png": "benign"}


def test_listed_duplicates_of_isic_2020_are_on_one_side(put, prepare, tmp_path):
    names = [f"ISIC_{number:07d}" for number in range(60)]
    rows = "".join(f"{name},IP_{place},{place % 2}\n" for place, name in enumerate(names))
    for number, name in enumerate(names):
        put(f"train/{name}.png", number)
    pairs = [(names[place], names[place + 2]) for place in range(0, 40, 4)] + [(names[0], names[58])]
    root = put("ISIC_2020_Training_GroundTruth.csv", "image_name,patient_id,target\n" + rows)
    put("ISIC_2020_Training_Duplicates.csv", "image_name_1,image_name_2\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    manifest = prepare(root, tmp_path / "run")
    side = {record.image[6:-4]: record.split for record in manifest.records}
    assert len(side) == 60 and set(side.values()) == {"train", "validation", "test"}
    assert all(side[one] == side[other] for one, other in pairs)
    assert ("duplicates", "isic-2020/isic_0000000") in splits.identities(manifest.records[58])


def test_a_nested_copy_of_kaggles_is_left_out_and_said(put, tmp_path):
    for number, name in enumerate(f"{split}/{label}/{n}.png" for split in ("train", "test") for label in
                                  ("benign", "malignant") for n in range(2)):  # fmt: skip
        put(name, number), put(f"data/{name}", number)
    name, found = read(tmp_path / "data")
    assert name.startswith("kaggle-malignant-vs-benign") and len(found.records) == 8
    assert ("data", "a copy of what lies beside it; config.images may name it instead") in found.ignored
    assert len(read(tmp_path / "data" / "data")[1].records) == 8
    put("data/train/benign/0.png", 77)
    with pytest.raises(
        UserError, match=r"data holds test, train again, with other files; give --config.images=.*/data"
    ):
        read(tmp_path / "data")


def test_a_nested_copy_of_class_folders_is_left_out_too(put, tmp_path):
    for number, name in enumerate(("benign/0.png", "malignant/0.png")):
        put(name, number), put(f"copy/{name}", number)
    _, found = read(tmp_path / "data")
    assert len(found.records) == 2 and [name for name, _ in found.ignored] == ["copy"]


def milk(put):
    rows = {"IL_1": "0,0,0,0,0,0,0,1,0,0,0", "IL_2": "0,0,0,0,0,0,0,0,1,0,0", "IL_3": "0,0,0,0,0,1,0,0,0,0,0"}
    lines, number = "lesion_id,image_type,isic_id,age_approx,sex,skin_tone_class,site\n", 0
    for lesion in rows:
        for kind in ("clinical: close-up", "dermoscopic"):
            number += 1
            put(f"MILK10k_Training_Input/{lesion}/ISIC_{number:07d}.png", number)
            lines += f"{lesion},{kind},ISIC_{number:07d},55,male,3,trunk\n"
    put("MILK10k_Training_Metadata.csv", lines)
    truth = "\n".join(f"{lesion},{row}" for lesion, row in rows.items())
    return put("MILK10k_Training_GroundTruth.csv", f"{MILK}\n{truth}\n")


@pytest.mark.parametrize(("kind", "numbers"), [("dermoscopic", (2, 4)), ("clinical", (1, 3)), ("both", (1, 2, 3, 4))])
def test_milk10k(put, kind, numbers):
    name, found = read(milk(put), kind=kind)
    assert name == "milk10k" and [int(record.image[-5]) for record in found.records] == list(numbers)
    first = found.records[0]
    assert (first.label, first.lesion_id) == ("malignant", "IL_1") and found.records[-1].lesion_id == "IL_2"
    assert {"skin_tone_class": "3", "age": "55", "sex": "male", "site": "trunk"}.items() <= first.attributes.items()
    assert kind == "both" or sum(f"config.image_kind is {kind}" in why for _, why in found.ignored) == 3
    assert read(milk(put), classes="diagnoses")[1].labels == ("nevus", "melanoma")


SEVEN = "case_num,diagnosis,location,sex,clinic,derm\n1,melanoma (in situ),back,female,NEL/C1.png,NEL/D1.png\n" \
        "2,blue nevus,face,male,NEL/C2.png,Fal/D2.png\n3,melanoma metastasis,back,male,NEL/C3.png,Fal/D3.png\n" \
        "4,clark nevus,back,male,NEL/C4.png,NEL/D4.png\n5,miscellaneous,back,male,NEL/C5.png,NEL/D5.png\n"  # fmt: skip


def test_derm7pt_with_its_own_splits_where_they_are_asked_for(put):
    for number in range(1, 6):
        put(f"images/NEL/C{number}.png", number)
        put(f"images/{'Fal' if number in (2, 3) else 'NEL'}/D{number}.png", 10 + number)
    root = put("meta/meta.csv", SEVEN)
    put("meta/train_indexes.csv", "indexes\n0\n1\n"), put("meta/valid_indexes.csv", "indexes\n2\n")
    put("meta/test_indexes.csv", "indexes\n3\n4\n")
    name, found = read(root)
    assert name == "derm7pt" and {record.split for record in found.records} == {""}
    _, found = read(root, own=True)
    of = {record.image: (record.label, record.split, record.lesion_id) for record in found.records}
    assert of == {
        "images/NEL/D1.png": ("malignant", "train", "derm7pt/1"),
        "images/Fal/D2.png": ("benign", "train", "derm7pt/2"),
        "images/Fal/D3.png": ("malignant", "validation", "derm7pt/3"),
        "images/NEL/D4.png": ("benign", "test", "derm7pt/4"),
    }
    assert ("images/NEL/D5.png", "unknown") in found.ignored
    assert len(read(root, kind="both")[1].records) == 8
    for path in (root / "meta").glob("*_indexes.csv"):
        path.unlink()
    with pytest.raises(UserError, match=r"config\.own_splits asks for train_indexes\.csv"):
        read(root, own=True)


def isic_2024(put, h5py, picture, tmp_path):
    root = put("train-metadata.csv", "isic_id,target,patient_id\nISIC_1,1,IP_1\nISIC_2,0,IP_2\nISIC_3,0,IP_3\n")
    with h5py.File(root / "train-image.hdf5", "w") as file:
        file["ISIC_1"] = np.void(picture(1))
        file["ISIC_2"] = np.frombuffer(picture(2), np.uint8)
    put("image/ISIC_3.png", 3)
    return root


def test_isic_2024_out_of_its_hdf5_file(put, picture, tmp_path, prepare):
    h5py = pytest.importorskip("h5py")
    root = isic_2024(put, h5py, picture, tmp_path)
    manifest = prepare(root, tmp_path / "run", **{"ratios.validation": 0.0, "ratios.test": 0.0})
    assert [(each.image, each.label) for each in manifest.records] == [
        ("data/image/ISIC_3.png", "benign"),
        ("run/data_set_images/train-image/ISIC_1.jpg", "malignant"),
        ("run/data_set_images/train-image/ISIC_2.jpg", "benign"),
    ]
    assert manifest.path(manifest.records[1]).read_bytes() == picture(1)
    (root / "train-image.hdf5").write_bytes(b"no hdf5")
    with pytest.raises(UserError, match=r"train-image.hdf5: not a complete HDF5 file"):
        read(root)


def test_of_an_hdf5_file_only_what_is_used_is_unpacked_and_a_refused_run_leaves_nothing(
    put, picture, tmp_path, refused
):
    h5py = pytest.importorskip("h5py")
    refused(isic_2024(put, h5py, picture, tmp_path), "are too few for", limit=1)


def test_an_hdf5_file_without_h5py_is_a_line(put, monkeypatch):
    put("train-image.hdf5", b"\x89HDF")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    root = put("train-metadata.csv", "isic_id,target\nISIC_1,1\nISIC_2,0\n")
    with pytest.raises(UserError, match=r"train-image\.hdf5: HDF5 is read by h5py.*dermjax\[formats\]"):
        read(root)


def test_a_table_of_no_archive_binds_images_at_any_depth(put):
    put("deep/er/x/a.png", 1), put("deep/b.PNG", 2), put("c.png", 3)
    root = put("lists/list.csv", "number,picture,Diagnosis,patient\n1,a.jpg,melanoma,P1\n2,b,nevus,P2\n3,gone,nevus,\n")
    with pytest.raises(UserError, match=r"list\.csv line 4: no image 'gone'"):
        read(root)
    name, found = read(root, skip=True)
    assert name == (
        "table, its images by 'picture', its classes by 'Diagnosis', its patients by 'patient'; not read: 'number'"
    )
    assert told(found) == {"deep/er/x/a.png": "malignant", "deep/b.PNG": "benign"}
    assert [record.patient_id for record in found.records] == ["P2", "P1"]
    assert set(found.ignored) == {("gone", "not there"), ("c.png", "in no table")}
    put("deep/er/x/b.png", 9)
    with pytest.raises(UserError, match=r"line 3: b may be .*which differ"):
        read(root, skip=True)


def test_a_path_in_a_table_chooses_among_files_of_one_name(put):
    put("x/one/a.png", 1), put("x/two/a.png", 2)
    root = put("t.csv", "file;label\none\\a.png;mole\nx/two/a.png;cancer\n")
    assert told(read(root)[1]) == {"x/one/a.png": "mole", "x/two/a.png": "cancer"}


@pytest.mark.parametrize("around", ["archive", "archive/melanoma_set", "a/b/c"])
def test_a_single_wrapping_folder_is_entered(put, around):
    for number, name in enumerate(("benign/1.png", "malignant/1.png")):
        put(f"{around}/{name}", number)
    name, found = read(put("README.txt", "as Kaggle zips it"))
    assert name == "class folders" and {record.label for record in found.records} == {"benign", "malignant"}


def test_a_wrapping_folder_around_splits_and_within_a_split(put):
    for number, (split, label) in enumerate((s, c) for s in ("train", "test") for c in "ab"):
        root = put(f"set/{split}/images/{label}/1.png", number)
    name, found = read(root)
    assert name == "split folders" and sorted({(r.split, r.label) for r in found.records}) == [
        ("test", "a"), ("test", "b"), ("train", "a"), ("train", "b")
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("place", ["a split", "the root"])
def test_imagefolder_of_hugging_face(put, form, place):
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


def test_captions_and_patients_of_a_table_beside_class_folders_are_kept(put):
    for number, label in enumerate(("benign", "malignant")):
        put(f"{label}/{number}.png", number)
    root = put("metadata.jsonl", "\n".join(
        json.dumps({"file_name": f"{label}/{n}.png", "text": f"of {n}", "patient_id": f"P{n}"})
        for n, label in enumerate(("benign", "malignant"))))  # fmt: skip
    name, found = read(root)
    assert name == "class folders"
    assert [(r.attributes["caption"], r.patient_id) for r in found.records] == [("of 0", "P0"), ("of 1", "P1")]


def test_a_name_that_images_of_two_classes_have_binds_neither(put):
    for number, label in enumerate(("benign", "malignant")):
        put(f"{label}/0.png", number), put(f"{label}/{label}.png", 5 + number)
    root = put("patients.csv", "file,patient_id\n0.png,P0\nbenign.png,P1\n")
    _, found = read(root)
    assert {record.image: record.patient_id for record in found.records if record.patient_id} == {
        "benign/benign.png": "P1"
    }  # fmt: skip


@pytest.mark.parametrize("line", ["[1]", "{", '{"file_name": "0.png"', "\ud800"])
def test_damaged_json_lines_are_a_line(put, line):
    put("a/0.png", 0)
    with pytest.raises(UserError, match=r"metadata\.jsonl") as caught:
        read(put("metadata.jsonl", line.encode("utf-8", "surrogatepass")))
    assert "\n" not in str(caught.value)


def test_a_table_beside_class_folders_of_which_no_column_is_known_is_said(put, capsys):
    for number, label in enumerate(("gut", "schlecht")):
        root = put(f"{label}/{number}.png", number)
    put("Befunde.csv", "Bild;Patientin\n0.png;A\n1.png;B\n")
    _, found = read(root)
    assert "not read, as no column is known: Befunde.csv ('Bild', 'Patientin'); config.col" in capsys.readouterr().out
    assert len(found.records) == 2


def mask(put, name, levels=(0, 255), mode="L"):
    pixels = np.full((64, 64), levels[0], np.uint8)
    pixels[16:40, 20:50] = levels[-1]
    pixels[:4, : 16 * len(levels)] = np.repeat(np.array(levels, np.uint8), 16)
    image = Image.fromarray(pixels)
    path = put(name, b"") / name
    (image if mode == "L" else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize(
    "name",
    ["benign/0_segmentation.png", "benign/0_mask.jpg", "benign/0_Segmentation.PNG", "masks/0.png",
     "masks/benign/0_mask.png", "ISIC_Part1_GroundTruth/0_segmentation.png", "benign/0_lesion.bmp"],
)  # fmt: skip
def test_a_mask_beside_its_image_is_its_mask_and_no_photograph(put, name):
    put("benign/0.png", 0), put("benign/1.png", 1), put("malignant/2.png", 2)
    mask(put, name)
    _, found = read(put("notes.txt", ""))
    assert told(found) == {"benign/0.png": "benign", "benign/1.png": "benign", "malignant/2.png": "malignant"}
    assert found.records[0].attributes["mask"] == {"image": name}
    assert (name, "used as the mask of its image") in found.ignored


def test_a_mask_that_may_be_of_several_images_is_nobodys(put):
    put("benign/0.png", 0), put("malignant/0.png", 2)
    mask(put, "masks/0.png")
    _, found = read(put("notes.txt", ""))
    assert found.ignored == (("masks/0.png", "a mask that may be of several images"),)
    assert not any("mask" in record.attributes for record in found.records)


def test_superpixels_and_masks_of_many_levels_are_no_photographs_either(put):
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


def test_masks_beside_images_of_a_table(put, prepare, tmp_path):
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


EXCEL = "Nr;Bildname;Diagnose;Alter;Größe\n1;Mäuse 1.png;gutartig;55,5;1,25\n2;Füße.png;bösartig;60;2\n"


@pytest.mark.parametrize("form", ["NFC", "NFD", "cp1252"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig", "utf-16"])
def test_a_table_from_a_european_excel(put, form, encoding, capsys):
    for number, name in enumerate(("Mäuse 1.png", "Füße.png")):
        name = os.fsdecode(name.encode("cp1252")) if form == "cp1252" else unicodedata.normalize(form, name)
        put(f"Bilder/{name}", number)
    root = put("Befunde.csv", EXCEL.encode(encoding))
    told = (
        r"Befunde\.csv has the columns 'Nr', 'Bildname', 'Diagnose', 'Alter', 'Größe'; its images are in 'Bildname'; .*"
        r"config\.columns\.image=Bildname"
    )
    with pytest.raises(UserError, match=told):
        read(root)
    assert ("is not UTF-8 and is read as cp1252" in capsys.readouterr().out) == (encoding == "cp1252")
    for columns in ({"label": "Diagnose"}, {"image": "Bildname", "label": "Diagnose"}):
        _, found = read(root, age="Alter", **columns)
        assert {record.label for record in found.records} == {"gutartig", "bösartig"}
        assert {record.attributes["age"]: record.attributes["age_band"] for record in found.records} == {
            "55.5": "45-59", "60": "60-74"
        }  # fmt: skip


def test_excels_word_for_the_mark_and_decimal_commas_of_one_hot_columns(put):
    put("a.png", 1), put("b.png", 2)
    head = EIGHT.replace(",", ";")
    root = put("m.csv", f"sep=;\r\n{head}\r\na;1,0;0,0;0;0;0;0;0;0;0\r\nb;0,0;1,0;0;0;0;0;0;0;0\r\n")
    assert told(read(root)[1]) == {"a.png": "malignant", "b.png": "benign"}


def test_a_workbook_or_a_zip_in_place_of_a_table_is_said(put):
    put("Bilder/a.png", 1)
    root = put("Befunde.xlsx", b"PK"), put("more.zip", b"PK")
    with pytest.raises(UserError, match=r"Befunde\.xlsx: save it as CSV; .*more\.zip: unpack it"):
        read(root[0])


def test_linked_class_folders_and_images_are_followed(put, prepare, tmp_path):
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


def test_linked_images_of_a_table_are_followed_and_circles_end(put, tmp_path):
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


def test_pipes_devices_and_sockets_are_left_out_with_a_line(put, tmp_path, monkeypatch):
    put("benign/1.png", 1), put("malignant/2.png", 2)
    monkeypatch.chdir(tmp_path / "data" / "benign")  # a socket's path is short
    left = special(tmp_path / "data" / "benign")
    _, found = read(tmp_path / "data")
    assert {(f"benign/{name}", why) for name, why in left} == set(found.ignored) and len(found.records) == 2
    os.mkfifo(tmp_path / "data" / "metadata.csv")
    put("table.csv", "isic_id,diagnosis_1\n1,Benign\n2,Malignant\n")
    _, found = read(tmp_path / "data")
    assert ("metadata.csv", "a named pipe") in found.ignored and len(found.records) == 2


def test_what_no_installed_package_reads_is_left_out_with_its_name(put, monkeypatch):
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


def test_a_table_that_is_read_leaves_the_images_as_they_are(put):
    root = put("a.png", 1)
    before = (root / "a.png").read_bytes()
    with pytest.raises(UserError):
        read(put("m.csv", "isic_id,diagnosis_1\na,Benign\n"))
    assert (root / "a.png").read_bytes() == before and images.load(root / "a.png", 8).shape == (8, 8, 3)


@pytest.mark.parametrize("labels", [("Benign", "benign", "Malignant"), ("nævus", "melanom", "Nævus"),
                                    ("naevus é", unicodedata.normalize("NFD", "naevus é"), "mole")])  # fmt: skip
@pytest.mark.parametrize("form", ["table", "folders", "splits"])
def test_one_class_in_two_spellings_is_refused(put, labels, form):
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


@pytest.mark.parametrize("column", ["label", "target"])
@pytest.mark.parametrize("nothing", ["nan", "NaN", "NA", "N/A", "-1", "<NA>", "None", "?"])
def test_a_label_that_says_nothing_is_no_class(put, column, nothing):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    one, other = ("0", "1") if column == "target" else ("benign", "malignant")
    root = put("t.csv", f"file,{column}\na.png,{one}\nb.png,{other}\nc.png,{nothing}\n")
    _, found = read(root)
    assert told(found) == {"a.png": "benign", "b.png": "malignant"}
    assert ("c.png", "without a diagnosis") in found.ignored


@pytest.mark.parametrize("nothing", ["NA", "n/a", "#N/A", "<NA>", "NaN"])
def test_lesions_and_patients_without_a_name_are_not_one(put, nothing):
    for number in range(4):
        root = put(f"{number}.png", number)
    rows = "".join(f"{n}.png,{('benign', 'malignant')[n % 2]},{nothing},{nothing},{nothing}\n" for n in range(4))
    put("t.csv", f"file,label,lesion_id,patient_id,sex\n{rows}")
    for record in read(root)[1].records:
        assert (record.lesion_id, record.patient_id) == ("", "") and "sex" not in record.attributes


def test_a_patient_is_the_same_where_a_spreadsheet_made_the_number_a_fraction(put):
    """pandas writes 7 as 7.0 where the column has gaps, and only there: the patient would be on two sides."""
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("t.csv", 'file,label,patient_id\na.png,benign,7\nb.png,malignant,7.0\nc.png,malignant,"7,0"\n')
    assert {record.patient_id for record in read(root)[1].records} == {"table/7"}


def test_a_text_with_a_comma_does_not_move_what_follows_it(put):
    put("a.png", 1), put("b.png", 2)
    root = put("t.csv", "file,note,label\na.png,large, pale,benign\nb.png,,malignant\n")
    with pytest.raises(UserError, match=r"line 2: 4 cells, and the header names 3; set text .* in quotation marks"):
        read(root)
    put("t.csv", 'file,note,label,\na.png,"large, pale",benign,,\nb.png,,malignant\n')
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}


def test_a_column_that_stands_there_twice_is_refused_where_it_is_read(put):
    put("a.png", 1), put("b.png", 2)
    root = put("t.csv", "file,label,label\na.png,benign,malignant\nb.png,malignant,benign\n")
    with pytest.raises(UserError, match="the column 'label' stands there 2 times; rename all but one"):
        read(root)
    put("t.csv", "file,label,note,note\na.png,benign,1,2\nb.png,malignant,3,4\n")
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}


@pytest.mark.parametrize("litter", ["@eaDir/a.png/SYNOFILE_THUMB_M.png", "#recycle/benign/a.png", "$RECYCLE.BIN/x.png",
                                    "lost+found/x.png", "System Volume Information/x.png", "__MACOSX/benign/._a.png",
                                    ".ipynb_checkpoints/a-checkpoint.png", "benign/@eaDir/a.png/T.png",
                                    "benign/._a.png", "benign/Thumbs.db", ".DS_Store"])  # fmt: skip
def test_what_disks_and_file_managers_leave_is_no_class_and_no_image(put, litter):
    put("benign/a.png", 1), put("malignant/b.png", 2)
    root = put(litter, 3)
    assert told(read(root)[1]) == {"benign/a.png": "benign", "malignant/b.png": "malignant"}


def test_a_column_that_no_table_has_is_not_ignored(put):
    """Without its patients a table leaks; a name with a typing error was as good as none."""
    put("a.png", 1), put("b.png", 2)
    root = put("t.csv", "file,label,patient\na.png,benign,p\nb.png,malignant,q\n")
    with pytest.raises(UserError, match=r"config.columns.patient_id = 'patients': no table has this column; t.csv has"):
        read(root, patient_id="patients", label="label")
    with pytest.raises(UserError, match=r"config.columns: none of the folders has a table with all of label, patients"):
        list_images(f"{root},{root.parent}", layout="detect", positive="", options=None,
                    columns={"label": "label", "patient_id": "patients"})  # fmt: skip


def test_quotation_marks_behind_a_blank_and_one_that_is_not_closed(put):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("t.csv", '"file", "note", "label"\n"a.png", "large, pale", "benign"\n"b.png", "", "malignant"\n')
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}
    put("t.csv", 'file,label\na.png,benign\nb.png,malignant\nc.png,"benign\nd.png,malignant\n')
    with pytest.raises(UserError, match=r"t.csv line 5: label runs over several lines; close the quotation mark"):
        read(root)


@pytest.mark.parametrize("name, said", [("a.zip", "is a file; unpack it"), ("t.csv", "give the folder that it lies")])
def test_a_file_in_place_of_a_folder(put, name, said):
    with pytest.raises(UserError, match=said):
        read(put(name, "image,label\n") / name)


@pytest.mark.parametrize("skip", [True, False])
def test_a_link_to_itself_is_a_bad_image_and_no_traceback(put, skip):
    root = put("benign/a.png", 1)
    put("malignant/b.png", 2)
    (root / "benign" / "c.png").symlink_to("c.png")
    assert set(told(read(root, skip=skip)[1])) == {"benign/a.png", "malignant/b.png", "benign/c.png"}
    with pytest.raises(UserError, match=r"c\.png: cannot be decoded .*symbolic links"):
        images.load(root / "benign" / "c.png", 8)


def test_what_two_tables_know_of_an_image_is_joined_beside_class_folders(put):
    put("benign/0.png", 0), put("malignant/1.png", 1)
    put("a_patients.csv", "file,patient_id\n0.png,P0\n1.png,P1\n")
    root = put("b_captions.csv", "file,patient_id,caption\n0.png,,of 0\n1.png,unknown,of 1\n")
    _, found = read(root)
    assert [(r.patient_id, r.attributes["caption"]) for r in found.records] == [("P0", "of 0"), ("P1", "of 1")]
    put("c.csv", "file,patient_id\n1.png,P9\n")
    with pytest.raises(UserError, match=r"c\.csv line 2: patient_id of malignant/1\.png is 'P9', and 'P1' in .*a_pati"):
        read(root)


def test_a_blank_in_another_table_takes_no_lesion_away_and_a_contradiction_is_a_line(put):
    put("a.png", 1), put("b.png", 2), put("m.csv", "isic_id,diagnosis_1\na,Malignant\nb,Benign\n")
    put("n1.csv", "isic_id,lesion_id\na,L1\nb,7\n")
    root = put("n2.csv", "isic_id,lesion_id,age_approx\na,,50\nb,7.0,40\n")
    assert [(r.lesion_id, r.attributes["age"]) for r in read(root)[1].records] == [("L1", "50"), ("isic-cli/7", "40")]
    put("n3.csv", "isic_id,lesion_id\na,L5\n")
    with pytest.raises(UserError, match=r"n3\.csv line 2: lesion_id of a is 'L5', and 'L1' in .*n1\.csv line 2"):
        read(root)


def test_patients_and_splits_in_another_table_than_the_labels_are_taken_by_path(put):
    put("x/1.png", 0), put("y/1.png", 1), put("labels.csv", "file,label\nx/1.png,mole\ny/1.png,cancer\n")
    put("patients.csv", "image,patient_id\nx/1.png,PX\ny/1.png,PY\n")
    root = put("splits.csv", "file,split\ny/1.png,test\n")
    assert [(r.image, r.patient_id, r.split) for r in read(root)[1].records] == [
        ("x/1.png", "PX", ""), ("y/1.png", "PY", "test"),
    ]  # fmt: skip
    put("splits.csv", "file,split\ny/1.png,dev\n")
    with pytest.raises(UserError, match=r"splits\.csv line 2: its split is none of train"):
        read(root)


@pytest.mark.parametrize("path", ["y/1.png", "b\\1.png", "C:\\old\\y\\1.png", "x/p/1.png"])
def test_an_image_of_the_same_name_in_another_folder_is_not_taken_for_one_that_is_missing(put, path):
    put("x/1.png", 0), put("y/2.png", 1), put("y/3.png", 2), put("y/p/4.png", 3), put("b/5.png", 4)
    root = put("m.csv", f"file,label\n{path},mole\ny/2.png,mole\ny/3.png,cancer\n/old/b/5.png,cancer\n")
    with pytest.raises(UserError, match=r"line 2: no image '.*1\.png'"):
        read(root)
    _, found = read(root, skip=True)
    assert [r.image for r in found.records] == ["b/5.png", "y/2.png", "y/3.png"]
    assert (path, "not there") in found.ignored and ("x/1.png", "in no table") in found.ignored


def test_folders_of_another_computer_and_parts_in_between_are_no_hindrance(put):
    put("images/part_1/a.png", 0), put("images/part_2/b.png", 1)
    root = put("m.csv", "file,label\n/home/me/images/a.png,mole\nD:\\moles\\b.png,cancer\n")
    assert [record.label for record in read(root)[1].records] == ["mole", "cancer"]


def test_a_lesion_with_two_diagnoses_is_a_line(put):
    put("ISIC_0000001.jpg", 1), put("ISIC_0000002.jpg", 2)
    put("M.csv", "lesion_id,image_type,isic_id\nIL_1,dermoscopic,ISIC_0000001\nIL_2,dermoscopic,ISIC_0000002\n")
    rows = f"{MILK}\nIL_1,0,0,0,0,0,0,0,1,0,0,0\nIL_2,0,0,0,0,0,0,0,0,1,0,0\n"
    assert len(read(put("GroundTruth.csv", f"{rows}IL_2,0,0,0,0,0,0,0,0,1,0,0\n"))[1].records) == 2
    with pytest.raises(UserError, match=r"GroundTruth\.csv line 4: MEL of IL_1 is '0', and '1' in .*line 2"):
        read(put("GroundTruth.csv", f"{rows}IL_1,0,0,0,0,0,0,0,0,1,0,0\n"))


def test_synthetic_images_are_known_however_the_word_is_written(put):
    put("a.png", 1), put("b.png", 2)
    root = put("m.csv", "isic_id,diagnosis_1,image_manipulation\na,Malignant,Synthetic\nb,Benign,altered\n")
    assert [record.image_manipulation for record in read(root)[1].records] == ["synthetic", "none"]


@pytest.mark.parametrize(
    "age, known",
    [("85+", {"age": "85+", "age_band": "75+"}), ("44,5", {"age": "44.5", "age_band": "30-44"}), ("-5", {}),
     ("999", {}), ("1e400", {}), ("elderly", {"age": "elderly"})],
)  # fmt: skip
def test_ages_that_nobody_has_are_left_out(put, age, known):
    put("a.png", 1), put("b.png", 2)
    root = put("m.csv", f'file,label,age\na.png,mole,"{age}"\nb.png,cancer,\n')
    assert read(root)[1].records[0].attributes == known


@pytest.mark.parametrize("column", ["age", "number"])
def test_a_column_of_numbers_that_are_names_of_images_by_chance_is_not_the_one_of_images(put, column):
    for number in (30, 40, 50, 60):
        put(f"{number}.png", number)
    root = put("m.csv", f"{column},label,file\n40,mole,30.png\n30,cancer,40.png\n60,mole,50.png\n50,cancer,60.png\n")
    assert told(read(root)[1]) == {"30.png": "mole", "40.png": "cancer", "50.png": "mole", "60.png": "cancer"}


def test_a_class_that_is_a_number_is_one_with_and_without_a_fraction(put):
    for number in range(3):
        put(f"{number}.png", number)
    put("train.csv", "file,label\n0.png,0\n1.png,1\n")
    assert read(put("test.csv", "file,label\n2.png,1.0\n"))[1].labels == ("0", "1")


@pytest.mark.parametrize("label", ["mole\u200b", "\ufeffmole", "mo\u00adle"])
def test_a_character_that_nobody_sees_makes_no_other_class(put, label):
    for number in range(3):
        put(f"{number}.png", number)
    with pytest.raises(UserError, match=r"are one class in two spellings"):
        read(put("m.csv", f"file,label\n0.png,mole\n1.png,{label}\n2.png,cancer\n"))


def test_images_deeper_in_a_class_folder_are_counted_and_masks_there_are_masks(put):
    put("a/1.png", 1), put("b/2.png", 2), put("b/more/3.png", 3), put("b/more/deep/4.png", 4)
    mask(put, "a/masks/1.png")
    _, found = read(put("b/empty/notes.txt", "x"))
    assert found.records[0].attributes["mask"] == {"image": "a/masks/1.png"}
    assert sorted(found.ignored) == [
        ("a/masks/1.png", "used as the mask of its image"), ("b/empty", "no image"),
        ("b/more/3.png", "in a folder within a class folder"),
        ("b/more/deep/4.png", "in a folder within a class folder"),
    ]  # fmt: skip


def test_a_folder_of_masks_within_a_split_is_no_class(put):
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
def test_a_mask_that_is_not_shaped_or_turned_as_its_image_is_left_out(put, turn, size, mask_size, mask_turn, kept):
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


@pytest.mark.parametrize(
    "name, table, told",
    [
        ("m.jsonl", '{"file_name": "a.png", "label": "x", "label": "y"}', "label stands there twice"),
        ("m.csv", "image_id,melanoma,seborrheic_keratosis\na,0.9,0.1\nb,1,0\n", "line 2: melanoma is '0.9'; it must"),
        ("m.csv", "isic_id,diagnosis_1,benign_malignant\na,Benign,malignant\n", "are 'Benign' and 'malignant'; mend"),
        ("m.csv", "file,label\na.png,mo\0le\nb.png,cancer\n", "holds NUL, as UTF-16"),
        ("m.csv", "file,label\na.png,mole\nb.png,cancer\n".encode("utf-16-le"), "holds NUL, as UTF-16"),
        ("m.csv", "file,label,Label\na.png,mole,cancer\n", "the column 'Label' stands there 2 times"),
        ("m.csv", "file,label\nmole/c.png,cancer\na.png,mole\n", "mole/c.png is 'cancer' by a table, and lies in 'm"),
    ],
)  # fmt: skip
def test_a_label_that_may_be_meant_in_two_ways_is_a_line(put, name, table, told):
    put("a.png", 0), put("b.png", 1), put("mole/c.png", 2)
    name = "metadata.jsonl" if name == "m.jsonl" else name
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        read(put(name, table))
    assert "\n" not in str(caught.value)


def test_a_doubled_column_beside_class_folders_is_refused_where_it_is_read(put):
    put("a/0.png", 0), put("b/1.png", 1)
    with pytest.raises(UserError, match=r"p\.csv: the column 'patient_id' stands there 2 times"):
        read(put("p.csv", "file,patient_id,patient_id\n0.png,A,B\n1.png,C,D\n"))


def test_a_diagnosis_that_says_nothing_gives_way_to_the_next_column(put):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("m.csv", "isic_id,diagnosis_1,benign_malignant\na,nan,benign\nb,Malignant,malignant\nc,nan,\n")
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}
    root = put("m.csv", "image_id,melanoma,seborrheic_keratosis\na,,0\nb,1,\nc,0,0\n")
    assert told(read(root)[1]) == {"b.png": "malignant", "c.png": "benign"}


def test_a_table_within_a_split_is_about_that_split(put):
    put("train/0.png", 0), put("train/5.png", 5), put("test/0.png", 2), put("test/1.png", 3)
    put("train/metadata.csv", "file_name,label\n0.png,a\n1.png,a\n5.png,b\n")
    root = put("test/metadata.csv", "file_name,label\n0.png,b\n")
    with pytest.raises(UserError, match=r"train/metadata\.csv line 3: no image '1\.png'"):
        read(root)
    _, found = read(root, skip=True)
    assert told(found) == {"test/0.png": "b", "train/0.png": "a", "train/5.png": "b"}
    assert found.ignored == (("1.png", "not there"), ("test/1.png", "in no table"))


def test_what_fitzpatrick17k_says_is_wrongly_labelled_is_left_out(put):
    for name in "abcd":
        put(f"images/{name}.jpg", ord(name))
    rows = ("a,3,malignant,", "b,2,benign,3 Wrongly labelled", "c,2,benign,1 Diagnostic", "d,2,malignant,4 Other")
    root = put("f.csv", "\n".join(("md5hash,fitzpatrick_scale,three_partition_label,qc", *rows)))
    _, found = read(root)
    assert [record.image for record in found.records] == ["images/a.jpg", "images/c.jpg", "images/d.jpg"]
    assert found.ignored == (("images/b.jpg", "wrongly labelled, as the archive says"),)


@pytest.mark.parametrize(
    "rows, told",
    [("0\n1\n", r"line 2: row 0 is in test as well; keep one"), ("\u00b2\n", "'\u00b2' is no number of a row")],
)
def test_a_row_is_in_one_of_derm7pts_own_splits(put, rows, told):
    put("images/a.jpg", 0), put("images/b.jpg", 1)
    put("meta/meta.csv", "case_num,diagnosis,derm,clinic\n1,blue nevus,a.jpg,x.jpg\n2,melanoma,b.jpg,y.jpg\n")
    put("meta/test_indexes.csv", "indexes\n0\n")
    with pytest.raises(UserError, match=told):
        read(put("meta/train_indexes.csv", f"indexes\n{rows}"), own=True)


@pytest.mark.parametrize("folder", ["gt", "labels", "Annotations", "seg"])
def test_masks_in_a_folder_that_may_be_a_class_are_known_by_their_levels(put, folder):
    for number in range(2):
        put(f"images/{number}.png", number)
        mask(put, f"{folder}/{number}.png")
    with pytest.raises(UserError, match=f"{folder}: a class without images"):
        read(put("notes.txt", "x"))
    _, found = read(put("m.csv", "file,label\n0.png,mole\n1.png,cancer\n"))
    assert [(r.image, r.attributes["mask"]["image"]) for r in found.records] == [
        (f"images/{number}.png", f"{folder}/{number}.png") for number in range(2)
    ]  # fmt: skip


def test_photographs_of_a_class_of_such_a_name_are_photographs(put):
    for number, name in enumerate(("lesion/0.png", "skin/0.png", "hair/0.png")):
        root = put(name, number)
    assert len(read(root)[1].records) == 3


@pytest.mark.parametrize("names", [("mel", "Melanoma"), ("NV", "nevus"), ("cancer", "malignant")])
def test_a_diagnosis_and_its_short_name_are_one_class(put, names):
    for number in range(3):
        put(f"{number}.png", number)
    root = put("m.csv", f"file,label\n0.png,{names[0]}\n1.png,{names[1]}\n2.png,other\n")
    with pytest.raises(UserError, match="are one class in two spellings"):
        read(root)


def test_a_number_of_a_patient_is_the_same_without_its_zeros(put):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    _, found = read(put("m.csv", "file,label,patient_id\na.png,mole,007\nb.png,cancer,7.0\nc.png,mole,0\n"))
    assert [record.patient_id for record in found.records] == ["table/7", "table/7", "table/0"]


def test_half_a_pair_of_duplicates_ties_nothing(put):
    for number in range(1, 4):
        put(f"ISIC_000000{number}.jpg", number)
    put("t.csv", "image_name,target\nISIC_0000001,0\nISIC_0000002,1\nISIC_0000003,1\n")
    root = put("d.csv", "image_name_1,image_name_2\nISIC_0000001,\n,ISIC_0000002\n")
    assert not any("duplicates" in record.attributes for record in read(root)[1].records)


@pytest.mark.parametrize(
    ("lesion", "patient", "label"),
    [("Lesion ID", "Patient No.", "Class"), ("LesionId", "patientID", "class name"), ("lesion-id", "Subject", "LABEL")],
)
def test_columns_are_known_in_any_spelling(put, lesion, patient, label):
    """A lesion that is not known as one is in training and test."""
    for number, name in enumerate("abc"):
        put(f"{name}.png", number)
    name, found = read(
        put("d.csv", f"Image Name,{lesion},{patient},{label}\na,L1,P1,nevus\nb,L1,P1,nevus\nc,L2,P2,melanoma\n")
    )
    assert [record.lesion_id for record in found.records] == ["L1", "L1", "L2"]
    assert [record.patient_id for record in found.records] == ["P1", "P1", "P2"]
    assert name == f"table, its images by 'Image Name', its classes by {label!r}, its lesions by {lesion!r}, its " + (
        f"patients by {patient!r}"
    )


def test_a_column_that_is_not_known_is_said(put):
    put("a.png", 0), put("b.png", 1)
    name, _ = read(put("d.csv", "file,label,Patientin,age\na,nevus,1,50\nb,melanoma,1,50\n"))
    assert name == "table, its images by 'file', its classes by 'label'; not read: 'Patientin'"


def test_two_spellings_of_a_column_are_refused(put):
    put("a.png", 0), put("b.png", 1)
    folder = put("d.csv", "file,lesion_id,Lesion ID,label\na,L1,L1,nevus\nb,L1,L2,melanoma\n")
    with pytest.raises(UserError, match=r"the column 'lesion_id|Lesion ID' stands there 2 times; rename all but one"):
        read(folder)


def test_malignant_yes_or_no_is_benign_or_malignant(put):
    put("a.png", 0), put("b.png", 1)
    assert told(read(put("d.csv", "file,malignant\na,no\nb,Yes\n"))[1]) == {"a.png": "benign", "b.png": "malignant"}


@pytest.mark.parametrize(("kind", "number"), [("dermoscopic", 2), ("clinical", 3), ("both", 5)])
def test_kinds_of_images_of_the_isic_archive(put, kind, number):
    kinds = ("dermoscopic", "dermoscopic", "clinical: close-up", "TBP tile: close-up", "RCM: macroscopic")
    rows = "isic_id,diagnosis_1,image_type\n"
    for place, each in enumerate(kinds):
        rows += f"ISIC_{place},{('Benign', 'Malignant')[place % 2]},{each}\n"
        put(f"ISIC_{place}.png", place)
    _, found = read(put("metadata.csv", rows), kind=kind)
    assert len(found.records) == number and len(found.ignored) == 5 - number


def test_an_archive_of_one_kind_of_images_is_taken_whole(put):
    put("ISIC_1.png", 1), put("ISIC_2.png", 2)
    _, found = read(
        put("metadata.csv", "isic_id,diagnosis_1,image_type\nISIC_1,Benign,TBP tile\nISIC_2,Malignant,TBP tile\n")
    )
    assert len(found.records) == 2
