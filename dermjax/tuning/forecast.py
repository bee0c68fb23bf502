"""What a run of `tune` would be like on a slice of chips: whether it fits, and how fast and how long it is at best.

The needs of a step (`needs`) against what makers publish of a chip (`training.roofline`): a bound, no measurement.
"""

from dataclasses import asdict, dataclass
from functools import cached_property

from ml_collections import ConfigDict

from dermjax import machine, sharding
from dermjax.progress import duration
from dermjax.training import roofline
from dermjax.training.roofline import Bound, Slice
from dermjax.tuning import needs
from dermjax.tuning.needs import Needs
from dermjax.tuning.setup import Setup

CHIPS = 1024  # that weak scaling is predicted to
# of a table; names are as wide as their column
HEADER = ("topology     ", "mesh    ", "batch", "parts", "peak   ", "fits", "sent   ")
HEADER += ("ms at least", "images/s at most", "MFU at most", "hours at least")


@dataclass(frozen=True)
class Forecast:
    """A run on a slice: its mesh (data, fsdp), batch in `accumulate` parts, the needs of a step and the bound of it.

    operations: floating-point operations of a step that the model asks for, on all devices, without those that
    rematerialisation does again; what MFU counts.
    """

    slice: Slice
    mesh: tuple[int, int]
    batch: int
    accumulate: int
    steps: int
    operations: float
    needs: Needs

    @property
    def fits(self) -> bool:
        """Whether a step finds room in a chip's memory."""
        return self.needs.fits and self.needs.peak <= self.slice.chip.memory

    def bound(self, chips: int = 0) -> Bound:
        """The bound of a step, or of one on so many chips that have as much to do each."""
        each = self.needs
        return roofline.bound(self.slice, each.operations, each.traffic, each.collectives, chips)

    @cached_property
    def figures(self) -> dict[str, float]:
        """What follows from the bound: images a second and MFU at most, hours of the run at least."""
        seconds = self.bound().overlapped
        peak = self.slice.size * self.slice.chip.peak
        return {
            "images_per_second": self.batch / seconds,
            "mfu": self.operations / peak / seconds,
            "hours": self.steps * seconds / 3600,
        }

    def scaling(self) -> dict[int, tuple[float, float]]:
        """Returns {chips: (least, most)}: images a second and chip as a share of those of a chip alone.

        Each chip has as many images (weak scaling). The least is without anything computed while chips send.
        """
        alone = max(self.bound().operations, self.bound().traffic)
        numbers = [each.size for each in roofline.slices(self.slice.name) if self.slice.size <= each.size <= CHIPS]
        numbers += [2 * numbers[-1] << power for power in range(10) if 2 * numbers[-1] << power <= CHIPS]
        return {n: (alone / self.bound(n).serial, alone / self.bound(n).overlapped) for n in numbers}


def forecast(setup: Setup, config: ConfigDict, where: Slice, step: Needs) -> Forecast:
    """Returns the forecast of a run whose step has these needs."""
    mesh = (setup.grid.shape["data"], setup.grid.shape["fsdp"])
    operations = needs.rounds(setup, again=False) * needs.forward_operations(setup, config)
    return Forecast(where, mesh, config.batch, config.accumulate, config.steps, operations, step)


def here(setup: Setup, config: ConfigDict) -> str:
    """Returns what a step needs of this machine's devices, and where their chip is known the whole forecast.

    On a CPU it follows from shapes, and says nothing of time.
    """
    grid = setup.grid
    devices = list(grid.devices.flat)
    step = (needs.by_shapes if sharding.platform(grid) == "cpu" else needs.compiled)(setup, config)
    name = roofline.name_of(devices[0].device_kind)
    if not name:
        heading = f"a step on each of {grid.size} devices, by {step.by}"
        return "\n".join([heading, *memory_lines(step), *(work_lines(step) if step.fits else [])])
    sides = (len(devices),)
    if roofline.CHIPS[name].ring:
        axes = len(roofline.slices(name)[0].sides)
        sides = tuple(len({device.coords[axis] for device in devices}) for axis in range(axes))
    return describe(forecast(setup, config, Slice(name, sides), step))


