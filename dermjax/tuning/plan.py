"""`dermjax plan`: a config of `tune` and a slice of chips that nobody has paid for -> does it fit, how fast is it?

    dermjax plan --config=configs/tune.py:full --topology=v5e:4x4 --config.batch=128

config -> step by shapes -> the TPU's own compiler (libtpu, which needs no TPU) -> needs of a device -> forecast

No weights and no images are read, of a model's folder only its configs. GPUs have no compiler that works without them,
so theirs follow from shapes.
"""

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from dermjax import machine, run_folder, sharding
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SD15, StableDiffusion, count
from dermjax.progress import say
from dermjax.training import roofline
from dermjax.training.roofline import Slice
from dermjax.tuning import forecast, needs
from dermjax.tuning.forecast import Forecast
from dermjax.tuning.run import check_options
from dermjax.tuning.setup import arithmetic, shaped_setup
from dermjax.weights import model_files

FILE = "plan.json"
# libtpu asks neither a cloud nor this machine about its TPUs, and leaves them to whoever uses them
ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
SHARE_SWEPT = (0.5, 1, 2)  # of the batch


def run(config: ConfigDict, workdir: Path | None, topology: str, sweep: bool) -> None:
    """Prints the forecast of a config on a slice, and the smallest slice that it fits; workdir gets it as plan.json.

    With `sweep` it is a table of meshes and batches instead.

    Raises:
      UserError: no such slice, no compiler for it, or a mesh or a batch that does not divide over it.
    """
    where = roofline.parse(topology)
    config = config.copy_and_resolve_references()
    config.precision = config.precision or "bfloat16"  # the quickest there, which it is not here
    check_options(config)
    sd = described(config)
    if workdir:
        run_folder.make_folder(workdir)
    forecasts = []
    for each in swept(config, sd, where) if sweep else [alone(config, sd, where)]:
        forecasts.append(each)
        if workdir:
            content = json.dumps([forecast.record(each) for each in forecasts], indent=2)
            run_folder.write_atomically(workdir / FILE, content + "\n")
    say("bounds by published figures of the chips; nothing here was measured")


def alone(config: ConfigDict, sd: StableDiffusion, where: Slice) -> Forecast:
    """Returns, and prints, the forecast on a slice, with the smallest slice that has room."""
    found = planned(config, sd, where)
    say(forecast.describe(found))
    smallest, peak = smallest_that_fits(config, sd, found)
    if smallest == where:
        say(f"  smallest      {smallest}, this one")
    elif smallest:
        say(f"  smallest      {smallest}, by arithmetic about {machine.format_bytes(peak)} of each chip; "
            f"--topology={smallest} asks the same of it")  # fmt: skip
    else:
        other = "config.accumulate, config.remat = blocks or config.mesh.fsdp"
        say(f"  smallest      no slice of {where.name} has room for this batch; give {other}")
    return found


def swept(config: ConfigDict, sd: StableDiffusion, where: Slice) -> Iterator[Forecast]:
    """Yields, and prints as a table, forecasts of meshes and batches on a slice, those without room at their first."""
    say("  ".join(forecast.HEADER))
    for fsdp in sorted({1, 4, where.size}):
        for share in SHARE_SWEPT:
            changed = config.copy_and_resolve_references()
            changed.mesh.data, changed.mesh.fsdp, changed.batch = 0, fsdp, int(share * config.batch)
            try:
                each = planned(changed, sd, where)
            except UserError as error:
                say(f"{where}, fsdp {fsdp}, batch {changed.batch}: {error}")
                continue
            say(forecast.row(each))
            yield each
            if not each.fits:
                break


def planned(config: ConfigDict, sd: StableDiffusion, where: Slice) -> Forecast:
    """Returns the forecast of a config on a slice: by the compiler of a TPU, by shapes of a GPU."""
    setup = shaped_setup(config, sd, grid_of(config, where))
    say(f"plan: {where}, batch {config.batch}: {count(setup.shapes[0].params) / 1e6:.3g} M parameters are trained")
    find = needs.compiled if where.chip.ring else needs.by_shapes
    return forecast.forecast(setup, config, where, find(setup, config))


def smallest_that_fits(config: ConfigDict, sd: StableDiffusion, found: Forecast) -> tuple[Slice | None, float]:
    """Returns the smallest slice of the same chips that has room for the same batch and parts, and a chip's peak there.

    Another slice is not compiled, which takes as long again: a chip of it holds as much, and of what a step needs
    besides the gradients a share by its number of images.
    """
    gradients = 4 * count(shaped_setup(config, sd, grid_of(config, found.slice)).shapes[0].params) / found.mesh[1]
    held = found.needs.parameters + found.needs.optimizer + found.needs.average
    images = max(found.needs.activations - gradients, 0.0) * found.slice.size
    for where in roofline.slices(found.slice.name):
        peak = found.needs.peak if where == found.slice else held + gradients + images / where.size
        divides = not where.size % config.mesh.fsdp and not config.batch % (where.size * config.accumulate)
        if divides and (found.fits if where == found.slice else peak <= where.chip.memory):
            return where, peak
    return (found.slice, found.needs.peak) if found.fits else (None, 0.0)


def described(config: ConfigDict) -> StableDiffusion:
    """Returns the description of config.model, Stable Diffusion 1.5's where none is given."""
    if config.model:
        return model_files.describe(model_files.locate(config.model))
    say("plan: config.model is empty: planned for Stable Diffusion 1.5")
    return StableDiffusion(SD15, Path(), arithmetic(config))


def grid_of(config: ConfigDict, where: Slice) -> Mesh | AbstractMesh:
    """Returns the mesh of a config over all chips of a slice; GPUs have one without devices."""
    data, fsdp = config.mesh.data, config.mesh.fsdp
    if where.chip.ring:
        grid = sharding.mesh(data, fsdp, devices=tpus(where))
    else:
        grid = sharding.abstract_mesh(data, fsdp, where.size, where.chip.kind)
    if grid.size != where.size:
        raise UserError(f"mesh {grid.shape['data']} x {fsdp} does not divide {where} of {where.size} chips; "
                        "give config.mesh.data = 0 and a config.mesh.fsdp that does")  # fmt: skip
    return grid


def tpus(where: Slice) -> list[jax.Device]:
    """Returns the chips of a slice as the TPU compiler knows them."""
    if not (find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        raise UserError("the TPU compiler is not installed; pip install 'dermjax[plan]'")
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    host = [min(side, 2) for side in where.sides[:2]] + [1]  # chips of a host along each axis
    cores = {"chip_config_name": "megacore"} if where.name == "v4" else {}  # the two cores of a chip are one device
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=str(where), chips_per_host_bounds=host, **cores
        ).devices
    except RuntimeError as error:
        near = ", ".join(map(str, roofline.slices(where.name)))
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {where}: the TPU compiler refuses it ({reason}); give one of {near}") from error
