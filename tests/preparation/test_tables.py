"""Tables as people and spreadsheets write them: columns, labels, lesions and patients."""

import os
import re
import unicodedata

import pytest

from dermjax.data import images
from dermjax.errors import UserError
from dermjax.preparation.listing import list_images

EIGHT = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
MILK = "lesion_id,AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC"
HAM = "lesion_id,image_id,dx,age\n"
EXCEL = "Nr;Bildname;Diagnose;Alter;Größe\n1;Mäuse 1.png;gutartig;55,5;1,25\n2;Füße.png;bösartig;60;2\n"


def test_rows_without_a_diagnosis_are_left_out_and_counted_also_where_their_image_is_not_there(put, read, told):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("m.csv", "isic_id,diagnosis_1\na,Malignant\nb,Benign\nc,\nnot_downloaded,\n")
    _, found = read(root)
    assert told(found) == {"a.png": "malignant", "b.png": "benign"}
    assert found.ignored == (("not_downloaded", "without a diagnosis"), ("c.png", "without a diagnosis"))


def test_repeated_rows_are_one_and_contradicting_ones_a_line_with_both(put, read, told):
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


def test_a_table_of_no_archive_binds_images_at_any_depth(put, read, told):
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


def test_a_path_in_a_table_chooses_among_files_of_one_name(put, read, told):
    put("x/one/a.png", 1), put("x/two/a.png", 2)
    root = put("t.csv", "file;label\none\\a.png;mole\nx/two/a.png;cancer\n")
    assert told(read(root)[1]) == {"x/one/a.png": "mole", "x/two/a.png": "cancer"}


def test_a_patient_of_a_name_that_images_of_two_classes_have_is_refused(put, read):
    """Dropped without a word, one patient would lie in two splits; a row that says nothing, or of copies, may stay."""
    for number, label in enumerate(("benign", "malignant")):
        put(f"{label}/0.png", number), put(f"{label}/{label}.png", 5 + number)
    root = put("patients.csv", "file,patient_id\n0.png,P0\nbenign.png,P1\n")
    with pytest.raises(
        UserError, match=r"patients\.csv line 2: 0\.png may be benign/0\.png or malignant/0\.png, which"
    ):
        read(root)
    put("patients.csv", "file,patient_id\n0.png,\nbenign.png,P1\nbenign/0.png,P0\nmalignant/0.png,P0\n")
    known = {record.image: record.patient_id for record in read(root)[1].records}
    assert known == {"benign/0.png": "P0", "malignant/0.png": "P0", "benign/benign.png": "P1",
                     "malignant/malignant.png": ""}  # fmt: skip


