"""The same seed gives the same losses however a run is divided: over devices, over processes, in parts, in shards."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from dermjax import sharding
from dermjax.data import records
from dermjax.training import writers
from dermjax.tuning import latents
from dermjax.weights import diffusers

# the losses of six steps and of the held-out images before, between and after them
EVERY_STEP = {"log_every": 1, "watch_every": 3, "samples.images": 0, "schedule": "constant"}
TOLERANCE = 1e-5


def encoded(model, manifest, folder, mesh):
    """The moments and contexts of ten images and ten prompts, in batches of eight."""
    sd, params = diffusers.read(Path(model), dtype=np.float32)
    read = records.read(Path(manifest))
    sources = [(read, record) for record in read.records]
    said = latents.tokenize_prompts(
        sd, ["a benign mole", "a malignant mole", *(f"a mole of {word}" for word in "abcdefgh")], []
    )
    encoder = latents.Encoder(sd, params, 8, Path(folder), sharding.mesh(*mesh))
    return encoder.moments(sources, 32), encoder.contexts(said)


ENCODED = """
sys.path.insert(0, sys.argv[1])
import numpy as np, runpy
encoded = runpy.run_path(sys.argv[1] + '/test_devices.py')['encoded']
moments, contexts = encoded(sys.argv[2], sys.argv[3], sys.argv[4], (2, 2))
jax.process_index() or np.savez(sys.argv[4] + '/made.npz', moments=moments, contexts=contexts)
"""


@pytest.mark.parametrize("order", [[0, 2, 1, 3], pytest.param([3, 1, 0, 2], marks=pytest.mark.slow)], ids=str)
def test_latents_and_contexts_are_of_their_own_image_and_prompt(base, manifest, tmp_path, permuted, joined, order):
    """Two processes of two devices whose rows are 0, 1, 4, 5 and 2, 3, 6, 7, and the other way round."""
    moments, contexts = encoded(base, manifest, tmp_path / "one", (1, 1))
    (tmp_path / "two").mkdir()
    joined(permuted(order) + ENCODED, Path(__file__).parent, base, manifest, tmp_path / "two", devices=2)
    two = np.load(tmp_path / "two" / "made.npz")
    np.testing.assert_allclose(two["moments"], moments, rtol=1e-3, atol=1e-3)  # float16
    np.testing.assert_allclose(two["contexts"], contexts, rtol=1e-5, atol=1e-5)


DRAWN = """
import json
import numpy as np
from types import SimpleNamespace
from dermjax import sharding
from dermjax.sampling.requests import SamplerSettings
from dermjax.tuning import task

held = []

def drawn(params, tokens, negative, seeds, guidance):
    held.append(len(seeds.addressable_shards[0].data))
    pictures = lambda seeds, tokens, negative: (seeds[:, None] + tokens + negative + jax.numpy.arange(3)[None])
    return jax.jit(pictures)(seeds, tokens, negative)[:, None]

task.latent_diffusion, task.text_to_image = (lambda *_: None), (lambda *_: drawn)
prompts = SimpleNamespace(tokens=np.array([[100], [0]]), rows=lambda texts: np.zeros(len(texts), int))
samples = task.Samples(["a", "b"], 3, SamplerSettings(sampler="Euler", steps=2, guidance=5.0), 8, 16)
draw = task.drawing(None, lambda *_: {}, prompts, samples, sharding.mesh(0, 1))
images = draw(SimpleNamespace(smooth={}, step=0), {})
print(json.dumps([held, images[:, 0, 0].tolist()]))
"""


def test_each_device_draws_its_share_of_the_samples_and_no_more_than_are_asked_for(permuted, joined):
    """Six of a batch of sixteen, on four devices: two each, in any order of the devices."""
    for said in joined(permuted([0, 2, 1, 3]) + DRAWN, devices=2):
        assert json.loads(said.splitlines()[-1]) == [[2], [100, 101, 102, 103, 104, 105]]


def finish(processes):
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said


def losses(workdir):
    """{(step, name): value} of a run, all that it logged."""
    records = writers.read(workdir / "metrics.jsonl")
    return {(record["step"], name): record[name] for record in records for name in record if name != "step"}


def worst(one, other) -> float:
    assert one.keys() == other.keys() and len(one) > 12
    return max(abs(one[key] - other[key]) / abs(one[key]) for key in one if "loss" in key[1])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def plain(tune, tmp_path_factory):
    """The losses on one device."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    finish([tune(folder, **EVERY_STEP)])
    return losses(folder)


DIVISIONS = {  # devices of each process, processes, and changes of the config; the order of the devices
    "eight devices": (8, 1, {}),
    "four parts of two": (1, 1, {"accumulate": 4}),
    "four parts on two devices": (2, 1, {"accumulate": 4}),
    "four shards": (4, 1, {"mesh.fsdp": 4}),
    "two processes": (1, 2, {}),
    "two processes of two devices, two shards": (2, 2, {"mesh.fsdp": 2}),
    "two processes of two devices in turns": (2, 2, {}, [0, 2, 1, 3]),
    "two processes of two devices in turns, two shards": (2, 2, {"mesh.fsdp": 2}, [3, 1, 2, 0]),
}
COMMAND = "import sys; from dermjax import __main__ as m; sys.exit(m.main())"


@pytest.mark.slow
@pytest.mark.parametrize("division", DIVISIONS)
def test_a_divided_run_has_the_same_losses(tune, tmp_path, plain, permuted, division, capsys):
    devices, processes, changes, *order = DIVISIONS[division]
    program = ("-c", permuted(*order) + COMMAND) if order else ("-m", "dermjax")
    here = {"JAX_NUM_CPU_DEVICES": str(devices)}
    if processes > 1:
        here |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    own = [here | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {}) for index in range(processes)]
    finish([tune(tmp_path / "run", environment=each, program=program, **EVERY_STEP, **changes) for each in own])
    found = worst(plain, losses(tmp_path / "run"))
    with capsys.disabled():
        print(f"\n{division}: losses differ by {found:.1g} of themselves at most")
    assert found <= TOLERANCE


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_on_one_and_on_shards(tune, tmp_path, plain):
    run, eight = tmp_path / "run", {"JAX_NUM_CPU_DEVICES": "8"}
    finish([tune(run, environment=eight, **EVERY_STEP, steps=2)])
    finish([tune(run, "--allow_config_change", **EVERY_STEP, steps=4)])
    changes = EVERY_STEP | {"steps": 6, "mesh.fsdp": 4}
    finish([tune(run, "--allow_config_change", environment=eight, **changes)])
    resumed = {key: value for key, value in losses(run).items() if key in plain}
    assert resumed.keys() == plain.keys()
    assert max(abs(resumed[key] - plain[key]) / plain[key] for key in plain if "loss" in key[1]) <= TOLERANCE