def describe(each: Forecast) -> str:
    """Returns a forecast for people, a figure a line."""
    step = each.needs
    data, fsdp = each.mesh
    parts = f" in {each.accumulate} parts" if each.accumulate > 1 else ""
    lines = [
        f"{each.slice}: {each.slice.size} chips, mesh {data} x {fsdp}, batch {each.batch}{parts}; by {step.by}",
        *memory_lines(step),
        f"  peak          {machine.format_bytes(step.peak)} of {machine.format_bytes(each.slice.chip.memory)}: "
        + ("it fits" if each.fits else "no room"),
    ]
    if not step.fits:
        return "\n".join(lines)
    bound, figures = each.bound(), each.figures
    times = {"operations": bound.operations, "memory": bound.traffic, "links": bound.links}
    longest = max(times, key=times.get)
    shown = ", ".join(f"{name} {1000 * seconds:.3g}" for name, seconds in times.items())
    lines += [
        *work_lines(step),
        f"  a step        {shown} ms: {longest} bind, {1000 * bound.overlapped:.3g} ms at least, "
        f"{1000 * bound.serial:.3g} where nothing hides what is sent"
        + (f", {1000 * step.estimate:.3g} by the compiler's own estimate" if step.estimate else ""),
        f"  at most       {figures['images_per_second']:.3g} images/s, MFU {figures['mfu']:.2f}",
        f"  the run       {each.steps} steps, at least {duration(3600 * figures['hours'])}",
    ]
    if each.slice.size > 1:
        ratios = ", ".join(f"{n} {least:.2f} to {most:.2f}" for n, (least, most) in each.scaling().items())
        lines.append(f"  more chips    {ratios} of a chip's speed alone, with as many images a chip")
    return "\n".join(lines)


def memory_lines(step: Needs) -> list[str]:
    """Returns the lines of what a device holds."""
    held = {"parameters": step.parameters, "optimiser": step.optimizer, "average": step.average}
    return [
        f"  {name:13} {machine.format_bytes(size)}" for name, size in (held | {"activations": step.activations}).items()
    ]


def work_lines(step: Needs) -> list[str]:
    """Returns the lines of what a device does in a step."""
    sent = [
        f"{each.number} {kind} of {machine.format_bytes(each.size)}, {machine.format_bytes(each.sent)} sent"
        for kind, each in step.collectives.items()
    ]
    traffic = machine.format_bytes(step.traffic)
    return [
        f"  operations    {step.operations / 1e12:.4g} TFLOP, {traffic} read and written",
        f"  collectives   {'; '.join(sent) or 'none'}",
    ]


def row(each: Forecast) -> str:
    """Returns a forecast as a line of a table under HEADER."""
    step, (data, fsdp) = each.needs, each.mesh
    cells = [
        str(each.slice),
        f"{data} x {fsdp}",
        str(each.batch),
        str(each.accumulate),
        machine.format_bytes(step.peak),
    ]
    cells.append("yes" if each.fits else "no")
    if step.fits:
        figures = each.figures
        cells.append(machine.format_bytes(sum(kind.sent for kind in step.collectives.values())))
        cells += [f"{1000 * each.bound().overlapped:.3g}", f"{figures['images_per_second']:.3g}"]
        cells += [f"{figures['mfu']:.2f}", f"{figures['hours']:.3g}"]
    return "  ".join(cell.ljust(len(name)) for cell, name in zip(cells, HEADER, strict=False)).rstrip()


def record(each: Forecast) -> dict:
    """Returns a forecast as JSON takes it; seconds of a step are those at least."""
    entry = asdict(each) | {"slice": str(each.slice), "chips": each.slice.size, "memory": each.slice.chip.memory}
    entry["needs"]["peak"] = each.needs.peak
    if each.needs.fits:
        entry |= {"bound": asdict(each.bound()), **each.figures}
        if each.slice.size > 1:
            entry["scaling"] = {str(n): {"least": least, "most": most} for n, (least, most) in each.scaling().items()}
    return entry
