"""A whole study on planted truths: where synthetic images help it finds a gain, where they are noise none, and where
labels leak it refuses. Small ones run every cell once, share them between hosts, and write one page."""

import hashlib
import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.study import cells, results, run
from dermjax.study.cells import Cell

CONFIG = Path(__file__).parents[2] / "configs" / "study.py"
LABELS = ("benign", "malignant")
SPLITS = {"train": 24, "validation": 12, "test": 40}


def picture(rng, label, shortcut):
    """A noisy square: what differs between the classes is a little of one colour, beside much light of no meaning.

    With a shortcut the light follows the class as well.
    """
    sign = 1 if label == "malignant" else -1
    light, tint = rng.normal(0, 30) + shortcut * sign, rng.normal(0, 7) + 7 * sign
    colour = np.array([128 + light + tint, 128 + light - tint, 128 + light])
    return np.clip(colour + rng.normal(0, 25, (16, 16, 3)), 0, 255).astype(np.uint8)


def draw(folder, splits, manipulation, seed, shown=lambda rng, label: label, shortcut=0):
    """Writes images of each class and their manifest; `shown` says which class the picture of a label shows.

    A shortcut is in training images only.
    """
    rng, found = np.random.default_rng(seed), []
    for label in LABELS:
        for split, count in splits.items():
            for number in range(count):
                name = f"{label}/{split}{number}.png"
                (folder / label).mkdir(parents=True, exist_ok=True)
                pixels = picture(rng, shown(rng, label), shortcut if split == "train" else 0)
                Image.fromarray(pixels).resize((32, 32), 0).save(folder / name)
                digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                found.append(
                    Record(image=name, sha256=digest, label=label, split=split, source="squares",
                           image_manipulation=manipulation, attributes={"sex": "mf"[number % 2]})
                )  # fmt: skip
    path = folder / records.FILE
    records.write(path, Manifest(labels=LABELS, root=folder, records=tuple(found)))
    return str(path)


