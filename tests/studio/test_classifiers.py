"""A dropped image gets what `dermjax.load_classifier` gives it, and is said to be synthetic where it says so."""

import base64
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

import dermjax
from dermjax.sampling import provenance


@pytest.fixture
def trained(runs):
    """A run that left a classifier."""
    from dermjax.models.classifier import describe, fresh
    from dermjax.weights import classifiers

    settings = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    classifier = fresh(describe("vit", settings | {"patch_size": 8}, ("benign", "<b>bad</b>"), 32), np.float32)
    classifiers.write(runs / "vit" / "classifier", classifier, *classifier.init(0))
    return runs / "vit"


def classified(client, content, kind="image/png"):
    return client.post("/api/classify?classifier=vit", content=content, headers={"content-type": kind})


def test_it_says_what_the_interface_says(client, trained):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert client.get("/api/classifiers").json()["classifiers"] == ["vit"]
    answer = classified(client, file.getvalue()).json()
    expected = dermjax.load_classifier(trained).predict(pixels, batch=1).probabilities[0]
    assert list(answer["probabilities"]) == ["benign", "<b>bad</b>"]
    assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
    assert answer["synthetic"] is False and answer["use"] == "Research use only, not a diagnosis."


def test_weights_in_shards_are_found_and_links_out_of_the_root_are_not(client, trained, tmp_path):
    whole, index = trained / "classifier" / "model.safetensors", "model.safetensors.index.json"
    shard = whole.rename(whole.with_name("model-00001-of-00001.safetensors"))
    whole.with_name(index).write_text(json.dumps({"weight_map": {"classifier.weight": shard.name}}))
    assert client.get("/api/classifiers").json()["classifiers"] == ["vit"]
    assert classified(client, png(np.zeros((40, 48, 3), np.uint8))).status_code == 200
    shard.rename(tmp_path / shard.name)
    shard.symlink_to(tmp_path / shard.name)
    assert client.get("/api/classifiers").json()["classifiers"] == []


def test_it_sees_an_image_as_the_folder_s_own_processor_shows_it(client, trained):
    """Once: what has been cut is not cut again."""
    file = trained / "classifier" / "preprocessor_config.json"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    before = classified(client, png(pixels)).json()["probabilities"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"shortest_edge": 40}}))
    os.utime(trained / "classifier" / "model.safetensors", (1, 1))  # it is read anew
    answer = classified(client, png(pixels)).json()["probabilities"]
    expected = dermjax.load_classifier(trained).predict(pixels, batch=1).probabilities[0]
    assert list(answer.values()) == pytest.approx(expected, abs=1e-4) and answer != before


def test_a_synthetic_image_is_said_to_be_so(client, trained):
    generation = {"synthetic": True, "prompt": "mole", "negative_prompt": "", "seed": 1, "sampler": "DDIM", "steps": 1,
                  "guidance": 1, "size": 40, "model": "0" * 16}  # fmt: skip
    png = provenance.png(np.zeros((40, 40, 3), np.uint8), generation)
    assert classified(client, png).json()["synthetic"] is True
    assert classified(client, png[:-40]).status_code == 415


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def lesions(folder, count):
    """A run of discs of several sizes on skin, alike as photographs of a clinic are."""
    from dermjax.data import records
    from dermjax.data.digests import sha256
    from dermjax.data.records import Manifest, Record

    (folder / "images").mkdir(parents=True)
    y, x = np.mgrid[:64, :64] - 32
    fields, entries = {"label": "mole", "source": "test", "image_manipulation": "none"}, []
    for n in range(count):
        inside = (np.hypot(x, y) < 10 + n / 2)[..., None]
        pixels = np.uint8(inside * np.array([96, 58, 42]) + ~inside * np.array([226, 187, 165]))
        (folder / f"images/{n}.png").write_bytes(png(pixels))
        split, name = ("validation" if n % 4 == 1 else "train"), f"images/{n}.png"
        entries.append(Record(image=name, sha256=sha256(folder / name), split=split, **fields))
    records.write(folder / records.FILE, Manifest(labels=("mole",), root=folder, records=tuple(entries)))


def test_an_image_unlike_what_it_learnt_is_said_to_be_so(client, trained, runs):
    noise = png(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    untold = classified(client, noise).json()
    assert untold["outside"] is None and "cannot be told" in untold["told"] and untold["distance"] is None
    assert Image.open(io.BytesIO(base64.b64decode(untold["heat"].partition(",")[2]))).size == (176, 176)
    lesions(runs / "clinic", 24)
    (trained / "config.json").write_text(json.dumps({"manifest": str(runs / "clinic" / "manifest.jsonl")}))
    os.utime(trained / "classifier" / "model.safetensors", (1, 1))  # else what is known of it is kept
    known = classified(client, (runs / "clinic" / "images" / "2.png").read_bytes()).json()
    assert known["outside"] is False and known["distance"] == pytest.approx(0, abs=1e-3)
    unlike = classified(client, noise).json()
    assert unlike["outside"] is True and unlike["distance"] > unlike["limit"] and "do not rely" in unlike["told"]


def test_images_that_cannot_be_read_keep_nobody_from_asking(client, trained, runs, tmp_path):
    """They may lie outside of the folder, or be gone, as on another machine; what the classifier says is there."""
    lesions(runs / "clinic", 8)
    (trained / "config.json").write_text(json.dumps({"manifest": str(runs / "clinic")}))
    (runs / "clinic" / "images" / "4.png").unlink()
    answer = classified(client, png(np.zeros((40, 48, 3), np.uint8)))
    assert answer.status_code == 200 and answer.json()["outside"] is None
    assert "cannot be told: " in answer.json()["told"] and "4.png" in answer.json()["told"]
    (runs / "clinic" / "images").rename(tmp_path / "images")
    manifest = runs / "clinic" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"root": "."', f'"root": "{tmp_path}"'))
    os.utime(trained / "classifier" / "model.safetensors", (1, 1))  # it is read anew
    told = classified(client, png(np.zeros((40, 48, 3), np.uint8))).json()["told"]
    assert "--images=DIR" in told and str(tmp_path) not in told


def test_a_link_out_of_the_folder_is_no_classifier(client, trained, tmp_path):
    (trained / "classifier").rename(tmp_path / "elsewhere")
    (trained / "classifier").symlink_to(tmp_path / "elsewhere")
    assert client.get("/api/classifiers").json()["classifiers"] == []
    assert classified(client, b"\x89PNG\r\n\x1a\n").status_code == 404