@pytest.mark.parametrize("line", ["[1]", "{", '{"file_name": "0.png"', "\ud800"])
def test_damaged_json_lines_are_a_line(put, read, line):
    put("a/0.png", 0)
    with pytest.raises(UserError, match=r"metadata\.jsonl") as caught:
        read(put("metadata.jsonl", line.encode("utf-8", "surrogatepass")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["NFC", "NFD", "cp1252"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig", "utf-16"])
def test_a_table_from_a_european_excel(put, read, told, form, encoding, capsys):
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


def test_excels_word_for_the_mark_and_decimal_commas_of_one_hot_columns(put, read, told):
    put("a.png", 1), put("b.png", 2)
    head = EIGHT.replace(",", ";")
    root = put("m.csv", f"sep=;\r\n{head}\r\na;1,0;0,0;0;0;0;0;0;0;0\r\nb;0,0;1,0;0;0;0;0;0;0;0\r\n")
    assert told(read(root)[1]) == {"a.png": "malignant", "b.png": "benign"}


def test_a_workbook_or_a_zip_in_place_of_a_table_is_said(put, read):
    put("Bilder/a.png", 1)
    root = put("Befunde.xlsx", b"PK"), put("more.zip", b"PK")
    with pytest.raises(UserError, match=r"Befunde\.xlsx: save it as CSV; .*more\.zip: unpack it"):
        read(root[0])


def test_a_table_that_is_read_leaves_the_images_as_they_are(put, read):
    root = put("a.png", 1)
    before = (root / "a.png").read_bytes()
    with pytest.raises(UserError):
        read(put("m.csv", "isic_id,diagnosis_1\na,Benign\n"))
    assert (root / "a.png").read_bytes() == before and images.load(root / "a.png", 8).shape == (8, 8, 3)


@pytest.mark.parametrize("column", ["label", "target"])
@pytest.mark.parametrize("nothing", ["nan", "NaN", "NA", "N/A", "-1", "<NA>", "None", "?"])
def test_a_label_that_says_nothing_is_no_class(put, read, told, column, nothing):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    one, other = ("0", "1") if column == "target" else ("benign", "malignant")
    root = put("t.csv", f"file,{column}\na.png,{one}\nb.png,{other}\nc.png,{nothing}\n")
    _, found = read(root)
    assert told(found) == {"a.png": "benign", "b.png": "malignant"}
    assert ("c.png", "without a diagnosis") in found.ignored


@pytest.mark.parametrize("nothing", ["NA", "n/a", "#N/A", "<NA>", "NaN"])
def test_lesions_and_patients_without_a_name_are_not_one(put, read, nothing):
    for number in range(4):
        root = put(f"{number}.png", number)
    rows = "".join(f"{n}.png,{('benign', 'malignant')[n % 2]},{nothing},{nothing},{nothing}\n" for n in range(4))
    put("t.csv", f"file,label,lesion_id,patient_id,sex\n{rows}")
    for record in read(root)[1].records:
        assert (record.lesion_id, record.patient_id) == ("", "") and "sex" not in record.attributes


def test_a_patient_is_the_same_where_a_spreadsheet_made_the_number_a_fraction(put, read):
    """pandas writes 7 as 7.0 where the column has gaps, and only there: the patient would be on two sides."""
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("t.csv", 'file,label,patient_id\na.png,benign,7\nb.png,malignant,7.0\nc.png,malignant,"7,0"\n')
    assert {record.patient_id for record in read(root)[1].records} == {"table/7"}


def test_a_text_with_a_comma_does_not_move_what_follows_it(put, read, told):
    put("a.png", 1), put("b.png", 2)
    root = put("t.csv", "file,note,label\na.png,large, pale,benign\nb.png,,malignant\n")
    with pytest.raises(UserError, match=r"line 2: 4 cells, and the header names 3; set text .* in quotation marks"):
        read(root)
    put("t.csv", 'file,note,label,\na.png,"large, pale",benign,,\nb.png,,malignant\n')
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}


def test_a_column_that_stands_there_twice_is_refused_where_it_is_read(put, read, told):
    put("a.png", 1), put("b.png", 2)
    root = put("t.csv", "file,label,label\na.png,benign,malignant\nb.png,malignant,benign\n")
    with pytest.raises(UserError, match="the column 'label' stands there 2 times; rename all but one"):
        read(root)
    put("t.csv", "file,label,note,note\na.png,benign,1,2\nb.png,malignant,3,4\n")
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}


def test_a_column_that_no_table_has_is_not_ignored(put, read):
    """Without its patients a table leaks; a name with a typing error was as good as none."""
    put("a.png", 1), put("b.png", 2)
    root = put("t.csv", "file,label,patient\na.png,benign,p\nb.png,malignant,q\n")
    with pytest.raises(UserError, match=r"config.columns.patient_id = 'patients': no table has this column; t.csv has"):
        read(root, patient_id="patients", label="label")
    with pytest.raises(UserError, match=r"config.columns: none of the folders has tables with all of label, patients"):
        list_images(f"{root},{root.parent}", layout="detect", positive="", options=None,
                    columns={"label": "label", "patient_id": "patients"})  # fmt: skip


def test_quotation_marks_behind_a_blank_and_one_that_is_not_closed(put, read, told):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("t.csv", '"file", "note", "label"\n"a.png", "large, pale", "benign"\n"b.png", "", "malignant"\n')
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}
    put("t.csv", 'file,label\na.png,benign\nb.png,malignant\nc.png,"benign\nd.png,malignant"\n')
    with pytest.raises(UserError, match=r"t.csv line 5: label runs over several lines; close the quotation mark"):
        read(root)


