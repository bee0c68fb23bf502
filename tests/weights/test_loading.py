"""What loading a published model costs in memory; how long it takes beside diffusers is a case of `dermjax bench`.

A random SD 1.5 folder of 2.1 GB in half precision is written and read in a process of its own, with `--slow`; the path
of a tensor alone, file to parameter, is measured always.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dermjax.bench.ours import write_random
from dermjax.models.stable_diffusion import SD15, StableDiffusion, count
from dermjax.weights import diffusers, safetensors
from dermjax.weights.safetensors import LazyTensor

MEASURE = """
import json, sys, time
from pathlib import Path
{imports}
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, start, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
model = {load}
seconds, processor = time.perf_counter() - start, time.process_time() - busy
print(json.dumps({{"seconds": seconds, "processor": processor, "peak": memory("VmHWM") - before}}))
"""
OURS = "import numpy as np; from dermjax.weights import diffusers; from dermjax.models import stable_diffusion"
LARGEST = 49408 * 768  # the token table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as diffusers writes SD 1.5, with random weights of half precision."""
    folder = tmp_path_factory.mktemp("sd15") / "model"
    write_random(folder)
    return folder


def measured(imports: str, load: str) -> dict:
    """Seconds and peak memory in bytes of one call in a process of its own, imports left out."""
    script = MEASURE.format(imports=imports, load=load)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensors_stream_one_by_one(tmp_path):
    """Twelve kernels of 8 MiB, transposed and cast on their way: beside the parameters there is never more than one."""
    shape, mebibyte = (1024, 512, 2, 4), 2**20
    kernel = LazyTensor(shape, np.dtype(np.float16), lambda: np.ones(shape, np.float16))
    safetensors.write(tmp_path / "x.safetensors", {f"conv{i}.weight": kernel for i in range(12)}, {})
    found = measured(
        "import numpy as np; from types import SimpleNamespace as Shape; from dermjax.weights import torch_layout; "
        "from dermjax.weights.tensor_files import open_file",
        f"torch_layout.from_torch({{f'conv{{i}}': {{'kernel': Shape(shape=(2, 4, 512, 1024))}} for i in range(12)}}, "
        f"open_file(Path({str(tmp_path / 'x.safetensors')!r}))[0], 'x', dtype=np.float32)",
    )
    parameters = 12 * 16 * mebibyte
    assert parameters <= found["peak"] <= parameters + 8 * mebibyte + 4 * mebibyte  # and the interpreter's own


def test_tensors_stream_to_their_type_and_sharding(tmp_path):
    """The same to half of each kernel on either of two devices, in bfloat16; the runtime has its own 24 MiB."""
    shape, mebibyte = (1024, 512, 2, 4), 2**20
    kernel = LazyTensor(shape, np.dtype(np.float16), lambda: np.ones(shape, np.float16))
    safetensors.write(tmp_path / "x.safetensors", {f"conv{i}.weight": kernel for i in range(12)}, {})
    found = measured(
        "import jax, jax.numpy as jnp; from types import SimpleNamespace as Shape; "
        "from dermjax.weights import torch_layout; from dermjax.weights.tensor_files import open_file; "
        "jax.config.update('jax_num_cpu_devices', 2); mesh = jax.make_mesh((2,), ('fsdp',)); "
        "home = jax.NamedSharding(mesh, jax.P(None, None, None, 'fsdp')); "
        "place = lambda path, array: jax.block_until_ready(jax.device_put(array, home))",
        f"torch_layout.from_torch({{f'conv{{i}}': {{'kernel': Shape(shape=(2, 4, 512, 1024))}} for i in range(12)}}, "
        f"open_file(Path({str(tmp_path / 'x.safetensors')!r}))[0], 'x', dtype=jnp.bfloat16, place=place)",
    )
    parameters = 12 * 8 * mebibyte
    assert parameters <= found["peak"] <= parameters + 2 * 8 * mebibyte + 24 * mebibyte


@pytest.mark.slow
@pytest.mark.parametrize("kind, width", [("float16", 2), ("float32", 4)])
def test_memory_beside_the_parameters_is_that_of_the_largest_tensor(folder, capsys, kind, width):
    found = measured(OURS, f"diffusers.read(Path({str(folder)!r}), params_dtype=np.{kind})")
    sd = StableDiffusion(SD15, Path(), np.float32)
    extra = found["peak"] - width * sum(count(sd.shapes[name]) for name in diffusers.FILES)
    with capsys.disabled():
        print(f"\n{kind}: {found['seconds']:.1f} s, {extra / 2**20:.0f} MiB beside the parameters")
    # one tensor as it is in the file, and what the shapes of the networks take
    assert extra <= LARGEST * 2 + 64 * 2**20
