"""Archives as their publishers and Kaggle give them, each listed as it comes."""

import numpy as np
import pytest

from dermjax.data import records, splits
from dermjax.errors import UserError

EIGHT = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
MILK = "lesion_id,AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC"
SEVEN = "case_num,diagnosis,location,sex,clinic,derm\n1,melanoma (in situ),back,female,NEL/C1.png,NEL/D1.png\n" \
        "2,blue nevus,face,male,NEL/C2.png,Fal/D2.png\n3,melanoma metastasis,back,male,NEL/C3.png,Fal/D3.png\n" \
        "4,clark nevus,back,male,NEL/C4.png,NEL/D4.png\n5,miscellaneous,back,male,NEL/C5.png,NEL/D5.png\n"  # fmt: skip


def test_a_row_of_a_challenge_without_any_mark_is_left_out(put, read):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("m.csv", f"{EIGHT}\na,1,0,0,0,0,0,0,0,0\nb,0,1,0,0,0,0,0,0,0\nc,,,,,,,,,\n")
    assert read(root)[1].ignored == (("c.png", "without a diagnosis"),)


@pytest.mark.parametrize(("table", "file"), [("_downsampled", ""), ("", "_downsampled"), ("_DOWNSAMPLED", "")])
def test_isic_2019_is_matched_whichever_side_says_downsampled(put, read, table, file):
    put(f"in/ISIC_0000001{file}.png", 1), put(f"in/ISIC_0000002{file}.png", 2)
    root = put("ISIC_2019_Training_GroundTruth.csv",
               f"{EIGHT}\nISIC_0000001{table},1,0,0,0,0,0,0,0,0\nISIC_0000002,0,1,0,0,0,0,0,0,0\n")  # fmt: skip
    put("ISIC_2019_Training_Metadata.csv", f"image,lesion_id\nISIC_0000001,L1\nISIC_0000002{table},L2\n")
    _, found = read(root)
    assert [(each.label, each.lesion_id) for each in found.records] == [("malignant", "L1"), ("benign", "L2")]


def test_an_image_that_is_there_both_ways_is_taken_as_it_is_called(put, read, told):
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


def test_a_nested_copy_of_kaggles_is_left_out_and_said(put, read, tmp_path):
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
def test_milk10k(put, read, kind, numbers):
    name, found = read(milk(put), kind=kind)
    assert name == "milk10k" and [int(record.image[-5]) for record in found.records] == list(numbers)
    first = found.records[0]
    assert (first.label, first.lesion_id) == ("malignant", "IL_1") and found.records[-1].lesion_id == "IL_2"
    assert {"skin_tone_class": "3", "age": "55", "sex": "male", "site": "trunk"}.items() <= first.attributes.items()
    assert kind == "both" or sum(f"config.image_kind is {kind}" in why for _, why in found.ignored) == 3
    assert read(milk(put), classes="diagnoses")[1].labels == ("nevus", "melanoma")


@pytest.mark.parametrize(("kind", "numbers"), [("dermoscopic", [1]), ("clinical", [2]), ("both", [1, 2])])
def test_confocal_microscopy_is_of_no_kind(put, read, kind, numbers):
    for number in range(1, 6):
        put(f"ISIC_{number}.png", number)
    rows = zip(range(1, 6), ("dermoscopic", "clinical: close-up", "RCM: mosaic", "RCM: tile", "histopathology"),
               strict=True)  # fmt: skip
    table = "".join(f"ISIC_{number},{'Malignant' if number % 2 else 'Benign'},{taken}\n" for number, taken in rows)
    put("ISIC_6.png", 6), put("ISIC_7.png", 7)
    more = "ISIC_6,Malignant,clinical: overview\nISIC_7,Benign,dermoscopic\n"
    _, found = read(put("metadata.csv", f"isic_id,diagnosis_1,image_type\n{table}{more}"), kind=kind)
    more = {"dermoscopic": [7], "clinical": [6], "both": [6, 7]}[kind]
    assert [int(record.image[-5]) for record in found.records] == numbers + more
    assert f"RCM, as config.image_kind is {kind}" in dict(found.ignored)["ISIC_3.png"]


def test_own_splits_of_an_archive_without_them_are_said(put, read, capsys):
    put("a.png", 1), put("b.png", 2)
    read(put("HAM10000_metadata.csv", "lesion_id,image_id,dx\nL1,a,mel\nL2,b,nv\n"), own=True)
    assert "is no archive with splits of its own for config.own_splits" in capsys.readouterr().out


def test_options_that_class_folders_do_not_know_are_said(put, read, capsys):
    put("benign/a.png", 1), put("benign/b.png", 2), put("malignant/c.png", 3)
    read(put("malignant/d.png", 4), own=True, kind="clinical")
    said = capsys.readouterr().out
    assert "for config.own_splits" in said and "does not say how its images were taken for config.image_kind" in said


