"""The table of a bench: seconds of each side, ratios, first calls, peak memory, share of the machine's matrix rate.

An entry is what bench.json keeps of a case: its causes, its unit, how many of them a round does, and of each side its
rounds, its first call and its count of operations, or an error. Ratios are medians over rounds, so that a machine that
is slow for a while changes both of their numbers.
"""

from collections.abc import Mapping
from statistics import median

from dermjax.bench.cases import MATRIX
from dermjax.machine import format_bytes

OURS, EAGER, COMPILED = "dermjax", "PyTorch", "torch.compile"


def seconds(entry: Mapping, side: str) -> float | None:
    """Returns a side's median seconds of one unit, None where it has none."""
    rounds = entry["sides"].get(side, {}).get("rounds")
    return median(each["seconds"] for each in rounds) / entry["count"] if rounds else None


def ratio(entry: Mapping, other: str, figure: str = "seconds") -> float | None:
    """Returns the median over rounds of dermjax's figure over another side's, None where there is none."""
    ours, theirs = (entry["sides"].get(side, {}).get("rounds") for side in (OURS, other))
    if not ours or not theirs:
        return None
    return median(a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True))


def table(entries: Mapping[str, Mapping]) -> str:
    """Returns the entries as a table in Markdown, and below it why a figure is missing."""
    matrix = entries[MATRIX]
    times = [seconds(matrix, side) for side in (OURS, EAGER)]
    rate = max((matrix["sides"][OURS].get("operations", 0.0) / each for each in times if each), default=0.0)
    compiled = any(COMPILED in entry["sides"] for entry in entries.values())
    heads = ["work", OURS, EAGER, "ratio", *[COMPILED, "ratio"] * compiled]
    heads += ["first calls", "memory", "ratio", "of the rate"]
    rows = [heads, ["---"] * len(heads), *(_row(*each, rate, compiled) for each in entries.items())]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    sides = [(name, *each) for name, entry in entries.items() for each in entry["sides"].items()]
    errors = [f"{name}, {side}: {found['error']}" for name, side, found in sides if "error" in found]
    missing = sorted({package for entry in entries.values() for package in entry["causes"]["missing"]})
    if missing:
        errors.append(f"{EAGER} beside it needs {', '.join(missing)}: pip install 'dermjax[parity]'")
    told = f"Medians. The rate is that of products of matrices, {rate / 1e9:.0f} GFLOP/s." if rate else "Medians."
    return "\n".join([*lines, "", told, *errors]) + "\n"


def _row(name: str, entry: Mapping, rate: float, compiled: bool) -> list[str]:
    shown = [side for side in (OURS, EAGER) if side in entry["sides"]]
    sides = [entry["sides"][side] for side in shown]
    peaks = [max((each["peak"] for each in side.get("rounds", ())), default=0) for side in sides]
    work = sides[0].get("operations", 0.0) / entry["count"]
    others = (EAGER, COMPILED)[: 1 + compiled]
    beside = [(_time(seconds(entry, side)), _number(ratio(entry, side))) for side in others]
    return [
        f"{name}, one {entry['unit']}",
        _time(seconds(entry, OURS)),
        *(cell for pair in beside for cell in pair),
        ", ".join(_time(side.get("first")) for side in sides),
        ", ".join(format_bytes(peak) if peak else "-" for peak in peaks),
        _number(ratio(entry, EAGER, "peak")),
        ", ".join(_share(work, seconds(entry, side), rate) for side in shown),
    ]


def _time(value: float | None) -> str:
    if not value:
        return "-"
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(work: float, spent: float | None, rate: float) -> str:
    return f"{work / spent / rate:.0%}" if work and spent and rate else "-"
