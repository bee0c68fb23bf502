"""predictions.csv is read in full or refused in one line."""

import pytest

from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation import predictions

CLASSES = ("benign", "malignant")
HEADER = "image,label,split,p_benign,p_malignant\n"


def written(folder, text):
    path = folder / "predictions.csv"
    path.write_text(text)
    return path


def test_rows_of_a_split_come_in_the_order_of_their_images(tmp_path):
    rows = "b.png,malignant,test,0.25,0.75\nv.png,benign,validation,1,0\na.png,benign,test,0.5,0.5\n"
    found = predictions.read(written(tmp_path, HEADER + rows), CLASSES, "test")
    assert found.images == ("a.png", "b.png")
    assert found.labels.tolist() == [0, 1]
    assert found.probabilities.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert found.only({"b.png", "elsewhere.png"}).images == ("b.png",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image,label,split,p_nevus,p_melanoma\n", "columns"),
        (HEADER, "no row of the test split"),
        (HEADER + "a.png,nevus,test,1,0\n", "line 2: label 'nevus'"),
        (HEADER + "a.png,benign,test,nan,nan\n", "line 2: probability nan"),
        (HEADER + "a.png,benign,test,1.5,0\n", "line 2: probability 1.5"),
        (HEADER + "a.png,benign,test,much,0\n", "line 2: 'much' is not a number"),
        (HEADER + "a.png,benign,test,1\n", "line 2: None is not a number"),
        ("split,label,p_benign,p_malignant,image\n" + 2 * "test,benign,1,0\n", "stands there twice"),
        (HEADER + '"a\n' + "x" * 140_000, "cannot be read (field larger than field limit"),
        (HEADER + "a.png,benign,test,1,0\na.png,benign,test,1,0\n", "a.png stands there twice"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, told):
    with pytest.raises(UserError) as raised:
        predictions.read(written(tmp_path, text), CLASSES, "test")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_table_that_a_spreadsheet_saved_and_names_in_no_unicode(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEADER.encode() + b"n\xe6vus.png,benign,test,1,0\r\n")
    assert predictions.read(path, CLASSES, "test").images == ("n\udce6vus.png",)


def test_a_missing_file_and_a_missing_class_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        predictions.read(tmp_path / "predictions.csv", CLASSES, "test")
    path = written(tmp_path, HEADER + "a.png,benign,test,1,0\n")
    with pytest.raises(UserError, match="no test image of malignant"):
        predictions.read_test(path, Manifest(labels=CLASSES, root=tmp_path, records=()))


def test_predictions_of_another_image_of_the_same_name_are_refused(tmp_path):
    """Every run of `prepare` with phantoms, and of `generate`, names its images alike."""

    def manifest(digest):
        of_all = {"sha256": 64 * digest, "split": "test", "source": "phantom", "image_manipulation": "none"}
        chosen = tuple(Record(image=f"{label}.png", label=label, **of_all) for label in CLASSES)
        return Manifest(labels=CLASSES, root=tmp_path, records=chosen)

    head = HEADER.replace("split", "split,sha256")
    rows = f"benign.png,benign,test,{64 * '1'},1,0\nmalignant.png,malignant,test,{64 * '1'},0,1\n"
    validation = f"v.png,benign,validation,{64 * '3'},1,0\n"
    path = written(tmp_path, head + rows + validation)
    assert len(predictions.read_test(path, manifest("1")).images) == 2
    with pytest.raises(UserError, match=r"line 2: benign\.png is another file in the manifest"):
        predictions.read_test(path, manifest("2"))