def settings(real, synthetic, **changed):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    del config.classifiers.mobilenetv2
    vit = config.classifiers.vit
    vit.size, vit.batch, vit.steps, vit.warmup, vit.rate, vit.weight_decay = 32, 16, 60, 5, 1e-2, 0.1
    vit.save_every, vit.log_every, vit.evaluate_every, vit.mesh.data = 60, 30, 60, 1
    vit.architecture.vit = {"patch_size": 16, "hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1,
                            "num_attention_heads": 2}  # fmt: skip
    config.update(manifest=real, synthetic=synthetic, training=real, shots=(6,), seeds=(0, 1))
    config.arms = ("real_equal_steps", "hybrid_3", "real_tested_on_synthetic")
    config.bootstrap.resamples = 200
    config.update(changed)
    return config.lock()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("real"), SPLITS, "none", 0)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("synthetic"), {"train": 24}, "synthetic", 1)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A further test set, as of another archive."""
    return draw(tmp_path_factory.mktemp("other"), {"test": 15}, "none", 7)


@pytest.fixture(scope="module")
def finished(real, synthetic, other, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    run.run(settings(real, synthetic, tests={"other": other}), workdir)
    return workdir


def test_an_arm_is_chosen_before_test_images_are_read(finished, real, synthetic, other, tmp_path, monkeypatch):
    """Of two arms the better one on validation images is named, whatever test images say of it."""
    (chosen,) = json.loads((finished / "chosen.json").read_text())
    assert (chosen["arm"], chosen["shots"]) == ("hybrid_3", 6) and 0 <= chosen["validation_auroc"] <= 1
    page = (finished / "report.html").read_text()
    assert "Chosen by validation images alone" in page
    results_of_test = json.loads((finished / "results.json").read_text())
    (named,), (compared,) = results_of_test["chosen"], results_of_test["comparisons"]
    assert named == compared and named["arm"] == "hybrid_3"  # of one comparison both families are the same

    folders = {Cell(0, "vit", 6, arm, 0): tmp_path / arm for arm in ("real_equal_steps", "hybrid_3", "all_3")}
    rows = [("v0", "benign", "validation"), ("v1", "malignant", "validation"), ("t", "benign", "not even a split")]
    for folder, (low, high) in zip(folders.values(), [(0.1, 0.9), (0.9, 0.1), (0.2, 0.6)], strict=True):
        folder.mkdir()
        lines = [f"{i},{c},{s},{1 - p},{p}" for (i, c, s), p in zip(rows, (low, high, low), strict=True)]
        head = "image,label,split,p_benign,p_malignant"
        (folder / "predictions.csv").write_text("\n".join([head, *lines]) + "\n")
    material = cells.Material(real=records.read(Path(real)), synthetic=records.read(Path(synthetic)), tests={})
    ((group, score),) = results.choose(folders, [material]).items()
    assert group.arm == "all_3" and score == 1.0


def test_every_cell_is_done_once_and_judged(finished, real, synthetic, other, capsys, monkeypatch):
    results = json.loads((finished / "results.json").read_text())
    assert [(g["arm"], g["shots"]) for g in results["groups"]] == [("real_equal_steps", 6), ("hybrid_3", 6)]
    assert all(len(g["auroc_of_each_seed"]) == 2 for g in results["groups"])
    assert results["groups"][0]["figures"]["auroc"]["n"] == 80
    assert results["comparisons"][0]["differences"]["auroc"]["low"] is not None
    assert results["label_fidelity"][0]["n"] == 48
    assert {(row["kind"], row["group"]) for row in results["subgroups"]} == {("sex", "f"), ("sex", "m")}

    assert [(each["test"], each["arm"], each["figures"]["auroc"]["n"]) for each in results["elsewhere"]] == [
        ("other", "real_equal_steps", 30), ("other", "hybrid_3", 30)
    ]  # fmt: skip

    before = {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*") if path.is_file()}
    monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("a finished cell was run again"))
    run.run(settings(real, synthetic, tests={"other": other}), finished)
    assert {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*") if path.is_file()} == before
    assert "4 cells, 4 done, 0 steps to do" in capsys.readouterr().out


def test_cells_of_other_settings_are_said(finished, real, synthetic, other, tmp_path, capsys, monkeypatch):
    """A page that says "at equal steps" may not hold cells of other steps without a word."""
    again = shutil.copytree(finished, tmp_path / "study")
    monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("a finished cell was run again"))
    config = settings(real, synthetic, tests={"other": other})
    config.classifiers.vit.steps = config.classifiers.vit.steps + 1
    run.run(config, again)
    said = capsys.readouterr().out
    assert (
        "study: cells started from other inputs: 4, such as fold0_vit_6_real_equal_steps_seed0 (settings.steps" in said
    )


def test_a_cell_knows_what_it_was_begun_with(real, synthetic, tmp_path, capsys, monkeypatch):
    """A study that is stopped and goes on with other settings has cells of both, and says how many, whichever come
    last; another number of rare images is a cause as well."""
    done = []

    def train(cell, *rest):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(cell)
        (rest[-1] / "metrics.json").write_text("{}")

    def said(config):
        with pytest.raises(KeyboardInterrupt):
            run.run(config, tmp_path)
        lines = [line for line in capsys.readouterr().out.splitlines() if "started from other inputs" in line]
        return lines[0] if lines else ""

    monkeypatch.setattr(cells, "train", train)
    first, second = settings(real, synthetic), settings(real, synthetic)
    second.classifiers.vit.steps = 61
    stop = 1
    assert said(first) == ""
    stop = 3
    told = "other inputs: 1, such as fold0_vit_6_real_equal_steps_seed0 (settings.steps: 60 -> 61)"
    assert told in said(second)
    assert "other inputs: 2, such as fold0_vit_6_hybrid_3_seed0 (settings.steps: 61 -> 60)" in said(first)
    rare = settings(real, synthetic)
    with rare.unlocked():
        rare.rare.malignant = 5
    assert "other inputs: 3, such as" in said(rare) and len(done) == 3
    causes = json.loads((tmp_path / "cells" / "fold0_vit_6_hybrid_3_seed1" / "causes.json").read_text())
    assert causes["rare"] == {"malignant": 5}, "it has not begun"
    for path in tmp_path.glob("cells/*/causes.json"):  # as before hybrid arms drew their synthetic images
        causes = json.loads(path.read_text()) | {"rare": {}, "settings": first.classifiers.vit.to_dict()}
        causes["numeric_versions"].pop("cells", None)
        path.write_text(json.dumps(causes))
    assert "other inputs: 1, such as fold0_vit_6_hybrid_3_seed0 (numeric_versions.cells: (absent) -> 2)" in said(first)


def test_the_page_stands_alone_and_speaks_in_words(finished):
    page = (finished / "report.html").read_text()
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded and all(each.startswith(("data:image/", "#")) for each in loaded)
    assert "<script" not in page and "url(" not in page
    for words in ("For research only", "Of 1 comparisons", "hybrid 3 : 1", "Do the labels hold?", "sex: f",
                  "tuned on the whole training split (48 images); some classifiers see a part of the training split",
                  "One set of synthetic images serves all seeds", "90.74 % → 93.03 %",
                  "On other data sets"):  # fmt: skip
        assert words in page, words
    anchors = {each[1:] for each in loaded if each.startswith("#")}
    assert anchors == set(re.findall(r'<section id="(\w+)"', page))
    kinds = re.findall(r'alt="(real|synthetic) (?:benign|malignant), [^"]*"', page)
    assert kinds.count("synthetic") == 2 * 6  # a gallery a class, marked in its pixels; heat maps are of real images


def test_what_was_found_is_said_once_for_all_and_arm_by_arm(finished):
    results = json.loads((finished / "results.json").read_text())
    page = (finished / "report.html").read_text()
    (compared,) = results["comparisons"]
    mark = {"gain": "▲ gain", "loss": "▼ loss"}.get(compared["verdict"], "neither shown")
    assert page.count(mark) == 1 and "hybrid 3 : 1: " in page
    gains, losses, neither = {"▲ gain": (1, 0, 0), "▼ loss": (0, 1, 0)}.get(mark, (0, 0, 1))
    told = f"{gains} showed a gain in AUROC, {losses} a loss, {neither} neither"
    assert f"Of 1 comparisons with “real, equal steps”, {told}" in page
    for group in results["groups"]:
        for value in group["auroc_of_each_seed"]:
            assert f"{value:.3f}" in page


def test_too_few_test_images_are_said_and_no_verdict_is_given(finished, real, synthetic, other, tmp_path):
    shutil.copytree(finished / "cells", tmp_path / "cells")
    few = settings(real, synthetic, tests={"other": other}, bootstrap={"smallest": 41})
    run.run(few, tmp_path)
    (compared,) = json.loads((tmp_path / "results.json").read_text())["comparisons"]
    assert compared["verdict"] == "no gain was shown, with too few test images to tell" and compared["p"] is None
    assert compared["differences"]["auroc"]["low"] is None
    page = re.sub(r'"data:[^"]*"', "", (tmp_path / "report.html").read_text())
    assert "no interval: benign has 40, malignant has 40 images, fewer than 41" in page
    assert "too few to tell" in page and not re.search(r"\bnan\b", page)


def test_arms_of_a_seed_share_their_real_images_and_the_features(finished, real):
    manifest = records.read(Path(real))
    ranks = cells.ranks(manifest, 0)
    few, fewer = (run.arms.take_shots(manifest, shots, ranks, {}).split("train") for shots in (6, 3))
    assert {r.image for r in fewer} < {r.image for r in few} and len(few) == 12
    features = [path for path in (finished / "features").iterdir() if path.is_dir()]
    assert len(features) == 2  # a random network a seed, whatever the arm


def test_a_cell_that_another_host_has_is_left_alone(finished, real, synthetic, tmp_path, monkeypatch, capsys):
    config = settings(real, synthetic)
    theirs = tmp_path / "cells" / Cell(0, "vit", 6, "hybrid_3", 1).name
    theirs.mkdir(parents=True)
    (theirs / "claim").write_text("another-host 1\n")
    ran = []

    def train(cell, *rest):
        ran.append(cell)
        (rest[-1] / "metrics.json").write_text("{}")

    monkeypatch.setattr(cells, "train", train)
    run.run(config, tmp_path)
    assert len(ran) == 3 and not (tmp_path / "results.json").exists()
    assert "1 cells are being trained elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"manifest": ""}, "config.manifest"),
        ({"training": ""}, "config.training"),
        ({"arms": ("real_equal_steps", "hybrid_30")}, "'hybrid_30' is none of"),
        ({"arms": ("hybrid_1",)}, "config.baseline"),
        (
            {"arms": ("real_equal_steps", "hybrid_1_apart")},
            "config.classifiers.vit in the arm hybrid_1_apart: .* separate does not go with",
        ),
        ({"arms": ("real_equal_steps", "hybrid_1_judged")}, "no judge has seen it; curate with config.classifier"),
        ({"generator_sees": "shots"}, "config.generator_sees = shots tunes generators of its own"),
        ({"rare": {"malignant": 0}}, "config.rare.malignant = 0: give a whole number of images, 1 or more"),
        ({"rare": {"malignant": -5}}, "config.rare.malignant = -5"),
        ({"rare": {"malignant": "many"}}, "config.rare.malignant = 'many'"),
        ({"sets": {"gentle": 2024}}, "config.sets.gentle = 2024: give a manifest"),
        ({"without": {"sex": 5}}, "config.without.sex = 5: give names in brackets"),
        ({"without": {"sex": "m"}}, "config.without.sex = 'm': give names in brackets"),
        ({"arms": ("real", "real_tested_on_synthetic"), "baseline": "real"}, "is judged by real_equal_steps"),
        ({"seeds": (0, 0)}, "each once"),
        ({"seeds": (0.5,)}, r"config.seeds = \(0.5,\): give whole numbers"),
        ({"shots": (True, 6)}, r"config.shots = \(True, 6\): give whole numbers"),
        ({"shots": (25,)}, "benign has 24; take fewer"),
        ({"arms": ("real_equal_steps", "all_3@gentle")}, "config.arms: all_3@gentle needs config.sets.gentle"),
        ({"rare": {"malignant": 25}}, "config.rare.malignant = 25: no size of config.shots is larger; give fewer"),
        ({"rare": {"malignant": 6}}, "config.rare.malignant = 6: no size of config.shots is larger"),
        (
            {"rare": {"malignant": 25}, "shots": (6, 0)},
            "config.rare.malignant: 25 images a class, malignant has 24; take fewer",
        ),
        ({"rare": {"melanoma": 5}}, "config.rare.melanoma: the manifest's classes are benign, malignant"),
        ({"without": {"sex": ("x",)}}, r"config.without.sex = \('x',\): training images have f, m"),
        ({"without": {"tone": ("dark",)}}, r"config.without.tone = \('dark',\): training images have none"),
        ({"without": {"sex": ("f", "m")}}, "config.without leaves no training image of benign"),
        ({"generator_begins": "photographs"}, "config.generator_begins = photographs is for own generators"),
        ({"generator_begins": "photo"}, "config.generator_begins 'photo' is unknown; did you mean photographs"),
        ({"generator_sees": "shot"}, "config.generator_sees 'shot' is unknown; did you mean shots"),
        ({"folds": 2}, "each tunes its own"),
        ({"training": "nowhere"}, "nowhere: no such file"),
        ({"tests": {"other": "REAL TRAINING"}}, "config.tests.other: no test image of benign, malignant"),
        ({"tests": {"other": "OTHER CLASSES"}}, "its classes are cat, dog, the real ones are benign, malignant"),
    ],
)
def test_nonsense_is_one_line(real, synthetic, tmp_path, changed, told):
    if "tests" in changed:
        wrong = {"REAL TRAINING": training_only, "OTHER CLASSES": of_other_classes}[changed["tests"]["other"]]
        changed = {"tests": {"other": wrong(real, tmp_path)}}
    with pytest.raises(UserError, match=told) as error:
        run.run(settings(real, synthetic, **changed), tmp_path / "study")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "study" / "cells").exists()


def test_images_begin_at_one_place(real):
    config = settings(real, "", training="", generator_begins="photographs", generate={"init": {"images": "x"}})
    with pytest.raises(UserError, match=r"begins at the real images; leave out config\.generate\.init\.images"):
        run.plan(config)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("a mole", r"would say the same of every class"), ("a {label} mole of {source}", r"nothing fills \{source\}")],
)
def test_a_prompt_that_cannot_be_asked_for_is_said_before_a_generator_is_tuned(real, prompt, told):
    with pytest.raises(UserError, match=rf"config\.prompt = .*{told}"):
        run.plan(settings(real, "", training="", prompt=prompt))


def test_a_further_test_set_of_finished_cells_is_refused_at_once(
    finished, real, synthetic, other, tmp_path, monkeypatch
):
    """Their classifiers are gone; it was said once all further cells had been trained."""
    again = shutil.copytree(finished, tmp_path / "study")
    monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("a cell was trained"))
    config = settings(real, synthetic, tests={"other": other, "isic": other}, seeds=(0, 1, 2))
    with pytest.raises(
        UserError, match=r"config\.tests\.isic: 4 finished cells were not judged on it, such as fold0_vit_"
    ):
        run.run(config, again)


def test_the_same_classes_in_another_order_are_those_of_the_real_images(real, synthetic, other, tmp_path, monkeypatch):
    """A generator was tuned for hours, and its images refused as of other classes: melanoma and nevus."""

    def turned(path, name):
        (tmp_path / name).mkdir()
        manifest = records.read(Path(path))
        records.write(tmp_path / name / records.FILE, replace(manifest, labels=LABELS[::-1]))
        return str(tmp_path / name)

    config = settings(real, turned(synthetic, "synthetic"), tests={"other": turned(other, "other")})
    with config.unlocked():
        config.sets.gentle = config.synthetic
    material = run._material(config, tmp_path, Path(real), records.read(Path(real)))
    manifests = (material.synthetic, material.tests["other"], material.sets["gentle"])
    assert all(each.labels == LABELS for each in manifests)
    monkeypatch.setattr(run.generator, "synthesise", lambda *_: records.read(Path(config.synthetic)))
    own = settings(real, "", training="")
    assert run._material(own, tmp_path, Path(real), records.read(Path(real))).synthetic.labels == LABELS


def test_what_nobody_uses_of_a_further_test_set_leaks_nothing(real, synthetic, other, tmp_path):
    """Its training split may hold our test images, its test split may not hold our training images."""
    ours, theirs = records.read(Path(real)), records.read(Path(other))

    def with_one_of_ours(split, into):
        (folder := tmp_path / into).mkdir()
        root = Path(real).parents[1]
        kept = [replace(each, image=f"{Path(other).parent.name}/{each.image}") for each in theirs.records]
        one = ours.split(split)[0]
        both = (*kept, replace(one, image=f"{Path(real).parent.name}/{one.image}", split=into))
        records.write(folder / records.FILE, replace(theirs, root=root, records=both))
        return settings(real, synthetic, tests={"other": str(folder)})

    run._material(with_one_of_ours("test", "train"), tmp_path, Path(real), ours)
    with pytest.raises(UserError, match="are one image"):
        run._material(with_one_of_ours("train", "test"), tmp_path, Path(real), ours)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_classifier_that_cannot_be_built_is_said_before_a_generator_is_tuned(real, tmp_path, monkeypatch, platform):
    """On accelerators, where no time is foretold, the first cell said it, hours later."""
    monkeypatch.setattr(run, "_materials", lambda *_: pytest.fail("a generator was tuned"))
    monkeypatch.setattr(run, "jax", SimpleNamespace(devices=lambda: [SimpleNamespace(platform=platform)]))
    config = settings(real, "", training="")
    config.classifiers.vit.init = "nowhere"
    with pytest.raises(UserError, match=r"config\.classifiers\.vit: .*nowhere/config\.json"):
        run.run(config, tmp_path)


def test_a_page_says_that_validation_images_may_end_a_training(finished, real, synthetic, other, tmp_path, monkeypatch):
    page = (finished / "report.html").read_text()
    assert "take the same number" in page and "Weights are those of the last step" in page
    again = shutil.copytree(finished, tmp_path / "study")
    config = settings(real, synthetic, tests={"other": other})
    config.classifiers.vit.patience = 60
    monkeypatch.setattr(run.report, "explain", lambda *_: {})
    run.run(config, again)
    page = (again / "report.html").read_text()
    assert "take at most the same number" in page and "Validation images may end a training" in page


def test_the_judge_of_a_judged_arm_is_a_cause_of_its_cells(real, synthetic):
    whole, drawn = records.read(Path(real)), records.read(Path(synthetic))
    config = settings(real, synthetic, arms=("real_equal_steps", "all_1", "all_1_judged"), seeds=(0,))

    def causes(probability):
        judged = replace(drawn, records=tuple(replace(r, scores={"label": probability}) for r in drawn.records))
        material = cells.Material(real=whole, synthetic=judged, tests={})
        folders = {cell: Path(cell.arm) for cell in run.plan(config)}
        return run._causes(config, folders, dict.fromkeys(folders, material))

    one, other = causes(0.6), causes(0.7)
    assert [arm.name for arm in one if one[arm] != other[arm]] == ["all_1_judged"]


def test_a_judged_arm_without_a_judge_is_said_before_a_generator_is_tuned(real):
    with pytest.raises(UserError, match=r"config\.arms: all_1_judged needs a judge, config\.curate\.classifier"):
        run.plan(settings(real, "", training="", arms=("real_equal_steps", "all_1_judged")))


def training_only(real, folder):
    """A manifest without test images."""
    return changed(real, folder, lambda found: [r for r in found if r.split == "train"])


def of_other_classes(real, folder):
    """A manifest whose classes have other names."""
    manifest = records.read(Path(real))
    strangers = tuple(replace(r, label={"benign": "cat", "malignant": "dog"}[r.label]) for r in manifest.records)
    records.write(folder / records.FILE, replace(manifest, labels=("cat", "dog"), records=strangers))
    return str(folder / records.FILE)


def changed(path, folder, function):
    """A manifest with a function on its records, in another folder."""
    manifest = records.read_unaudited(Path(path))
    records.write(folder / records.FILE, replace(manifest, records=tuple(function(list(manifest.records)))))
    return str(folder / records.FILE)


def test_leaking_material_is_refused(real, synthetic, tmp_path):
    """A generator that was tuned on test images, and a synthetic image that is one."""
    seen = changed(real, tmp_path, lambda found: [replace(r, split="train") for r in found if r.split == "test"])
    with pytest.raises(UserError, match="are one image"):
        run.run(settings(real, synthetic, training=seen), tmp_path / "study")
    test = records.read(Path(real)).split("test")[0].sha256
    folder = tmp_path / "copies"
    folder.mkdir()
    copied = changed(synthetic, folder, lambda found: [replace(found[0], sha256=test), *found[1:]])
    with pytest.raises(UserError, match="are one image"):
        run.run(settings(real, copied), tmp_path / "study")


def test_a_leak_is_said_before_a_generator_is_tuned(real, tmp_path, monkeypatch):
    """A lesion in training and test of the real images: nothing is tuned on them."""
    monkeypatch.setattr(run.generator, "synthesise", lambda *_: pytest.fail("a generator was tuned"))
    leaking = changed(real, tmp_path, lambda found: [replace(found[0], lesion_id="L"), *found[1:-1],
                                                     replace(found[-1], lesion_id="L")])  # fmt: skip
    with pytest.raises(UserError, match="one lesion on two sides"):
        run.run(settings(leaking, "", training=""), tmp_path / "study")


def test_a_judge_that_has_learnt_the_test_images_is_said_before_a_generator_is_tuned(real, tmp_path, monkeypatch):
    monkeypatch.setattr(run.generator, "synthesise", lambda *_: pytest.fail("a generator was tuned"))
    turned = {"train": "test", "validation": "validation", "test": "train"}
    swapped = changed(real, tmp_path, lambda found: [replace(each, split=turned[each.split]) for each in found])
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "frozen", "manifest": swapped, "synthetic": ""}))
    config = settings(real, "", training="")
    config.curate.classifier = str(tmp_path)
    with pytest.raises(UserError, match=r"has learnt from what it is to judge: .* are one image"):
        run._material(config, tmp_path, Path(real), records.read(Path(real)))


def test_a_leak_of_what_only_the_generator_sees_is_said_before_it_is_tuned(real, other, tmp_path, monkeypatch):
    """It is tuned on the subgroup that classifiers are denied as well."""
    monkeypatch.setattr(run.generator, "synthesise", lambda *_: pytest.fail("a generator was tuned"))

    def tied(path, name, place):
        (tmp_path / name).mkdir()
        return changed(path, tmp_path / name, lambda found: [replace(each, lesion_id="L" * (each == found[place]))
                                                            for each in found])  # fmt: skip

    config = settings(tied(real, "real", 0), "", training="", tests={"other": tied(other, "other", -1)})
    with config.unlocked():
        config.without.sex = ("m",)
    with pytest.raises(UserError, match="one lesion on two sides"):
        run.run(config, tmp_path / "study")


def planted(folder, shown):
    """The comparison of hybrid_10 with real images only, where synthetic pictures show what `shown` says.

    Real training images have a shortcut that real test images have not, and synthetic ones never.
    """
    real = draw(folder / "real", SPLITS | {"test": 100}, "none", 0, shortcut=40)
    drawn = draw(folder / "synthetic", {"train": 60}, "synthetic", 2, shown)
    arms = ("real_equal_steps", "hybrid_10")
    config = settings(real, drawn, arms=arms, seeds=(0, 1, 2, 3, 4))  # Student is harsh on three
    run.run(config, folder / "study")
    return json.loads((folder / "study" / "results.json").read_text())["comparisons"][0]


def test_a_rare_class_and_a_missing_subgroup_are_the_classifier_s_alone(real, synthetic, tmp_path, monkeypatch):
    """Of one class three images, of men none; the test split stays whole."""
    seen = []
    monkeypatch.setattr(cells.classification, "train", lambda settings, folder, real, *rest: seen.append(real))
    config = settings(real, synthetic, shots=(6,), seeds=(0,))
    with config.unlocked():
        config.rare.malignant = 3
        config.without.sex = ("m",)
    run.run(config, tmp_path)
    for manifest in seen:
        training = manifest.split("train")
        assert [sum(record.label == label for record in training) for label in LABELS] == [6, 3]
        assert {record.attributes["sex"] for record in training} == {"f"}
        assert {record.attributes["sex"] for record in manifest.split("test")} == {"f", "m"}
    assert len(seen) == 2
    whole = records.read(Path(real))
    case = run.report.describe_case({"malignant": 3}, {"sex": ("m",)}, whole, whole, begins=False, few=True)
    assert case.summary == [
        "Of malignant a classifier has 3 real images at most.",
        "No real image that a classifier learns from is of sex m.",
        "The generator was tuned on the whole training split (48 images); some classifiers see a part of the training "
        "split: a gain there may come from real images that only the generator saw.",
        "The validation split is whole: it chooses arms, says when to stop and sets probabilities.",
    ]


def test_images_of_which_nothing_is_known_are_counted(real):
    """Most of an archive may be of unknown tone: then nobody can say that none of them is dark."""
    whole = records.read(Path(real))
    some = tuple(replace(r, attributes={}) if r.image.endswith("8.png") else r for r in whole.records)
    said = run.report.describe_case({}, {"sex": ("m",)}, whole, replace(whole, records=some), begins=False, few=False)
    assert said.summary[0] == (
        "No real image that a classifier learns from is known to be of sex m; of the 28 training images that are left "
        "4 are of unknown sex."
    )


def test_a_rare_class_is_never_the_frequent_one(real, synthetic):
    shots_of = run.arms.shots_of
    assert [shots_of("malignant", shots, {"malignant": 25}) for shots in (10, 25, 50, 0)] == [10, 25, 25, 25]
    assert [shots_of("benign", shots, {"malignant": 25}) for shots in (10, 0)] == [10, 0]
    whole, drawn = records.read(Path(real)), records.read(Path(synthetic))
    (cell,) = {Cell(0, "vit", 6, "hybrid_3", 0)}
    training = cells.real_images(cell, whole, {"malignant": 12}).split("train")
    assert [sum(each.label == label for each in training) for label in LABELS] == [6, 6]
    material = cells.Material(real=whole, synthetic=drawn, tests={})
    scarce = [run.report._is_scarce(Cell(0, "vit", 12, "hybrid_3", 0).group, material, rare)
              for rare in ({}, dict.fromkeys(LABELS, 8))]  # fmt: skip
    assert scarce == [True, False], "of 24 synthetic images a class"


def test_what_the_generator_saw_is_said_as_it_was(real):
    """Of the split that it was tuned on, whatever classifiers are left with."""
    whole = records.read(Path(real))
    women = run.arms.leave_out(whole, {"sex": ("m",)})
    strangers = replace(whole, records=tuple(replace(r, sha256=r.sha256[::-1]) for r in whole.records))

    def said(seen, few=False):
        return run.report.describe_case({}, {}, seen, whole, begins=False, few=few)

    assert said(whole).generator == "The generator was tuned on the whole training split (48 images)."
    assert said(women).generator == "The generator was tuned on 24 of the 48 training images."
    assert said(strangers).generator == (
        "The generator was tuned on 48 images of another manifest, 0 of them training images of this study: a gain may "
        "come from real images that only the generator saw."
    )
    assert said(whole, few=True).generator.endswith("that only the generator saw.")
    judged = run.report.describe_case({}, {}, whole, whole, begins=False, few=True, judged=True)
    assert any("had learnt other labels than a classifier here sees" in line for line in judged.summary)
    own = said(None, few=True)
    assert "tuned on the real images of its classifiers alone" in own.generator and own.generator in own.summary
    assert "intervals cover the chance in tuning" in own.chance
    assert "no interval covers" in said(whole).chance


def test_an_arm_takes_its_images_from_the_set_that_it_names(real, synthetic, tmp_path, monkeypatch):
    drawn = draw(tmp_path / "gentle", {"train": 9}, "synthetic", 5)
    seen = {}

    def train(settings, folder, real, synthetic, *rest):
        seen[folder.name] = synthetic and len(synthetic.split("train"))

    monkeypatch.setattr(cells.classification, "train", train)
    config = settings(real, synthetic, arms=("real_equal_steps", "all_3", "all_3@gentle"), seeds=(0,))
    with config.unlocked():
        config.sets.gentle = drawn
    run.run(config, tmp_path / "study")
    assert list(seen.values()) == [None, 48, 18]


def test_generators_of_few_shots_see_these_alone(real, synthetic, tmp_path, monkeypatch):
    """One of each size and seed, in a folder of its own; the cells of a seed share it."""
    made, chances = {}, {}

    def synthesise(config, folder, prepared):
        chances[folder.name] = (config.tune.seed, config.generate.plan.seed)
        seen = made[folder.relative_to(tmp_path).as_posix()] = records.read(prepared)
        drawn, start = records.read(Path(synthetic)), {"init_image": seen.split("train")[0].sha256}
        begun = [replace(record, generation=start) for record in drawn.records[:7]]
        return replace(drawn, records=(*begun, *drawn.records[7:]))

    monkeypatch.setattr(run.generator, "synthesise", synthesise)
    config = settings(real, "", training="", shots=(3, 6), generator_sees="shots", generator_begins="photographs")
    run.run(config, tmp_path)
    assert list(made) == [f"fold0/{shots}_seed{seed}" for seed in (0, 1) for shots in (3, 6)]
    assert chances == {f"{shots}_seed{seed}": (seed, seed * 1200) for seed in (0, 1) for shots in (3, 6)}
    few, more = ({r.image for r in made[f"fold0/{shots}_seed1"].split("train")} for shots in (3, 6))
    assert (len(few), len(more)) == (6, 12) and few < more
    page = (tmp_path / "report.html").read_text()
    assert "a generator that was tuned on the real images of its classifiers alone" in page
    assert "The generator was tuned on the whole training split" not in page
    assert "A synthetic image begins at one of the real images that its generator saw." in page
    assert "7 of 48 synthetic images begin at a real training image, which a classifier may have learnt" in page
    results = json.loads((tmp_path / "results.json").read_text())
    assert {each["n"] for each in results["label_fidelity"]} == {2 * 48}  # of two seeds' images each


@pytest.mark.slow
def test_where_synthetic_images_help_a_gain_is_found(tmp_path):
    found = planted(tmp_path, lambda rng, label: label)
    assert found["verdict"] == "gain" and found["differences"]["auroc"]["low"] > 0


@pytest.mark.slow
def test_where_synthetic_images_are_noise_no_gain_is_found(tmp_path):
    found = planted(tmp_path, lambda rng, label: LABELS[rng.integers(2)])
    assert found["verdict"] != "gain" and found["differences"]["auroc"]["value"] < 0.05


def test_only_the_classifiers_that_the_page_explains_are_kept(finished):
    """The first seed's; 560 cells of DINOv2 and MobileNetV2 took 24 GB."""
    kept = {folder.name for folder in (finished / "cells").iterdir() if (folder / "classifier").exists()}
    assert kept == {"fold0_vit_6_real_equal_steps_seed0", "fold0_vit_6_hybrid_3_seed0"}
    assert {folder.parent.name for folder in (finished / "cells").glob("*/checkpoints")} <= kept
    assert len(list((finished / "cells").glob("*/predictions.csv"))) == 4