def test_folders_of_splits_hold_also_where_an_archive_s_table_lies_beside_them(put, read):
    put("train/ISIC_1.png", 1), put("train/ISIC_2.png", 2), put("test/ISIC_3.png", 3), put("test/ISIC_4.png", 4)
    root = put("HAM10000_metadata.csv", "lesion_id,image_id,dx\nL1,ISIC_1,mel\nL2,ISIC_2,nv\nL3,ISIC_3,mel\n"
               "L4,ISIC_4,nv\n")  # fmt: skip
    name, found = read(root)
    assert name == "ham10000" and [record.split for record in found.records] == ["test", "test", "train", "train"]


def test_derm7pt_with_its_own_splits_where_they_are_asked_for(put, read):
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


def test_isic_2024_out_of_its_hdf5_file(put, read, picture, tmp_path, prepare):
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


def test_a_folder_called_test_around_the_run_is_no_split_and_the_run_may_be_moved(put, picture, tmp_path, prepare):
    h5py = pytest.importorskip("h5py")
    root = put("train-metadata.csv", "isic_id,target\n" + "".join(f"ISIC_{n},{n % 2}\n" for n in range(4)))
    with h5py.File(root / "train-image.hdf5", "w") as file:
        for number in range(4):
            file[f"ISIC_{number}"] = np.void(picture(number))
    run = tmp_path / "test" / "run"
    manifest = prepare(root, run, **{"ratios.validation": 0.0, "ratios.test": 0.0})
    assert {record.split for record in manifest.records} == {"train"}
    run.rename(tmp_path / "moved")
    moved = records.read(tmp_path / "moved")
    assert moved.path(moved.records[1]).read_bytes() == picture(1)


def test_of_an_hdf5_file_only_what_is_used_is_unpacked_and_a_refused_run_leaves_nothing(
    put, picture, tmp_path, refused
):
    h5py = pytest.importorskip("h5py")
    refused(isic_2024(put, h5py, picture, tmp_path), "are too few for", limit=1)


def test_an_hdf5_file_without_h5py_is_a_line(put, read, monkeypatch):
    put("train-image.hdf5", b"\x89HDF")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    root = put("train-metadata.csv", "isic_id,target\nISIC_1,1\nISIC_2,0\n")
    with pytest.raises(UserError, match=r"train-image\.hdf5: HDF5 is read by h5py.*dermjax\[formats\]"):
        read(root)


def test_what_fitzpatrick17k_says_is_wrongly_labelled_is_left_out(put, read):
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
def test_a_row_is_in_one_of_derm7pts_own_splits(put, read, rows, told):
    put("images/a.jpg", 0), put("images/b.jpg", 1)
    put("meta/meta.csv", "case_num,diagnosis,derm,clinic\n1,blue nevus,a.jpg,x.jpg\n2,melanoma,b.jpg,y.jpg\n")
    put("meta/test_indexes.csv", "indexes\n0\n")
    with pytest.raises(UserError, match=told):
        read(put("meta/train_indexes.csv", f"indexes\n{rows}"), own=True)


def test_half_a_pair_of_duplicates_ties_nothing(put, read):
    for number in range(1, 4):
        put(f"ISIC_000000{number}.jpg", number)
    put("t.csv", "image_name,target\nISIC_0000001,0\nISIC_0000002,1\nISIC_0000003,1\n")
    root = put("d.csv", "image_name_1,image_name_2\nISIC_0000001,\n,ISIC_0000002\n")
    assert not any("duplicates" in record.attributes for record in read(root)[1].records)


@pytest.mark.parametrize(("kind", "number"), [("dermoscopic", 2), ("clinical", 3), ("both", 5)])
def test_kinds_of_images_of_the_isic_archive(put, read, kind, number):
    kinds = ("dermoscopic", "dermoscopic", "clinical: close-up", "TBP tile: close-up", "RCM: macroscopic")
    rows = "isic_id,diagnosis_1,image_type\n"
    for place, each in enumerate(kinds):
        rows += f"ISIC_{place},{('Benign', 'Malignant')[place % 2]},{each}\n"
        put(f"ISIC_{place}.png", place)
    _, found = read(put("metadata.csv", rows), kind=kind)
    assert len(found.records) == number and len(found.ignored) == 5 - number


def test_an_archive_of_one_kind_of_images_is_taken_whole(put, read, capsys):
    put("ISIC_1.png", 1), put("ISIC_2.png", 2)
    _, found = read(
        put("metadata.csv", "isic_id,diagnosis_1,image_type\nISIC_1,Benign,TBP tile\nISIC_2,Malignant,TBP tile\n")
    )
    assert len(found.records) == 2
    assert "are clinical and taken, as config.image_kind is for archives of several" in capsys.readouterr().out