@pytest.mark.parametrize(
    "patients, told",
    [
        ("file,note,patient\na.png,large, pale,7\nb.png,,8\n", "line 2: 4 cells, and the header names 3"),
        ('file,patient,note\na.png,7,"large\nb.png,8,\n', "line 2: a quotation mark opens there and is not closed"),
        ('file,patient,note\na.png,7,large\nb.png,8,"', "line 3: a quotation mark opens there"),
        ('file,patient,note\na.png,"7,large\nb.png,8",pale\n', "line 3: patient runs over several lines"),
    ],
)
@pytest.mark.parametrize("folders", [False, True])
def test_what_moves_or_swallows_patients_in_a_table_beside_the_labels_is_a_line(put, read, patients, told, folders):
    """Without a word one patient's images would be in training and test."""
    put("benign/a.png", 1), put("malignant/b.png", 2)
    root = put("patients.csv", patients)
    if not folders:
        put("labels.csv", "file,label\na.png,benign\nb.png,malignant\n")
    with pytest.raises(UserError, match=rf"patients\.csv {told}"):
        read(root)


@pytest.mark.parametrize(
    "table", ['"file";"label";"note, long, long"\na.png;benign;\nb.png;malignant;\n',
              "\n\nfile;label\na.png;benign\nb.png;malignant\n"]
)  # fmt: skip
def test_the_delimiter_is_that_of_the_header_outside_of_quotation_marks(put, read, told, table):
    put("a.png", 1), put("b.png", 2)
    assert told(read(put("t.csv", table))[1]) == {"a.png": "benign", "b.png": "malignant"}


def test_a_blank_in_another_table_takes_no_lesion_away_and_a_contradiction_is_a_line(put, read):
    put("a.png", 1), put("b.png", 2), put("m.csv", "isic_id,diagnosis_1\na,Malignant\nb,Benign\n")
    put("n1.csv", "isic_id,lesion_id\na,L1\nb,7\n")
    root = put("n2.csv", "isic_id,lesion_id,age_approx\na,,50\nb,7.0,40\n")
    assert [(r.lesion_id, r.attributes["age"]) for r in read(root)[1].records] == [("L1", "50"), ("isic-cli/7", "40")]
    put("n3.csv", "isic_id,lesion_id\na,L5\n")
    with pytest.raises(UserError, match=r"n3\.csv line 2: lesion_id of a is 'L5', and 'L1' in .*n1\.csv line 2"):
        read(root)


def test_patients_and_splits_in_another_table_than_the_labels_are_taken_by_path(put, read):
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
def test_an_image_of_the_same_name_in_another_folder_is_not_taken_for_one_that_is_missing(put, read, path):
    put("x/1.png", 0), put("y/2.png", 1), put("y/3.png", 2), put("y/p/4.png", 3), put("b/5.png", 4)
    root = put("m.csv", f"file,label\n{path},mole\ny/2.png,mole\ny/3.png,cancer\n/old/b/5.png,cancer\n")
    with pytest.raises(UserError, match=r"line 2: no image '.*1\.png'"):
        read(root)
    _, found = read(root, skip=True)
    assert [r.image for r in found.records] == ["b/5.png", "y/2.png", "y/3.png"]
    assert (path, "not there") in found.ignored and ("x/1.png", "in no table") in found.ignored


def test_folders_of_another_computer_and_parts_in_between_are_no_hindrance(put, read):
    put("images/part_1/a.png", 0), put("images/part_2/b.png", 1)
    root = put("m.csv", "file,label\n/home/me/images/a.png,mole\nD:\\moles\\b.png,cancer\n")
    assert [record.label for record in read(root)[1].records] == ["mole", "cancer"]


