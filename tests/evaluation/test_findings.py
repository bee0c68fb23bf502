"""One rule for a verdict: by the interval of one run, by the adjusted p-value of several seeds as well; and what is
drawn for it."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from dermjax.data.records import Manifest, Record
from dermjax.evaluation import findings, intervals
from dermjax.evaluation.findings import GAIN, LOSS, NONE, UNKNOWN, Comparison, Group
from dermjax.evaluation.intervals import Estimate
from dermjax.evaluation.predictions import Predictions

NAN = float("nan")


def record(number, label="benign", **known):
    return Record(image=f"ISIC_{number:07d}.jpg", sha256=f"{number:064x}", label=label, split="test", source="x",
                  image_manipulation="none", **known)  # fmt: skip


@pytest.mark.parametrize(
    ("known", "units", "kind"),
    [
        ([{}, {}], ["ISIC_0000000.jpg", "ISIC_0000001.jpg"], "images"),
        ([{"lesion_id": "HAM_2"}] * 2 + [{"lesion_id": "HAM_1"}], ["HAM_2", "HAM_2", "HAM_1"], "lesions"),
        ([{"lesion_id": "HAM_2"}, {}], ["HAM_2", "ISIC_0000001.jpg"], "lesions or images"),
        # several lesions of a patient are one unit, however the patient is spelled
        (
            [{"lesion_id": "b", "patient_id": "P 7"}, {"lesion_id": "a", "patient_id": "p  7"}, {"patient_id": "8"}],
            ["a", "a", "ISIC_0000002.jpg"],
            "patients",
        ),
        ([{"patient_id": "7"}, {"lesion_id": "7"}, {}], ["ISIC_0000000.jpg", "7", "ISIC_0000002.jpg"],
         "patients, lesions or images"),
        # one chain of patient and lesion is one unit
        (
            [{"patient_id": "7"}, {"patient_id": "7", "lesion_id": "L"}, {"lesion_id": "l "}],
            ["ISIC_0000000.jpg"] * 3,
            "patients or lesions",
        ),
        # images that begin at one photograph are one unit, whether by an init image or by a sketch of it
        (
            [{"generation": {"init_image": "a"}}, {"generation": {"init_image": "b"}}, {},
             {"generation": {"init_image": "sketch", "transformation": {"of_sha256": "a"}}}],
            ["ISIC_0000000.jpg", "ISIC_0000001.jpg", "ISIC_0000002.jpg", "ISIC_0000000.jpg"],
            "init images or images",
        ),
    ],
)  # fmt: skip
def test_what_shows_one_patient_or_lesion_is_drawn_together(known, units, kind):
    records = [record(number, **each) for number, each in enumerate(known)]
    assert findings.units(records) == units
    assert findings.kind_of_units(records) == kind


def test_a_transformed_photograph_is_remembered_as_well():
    begun = [{"init_image": "0" * 64}, {"init_image": "b", "transformation": {"of_sha256": "0" * 64}}, {}]
    made = [record(number + 1, generation=each) for number, each in enumerate(begun)]
    assert findings.begun_at(made, [record(0)]) == 2


def test_patients_with_many_lesions_widen_the_interval():
    """20 patients a class with five lesions each, that look alike, are 20 chances and not 100."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    score = norm.cdf(labels + np.repeat(rng.normal(size=40), 5))
    classes, reach = ("benign", "malignant"), {}
    for patient in ("{}", ""):
        records = tuple(
            record(number, classes[label], lesion_id=f"L{number:03d}", patient_id=patient.format(number // 5))
            for number, label in enumerate(labels.tolist())
        )
        images = tuple(each.image for each in records)
        said = Predictions(images=images, labels=labels, probabilities=np.stack([1 - score, score], -1))
        manifest = Manifest(labels=classes, root=Path(), records=records)
        fold = findings.fold([said], manifest, {"resamples": 400, "seed": 0, "smallest": 10})
        found = intervals.figures([fold], pooled=False)["auroc"]
        reach[fold.bootstrap.kind] = found.high - found.low
    assert reach["patients"] > 1.8 * reach["lesions"]


@pytest.mark.parametrize(
    ("value", "low", "high", "p", "adjusted", "verdict"),
    [
        # one run: no p-value
        (0.1, 0.02, 0.2, None, None, GAIN),
        (-0.1, -0.2, -0.02, None, None, LOSS),
        (0.1, -0.02, 0.2, None, None, NONE),
        (0.1, None, None, None, None, UNKNOWN),
        (0.0, None, None, None, None, NONE),  # the same predictions twice
        # several seeds: nan where there are too few lesions, 1 where the resamples do not differ
        (0.1, 0.02, 0.2, 0.01, 0.04, GAIN),
        (-0.1, -0.2, -0.02, 0.01, 0.04, LOSS),
        (0.1, 0.02, 0.2, 0.03, 0.06, NONE),  # significant alone, not among several
        (0.1, -0.02, 0.2, 0.2, 0.2, NONE),
        (0.0, None, None, NAN, NAN, UNKNOWN),
        (0.1, None, None, 1.0, 1.0, NONE),
    ],
)
def test_a_verdict_follows_the_interval_and_the_adjusted_p(value, low, high, p, adjusted, verdict):
    difference = Estimate(value=value, n=100, low=low, high=high, note="")
    comparison = Comparison(
        group=Group("vit", 0, "hybrid"), baseline="real", differences={"auroc": difference}, mcnemar={}, p=p,
        adjusted=adjusted,
    )  # fmt: skip
    assert comparison.verdict == verdict


def test_the_arms_that_were_chosen_are_a_family_of_their_own(monkeypatch):
    """Three comparisons of p 0.02: adjusted to 0.06 among three, and 0.02 where one was named beforehand."""

    def differences(before, after, *, pooled):
        return {findings.PRIMARY: (Estimate(value=0.1, low=0.01, high=0.2, n=9, note=""), 0.02)}

    class Fold:
        classes, mean = ("a", "b"), None

    monkeypatch.setattr(findings.intervals, "differences", differences)
    monkeypatch.setattr(findings.intervals, "mcnemar", lambda before, after: {})
    monkeypatch.setattr(findings.intervals, "figures", lambda folds, *, pooled: {})
    groups = [findings.Group("vit", 25, arm) for arm in ("base", "one", "two", "three")]
    found = findings.find({group: [Fold()] for group in groups}, "base", {}, pooled=True, chosen=[groups[2]])
    assert [each.adjusted for each in found.comparisons.values()] == pytest.approx([0.06] * 3)
    assert [(each.group, each.adjusted) for each in found.chosen] == [(groups[2], 0.02)]
    assert found.comparisons[groups[2]].verdict == findings.NONE and found.chosen[0].verdict == findings.GAIN
