"""Folders as people have them: what counts, what is left out and said, what is refused by name."""

import re

import pytest

from dermjax.data.archives import folders as sources
from dermjax.errors import UserError


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def two_classes(root, *more):
    return fill(root, "benign/1.jpg", "malignant/1.jpg", *more)


def test_classes_without_splits(tmp_path):
    listing = sources.scan(fill(tmp_path / "moles", "malignant/b.png", "benign/a.JPG", "benign/c.jpeg", "notes.txt"))
    assert listing.labels == ("benign", "malignant") and listing.root == tmp_path.resolve() / "moles"
    assert [record.image for record in listing.records] == ["benign/a.JPG", "benign/c.jpeg", "malignant/b.png"]
    first = listing.records[0]
    assert (first.label, first.split, first.source, first.image_manipulation) == ("benign", "", "moles", "none")
    assert (first.sha256, first.licence, listing.ignored) == ("", "", ())


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_splits_by_their_names(tmp_path, name):
    folders = ("train", name, "test")
    listing = sources.scan(fill(tmp_path, *(f"{each}/{label}/1.png" for each in folders for label in ("a", "b"))))
    assert [record.split for record in listing.records if record.label == "a"] == [
        split for _, split in sorted(zip(folders, ("train", "validation", "test"), strict=True))
    ]


def test_hidden_files_and_litter_do_not_count_and_other_files_are_told(tmp_path):
    litter = ("benign/._1.jpg", "benign/.hidden/1.jpg", "benign/Thumbs.db", ".git/x/1.jpg", "__MACOSX/benign/1.jpg")
    listing = sources.scan(two_classes(tmp_path, *litter, "benign/notes.txt", "benign/more/1.jpg"))
    assert [record.image for record in listing.records] == ["benign/1.jpg", "malignant/1.jpg"]
    assert listing.ignored == (
        ("benign/notes.txt", "no image"), ("benign/more/1.jpg", "in a folder within a class folder"),
    )  # fmt: skip


def test_images_beside_the_class_folders_are_told(tmp_path):
    listing = sources.scan(fill(two_classes(tmp_path), "loose.jpg", "readme.txt"))
    assert listing.ignored == (("loose.jpg", "outside of the class folders"),)
    names = ("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg", "test/loose.jpg")
    assert sources.scan(fill(tmp_path / "split", *names)).ignored == (
        ("test/loose.jpg", "outside of the class folders"),
    )


@pytest.mark.parametrize(
    "names, order",
    [
        (("melanoma", "nevus"), ("nevus", "melanoma")),
        (("MEL", "nv", "bcc"), ("nv", "MEL", "bcc")),
        (("cancer", "mole"), ("mole", "cancer")),
        (("squamous_cell-carcinoma", "x"), ("x", "squamous_cell-carcinoma")),
        (("b", "a"), ("a", "b")),
    ],
)
def test_the_malignant_class_is_the_last_and_so_the_positive_one(tmp_path, names, order):
    assert sources.scan(fill(tmp_path, *(f"{name}/1.jpg" for name in names))).labels == order


def test_several_folders_are_one_under_what_holds_them(tmp_path):
    one, two = (sources.scan(two_classes(tmp_path / name)) for name in ("one", "two"))
    both = sources.merge([one, two], "binary")
    assert both.root == tmp_path.resolve() and both.labels == ("benign", "malignant")
    assert [(each.image, each.source) for each in both.records] == [
        (f"{name}/{label}/1.jpg", name) for name in ("one", "two") for label in ("benign", "malignant")
    ]
    assert sources.merge([one], "binary") is one


def test_folders_that_do_not_belong_together_are_refused(tmp_path):
    one, other = (
        sources.scan(two_classes(tmp_path / "one")),
        sources.scan(fill(tmp_path / "two", "mel/1.jpg", "nv/1.jpg")),
    )
    with pytest.raises(
        UserError, match=r"one: its classes are benign, malignant, those of all folders benign, malignant, mel, nv"
    ):
        sources.merge([one, other], "binary")
    assert sources.merge([one, other], "diagnoses").labels == ("benign", "nv", "malignant", "mel")
    with pytest.raises(UserError, match=r"one/benign/1\.jpg is in two of the folders"):
        sources.merge([one, one], "binary")


def test_links_in_circles_end(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "benign" / "again").symlink_to(tmp_path)
    (tmp_path / "benign" / "self.jpg").symlink_to(tmp_path / "benign" / "self.jpg")
    listing = sources.scan(tmp_path)
    assert [record.image for record in listing.records] == ["benign/1.jpg", "benign/self.jpg", "malignant/1.jpg"]
    assert listing.ignored == (("benign/again", "no image"),)


@pytest.mark.parametrize(
    "names, told",
    [
        ((), r"no images; give a folder with class/\*\.jpg"),
        (("a.jpg", "b.jpg"), "2 images lie outside of class folders"),
        (("benign/x.txt", "malignant/x.txt"), "no images"),
        (("benign/1.jpg",), "only one class, 'benign'"),
        (("benign/1.jpg", "malignant/x.txt"), "malignant: a class without images"),
        (("dev/a/1.jpg", "dev/b/1.jpg", "c/1.jpg"), "dev holds folders but is no split"),
        (("train/a/1.jpg", "train/b/1.jpg", "dev/a/1.jpg"), "dev beside a split"),
        (("test/a/1.jpg", "test/b/1.jpg"), "no train folder beside test"),
        (("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"), "class 'b' is missing in test"),
        (("train/a/1.jpg", "test/a/1.jpg", "test/b/1.jpg"), "class 'b' is missing in train"),
        (("train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"), "test: a split without class folders"),
        (("train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"), "one split in two folders"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_one_line(tmp_path, names, told):
    with pytest.raises(UserError, match=told) as caught:
        sources.scan(fill(tmp_path, *names))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"folder {tmp_path / 'gone'}: no such folder")):
        sources.scan(tmp_path / "gone")


def test_a_limit_takes_the_same_few_of_each_class_and_split_evenly(tmp_path):
    names = [f"{split}/{label}/{i}.jpg" for split in ("train", "test") for label in "ab" for i in range(9)]
    records = sources.scan(fill(tmp_path, *names)).records
    chosen = sources.limit(records, 3, seed=0)
    cells = [(record.split, record.label) for record in chosen]
    assert {cell: cells.count(cell) for cell in cells} == {(s, c): 3 for s in ("train", "test") for c in "ab"}
    assert chosen == sources.limit(records, 3, seed=0) == tuple(record for record in records if record in chosen)
    assert chosen != sources.limit(records, 3, seed=1)
    assert sources.limit(records, 0, seed=0) == records
    assert all(record in sources.limit(records, 5, seed=0) for record in chosen)