def test_a_lesion_with_two_diagnoses_is_a_line(put, read):
    put("ISIC_0000001.jpg", 1), put("ISIC_0000002.jpg", 2)
    put("M.csv", "lesion_id,image_type,isic_id\nIL_1,dermoscopic,ISIC_0000001\nIL_2,dermoscopic,ISIC_0000002\n")
    rows = f"{MILK}\nIL_1,0,0,0,0,0,0,0,1,0,0,0\nIL_2,0,0,0,0,0,0,0,0,1,0,0\n"
    assert len(read(put("GroundTruth.csv", f"{rows}IL_2,0,0,0,0,0,0,0,0,1,0,0\n"))[1].records) == 2
    with pytest.raises(UserError, match=r"GroundTruth\.csv line 4: MEL of IL_1 is '0', and '1' in .*line 2"):
        read(put("GroundTruth.csv", f"{rows}IL_1,0,0,0,0,0,0,0,0,1,0,0\n"))


def test_synthetic_images_are_known_however_the_word_is_written(put, read):
    put("a.png", 1), put("b.png", 2)
    root = put("m.csv", "isic_id,diagnosis_1,image_manipulation\na,Malignant,Synthetic\nb,Benign,altered\n")
    assert [record.image_manipulation for record in read(root)[1].records] == ["synthetic", "none"]


@pytest.mark.parametrize(
    "age, known",
    [("85+", {"age": "85+", "age_band": "75+"}), ("44,5", {"age": "44.5", "age_band": "30-44"}), ("-5", {}),
     ("999", {}), ("1e400", {}), ("elderly", {"age": "elderly"})],
)  # fmt: skip
def test_ages_that_nobody_has_are_left_out(put, read, age, known):
    put("a.png", 1), put("b.png", 2)
    root = put("m.csv", f'file,label,age\na.png,mole,"{age}"\nb.png,cancer,\n')
    assert read(root)[1].records[0].attributes == known


@pytest.mark.parametrize("column", ["age", "number"])
def test_a_column_of_numbers_that_are_names_of_images_by_chance_is_not_the_one_of_images(put, read, told, column):
    for number in (30, 40, 50, 60):
        put(f"{number}.png", number)
    root = put("m.csv", f"{column},label,file\n40,mole,30.png\n30,cancer,40.png\n60,mole,50.png\n50,cancer,60.png\n")
    assert told(read(root)[1]) == {"30.png": "mole", "40.png": "cancer", "50.png": "mole", "60.png": "cancer"}


@pytest.mark.parametrize("row, image", [("", "image_id"), ("Unnamed: 0", "id"), ("index", "slide"), ("n", "photo")])
def test_numbers_of_rows_beside_numbers_of_images_are_not_the_images(put, read, told, row, image):
    """As pandas writes a table with its index."""
    for number in range(4):
        put(f"{number}.png", number)
    root = put("m.csv", f"{row},{image},label\n0,3,mole\n1,2,cancer\n2,1,mole\n3,0,cancer\n")
    labels = {"0.png": "cancer", "1.png": "mole", "2.png": "cancer", "3.png": "mole"}
    assert told(read(root)[1]) == labels
    root = put("m.csv", "image_quality,key,label\n1,3,mole\n1,2,cancer\n1,1,mole\n1,0,cancer\n")
    assert told(read(root)[1]) == labels


def test_a_class_that_is_a_number_is_one_with_and_without_a_fraction(put, read):
    for number in range(3):
        put(f"{number}.png", number)
    put("train.csv", "file,label\n0.png,0\n1.png,1\n")
    assert read(put("test.csv", "file,label\n2.png,1.0\n"))[1].labels == ("0", "1")


@pytest.mark.parametrize("label", ["mole\u200b", "\ufeffmole", "mo\u00adle"])
def test_a_character_that_nobody_sees_makes_no_other_class(put, read, label):
    for number in range(3):
        put(f"{number}.png", number)
    with pytest.raises(UserError, match=r"are one class in two spellings"):
        read(put("m.csv", f"file,label\n0.png,mole\n1.png,{label}\n2.png,cancer\n"))


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
def test_a_label_that_may_be_meant_in_two_ways_is_a_line(put, read, name, table, told):
    put("a.png", 0), put("b.png", 1), put("mole/c.png", 2)
    name = "metadata.jsonl" if name == "m.jsonl" else name
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        read(put(name, table))
    assert "\n" not in str(caught.value)


