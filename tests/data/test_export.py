"""What is exported is read back by the programs that it is for, equal byte for byte, and says that it is synthetic."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dermjax.data import digests, export, images, records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

LABELS = ("benign", "malignant")


@pytest.fixture
def manifest(tmp_path):
    """Twelve images, a third of them synthetic and in train, one rejected."""
    root, found = tmp_path / "images", []
    root.mkdir()
    for number in range(12):
        made = number % 3 == 0
        name = f"{number}.PNG"
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (root / name).write_bytes(images.encode_png(pixels))
        found.append(
            Record(
                image=name, sha256=digests.sha256(root / name), label=LABELS[number % 2],
                split="train" if made else ("train", "validation", "test")[number % 4 % 3], source="phantom",
                image_manipulation="synthetic" if made else "none", licence="CC-BY" if number else "",
                lesion_id=f"L{number}", attributes={"age": "40"}, generation={"seed": number} if made else {},
                rejected=("blank",) if number == 9 else (),
            )
        )  # fmt: skip
    whole = Manifest(labels=LABELS, root=root, records=tuple(found))
    records.write(tmp_path / "manifest.jsonl", whole)
    return records.read(tmp_path)


def kept(manifest, split):
    return [(manifest.path(record).read_bytes(), record) for record in manifest.split(split)]


def test_imagefolder_has_every_kept_image_with_its_row(manifest, tmp_path):
    export.write(manifest, tmp_path / "out", "imagefolder", "lesions", "")
    for split in records.SPLITS:
        rows = [json.loads(line) for line in (tmp_path / "out" / split / "metadata.jsonl").read_text().splitlines()]
        assert len(rows) == len(kept(manifest, split)) == len(list((tmp_path / "out" / split).iterdir())) - 1
        for row, (content, record) in zip(rows, kept(manifest, split), strict=True):
            assert (tmp_path / "out" / split / row["file_name"]).read_bytes() == content
            assert (row["label"], row["licence"], row["image_manipulation"]) == (
                record.label, record.licence, record.image_manipulation
            )  # fmt: skip
            assert json.loads(row["generation"]) == record.generation


def test_webdataset_reads_the_shards(manifest, tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    monkeypatch.setattr(export, "A_SHARD", 2)
    export.write(manifest, tmp_path / "out", "webdataset", "lesions", "")
    shards = sorted(str(path) for path in (tmp_path / "out").glob("train-*.tar"))
    expected = kept(manifest, "train")
    assert len(shards) == -(-len(expected) // 2)
    told = """
import hashlib, json, sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    digest = hashlib.sha256(sample["png"]).hexdigest()
    print(digest, int(sample["cls"]), json.loads(sample["json"])["image_manipulation"])
"""  # in a process of its own, as it leaves files open
    read = subprocess.run([sys.executable, "-c", told, *shards], check=True, capture_output=True, text=True).stdout
    assert [line.split() for line in read.splitlines()] == [
        [record.sha256, str(LABELS.index(record.label)), record.image_manipulation] for _, record in expected
    ]


def test_shards_are_the_same_bytes_each_time(manifest, tmp_path):
    for name in ("one", "two"):
        export.write(manifest, tmp_path / name, "webdataset", "lesions", "")
    assert (tmp_path / "one/train-000000.tar").read_bytes() == (tmp_path / "two/train-000000.tar").read_bytes()


def test_array_record_comes_back_through_prepare_without_tensorflow(manifest, tmp_path):
    export.write(manifest, tmp_path / "out", "array_record", "lesions", "")
    told = """
import sys
from pathlib import Path
from dermjax.data.archives.table_records import TableOptions
from dermjax.preparation.listing import list_folder
columns = {"image": ""}
folder, workdir = map(Path, sys.argv[1:])
options = TableOptions(classes="binary", skip=False, kind="both", own_splits=False, into=workdir)
name, listing = list_folder(folder, layout="detect", columns=columns, options=options)
assert name == "tfds" and "tensorflow" not in sys.modules, name
for record in listing.records:
    told = (record.label, record.split, record.lesion_id, record.image_manipulation, record.licence)
    print(record.image, *told, sep=",")
"""
    arguments = [sys.executable, "-c", told, str(tmp_path / "out"), str(tmp_path / "back")]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    rows = [line.split(",") for line in said.splitlines() if line.startswith("data_set_images/")]
    expected = [each for split in ("test", "train", "validation") for each in kept(manifest, split)]
    for (image, label, split, lesion, manipulation, licence), (content, record) in zip(rows, expected, strict=True):
        assert (tmp_path / "back" / image).read_bytes() == content
        assert (label, split, lesion) == (record.label, record.split, record.lesion_id)
        assert (manipulation, licence) == (record.image_manipulation, record.licence)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib", "ignore::DeprecationWarning:mlcroissant")
@pytest.mark.parametrize("form", export.FORMS)
def test_mlcroissant_finds_nothing_wrong_and_reads_the_rows(manifest, tmp_path, form):
    mlcroissant = pytest.importorskip("mlcroissant")
    export.write(manifest, tmp_path / "out", form, "lesions", "")
    data = mlcroissant.Dataset(jsonld=tmp_path / "out" / export.CROISSANT)
    issues = data.metadata.ctx.issues
    assert not issues.errors
    assert all("datePublished" in each or "citeAs" in each for each in issues.warnings)  # not ours to say
    assert "SYNTHETIC: 3 of 11" in data.metadata.description
    for split in records.SPLITS:
        rows = list(data.records(split))
        assert [row[f"{split}/sha256"].decode() for row in rows] == [each.sha256 for _, each in kept(manifest, split)]


def test_nothing_half_written_and_nothing_overwritten(manifest, tmp_path):
    manifest.path(manifest.records[1]).write_bytes(b"changed")
    with pytest.raises(UserError, match=r"1\.PNG: not the bytes that the manifest names"):
        export.write(manifest, tmp_path / "out", "imagefolder", "lesions", "")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.part"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export.write(manifest, tmp_path / "out", "imagefolder", "lesions", "")


def test_the_command_says_what_it_wrote(manifest, tmp_path, capsys):
    export.export(str(tmp_path), to=str(tmp_path / "out"), form="imagefolder")
    assert "imagefolder of" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--form=zip: give one of imagefolder, webdataset, array_record"):
        export.export(str(tmp_path), to=str(tmp_path / "other"), form="zip")
