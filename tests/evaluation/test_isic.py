"""The challenge's CSV, also by the challenge's own scorer where it is installed."""

import csv
import io

import numpy as np
import pytest

from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation import findings, metrics, predictions
from dermjax.evaluation.predictions import Predictions

CLASSES = ("benign", "malignant")


def made(names):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, len(names))
    labels = (scores + rng.normal(0, 0.3, len(names)) > 0.5).astype(int)
    return Predictions(images=tuple(names), labels=labels, probabilities=np.stack([1 - scores, scores], -1))


def test_rows_go_by_the_image_s_name():
    said = made([f"test/x/ISIC_{i:07d}.jpg" for i in range(5)])
    rows = list(csv.DictReader(io.StringIO(predictions.isic_table(said, CLASSES))))
    assert [row["image"] for row in rows] == [f"ISIC_{i:07d}" for i in range(5)]
    assert [float(row["malignant"]) for row in rows] == pytest.approx(said.probabilities[:, 1].tolist(), abs=1e-9)


def test_two_images_of_one_name_are_refused():
    with pytest.raises(UserError, match="two images are named a"):
        predictions.isic_table(made(["x/a.jpg", "y/a.jpg"]), CLASSES)


def test_the_challenge_s_own_scorer_agrees():
    pytest.importorskip("isic_challenge_scoring")
    from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore

    said = made([f"ISIC_{i:07d}" for i in range(200)])
    truth = "image,benign,malignant\n" + "".join(
        f"{name},{1.0 - label},{float(label)}\n" for name, label in zip(said.images, said.labels, strict=True)
    )
    score = ClassificationScore.from_stream(
        io.StringIO(truth), io.StringIO(predictions.isic_table(said, CLASSES)), ClassificationMetric.BALANCED_ACCURACY
    )
    assert score.overall == pytest.approx(metrics.balanced_accuracy(said), abs=1e-6)
    assert score.per_category.loc["malignant", "auc"] == pytest.approx(metrics.auroc(said), abs=1e-6)


def test_subgroups_are_of_what_records_tell():
    def record(name, **attributes):
        return Record(image=name, sha256="", label="benign", split="test", source="camera",
                      image_manipulation="none", attributes=attributes)  # fmt: skip

    records = (
        record("a", sex="male", age=44, skin_tone={"group": "tan"}), record("b", sex="female", age_band="45-59"),
        record("c", site="back", fitzpatrick="5", skin_tone_class="2"),
    )  # fmt: skip
    found = findings.subgroups(Manifest(labels=CLASSES, root=".", records=records))
    assert found == {
        ("age", "30-44"): {"a"},
        ("age", "45-59"): {"b"},
        ("fitzpatrick", "5"): {"c"},
        ("sex", "female"): {"b"},
        ("sex", "male"): {"a"},
        ("site", "back"): {"c"},
        ("skin_tone_class", "2"): {"c"},
        ("tone", "tan"): {"a"},
    }  # not the source, of which all are