def test_a_diagnosis_that_says_nothing_gives_way_to_the_next_column(put, read, told):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    root = put("m.csv", "isic_id,diagnosis_1,benign_malignant\na,nan,benign\nb,Malignant,malignant\nc,nan,\n")
    assert told(read(root)[1]) == {"a.png": "benign", "b.png": "malignant"}
    root = put("m.csv", "image_id,melanoma,seborrheic_keratosis\na,,0\nb,1,\nc,0,0\n")
    assert told(read(root)[1]) == {"b.png": "malignant", "c.png": "benign"}


def test_a_table_within_a_split_is_about_that_split(put, read, told):
    put("train/0.png", 0), put("train/5.png", 5), put("test/0.png", 2), put("test/1.png", 3)
    put("train/metadata.csv", "file_name,label\n0.png,a\n1.png,a\n5.png,b\n")
    root = put("test/metadata.csv", "file_name,label\n0.png,b\n")
    with pytest.raises(UserError, match=r"train/metadata\.csv line 3: no image '1\.png'"):
        read(root)
    _, found = read(root, skip=True)
    assert told(found) == {"test/0.png": "b", "train/0.png": "a", "train/5.png": "b"}
    assert found.ignored == (("1.png", "not there"), ("test/1.png", "in no table"))


@pytest.mark.parametrize("names", [("mel", "Melanoma"), ("NV", "nevus"), ("cancer", "malignant")])
def test_a_diagnosis_and_its_short_name_are_one_class(put, read, names):
    for number in range(3):
        put(f"{number}.png", number)
    root = put("m.csv", f"file,label\n0.png,{names[0]}\n1.png,{names[1]}\n2.png,other\n")
    with pytest.raises(UserError, match="are one class in two spellings"):
        read(root)


def test_a_number_of_a_patient_is_the_same_without_its_zeros(put, read):
    put("a.png", 1), put("b.png", 2), put("c.png", 3)
    _, found = read(put("m.csv", "file,label,patient_id\na.png,mole,007\nb.png,cancer,7.0\nc.png,mole,0\n"))
    assert [record.patient_id for record in found.records] == ["table/7", "table/7", "table/0"]


@pytest.mark.parametrize(
    ("lesion", "patient", "label"),
    [("Lesion ID", "Patient No.", "Class"), ("LesionId", "patientID", "class name"), ("lesion-id", "Subject", "LABEL")],
)
def test_columns_are_known_in_any_spelling(put, read, lesion, patient, label):
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


def test_a_column_that_is_not_known_is_said(put, read):
    put("a.png", 0), put("b.png", 1)
    name, _ = read(put("d.csv", "file,label,Patientin,age\na,nevus,1,50\nb,melanoma,1,50\n"))
    assert name == "table, its images by 'file', its classes by 'label'; not read: 'Patientin'"


def test_two_spellings_of_a_column_are_refused(put, read):
    put("a.png", 0), put("b.png", 1)
    folder = put("d.csv", "file,lesion_id,Lesion ID,label\na,L1,L1,nevus\nb,L1,L2,melanoma\n")
    with pytest.raises(UserError, match=r"the column 'lesion_id|Lesion ID' stands there 2 times; rename all but one"):
        read(folder)


def test_malignant_yes_or_no_is_benign_or_malignant(put, read, told):
    put("a.png", 0), put("b.png", 1)
    assert told(read(put("d.csv", "file,malignant\na,no\nb,Yes\n"))[1]) == {"a.png": "benign", "b.png": "malignant"}


def test_a_column_that_is_given_counts_also_where_the_others_are_found(put, read):
    """Patients would be on two sides."""
    for number, name in enumerate("abcd"):
        put(f"{name}.png", number)
    root = put("t.csv", "file,label,Pat\na.png,benign,p\nb.png,malignant,p\nc.png,benign,q\nd.png,malignant,r\n")
    name, found = read(root, patient_id="Pat")
    assert "not read" not in name and [record.patient_id for record in found.records] == ["p", "p", "q", "r"]
    assert [record.patient_id for record in read(root, image="file", patient_id="Pat")[1].records] == [
        "p",
        "p",
        "q",
        "r",
    ]
    with pytest.raises(UserError, match=r"config.columns.patient_id = 'nowhere': no table has this column; t.csv has"):
        read(root, patient_id="nowhere")


