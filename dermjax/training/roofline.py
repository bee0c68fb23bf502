"""How fast a step can be at most on a chip, by what its makers publish: a bound (Williams et al. 2009), no measurement.

A step takes at least as long as its operations at the chip's peak, its traffic at the bandwidth of the chip's memory,
and what it sends at that of the links. Where all three go on at the same time the longest is the bound; where nothing
is computed while devices send, links add to the others.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dermjax.errors import UserError
from dermjax.training.collectives import Collective

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Published figures of a chip: operations a second in bfloat16, bytes of memory, and bytes a second.

    kind: what JAX calls the device, or how that begins. link: out of a chip in one direction, over one of the links to
    its neighbours on a TPU, over all of NVLink on a GPU. joined: the most chips that links join. network: out of a chip
    to those beyond. shapes: the slices that can be had, rising. ring: an axis of a TPU slice is closed to a ring where
    its length is a multiple of this; 0 for a GPU.
    """

    kind: str
    peak: float
    memory: float
    bandwidth: float
    link: float
    joined: int
    network: float
    shapes: tuple[str, ...]
    ring: int = 0


PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
NODES = tuple(str(2**power) for power in range(11))
# TPUs: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e; the bandwidth between chips is there that of both directions of
# all links, four on two axes or six on three. GPUs: NVIDIA's data sheets of the SXM forms, without sparsity, eight to a
# node, and a port of 200 (A100) or 400 Gb/s each, as in a DGX.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1200e9, 50e9, 4096, 6.25e9, CUBES, ring=4),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 50e9, 256, 3.125e9, PLANE, ring=16),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 100e9, 8960, 6.25e9, CUBES, ring=4),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 100e9, 256, 12.5e9, PLANE, ring=16),
    "a100": Chip("NVIDIA A100", 312e12, 80e9, 2039e9, 300e9, 8, 25e9, NODES),
    "h100": Chip("NVIDIA H100", 989e12, 80e9, 3350e9, 450e9, 8, 50e9, NODES),
    "h200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 450e9, 8, 50e9, NODES),
}


@dataclass(frozen=True)
class Slice:
    """Chips of one kind that work together: of a TPU so many along each axis, of a GPU their number."""

    name: str
    sides: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.sides))}"

    @property
    def chip(self) -> Chip:
        """The published figures of its chips."""
        return CHIPS[self.name]

    @property
    def size(self) -> int:
        """The number of its chips."""
        return math.prod(self.sides)

    @property
    def bandwidth(self) -> float:
        """The bytes a second that leave a chip with the fewest links.

        An axis that is closed to a ring gives every chip two links, another gives one to those at its ends. Of three
        axes all are closed, or none.
        """
        if not self.chip.ring:
            return self.chip.link
        closed = [side % self.chip.ring == 0 for side in self.sides]
        closed = [each and (all(closed) or len(closed) < 3) for each in closed]
        links = sum(1 + ring for side, ring in zip(self.sides, closed, strict=True) if side > 1)
        return self.chip.link * max(links, 1)


def parse(topology: str) -> Slice:
    """Returns the slice that a topology names: `v5e:4x4`, `v5p:2x2x2`, `h100:8`; what is none is a UserError."""
    name, _, sides = topology.partition(":")
    if name not in CHIPS:
        raise UserError(f"topology {topology!r}: chip {name!r} is unknown; there are {', '.join(CHIPS)}, as in v5e:4x4")
    shapes = CHIPS[name].shapes
    axes = shapes[0].count("x") + 1
    if not re.fullmatch("x".join([r"[1-9]\d*"] * axes), sides):
        raise UserError(f"topology {topology!r}: give a slice of {name} as one of {', '.join(shapes)}")
    found = Slice(name, tuple(map(int, sides.split("x"))))
    if found.chip.ring and found.size > found.chip.joined:
        raise UserError(f"topology {topology!r}: a slice of {name} has {found.chip.joined} chips at most")
    return found


def slices(name: str) -> list[Slice]:
    """Returns the slices of a chip that can be had, rising."""
    return [parse(f"{name}:{shape}") for shape in CHIPS[name].shapes]


def name_of(kind: str) -> str:
    """Returns the name in CHIPS of a device that JAX calls `kind`, "" where it is not there, or has another memory."""
    memory = {int(size) for size in re.findall(r"(\d+) ?gb", kind.lower())}
    known = [
        name
        for name, chip in CHIPS.items()
        if f"{kind} ".startswith((f"{chip.kind} ", f"{chip.kind}-")) and memory <= {round(chip.memory / 1e9)}
    ]
    return max(known, key=lambda name: len(CHIPS[name].kind), default="")


@dataclass(frozen=True)
class Bound:
    """The seconds that a step takes at least: for its operations, for its memory's traffic, for its collectives."""

    operations: float
    traffic: float
    links: float

    @property
    def overlapped(self) -> float:
        """The seconds of a step where all three go on at the same time."""
        return max(self.operations, self.traffic, self.links)

    @property
    def serial(self) -> float:
        """The seconds of a step where nothing is computed while devices send."""
        return max(self.operations, self.traffic) + self.links


def bound(
    where: Slice, operations: float, traffic: float, collectives: Mapping[str, Collective], chips: int = 0
) -> Bound:
    """Returns the bound of a step by what each device has to do: operations, bytes read and written, collectives.

    chips: with another number of chips, each of which has as much to do (weak scaling). Then all-reduces take place
    among all of them, in slices of `joined` chips first and then between these, and other collectives as before.
    """
    chip, chips = where.chip, chips or where.size
    inside, reduced = min(chips, chip.joined), collectives.get("all-reduce", Collective(0, 0.0, 0.0))
    other = sum(each.sent for kind, each in collectives.items() if kind != "all-reduce")
    sent = other + reduced.sent * ((1 - 1 / inside) / (1 - 1 / where.size) if where.size > 1 else 1.0)
    among = where if chips == where.size else min(slices(where.name), key=lambda each: abs(each.size - inside))
    between = 2 * (1 - inside / chips) * reduced.size / inside
    return Bound(operations / chip.peak, traffic / chip.bandwidth, sent / among.bandwidth + between / chip.network)
