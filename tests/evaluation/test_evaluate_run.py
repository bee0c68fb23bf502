"""The stage on made-up runs: numbers, words and a page that stands alone; what is missing is named."""

import csv
import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dermjax.data import images, records
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation import metrics, predictions, run
from dermjax.evaluation.images import table

CONFIG = Path(__file__).parents[2] / "configs" / "evaluate.py"
RUNS = {"vit_real": 1.0, "vit_hybrid": 1.1, "mobilenetv2_real": 0.4, "mobilenetv2_hybrid": 3.0}


def record(root, name, label, split, synthetic=False, **known):
    """A record of a small random picture that is written to the root."""
    path = root / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    path.write_bytes(images.encode_png(pixels))
    manipulation = "synthetic" if synthetic else "none"
    return Record(
        image=f"images/{name}.png",
        sha256=sha256(path),
        label=label,
        split=split,
        source="camera <b>",
        image_manipulation=manipulation,
        **known,
    )


def write_predictions(path, held, classes, separation, seed):
    """Probabilities that follow the label by a separation."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "split", *(f"p_{name}" for name in classes)])
        for each in held:
            scores = np.exp(rng.normal(size=len(classes)) + separation * (np.array(classes) == each.label))
            rows.writerow([each.image, each.label, each.split, *(scores / scores.sum())])


def made(folder, classes):
    """A folder with everything that evaluate reads: 3 manifests, tune, four classify runs."""
    prepared = [
        record(folder / "prepare", f"{split}-{name}-{i}", name, split, lesion_id=f"{split}{name}{i}")
        for split, count in (("train", 4), ("validation", 2), ("test", 30))
        for name in classes
        for i in range(count)
    ]
    generated = [
        record(folder / "generate", f"{s}-{name}-{i}", name, "train", True, generation={"sampler": s, "prompt": "mole"})
        for s in ("euler", "plms")
        for name in classes
        for i in range(3)
    ]
    curated = [
        Record(**{**vars(each), "rejected": ("colour_cast",)}) if i < 2 else each for i, each in enumerate(generated)
    ]
    for stage, root, held in (
        ("prepare", "prepare", prepared),
        ("generate", "generate", generated),
        ("curate", "generate", curated),
    ):
        (folder / stage).mkdir(exist_ok=True)
        manifest = Manifest(labels=classes, root=folder / root, records=tuple(held))
        records.write(folder / stage / "manifest.jsonl", manifest)
    curve = "".join(
        json.dumps({"step": step, "loss": 1 / step, "validation_auroc": 0.5}) + "\n" for step in range(1, 60)
    )
    for seed, (name, separation) in enumerate(RUNS.items()):
        judged = [each for each in prepared if each.split != "train"]
        write_predictions(folder / name / "predictions.csv", judged, classes, separation, seed)
        (folder / name / "metrics.jsonl").write_text(curve)
    write_predictions(folder / "vit_real" / "synthetic_predictions.csv", generated, classes, 2.0, 9)
    (folder / "tune").mkdir()
    (folder / "tune" / "metrics.jsonl").write_text(curve)


def config(folder, **changes):
    settings = runpy.run_path(str(CONFIG))["get_config"]("demo")
    settings.gallery = 2
    for key, stage in {"prepared": "prepare", "generated": "generate", "curated": "curate", "tuning": "tune"}.items():
        settings[key] = str(folder / stage)
    for name in RUNS:
        settings.runs[name] = str(folder / name)
    settings.update_from_flattened_dict(changes)
    return settings


def evaluated(settings, workdir):
    workdir.mkdir(exist_ok=True)
    run.run(settings, workdir)
    return json.loads((workdir / "results.json").read_text()), (workdir / "report.html").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    made(root, ("benign", "malignant"))
    return root


@pytest.fixture(scope="module")
def finished(folder):
    return evaluated(config(folder), folder / "evaluate")


def test_the_numbers_are_the_metrics_of_the_predictions(folder, finished):
    results, page = finished
    assert list(results["runs"]) == ["vit real", "vit hybrid", "mobilenetv2 real", "mobilenetv2 hybrid"]
    found = predictions.read(folder / "vit_real" / "predictions.csv", ("benign", "malignant"), "test")
    validation = predictions.read(folder / "vit_real" / "predictions.csv", ("benign", "malignant"), "validation")
    found = replace(found, thresholds=predictions.thresholds(validation))
    for name, figure in metrics.METRICS.items():
        told = results["runs"]["vit real"]["figures"][name]
        assert told["value"] == figure(found)
        assert told["low"] < told["value"] < told["high"]
    assert results["runs"]["vit real"]["figures"]["sensitivity"]["n"] == 30
    assert results["label_fidelity"]["vit real"]["n"] == 10  # of 12, curation rejected 2
    assert (
        "the interval on synthetic images draws images of their own" in page and "resamples (seed 0) of lesions" in page
    )
    assert results["images"]["real, test"] == {"benign": 30, "malignant": 30}
    assert results["images"]["synthetic, kept"] == {"benign": 4, "malignant": 6}
    assert results["rejections"] == {"colour_cast": {"benign": 2, "malignant": 0}}


def test_classes_in_another_order_are_the_same_classes(folder, finished, tmp_path):
    for name in ("generate", "curate"):
        manifest = records.read(folder / name)
        (tmp_path / name).mkdir()
        records.write(tmp_path / name / "manifest.jsonl", replace(manifest, labels=manifest.labels[::-1]))
    settings = config(folder, generated=str(tmp_path / "generate"), curated=str(tmp_path / "curate"))
    results, _ = evaluated(settings, tmp_path / "evaluate")
    assert results == finished[0]
    assert results["synthetic"] == table.digest(records.read(folder / "curate").split("train"))


def test_verdicts_follow_the_paired_interval(finished):
    results, page = finished
    verdicts = {each["classifier"]: each for each in results["comparisons"]}
    assert verdicts["vit"]["verdict"] == "no gain was shown"
    assert verdicts["mobilenetv2"]["verdict"] == "gain"
    assert verdicts["mobilenetv2"]["differences"]["auroc"]["low"] > 0
    assert "ViT, real → hybrid: no gain was shown." in page
    assert "MobileNetV2, real → hybrid: a gain in AUROC was shown." in page


def test_the_page_stands_alone_and_says_what_it_must(finished):
    _, page = finished
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded and all(each.startswith(("data:image/", "#")) for each in loaded)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    for words in ("For research only", "proves the machinery, not the medicine", "SYNTHETIC", "McNemar", "colour cast"):
        assert words in page, words
    assert "90.74 % → 93.03 %" in page and "70.33 % → 73.58 %" in page
    assert "n&nbsp;" in page or "n = 60" in page
    assert "each classifier was trained once" in page and "demo of this size" not in page  # whatever its size is
    assert "p&nbsp;=&nbsp;0.000" not in page
    assert "camera &lt;b&gt;" in page  # names from outside are text, never markup


def test_the_specificity_that_is_reached_stands_beside_the_sensitivity(finished):
    results, page = finished
    figures = results["runs"]["vit real"]["figures"]
    assert figures["specificity_at_90"]["n"] == 30 and 0 <= figures["specificity_at_90"]["value"] <= 1
    for kind in ("sensitivity at", "specificity reached at"):
        assert kind in page
    assert "chosen on the real validation images of each run" in page
    assert "sensitivity at specificity 0.90" not in page, "it is another one on test images"


def test_what_is_predicted_stands_beside_what_is_observed(finished):
    results, page = finished
    assert results["observed_share_of_positives"] == 0.5
    assert 0 < results["runs"]["vit real"]["figures"]["mean_predicted"]["value"] < 1
    assert "mean predicted probability of the positive class <small>observed share 50.0 %</small>" in page
    assert "as if all classes were equally frequent" in page


def test_every_synthetic_picture_says_so(finished):
    _, page = finished
    kinds = re.findall(r'alt="(real|synthetic) ', page)
    # real: 2 galleries of 2 classes; synthetic: 2 samplers x 2 classes, 2 classes kept, 2 rejected
    assert kinds.count("real") == 2 * 2 * 2
    assert kinds.count("synthetic") == 4 * 2 + 2 * 2 + 2


def test_labels_are_judged_by_the_mean_over_classes_and_memory_is_named(folder, finished, tmp_path):
    """Of images that begin at photographs which the judge was trained on."""
    results, page = finished
    said = predictions.read(folder / "vit_real" / "synthetic_predictions.csv", ("benign", "malignant"), "train")
    kept = said.only({record.image for record in records.read(folder / "curate").split("train")})
    by_class = [kept.right[kept.labels == c].mean() for c in (0, 1)]
    share = results["label_fidelity"]["vit real"]
    assert share["value"] == pytest.approx(np.mean(by_class)) and "malignant has 6 images" in share["note"]
    assert "Both are means over the classes" in page and "begin at a real training image" not in page
    real, curated = records.read(folder / "prepare"), records.read(folder / "curate")
    start = {"init_image": real.split("train")[0].sha256}
    begun = [replace(each, generation=each.generation | start) for each in curated.records[-3:]]
    (tmp_path / "curate").mkdir()
    records.write(tmp_path / "curate" / records.FILE, replace(curated, records=(*curated.records[:-3], *begun)))
    _, page = evaluated(config(folder, curated=str(tmp_path / "curate")), tmp_path / "evaluate")
    assert "3 of the kept synthetic images begin at a real training image" in page


def test_the_same_again(folder, finished, tmp_path):
    assert evaluated(config(folder), tmp_path) == finished


def test_the_same_classes_in_another_order_are_those_of_the_real_images(folder, finished, tmp_path):
    """As `generate` writes melanoma and nevus, of which `prepare` has nevus first."""
    for stage in ("generate", "curate"):
        (tmp_path / stage).mkdir()
        manifest = records.read(folder / stage)
        records.write(tmp_path / stage / records.FILE, replace(manifest, labels=manifest.labels[::-1]))
    turned = {"generated": str(tmp_path / "generate"), "curated": str(tmp_path / "curate")}
    assert evaluated(config(folder, **turned), tmp_path / "evaluate")[0] == finished[0]


def test_sections_without_input_are_left_out(folder, tmp_path):
    without = dict.fromkeys(("generated", "curated", "tuning", "runs.vit_hybrid", "runs.mobilenetv2_real"), "")
    results, page = evaluated(config(folder, **without, **{"runs.mobilenetv2_hybrid": ""}), tmp_path)
    assert list(results["runs"]) == ["vit real"]
    assert results["comparisons"] == [] and results["label_fidelity"] == {}
    assert "No arm was compared" in page and 'id="curation"' not in page and "not run" in page


def test_a_folder_of_predictions_alone_is_judged_without_curves(folder, finished, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "vit_hybrid" / "predictions.csv", tmp_path / "alone")
    results, _ = evaluated(config(folder, **{"runs.vit_hybrid": str(tmp_path / "alone")}), tmp_path / "evaluate")
    assert results["runs"] == finished[0]["runs"]


def test_few_test_images_are_said(folder, tmp_path):
    _, page = evaluated(config(folder, **{"bootstrap.smallest": 31}), tmp_path)
    assert "no interval: benign has 30, malignant has 30 lesions, fewer than 31" in page
    assert "no gain was shown, with too few test images to tell" in page


def test_three_classes(tmp_path):
    made(tmp_path, ("a", "b", "c"))
    results, page = evaluated(config(tmp_path), tmp_path / "evaluate")
    assert list(results["runs"]["vit real"]["figures"])[:3] == ["accuracy", "balanced_accuracy", "auroc"]
    assert np.shape(results["runs"]["vit real"]["confusion"]) == (3, 3)
    assert "The positive class" not in page


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prepared": ""}, r"config\.prepared: no manifest"),
        ({"curated": "nowhere"}, "nowhere: no such file"),
        ({"runs.vit_real": "nowhere"}, "predictions nowhere/predictions.csv: no such file"),
        ({"tuning": "nowhere"}, "metrics nowhere/metrics.jsonl: no such file"),
        (dict.fromkeys((f"runs.{name}" for name in RUNS), ""), r"config\.runs: no classify workdir"),
    ],
)
def test_what_is_missing_is_named(folder, tmp_path, change, told):
    with pytest.raises(UserError, match=told) as raised:
        run.run(config(folder, **change), tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_run_on_other_test_images_is_refused(folder, tmp_path):
    prepared = records.read(folder / "prepare")
    fewer = [each for each in prepared.split("test") if not each.image.endswith("-0.png")]
    write_predictions(tmp_path / "predictions.csv", fewer, prepared.labels, 1.0, 0)
    with pytest.raises(UserError, match="2 images of the test split are missing, 0 are not of it"):
        run.run(config(folder, **{"runs.vit_real": str(tmp_path)}), tmp_path)


def test_a_name_without_an_arm_is_refused(folder, tmp_path):
    settings = config(folder)
    settings.runs = {"vit": str(folder / "vit_real")}
    with pytest.raises(UserError, match="the name 'vit' is not of the form"):
        run.run(settings, tmp_path)


def test_two_names_of_one_run_are_refused(folder, tmp_path):
    settings = config(folder)
    settings.runs = {"vit_real": str(folder / "vit_real"), "vit real": str(folder / "vit_hybrid")}
    with pytest.raises(UserError, match=r"config\.runs: vit_real stands there twice"):
        run.run(settings, tmp_path)


def test_tables_for_the_challenge_go_by_the_run_whatever_its_folder_is_called(folder, tmp_path):
    for name in ("real", "hybrid"):
        (tmp_path / name / "classify").mkdir(parents=True)
        shutil.copy(folder / f"vit_{name}" / "predictions.csv", tmp_path / name / "classify")
    changes = {f"runs.vit_{name}": str(tmp_path / name / "classify") for name in ("real", "hybrid")}
    evaluated(config(folder, isic=True, **changes), tmp_path / "evaluate")
    assert {path.name for path in (tmp_path / "evaluate" / "isic").iterdir()} == {f"{name}.csv" for name in RUNS}


def test_images_that_the_challenge_would_take_for_one_are_refused_before_anything_is_written(tmp_path):
    made(tmp_path, ("a", "b"))
    prepared = records.read(tmp_path / "prepare")
    judged = [each for each in prepared.records if each.split != "train"]
    (tmp_path / "prepare" / "copy").mkdir()
    second = next(each for each in judged if each.image == "images/test-a-1.png")
    (tmp_path / "prepare" / second.image).rename(tmp_path / "prepare" / "copy" / "test-a-0.png")
    renamed = {second.image: replace(second, image="copy/test-a-0.png")}
    records.write(
        tmp_path / "prepare" / records.FILE,
        replace(prepared, records=tuple(renamed.get(each.image, each) for each in prepared.records)),
    )
    for name in RUNS:
        write_predictions(
            tmp_path / name / "predictions.csv", [renamed.get(r.image, r) for r in judged], ("a", "b"), 1, 0
        )
    (tmp_path / "evaluate").mkdir()
    with pytest.raises(UserError, match="two images are named test-a-0"):
        run.run(config(tmp_path, isic=True), tmp_path / "evaluate")
    assert not list((tmp_path / "evaluate").iterdir())
