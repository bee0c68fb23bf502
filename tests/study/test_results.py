"""From the predictions of cells to findings: which chances an interval covers, and whose figures a table holds."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dermjax.data.records import Manifest, Record
from dermjax.evaluation import predictions
from dermjax.evaluation.findings import Group
from dermjax.study import results
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
