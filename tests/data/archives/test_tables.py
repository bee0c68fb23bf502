"""Tables of the public archives, as they are written, and as spreadsheets mangle them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermjax.data.archives import table_records, tables
from dermjax.data.archives.table_records import TableOptions
from dermjax.errors import UserError

HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
TABLES = {
    "ham10000": HAM + "HAM_1,a,mel,histo,80.0,male,back\nHAM_2,b,nv,histo,,female,face\n",
    "isic-cli": "isic_id,attribution,copyright_license,diagnosis_1,age_approx\n"
    "a,x,CC-0,Malignant,40\nb,x,CC-0,Benign,\nc,x,CC-0,Indeterminate,\n",
    "isic-2024": "isic_id,target,patient_id,lesion_id\na,1,IP_1,\nb,0,IP_2,IL_1\n",
    "isic-2020": "image_name,patient_id,target\na,IP_1,1\nb,IP_2,0\n",
    "isic-2019": "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\na,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n"
    "b,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\nc,0,0,0,1,0,0,0,0,0\n",
    "isic-2018": "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\na,0.0,0.0,0.0,1.0,0.0,0.0,0.0\nb,0,0,0,0,0,0,1\n",
    "isic-2017": "image_id,melanoma,seborrheic_keratosis\na,1.0,0.0\nb,0.0,0.0\n",
    "isic-2016": "ISIC_0000001,malignant\nISIC_0000002,0.0\n",
    "fitzpatrick17k": "md5hash,fitzpatrick_scale,label,three_partition_label\na,2,melanoma,malignant\n"
    "b,-1,nevus,benign\nc,3,acne,non-neoplastic\n",
    "ddi": ",DDI_ID,DDI_file,skin_tone,malignant,disease\n0,1,a.jpg,56,True,melanoma\n1,2,b.JPG,12,False,nevus\n",
    "pad-ufes-20": "patient_id,lesion_id,age,gender,diagnostic,img_id\nPAT_1,881,8,F,BCC,a.jpg\nPAT_2,9,8,M,NEV,b.JPG\n"
    "PAT_3,7,8,M,ACK,c.jpg\n",
}
DROPPED = (
    "isic-cli",
    "milk10k",
    "derm7pt",
    "isic-2019",
    "fitzpatrick17k",
    "pad-ufes-20",
)  # the third line is of neither class
COLUMNS = dict.fromkeys(("image", "label", "split", "lesion_id", "patient_id", "licence", "age"), "")


def folder(root, text, encoding="utf-8"):
    (root / "part_1").mkdir(parents=True)
    for name in ("a.jpg", "part_1/b.JPG", "part_1/c.jpg"):
        (root / name).write_bytes(b"")
    (root / "metadata.csv").write_bytes(text.encode(encoding))
    return root


def scan(root, name=None, classes="binary", skip=False, **columns):
    """The listing of a folder, and the layout that it is read as."""
    found = tables.open_folder(root)
    name = name or tables.detect(found)
    layout = tables.choose_layout(found, name, COLUMNS | columns)
    options = TableOptions(classes=classes, skip=skip, kind="dermoscopic", own_splits=False, into=root / "run")
    return table_records.scan(found, name, layout, options)


@pytest.mark.parametrize("name", TABLES)
def test_a_layout_is_detected_and_read(tmp_path, name):
    folder(tmp_path, TABLES[name])
    if name == "isic-2016":
        (tmp_path / "a.jpg").rename(tmp_path / "ISIC_0000001.jpg")
        (tmp_path / "part_1/b.JPG").rename(tmp_path / "part_1/ISIC_0000002.JPG")
    listing = scan(tmp_path)
    assert tables.detect(tables.open_folder(tmp_path)) == name and listing.labels == ("benign", "malignant")
    assert [(Path(r.image).parent.name, r.label, r.source) for r in listing.records] == [
        ("", "malignant", name), ("part_1", "benign", name)
    ]  # fmt: skip
    (left_out,) = listing.ignored if name != "isic-2016" else [("part_1/c.jpg", "in no table")]
    assert left_out[0] == "part_1/c.jpg" and (left_out[1] == "in no table") == (name not in DROPPED)


PH2 = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | Streaks ||Colors ||\r\n"
    "|| IMD002 ||                        ||                  0 ||       0 |               T |       A ||      4 ||\r\n"
    "|| IMD003 ||                        ||                  1 ||       1 |              AT |       A ||   3  4 ||\r\n"
    "|| IMD058 ||               Melanoma ||                  2 ||       2 |              AT |       P ||   1  2 ||\r\n"
    "\r\n\r\nLegends:\r\n\r\nClinical Diagnosis: \r\n0 - Common Nevus; 1 - Atypical Nevus; 2 - Melanoma.\r\n"
)


def test_ph2_as_it_comes(tmp_path):
    """Its table with || around the cells, a folder for each image, its mask and the masks of its colours."""
    rng = np.random.default_rng(0)
    (tmp_path / "PH2_dataset.txt").write_bytes(PH2.encode())
    (tmp_path / "PH2_dataset.xlsx").write_bytes(b"PK")
    for name in ("IMD002", "IMD003", "IMD058"):
        case = tmp_path / "PH2 Dataset images" / name
        mask = Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 4)).convert("1")
        photograph = Image.fromarray(rng.integers(40, 200, (12, 12, 3), np.uint8))
        for file, image in ((f"{name}_Dermoscopic_Image/{name}", photograph), (f"{name}_lesion/{name}_lesion", mask),
                            (f"{name}_roi/{name}_R1_Label3", mask)):  # fmt: skip
            (case / file).parent.mkdir(parents=True)
            image.save(case / f"{file}.bmp")
    listing = scan(tmp_path)
    assert tables.detect(tables.open_folder(tmp_path)) == "ph2" and listing.labels == ("benign", "malignant")
    assert [(Path(r.image).name, r.label) for r in listing.records] == [
        ("IMD002.bmp", "benign"), ("IMD003.bmp", "benign"), ("IMD058.bmp", "malignant")
    ]  # fmt: skip
    assert [Path(r.attributes["mask"]["image"]).name for r in listing.records] == [
        f"{name}_lesion.bmp" for name in ("IMD002", "IMD003", "IMD058")
    ]
    assert sorted({(Path(image).name[6:], why) for image, why in listing.ignored}) == [
        ("_R1_Label3.bmp", "in no table"), ("_lesion.bmp", "used as the mask of its image")
    ]  # fmt: skip
    assert scan(tmp_path, classes="diagnoses").labels == ("nevus", "melanoma")


@pytest.mark.parametrize("value", ['["mole", "nevus"]', '{"name": "mole"}'])
def test_a_class_that_is_a_list_is_one_line(tmp_path, value):
    """As Hugging Face's image folders may have it, for several classes of an image or the boxes in it."""
    folder(tmp_path, "")
    (tmp_path / "metadata.csv").unlink()
    lines = [f'{{"file_name": "{name}", "label": {value}}}' for name in ("a.jpg", "part_1/b.JPG")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = tables.open_folder(tmp_path)
    options = TableOptions(classes="binary", skip=False, kind="dermoscopic", own_splits=False, into=tmp_path / "run")
    with pytest.raises(UserError, match=r"metadata.jsonl line 1: label is .*, several values and no class; give") as e:
        table_records.scan(found, "table", tables.detect_columns(found, {}), options)
    assert "\n" not in str(e.value)


def test_classes_in_columns_of_several_names_are_one_line(tmp_path):
    """The images of the second table would count as in no table."""
    folder(tmp_path, "file,label\na.jpg,mole\n")
    (tmp_path / "more.csv").write_text("image,class\nb.JPG,nevus\nc.jpg,mole\n")
    with pytest.raises(UserError, match=r"metadata\.csv names classes in 'label' and images in 'file', more\.csv in "
                       r"'class' and 'image', 2 of them its own; give"):  # fmt: skip
        tables.detect_columns(tables.open_folder(tmp_path), {})
    (tmp_path / "more.csv").write_text("image,class\na.jpg,mole\n")  # another opinion on the same images
    assert tables.detect_columns(tables.open_folder(tmp_path), {}).label == ("label",)


def test_what_a_table_knows_of_the_patient(tmp_path):
    first, second = read(tmp_path, TABLES["ham10000"]).records
    assert first.lesion_id == "HAM_1"
    assert first.attributes == {"age": "80.0", "age_band": "75+", "sex": "male", "site": "back"}
    assert second.attributes == {"sex": "female", "site": "face"}


def test_seven_diagnoses_are_seven_classes_malignant_ones_last(tmp_path):
    codes = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
    for code in codes:
        (tmp_path / f"{code}.jpg").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text(HAM + "".join(f"H,{code},{code},x,1,male,y\n" for code in codes))
    assert scan(tmp_path, classes="diagnoses").labels == (
        "benign keratosis", "dermatofibroma", "nevus", "vascular lesion",
        "actinic keratosis or carcinoma in situ", "basal cell carcinoma", "melanoma",
    )  # fmt: skip


def test_an_actinic_keratosis_is_a_diagnosis_but_of_neither_side(tmp_path):
    folder(tmp_path, TABLES["isic-2019"])
    assert scan(tmp_path).ignored == (("part_1/c.jpg", "actinic keratosis"),)
    assert scan(tmp_path, classes="diagnoses").labels == ("nevus", "actinic keratosis", "squamous cell carcinoma")


def test_what_is_indeterminate_is_left_out_by_that_name(tmp_path):
    assert read(tmp_path, TABLES["isic-cli"]).ignored == (("part_1/c.jpg", "indeterminate"),)


def test_an_archive_without_diagnoses_says_so(tmp_path):
    with pytest.raises(UserError, match=r"line 2: this archive has no diagnosis in target"):
        scan(folder(tmp_path, TABLES["isic-2020"]), classes="diagnoses")


def test_a_challenge_in_several_tables_with_its_splits_and_lesions(tmp_path):
    head, *rows = TABLES["isic-2019"].splitlines(keepends=True)
    folder(tmp_path, head + rows[0] + rows[1])
    (tmp_path / "metadata.csv").rename(tmp_path / "ISIC_2019_Training_GroundTruth.csv")
    (tmp_path / "ISIC_2019_Test_GroundTruth.csv").write_text(head + rows[2].replace("0,0,0,1,0,0", "0,0,0,0,1,0"))
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text("image,age_approx,lesion_id,sex\na,55.0,L1,female\n")
    first, second, third = scan(tmp_path).records
    assert [each.split for each in (first, second, third)] == ["train", "train", "test"]
    assert (first.lesion_id, second.lesion_id, first.attributes["sex"]) == ("L1", "", "female")


@pytest.mark.parametrize(
    "name, split",
    [
        ("ISBI2016_ISIC_Part3_Training_GroundTruth", "train"),
        ("ISIC-2017_Validation_Part3_GroundTruth", "validation"),
        ("ISIC2018_Task3_Test_GroundTruth", "test"),
        ("HAM10000_metadata", ""),
        ("latest", ""),
        ("trainees", ""),
    ],
)
def test_the_name_of_a_table_tells_its_split(name, split):
    assert table_records._split_of(Path(f"{name}.csv")) == split


def test_any_table_by_its_columns(tmp_path):
    folder(tmp_path, "file,kind,who,set\na.jpg,mole,P1,train\npart_1/b.JPG,cancer,P2,Test\nc,,P3,val\n")
    listing = scan(tmp_path, "table", image="file", label="kind", patient_id="who", split="set")
    assert listing.labels == ("mole", "cancer") and listing.ignored == (("part_1/c.jpg", "without a diagnosis"),)
    assert [(r.label, r.split, r.patient_id) for r in listing.records] == [
        ("mole", "train", "P1"), ("cancer", "test", "P2")
    ]  # fmt: skip


def test_diagnoses_of_any_table_go_by_the_rules(tmp_path):
    folder(tmp_path, "file,dx\na.jpg,MEL\npart_1/b.JPG,nevus\nc,ak\n")
    listing = scan(tmp_path, "table", image="file", diagnosis="dx")
    assert [each.label for each in listing.records] == ["malignant", "benign"]
    assert listing.ignored == (("part_1/c.jpg", "actinic keratosis"),)
    assert scan(tmp_path, "table", "diagnoses", image="file", diagnosis="dx").labels == (
        "nevus", "actinic keratosis", "melanoma"
    )  # fmt: skip
    (tmp_path / "metadata.csv").write_text("file,dx\na.jpg,MEL\nb,wart\n")
    with pytest.raises(UserError, match="line 3: dx is 'wart'; known are benign keratosis, "):
        scan(tmp_path, "table", image="file", diagnosis="dx")


def test_a_column_of_a_known_table_may_give_other_classes(tmp_path):
    folder(tmp_path, TABLES["ddi"])
    assert scan(tmp_path, label="disease").labels == ("nevus", "melanoma")


@pytest.mark.parametrize("columns, told", [({"image": "file"}, "columns of the image and the label"),
                                           ({"image": "x", "label": "y"}, "no table has this column")])  # fmt: skip
def test_a_column_map_that_fits_nothing_is_refused(tmp_path, columns, told):
    with pytest.raises(UserError, match=told):
        scan(folder(tmp_path, "file,kind\na,b\n"), "table", **columns)


def test_two_layouts_in_one_folder_need_a_word(tmp_path):
    folder(tmp_path, TABLES["ham10000"])
    (tmp_path / "more.csv").write_text(TABLES["isic-2020"])
    with pytest.raises(UserError, match=r"tables of ham10000 and isic-2020; give one"):
        scan(tmp_path)
    assert len(scan(tmp_path, "isic-2020").records) == 2


def test_two_files_of_one_name_must_be_copies(tmp_path):
    folder(tmp_path, TABLES["ham10000"])
    (tmp_path / "part_1/a.jpg").write_bytes(b"")
    assert scan(tmp_path).records[0].image == "a.jpg"
    (tmp_path / "part_1/a.jpg").write_bytes(b"another")
    with pytest.raises(UserError, match=r"line 2: a may be a\.jpg or part_1/a\.jpg, which differ"):
        scan(tmp_path)


def test_images_that_are_not_there_may_be_left_out_and_counted(tmp_path):
    folder(tmp_path, TABLES["ham10000"] + "HAM_3,gone,nv,histo,,,\n")
    assert scan(tmp_path, skip=True).ignored == (("gone", "not there"), ("part_1/c.jpg", "in no table"))


def read(root, text, encoding="utf-8"):
    return scan(folder(root, text, encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_spreadsheets_mangle_tables(tmp_path, encoding, ends):
    text = TABLES["ham10000"].replace("\n", ends)
    assert len(read(tmp_path, text, encoding).records) == 2


@pytest.mark.parametrize("name, mark", [("a.tab", "\t"), ("a.tsv", "\t"), ("a.csv", ";"), ("HAM10000_metadata", "\t")])
def test_tables_may_be_divided_by_other_marks(tmp_path, name, mark):
    folder(tmp_path, TABLES["ham10000"].replace(",", mark))
    (tmp_path / "metadata.csv").rename(tmp_path / name)
    listing = scan(tmp_path)
    assert [each.source for each in listing.records] == ["ham10000"] * 2
    assert listing.records[0].attributes["site"] == "back"


def test_the_device_is_what_the_archive_tells_of_it(tmp_path):
    text = (
        HAM.replace("localization", "localization,dataset") + "H,a,mel,histo,80,male,back,vidir_molemax\nK,b,nv,,,,,\n"
    )
    first, second = read(tmp_path, text).records
    assert first.attributes["device"] == "vidir_molemax" and "device" not in second.attributes


@pytest.mark.parametrize(
    "rows, told",
    [
        ("H,a,mel\nH,z,nv\n", "line 3: no image 'z'"),
        ("H,a,mel\nH,a,nv\n", r"line 3: dx of a is 'nv', and 'mel' in .*metadata.csv line 2; keep one line"),
        ("H,a,xyz\n", "line 2: dx is 'xyz'"),
        ("H,a,mel\n", "name images of malignant; needed are benign and malignant"),
        ("H,../a,mel\nH,/etc/passwd,nv\n", "no image 'passwd'"),
    ],
)
def test_what_a_table_gets_wrong_is_named(tmp_path, rows, told):
    with pytest.raises(UserError, match=told):
        read(tmp_path, HAM + rows)


PIECES = st.sampled_from(
    [
        HAM,
        HAM.replace(",", ";"),
        "H,a,mel,,1,,\n",
        "H;a;nv\n",
        "H,b,nv\n",
        ",",
        ";",
        "\t",
        "\n",
        "\r",
        '"',
        "\0",
        "../a",
        "\ud800",
        "é",
        "1e999",
    ]
)


@pytest.mark.parametrize("name", ["ham10000", "isic-2019", "isic-2016", "table"])
@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(PIECES, max_size=12).map(lambda all: "".join(all).encode("utf-8", "surrogatepass")),
    )
)
def test_no_table_ends_in_a_traceback(tmp_path_factory, name, content):
    root = tmp_path_factory.mktemp("fuzz")
    (root / "a.jpg").write_bytes(b"")
    (root / "metadata.csv").write_bytes(TABLES.get(name, HAM).encode() + content)
    (root / "other.csv").write_bytes(content)
    for skip in (False, True):
        try:
            scan(root, name, skip=skip, **({"image": "image_id", "label": "dx"} if name == "table" else {}))
        except UserError as error:
            assert "\n" not in str(error)