def test_a_column_that_is_given_names_the_patients_of_class_folders(put, read, capsys):
    for number, name in enumerate(("train/benign/a", "train/malignant/b", "test/benign/c", "test/malignant/d")):
        put(f"{name}.png", number)
    root = put("t.csv", "Datei,Pat\na,p\nb,p\nc,q\nd,r\n")
    assert {record.patient_id for record in read(root)[1].records} == {""}
    assert "t.csv ('Datei', 'Pat'); config.columns names them" in capsys.readouterr().out
    for more in ({}, {"image": "Datei"}):
        name, found = read(root, patient_id="Pat", **more)
        assert name == "split folders" and not capsys.readouterr().out
        assert {record.image[-5]: record.patient_id for record in found.records} == {
            "a": "p", "b": "p", "c": "q", "d": "r"
        }  # fmt: skip
    with pytest.raises(UserError, match=r"config.columns.patient_id = 'Pat': as folders no table is read; leave"):
        read(root, layout="folders", patient_id="Pat")


def test_the_table_of_a_whole_archive_beside_a_part_of_it_ties_its_lesions(put, read, capsys):
    """Its first rows are of images that are not here: HAM10000's are in order of their diagnosis."""
    for number, name in enumerate(("train/benign/a", "train/malignant/b", "test/benign/c", "test/malignant/d")):
        put(f"{name}.png", number)
    absent = "".join(f"bkl_{number},L{number},{number}\n" for number in range(300))
    root = put("whole.csv", f"file,lesion,age\n{absent}a,HAM_1,5\nc,HAM_2,5\nd,HAM_3,5\n")
    assert [record.lesion_id for record in read(root)[1].records] == ["HAM_2", "HAM_3", "HAM_1", ""]
    assert not capsys.readouterr().out
    put("whole.csv", f"file,lesion,age\n{absent}")
    assert {record.lesion_id for record in read(root)[1].records} == {""}
    assert "not read, as no column names most of the images: whole.csv ('file', 'lesion'," in capsys.readouterr().out


def test_numbers_of_rows_are_no_names_of_images(put, read):
    for number, label in enumerate(("benign", "malignant", "benign", "malignant")):
        put(f"{label}/{number}.png", number)
    root = put("t.csv", "row,lesion\n" + "".join(f"{number},L{number}\n" for number in range(1000)))
    assert {record.lesion_id for record in read(root)[1].records} == {""}


def test_tables_that_are_not_read_are_said(put, read, capsys):
    put("a.png", 1), put("b.png", 2)
    root = put("labels.csv", "file,label\na.png,benign\nb.png,malignant\n")
    put("patients.csv", "Bild,Patientin\na,p\nb,p\n"), put("more.xlsx", b"PK")
    read(root)
    said = capsys.readouterr().out
    assert "patients.csv ('Bild', 'Patientin'); config.columns names them" in said
    assert "prepare: not read: " in said and "more.xlsx: save it as CSV" in said


def test_a_table_beside_that_of_an_archive_may_call_images_otherwise(put, read):
    put("ISIC_1.png", 1), put("ISIC_2.png", 2)
    root = put("metadata.csv", "isic_id,diagnosis_1\nISIC_1,Benign\nISIC_2,Malignant\n")
    put("patients.csv", "image,patient_id\nISIC_1.jpg,p\nISIC_2.jpg,q\n")
    name, found = read(root)
    assert name == "isic-cli" and [record.patient_id for record in found.records] == ["p", "q"]


def test_words_in_another_case_are_one_subgroup(put, read):
    put("a.png", 1), put("b.png", 2)
    put("c.png", 3), put("d.png", 4)
    root = put("t.csv", "file,label,gender,location,fitzpatrick\na,benign,MALE,Back,3.0\nb,malignant,male,BACK,3\n"
               "c,benign,M,back,III\nd,benign,m,back,Skin type iii\n")  # fmt: skip
    assert [record.attributes for record in read(root)[1].records] == 4 * [
        {"sex": "male", "site": "back", "fitzpatrick": "3"}
    ]
