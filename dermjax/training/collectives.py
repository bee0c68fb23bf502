"""The collectives of a compiled program, by XLA's text of it: what the devices of a mesh send each other in one call.

A collective within a loop counts as often as the loop turns; XLA writes the number beside a loop whose length it knows.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{")
OPERATION = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)"
)
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
GROUPS = re.compile(r"replica_groups=(?:\[(\d+(?:,\d+)*)\]<=|\{\{([\d,]+)\})")
AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")  # mesh['data'=4,'fsdp'=2] {'fsdp'}
PARTITIONS = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind: their number, the bytes of the arrays, and the bytes that a device sends.

    The array is what every device holds in the end; of a reduce-scatter, what every device gives.
    """

    number: int = 0
    size: float = 0.0
    sent: float = 0.0

    def __add__(self, other: "Collective") -> "Collective":
        return Collective(self.number + other.number, self.size + other.size, self.sent + other.sent)


def around_ring(kind: str, number: int, size: float, devices: int) -> Collective:
    """Returns `number` collectives of arrays of `size` bytes each, sent around a ring of devices.

    Of n devices each sends (n - 1) / n of the array, twice that for an all-reduce (Patarasu and Yuan 2009), and all of
    it for a permutation.
    """
    share = {"all-reduce": 2 * (1 - 1 / devices), "collective-permute": 1.0}.get(kind, 1 - 1 / devices)
    return Collective(number, number * size, number * size * share)


def collectives(text: str) -> dict[str, Collective]:
    """Returns {kind: its collectives} of one device in one call of a program, from its text as XLA prints it."""
    everyone = math.prod(map(int, PARTITIONS.findall(text.partition("\n")[0])))
    bodies, entry = _computations(text)
    calls = _calls(bodies, entry)
    totals: dict[str, Collective] = {}
    for name, lines in bodies.items():
        for line in lines if calls[name] else ():
            if found := OPERATION.search(line):
                each = around_ring(found[2], calls[name], *_size(line, found, everyone))
                totals[found[2]] = totals.get(found[2], Collective()) + each
    return {kind: totals[kind] for kind in KINDS if kind in totals}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the name of the first one to run."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (found := COMPUTATION.match(line)):
            name = found[1]
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _calls(bodies: dict[str, list[str]], entry: str) -> Counter:
    """Returns how often each computation runs in one call of the program."""
    edges = defaultdict(Counter)
    for name, lines in bodies.items():
        for line in lines:
            turns = TURNS.search(line)
            for called in CALLED.findall(line):
                for each in called.strip("{}").split(","):
                    edges[name][each.strip().lstrip("%")] += int(turns[1]) if turns else 1
    calls = Counter({entry: 1})
    # XLA prints what is called before what calls it
    for name in reversed(bodies):
        for called, times in edges[name].items():
            calls[called] += calls[name] * times
    return calls


def _size(line: str, found: re.Match, everyone: int) -> tuple[float, int]:
    """Returns the bytes of a collective's array and the number of devices that share in it."""
    shape, kind, begins = found[1], found[2], bool(found[3])
    groups, axes = GROUPS.search(line), AXES.search(line)
    devices = everyone
    if axes:
        sides = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        devices = math.prod(int(sides[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    elif groups:
        devices = int(groups[1].split(",")[-1]) if groups[1] else groups[2].count(",") + 1
    size = sum(
        math.prod(map(int, filter(None, sides.split(",")))) * int(bits or 8) / 8
        for _, bits, sides in ARRAY.findall(shape)
    )
    if kind == "all-gather" and begins:  # its shape is what it takes and what it gives
        size *= devices / (devices + 1)
    elif kind == "collective-permute" and begins:
        size /= 2
    elif kind == "reduce-scatter":
        size *= devices
    return size, devices
