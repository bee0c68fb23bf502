"""From the predictions of cells to findings: which chances an interval covers, and whose figures a table holds."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dermjax.data.records import Manifest, Record
from dermjax.evaluation import metrics, predictions
from dermjax.evaluation.findings import Group
from dermjax.study import report, results
from dermjax.study.cells import Cell, Material

LABELS = ("benign", "malignant")
BOOTSTRAP = {"resamples": 400, "seed": 0, "smallest": 10}
BASELINE = "real_equal_steps"


def manifest(name, splits, synthetic=False):
    """Records of so many images a class and split."""
    found = tuple(
        Record(image=f"{name}-{split}-{label}-{number:02d}.png", label=label, split=split, source=name,
               sha256=hashlib.sha256(f"{name}{split}{label}{number}".encode()).hexdigest(),
               image_manipulation="synthetic" if synthetic else "none")
        for split, count in splits.items() for label in LABELS for number in range(count)
    )  # fmt: skip
    return Manifest(labels=LABELS, root=Path(), records=found)


def write(path, records, rng, separation):
    """Probabilities that follow the label by a separation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["image,label,split,p_benign,p_malignant"]
    for each in records:
        score = 1 / (1 + np.exp(-(rng.normal() + separation * (each.label == "malignant"))))
        lines.append(f"{each.image},{each.label},{each.split},{1 - score},{score}")
    path.write_text("\n".join(lines) + "\n")


def judged(root, folds, seeds, arms, separation=1.0):
    """The folders of made-up cells, and the material of each fold with a further test set that all share."""
    other = manifest("other", {"test": 40})
    synthetic = manifest("made", {"train": 30}, synthetic=True)
    materials, folders = [], {}
    for fold in range(folds):
        real = manifest(f"fold{fold}", {"validation": 20, "test": 40})
        materials.append(Material(real=real, synthetic=synthetic, tests={"other": other}))
        for arm in arms:
            for seed in range(seeds):
                cell, rng = Cell(fold, "vit", 0, arm, seed), np.random.default_rng([fold, seed, arms.index(arm)])
                folders[cell] = folder = root / cell.name
                write(folder / "predictions.csv", real.records, rng, separation)
                write(folder / "predictions_other.csv", other.records, rng, separation)
                if arm == BASELINE:
                    write(folder / "synthetic_predictions.csv", synthetic.records, rng, separation)
    return folders, materials


def found(folders, materials, own_generators=False):
    return results.find(folders, materials, BASELINE, (), BOOTSTRAP, own_generators=own_generators)


def test_folds_that_are_judged_on_one_further_test_set_share_its_chance(tmp_path):
    """Four folds of one and the same prediction know no more of the images than one fold does."""
    arms = (BASELINE, "hybrid_1")
    one, four = (judged(tmp_path / str(folds), folds, 1, arms) for folds in (1, 4))
    for cell, folder in four[0].items():
        alike = one[0][Cell(0, cell.classifier, cell.shots, cell.arm, cell.seed)]
        (folder / "predictions_other.csv").write_bytes((alike / "predictions_other.csv").read_bytes())
    alone, pooled = (found(*each).elsewhere["other"][Group("vit", 0, "hybrid_1")] for each in (one, four))
    for before, after in zip(alone["auroc"], pooled["auroc"], strict=True):
        assert (after.n, after.value) == (before.n, pytest.approx(before.value)) and after.n == 80
        assert (after.low, after.high) == pytest.approx((before.low, before.high))
    own = []  # thresholds are those of each cell's own validation images
    for cell, folder in four[0].items():
        if cell.arm == "hybrid_1":
            threshold = predictions.thresholds(predictions.read(folder / "predictions.csv", LABELS, "validation"))
            test = predictions.read(folder / "predictions_other.csv", LABELS, "test")
            own.append((test.probabilities[test.labels == 1, 1] > threshold["sensitivity_at_90"]).mean())
    assert len(set(own)) > 1 and pooled["sensitivity_at_90"][0].value == pytest.approx(np.mean(own))


def test_folds_with_test_images_of_their_own_know_more(tmp_path):
    one, four = (found(*judged(tmp_path / str(folds), folds, 1, (BASELINE,))) for folds in (1, 4))
    figures = [each.figures[Group("vit", 0, BASELINE)]["auroc"] for each in (one, four)]
    reach = [each.high - each.low for each in figures]
    assert [each.n for each in figures] == [80, 320] and 0.4 < reach[1] / reach[0] < 0.65


def test_every_figure_is_of_single_classifiers_and_mcnemar_alone_of_their_ensemble(tmp_path, monkeypatch):
    """Three seeds with noise of their own: the mean of their probabilities is better than each of them."""
    folders, materials = judged(tmp_path, 1, 3, (BASELINE, "hybrid_1"), separation=1.5)
    group, result = Group("vit", 0, BASELINE), found(folders, materials)
    real = materials[0].real
    seeds = [predictions.read_test(folder / "predictions.csv", real) for cell, folder in folders.items()
             if cell.arm == BASELINE]  # fmt: skip
    ensemble = predictions.mean(seeds)
    mean = np.mean([metrics.auroc(each) for each in seeds])
    assert metrics.auroc(ensemble) > mean + 0.05

    confusions = sum(metrics.confusion(each) for each in seeds)
    assert result.confusion(group).tolist() == [confusions.tolist()] and confusions.sum() == 3 * 80
    numbers = json.loads(results.as_json(result))["groups"][0]
    assert numbers["confusion_over_seeds"] == [confusions.tolist()]
    assert numbers["confusion_of_the_mean"] == [metrics.confusion(ensemble).tolist()]
    drawn = {}
    monkeypatch.setattr(report.plots, "roc", lambda title, curves, *_: drawn.update(roc=curves))
    monkeypatch.setattr(report.plots, "calibration", lambda title, arms: drawn.update(calibration=arms))
    report._charts([group], result)
    ((rates, _),) = drawn["roc"].values()
    assert np.trapezoid(rates[1], rates[0]) == pytest.approx(mean, abs=0.01)
    ((several, _),) = drawn["calibration"].values()
    assert [each.probabilities.tolist() for each in several] == [each.probabilities.tolist() for each in seeds]


def test_label_fidelity_is_the_mean_over_classes_and_seeds(tmp_path):
    """Of ten images of one class and forty of the other, of which the judges see the first one less often."""
    folders, materials = judged(tmp_path, 1, 2, (BASELINE,))
    made = manifest("made", {"train": 40}, synthetic=True)
    few = tuple(each for each in made.records if each.label == "benign" or int(each.image[-6:-4]) < 10)
    made = replace(made, records=few)
    materials = [replace(materials[0], synthetic=made)]
    for number, folder in enumerate(folders.values()):
        write(folder / "synthetic_predictions.csv", made.records, np.random.default_rng(number), 0.0)
    judges = [predictions.read(folder / "synthetic_predictions.csv", LABELS, "train") for folder in folders.values()]
    expected = np.mean([[each.right[each.labels == c].mean() for c in (0, 1)] for each in judges])
    for own in (False, True):
        (share,) = found(folders, materials, own).fidelity.values()
        assert share.value == pytest.approx(expected) and share.low < share.value < share.high
        assert share.n == (100 if own else 50), "own generators have images of their own"
    assert abs(expected - np.mean([each.right.mean() for each in judges])) > 0.01
