"""`dermjax classify --predict` from a folder, a run and a checkpoint; heat maps find what a class is made of."""

import csv
import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dermjax.classification import networks, predictions, run, saliency
from dermjax.curation import label_score
from dermjax.data import records
from dermjax.errors import UserError
from dermjax.models.classifier import describe, fresh

DRAW = runpy.run_path(str(Path(__file__).parent / "test_run.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small classifier of two colours: (its run, the manifest of its images)."""
    folder = tmp_path_factory.mktemp("trained")
    real = DRAW["draw"](folder / "real", DRAW["SIZES"], "none", seed=0)
    workdir = folder / "run"
    workdir.mkdir()
    config = DRAW["settings"](real)
    run.run(config, workdir)
    (workdir / "config.json").write_text(config.to_json())
    return workdir, real


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_folder_of_images_gets_a_table(trained, tmp_path):
    workdir, real = trained
    predictions.predict(str(real.parent / "malignant"), str(workdir), str(tmp_path / "said.csv"), 3)
    found = rows(tmp_path / "said.csv")
    assert list(found[0]) == ["image", "called", "p_benign", "p_malignant"] and len(found) == 16
    assert {row["called"] for row in found} == {"malignant"}


def test_a_manifest_gets_what_evaluate_reads_and_a_folder_says_what_the_run_said(trained, tmp_path):
    workdir, real = trained
    predictions.predict(str(real), str(workdir / "classifier"), str(tmp_path / "new" / "said.csv"), 4)
    found, expected = rows(tmp_path / "new" / "said.csv"), rows(workdir / "predictions.csv")
    assert [row["image"] for row in found] == [row["image"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert float(ours["p_malignant"]) == pytest.approx(float(theirs["p_malignant"]), abs=1e-5)


def test_confident_images_are_not_tied_in_the_table():
    sure = predictions.probabilities(np.array([[0.0, 22.0], [0.0, 23.0], [24.0, 0.0], [25.0, 0.0]]))
    text = predictions.table(("image",), ("benign", "malignant"), [(f"{i}", each) for i, each in enumerate(sure)])
    read = [float(row["p_malignant"]) for row in csv.DictReader(text.splitlines())]
    assert read == sure[:, 1].tolist() and len(set(read)) == 4


def test_a_checkpoint_alone_says_the_same_up_to_its_temperature(trained, tmp_path):
    workdir, _ = trained
    bare = tmp_path / "bare"
    shutil.copytree(workdir, bare, ignore=shutil.ignore_patterns("classifier"))
    classifier, (params, variables) = networks.load(bare)
    image = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    calibrated, trees = networks.load(workdir)
    ours, theirs = (
        np.asarray(jax.jit(lambda p, v, c=c: c.logits(p, v, image, train=False)[0])(*t))
        for c, t in ((classifier, (params, variables)), (calibrated, trees))
    )
    ratio = ours / theirs
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "images", "told"),
    [("nowhere", "malignant", "no model.safetensors, no classifier/"), ("run", "nowhere", "no such folder"),
     ("run", "empty", "no image to judge"), ("run", "broken", "cannot be decoded")],
)  # fmt: skip
def test_what_is_missing_is_one_line(trained, tmp_path, name, images, told):
    workdir, real = trained
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("<html>")
    where = real.parent / images if images == "malignant" else tmp_path / images
    with pytest.raises(UserError, match=told) as error:
        predictions.predict(
            str(where), str(workdir if name == "run" else tmp_path / name), str(tmp_path / "said.csv"), 4
        )
    assert "\n" not in str(error.value) and not (tmp_path / "said.csv").exists()


def test_every_reader_shows_images_as_the_folder_s_processor_does(trained, tmp_path):
    """A folder of others: squashed to squares, of which the middle is cut out."""
    workdir, _ = trained
    folder, pictures = tmp_path / "theirs", tmp_path / "pictures"
    shutil.copytree(workdir / "classifier", folder)
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    Image.fromarray(pixels).save(pictures / "wide.png")
    own = predictions.LesionClassifier(folder).predict(pixels).probabilities[0]
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"size": {"height": 48, "width": 48}, "crop_size": 32, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    squashed = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR).crop((8, 8, 40, 40))
    classifier = predictions.LesionClassifier(folder)
    expected = classifier.predict_pixels(np.asarray(squashed)[None], 1).probabilities[0]
    assert np.abs(expected - own).max() > 1e-3
    np.testing.assert_allclose(classifier.predict(pixels).probabilities[0], expected, atol=1e-4)
    predictions.predict(str(pictures), str(folder), str(tmp_path / "said.csv"), 4)
    (row,) = rows(tmp_path / "said.csv")
    assert float(row["p_malignant"]) == pytest.approx(expected[1], abs=1e-4)
    judge = label_score.read(str(folder), classifier.labels)
    manifest = predictions.read_folder(pictures, classifier.labels)
    assert judge.probabilities(manifest, manifest.records)[0] == pytest.approx(expected[0], abs=1e-4)


def test_other_classes_than_the_classifier_s_are_one_line(trained, tmp_path):
    workdir, real = trained
    manifest = records.read(real)
    strangers = tuple(replace(r, label={"benign": "cat", "malignant": "dog"}[r.label]) for r in manifest.records)
    records.write(tmp_path / records.FILE, replace(manifest, labels=("cat", "dog"), records=strangers))
    with pytest.raises(UserError, match="its classes are cat, dog, the classifier knows benign, malignant") as error:
        predictions.predict(str(tmp_path), str(workdir), str(tmp_path / "said.csv"), 4)
    assert "\n" not in str(error.value) and not (tmp_path / "said.csv").exists()


def test_a_manifest_in_another_order_gets_the_same_table(trained, tmp_path):
    workdir, real = trained
    manifest = records.read(real)
    records.write(tmp_path / records.FILE, replace(manifest, labels=manifest.labels[::-1]))
    tables = [tmp_path / "one.csv", tmp_path / "other.csv"]
    for source, table in zip((real, tmp_path), tables, strict=True):
        predictions.predict(str(source), str(workdir), str(table), 4)
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_what_a_run_has_learnt_from_is_not_what_judges_it(trained, tmp_path, capsys):
    """Another archive may hold the photographs of the first one: its figures would be of images that were learnt."""
    workdir, real = trained
    manifest = records.read(real)
    turned = {"train": "test", "validation": "validation", "test": "train"}
    swapped = tuple(replace(record, split=turned[record.split]) for record in manifest.records)
    records.write(tmp_path / records.FILE, replace(manifest, records=swapped))
    for path in (workdir, workdir / "classifier"):
        with pytest.raises(UserError, match=r"has learnt from what it is to judge: .* are one image") as error:
            predictions.predict(str(tmp_path), str(path), str(tmp_path / "said.csv"), 4)
        assert "\n" not in str(error.value) and not (tmp_path / "said.csv").exists()
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    settings = json.loads((moved / "config.json").read_text()) | {"manifest": str(tmp_path / "gone")}
    (moved / "config.json").write_text(json.dumps(settings))
    predictions.predict(str(tmp_path), str(moved), str(tmp_path / "said.csv"), 4)
    assert "gone is not there, so that nobody can tell whether" in capsys.readouterr().out


@pytest.mark.parametrize("config", [None, {"preset": "lora"}])
def test_checkpoints_of_no_classifier_are_one_line(tmp_path, config):
    """A cell of a study has no config of its own, and `tune` leaves checkpoints as well."""
    (tmp_path / "checkpoints" / "00000006").mkdir(parents=True)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no config\.json of classify says how to read its checkpoints"):
        networks.load(tmp_path)


def test_the_command_is_classify_without_a_config(trained, tmp_path, command):
    workdir, real = trained
    code, out, _ = command(
        "classify", "--predict", real.parent / "benign", f"--classifier={workdir}", f"--out={tmp_path / 'said.csv'}"
    )
    assert code == 0 and "16 images" in out and len(rows(tmp_path / "said.csv")) == 16
    code, _, error = command("classify", "--predict=nowhere", f"--classifier={workdir}", "--out=said.csv")
    assert code == 2 and error.count("\n") == 1 and "nowhere: no such folder" in error
    for batch in (0, -4):
        code, _, error = command(
            "classify", "--predict=nowhere", f"--classifier={workdir}", "--out=a", f"--batch={batch}"
        )
        assert code == 2 and error == f"dermjax classify --predict: --batch={batch}: give 1 or more\n"
    code, _, error = command("classify", "--predict=nowhere")
    assert code == 2 and "--classifier is missing" in error


@pytest.mark.parametrize("kind", ["vit", "dinov2", "mobilenet_v2"])
def test_heat_maps_are_maps_of_the_image(kind):
    small = {"patch_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
             "num_attention_heads": 2}  # fmt: skip
    settings = {"depth_multiplier": 0.35} if kind == "mobilenet_v2" else small
    size = 96 if kind == "mobilenet_v2" else 32
    classifier = fresh(describe(kind, settings, ("a", "b"), size), np.float32)
    image = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    heat = saliency.heat(classifier, *classifier.init(0), image)
    assert heat.shape == ((2, 3, 3) if kind == "mobilenet_v2" else (2, 4, 4))
    assert heat.min() >= 0 and heat.max() <= 1
    shown = saliency.overlay(np.zeros((size, size, 3), np.uint8), heat[0], "words", "caption")
    assert shown.uri.startswith("data:image/png;base64,")


@pytest.mark.parametrize(("kind", "pooling", "hot"), [
    ("vit", {"pooling": "token"}, {2}), ("vit", {"pooling": "mean"}, {1}), ("dinov2", {}, {1, 2}),
])  # fmt: skip
def test_rollout_follows_attention_into_what_the_head_reads(kind, pooling, hot, monkeypatch):
    """The class token looks at one patch, the patches at another, and later at themselves: each counts where it is
    read."""
    settings = {"patch_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"intermediate_size": 16} if kind == "vit" else {}
    classifier = fresh(describe(kind, settings | pooling, ("a", "b"), 32), np.float32)
    looks = np.stack([np.zeros((1, 5, 5), np.float32), np.eye(5, dtype=np.float32)[None]])
    looks[0, :, 0, 3] = looks[0, :, 1:, 2] = 1  # the class token is the first
    monkeypatch.setattr(type(classifier), "attentions", lambda *_: looks)
    heat = np.asarray(saliency.rollout(classifier, {}, {}, np.zeros((1, 32, 32, 3), np.float32))).ravel()
    assert set(np.flatnonzero(heat > heat.mean())) == hot
