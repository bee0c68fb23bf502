"""How numbers and verdicts are written: as careful as the numbers themselves."""

from dermjax.evaluation.findings import GAIN, LOSS, PRIMARY, Comparison, Findings
from dermjax.evaluation.intervals import Estimate

SHOWN = {
    "vit": "ViT",
    "mobilenetv2": "MobileNetV2",
    "euler": "Euler",
    "euler_a": "Euler a",
    "plms": "PLMS",
}
LABELS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_90": "sensitivity at specificity 0.90",
    "sensitivity_at_95": "sensitivity at specificity 0.95",
    "f1": "F1",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
}
TO_THREE_PLACES = ("auroc", "average_precision", "ece", "brier")  # areas and errors; what else there is, is a share
MINUS = "\N{MINUS SIGN}"


def summary(findings: Findings) -> list[tuple[str, str]]:
    """(verdict, numbers) of each comparison: what the primary figure says, and nothing more."""
    if not findings.comparisons:
        return [("No arm was compared.", "It takes a real and a hybrid run of the same classifier.")]
    return [_told(comparison, findings) for comparison in findings.comparisons]


def shown(name: str) -> str:
    """The printed name of a classifier or sampler."""
    return SHOWN.get(name, name)


def label(figure: str) -> str:
    """How the name of a figure is written."""
    return LABELS.get(figure, figure)


def figure(estimate: Estimate, name: str) -> str:
    """A figure without its interval: a percentage, or an area or an error to three places."""
    return f"{estimate.value:.3f}" if name in TO_THREE_PLACES else f"{100 * estimate.value:.1f} %"


def interval(estimate: Estimate, name: str) -> str:
    """The interval of a figure, or why there is none."""
    if estimate.low is None:
        return estimate.note
    if name in TO_THREE_PLACES:
        return f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def difference(estimate: Estimate, name: str) -> str:
    """A difference with its sign: percentage points, or AUROC to three places."""
    return _signed(estimate.value, name) + ("" if name in TO_THREE_PLACES else " points")


def difference_interval(estimate: Estimate, name: str) -> str:
    """The interval of a difference, or why there is none."""
    if estimate.low is None:
        return estimate.note
    return f"{_signed(estimate.low, name)} to {_signed(estimate.high, name)}"


def compared(comparison: Comparison) -> str:
    """The heading of a comparison."""
    return f"{shown(comparison.arm.classifier)}: {comparison.arm.arm} {MINUS} {comparison.baseline.arm}"


def _told(comparison: Comparison, findings: Findings) -> tuple[str, str]:
    def change_in(name: str) -> str:
        before, after = (
            figure(findings.figures[run.name][name], name) for run in (comparison.baseline, comparison.arm)
        )
        change = comparison.differences[name]
        return (
            f"{label(name)} {before} → {after}, difference {difference(change, name)} "
            f"({'' if change.low is None else '95 % interval '}{difference_interval(change, name)})"
        )

    verdict = {GAIN: "a gain in AUROC was shown", LOSS: "a loss of AUROC was shown"}
    return (
        f"{shown(comparison.arm.classifier)}, {comparison.baseline.arm} → {comparison.arm.arm}: "
        f"{verdict.get(comparison.verdict, comparison.verdict)}.",
        f"{change_in(PRIMARY)}; {change_in('accuracy')}.",
    )


def _signed(value: float, name: str) -> str:
    text = f"{value:+.3f}" if name in TO_THREE_PLACES else f"{100 * value:+.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)
