"""Tables of the public archives, as they are written, and as spreadsheets mangle them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermjax.data import tables
from dermjax.errors import UserError

HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
TABLES = {
    "ham10000": HAM + "HAM_1,a,mel,histo,80.0,male,back\nHAM_2,b,nv,histo,,female,face\n",
    "isic-cli": "isic_id,attribution,copyright_license,diagnosis_1,age_approx\n"
    "a,x,CC-0,Malignant,40\nb,x,CC-0,Benign,\nc,x,CC-0,Indeterminate,\n",
    "isic-2024": "isic_id,target,patient_id,lesion_id\na,1,IP_1,\nb,0,IP_2,IL_1\n",
    "isic-2020": "image_name,patient_id,target\na,IP_1,1\nb,IP_2,0\n",
    "ddi": ",DDI_ID,DDI_file,skin_tone,malignant,disease\n0,1,a.jpg,56,True,melanoma\n1,2,b.JPG,12,False,nevus\n",
    "pad-ufes-20": "patient_id,lesion_id,age,gender,diagnostic,img_id\nPAT_1,881,8,F,BCC,a.jpg\nPAT_2,9,8,M,NEV,b.JPG\n"
    "PAT_3,7,8,M,ACK,c.jpg\n",
}


def folder(root, text, encoding="utf-8"):
    (root / "part_1").mkdir(parents=True)
    for name in ("a.jpg", "part_1/b.JPG", "part_1/c.jpg"):
        (root / name).write_bytes(b"")
    (root / "metadata.csv").write_bytes(text.encode(encoding))
    return root


@pytest.mark.parametrize("name", TABLES)
def test_a_layout_is_detected_and_read(tmp_path, name):
    found, table = tables.detect(folder(tmp_path, TABLES[name]))
    listing = tables.scan(tmp_path, found, table)
    assert found == name and listing.labels == ("benign", "malignant")
    assert [(r.image, r.label, r.source) for r in listing.records] == [
        ("a.jpg", "malignant", name), ("part_1/b.JPG", "benign", name)
    ]  # fmt: skip
    assert len(listing.ignored) == (name in ("isic-cli", "pad-ufes-20"))


def test_what_a_table_knows_of_the_patient(tmp_path):
    first, second = tables.scan(*read(tmp_path, TABLES["ham10000"])).records
    assert first.lesion_id == "HAM_1" and first.attributes == {"age": "80.0", "sex": "male", "site": "back"}
    assert second.attributes == {"sex": "female", "site": "face"}


def read(root, text, encoding="utf-8"):
    folder(root, text, encoding)
    return root, *tables.detect(root)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_spreadsheets_mangle_tables(tmp_path, encoding, ends):
    text = TABLES["ham10000"].replace("\n", ends)
    assert len(tables.scan(*read(tmp_path, text, encoding)).records) == 2


@pytest.mark.parametrize(
    "rows, told",
    [
        ("H,a,mel\nH,z,nv\n", "line 3: no image 'z'"),
        ("H,a,mel\nH,a,nv\n", "line 3: a stands there twice"),
        ("H,a,xyz\n", "line 2: dx is 'xyz'"),
        ("H,a,\n", "line 2: dx is ''"),
        ("H,a,mel\n", "both classes"),
        ("H,../a,mel\nH,/etc/passwd,nv\n", "no image 'passwd'"),
    ],
)
def test_what_a_table_gets_wrong_is_named(tmp_path, rows, told):
    with pytest.raises(UserError, match=told):
        tables.scan(*read(tmp_path, HAM + rows))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_no_table_ends_in_a_traceback(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("fuzz")
    (root / "metadata.csv").write_bytes(HAM.encode() + content)
    try:
        tables.scan(root, "ham10000", root / "metadata.csv")
    except UserError as error:
        assert "\n" not in str(error)


def test_sorted_folders_win_over_a_table(tmp_path):
    folder(tmp_path, TABLES["ham10000"])
    (tmp_path / "train/benign").mkdir(parents=True)
    assert tables.detect(tmp_path) is None
