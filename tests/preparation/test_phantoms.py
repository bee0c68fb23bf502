"""Phantoms: divided alike, of seeds that the base model never saw, the same bytes however often a run is killed."""

import numpy as np
import pytest

from dermjax.data import digests, images, records
from dermjax.data.leaks import audit
from dermjax.data.phantoms.painting import Phantom
from dermjax.preparation.run import run

CLASSES = ("benign", "malignant")


@pytest.fixture
def paint(settings):
    """The manifest of painted phantoms."""

    def painted(workdir, seed=0, per_class=20):
        asked = {"images": "phantoms", "size": 64, "phantoms_per_class": per_class, "seed": seed, "ratios.test": 0.25}
        run(settings("demo", **asked), workdir)
        return records.read(workdir)

    return painted


def fake(seed, size, *, label):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), bool)
    return Phantom(pixels, mask, label, f"phantom of seed {seed}", {"seed": seed, "number": 1}, {})


def files(workdir):
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_phantoms_are_divided_alike_and_never_of_a_seed_that_the_base_model_saw(tmp_path, monkeypatch, paint):
    monkeypatch.setattr("dermjax.preparation.run.phantom", fake)
    manifest = paint(tmp_path, seed=3)
    for name, count in (("train", 13), ("validation", 2), ("test", 5)):
        assert [r.label for r in manifest.split(name)].count("benign") == count == len(manifest.split(name)) / 2
    seeds = [record.attributes["parameters"]["seed"] for record in manifest.records]
    assert sorted(seeds) == list(range(13_000_000, 13_000_040))
    first = manifest.records[0]
    assert (first.image, first.source) == ("images/benign/00000.png", "phantom")
    assert first.sha256 == digests.sha256(manifest.path(first))
    assert first.attributes["caption"] == f"phantom of seed {seeds[0]}"
    np.testing.assert_array_equal(images.load(manifest.path(first), 64), fake(seeds[0], 64, label="benign").image)


def test_a_limit_holds_for_phantoms_as_well(tmp_path, monkeypatch, settings):
    monkeypatch.setattr("dermjax.preparation.run.phantom", fake)
    run(settings("demo", size=64, limit=20), tmp_path)
    labels = [record.label for record in records.read(tmp_path).records]
    assert {label: labels.count(label) for label in CLASSES} == dict.fromkeys(CLASSES, 20)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, paint):
    monkeypatch.setattr("dermjax.preparation.run.phantom", fake)
    (tmp_path / "whole").mkdir()
    paint(tmp_path / "whole")

    def killed(seed, size, *, label):
        if seed == 10_000_017:
            raise KeyboardInterrupt
        return fake(seed, size, label=label)

    (tmp_path / "killed").mkdir()
    monkeypatch.setattr("dermjax.preparation.run.phantom", killed)
    with pytest.raises(KeyboardInterrupt):
        paint(tmp_path / "killed")
    assert len(files(tmp_path / "killed")) == 17
    (tmp_path / "killed" / "images/benign/00002.png").write_bytes(b"half an ima")
    kept = tmp_path / "killed" / "images/benign/00001.png"
    written = kept.stat().st_mtime_ns
    monkeypatch.setattr("dermjax.preparation.run.phantom", fake)
    paint(tmp_path / "killed")
    whole, resumed = files(tmp_path / "whole"), files(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(whole[path] == resumed[path] for path in whole if path.name != "report.html")
    assert kept.stat().st_mtime_ns == written


def test_real_phantoms(tmp_path, paint):
    manifest = paint(tmp_path, per_class=8)
    assert manifest.labels == CLASSES and len(manifest.records) == 16
    assert all(record.attributes["parameters"]["label"] == record.label for record in manifest.records)
    assert not any(label in record.attributes["caption"] for record in manifest.records for label in CLASSES)


def test_an_audit_of_phantoms_decodes_nothing(tmp_path, paint, monkeypatch, capsys):
    paint(tmp_path, per_class=8)
    monkeypatch.setattr(images, "load", None)
    audit.show(str(tmp_path))
    assert "nothing leaks: 16 images" in capsys.readouterr().out
