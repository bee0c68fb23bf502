"""One rule for a verdict: by the interval of one run, by the adjusted p-value of several seeds as well."""

import pytest

from dermjax.evaluation import findings
from dermjax.evaluation.findings import GAIN, LOSS, NONE, UNKNOWN, Comparison, Group
from dermjax.evaluation.intervals import Estimate

NAN = float("nan")


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
