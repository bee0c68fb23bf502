"""How numbers and names are written: as careful as the numbers themselves."""

from dermjax.evaluation.intervals import Estimate

NAMES = {
    "vit": "ViT",
    "mobilenetv2": "MobileNetV2",
    "euler": "Euler",
    "euler_a": "Euler a",
    "plms": "PLMS",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_90": "sensitivity at the validation images' threshold for specificity 0.90",
    "sensitivity_at_95": "sensitivity at the validation images' threshold for specificity 0.95",
    "specificity_at_90": "specificity reached at the validation images' threshold for 0.90",
    "specificity_at_95": "specificity reached at the validation images' threshold for 0.95",
    "f1": "F1",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
    "mean_predicted": "mean predicted probability of the positive class",
}
ARMS = {  # of a study
    "real": "real, fewer steps",
    "real_equal_steps": "real, equal steps",
    "real_augmented": "real, strongly augmented",
    "synthetic": "synthetic only",
    "synthetic_then_real": "synthetic, then real",
    "real_tested_on_synthetic": "real, tested on synthetic",
}
HYBRIDS = {"hybrid": "hybrid", "all": "all synthetic"}
TO_THREE_PLACES = ("auroc", "average_precision", "ece", "brier")  # areas and errors; what else there is, is a share
MINUS = "\N{MINUS SIGN}"


def shown(name: str) -> str:
    """The printed name of a classifier, sampler or figure."""
    return NAMES.get(name, name)


def arm(name: str) -> str:
    """The printed name of an arm of a study: `hybrid 3 : 1, judged`, `real, equal steps`."""
    name, _, group = name.partition("@")
    kind, _, rest = name.partition("_")
    ratio, _, trust = rest.partition("_")
    shown = f"{HYBRIDS[kind]} {ratio} : 1" if kind in HYBRIDS else ARMS.get(name, name)
    return ", ".join(filter(None, (shown, trust if kind in HYBRIDS else "", group and f"of “{group}”")))


def shots(size: int) -> str:
    """A few-shot size in words."""
    return f"{size} real images a class" if size else "all real images"


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
    """A difference with its sign: percentage points, or an area or an error to three places."""
    return _signed(estimate.value, name) + ("" if name in TO_THREE_PLACES else " points")


def difference_interval(estimate: Estimate, name: str) -> str:
    """The interval of a difference, or why there is none."""
    if estimate.low is None:
        return estimate.note
    return f"{_signed(estimate.low, name)} to {_signed(estimate.high, name)}"


def _signed(value: float, name: str) -> str:
    text = f"{value:+.3f}" if name in TO_THREE_PLACES else f"{100 * value:+.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)


FILTERS = {
    each.__name__: each for each in (shown, arm, shots, figure, interval, difference, difference_interval)
}  # of templates
