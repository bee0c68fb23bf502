"""Every preset of `tune`, and `generate` on what it leaves, at the size of Stable Diffusion 1.5: with `--slow`.

A random model folder of 2.1 GB, images of 256 px, two steps: killed once, gone on by the same command, loaded by
diffusers. Each says its seconds, its peak of memory and the bytes of a checkpoint. Where a machine has not the memory
the test is skipped by the estimate of the cost line, and the same preset runs at the same depth with narrow layers.
"""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dermjax.weights
from dermjax import machine
from dermjax.data import records
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest, Record
from dermjax.models.stable_diffusion import SD15, StableDiffusion
from dermjax.weights import diffusers, torch_layout
from dermjax.weights.safetensors import LazyTensor

# diffusers' code meets numpy 2 through torch
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]
CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = 256
PRESETS = {  # the images a step, and the gigabytes that it takes on a CPU, measured or by its estimate
    "paper": (2, 8),
    "lora": (1, 12),
    "full": (1, 22),
    "best": (1, 22),
}
NARROW = {
    "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "projection_dim": 32},
    "unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 32, "attention_head_dim": 4},
    "vae": {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4},
}


def written(folder: Path, changes: dict) -> Path:
    """A folder of SD 1.5's layers, `changes` apart, in half precision: its random weights keep a signal's size."""
    configs = copy.deepcopy(SD15)
    for name, change in changes.items():
        configs[name] |= change
    tokenizer = Path(dermjax.weights.__file__).parent / "clip_tokenizer"
    sd = StableDiffusion(configs, tokenizer, np.float32)
    rng = np.random.default_rng(0)

    def leaf(path: str, shape: tuple[int, ...]) -> LazyTensor:
        def read():
            kind = path.rpartition(".")[2]
            if kind not in ("kernel", "embedding"):
                return np.full(shape, kind == "scale", np.float16)
            spread = 0.02 if kind == "embedding" else np.prod(shape[:-1]) ** -0.5
            return (rng.standard_normal(shape, np.float32) * np.float32(spread)).astype(np.float16)

        return LazyTensor(shape, np.dtype(np.float16), read)

    params = {
        name: torch_layout.unflatten(
            {path: leaf(path, each.shape) for path, each in torch_layout.flatten(tree).items()}
        )
        for name, tree in sd.shapes.items()
    }
    diffusers.write(folder, sd, params, dtype=np.float16)
    return folder


@pytest.fixture(scope="session")
def sd15(tmp_path_factory):
    """The folder at its full width."""
    return written(tmp_path_factory.mktemp("sd15") / "model", {})


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """The folder at its full depth, with narrow layers."""
    return written(tmp_path_factory.mktemp("narrow") / "model", NARROW)


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """Two coloured squares a class, to tune on."""
    folder, entries = tmp_path_factory.mktemp("squares"), []
    for i in range(4):
        label = ("benign", "malignant")[i % 2]
        Image.fromarray(np.full((SIZE, SIZE, 3), (200, 60 * i, 20), np.uint8)).save(folder / f"{i}.png")
        entries.append(Record(image=f"{i}.png", sha256=sha256(folder / f"{i}.png"), label=label, split="train",
                              source="squares", image_manipulation="none"))  # fmt: skip
    records.write(folder / records.FILE, Manifest(labels=("benign", "malignant"), root=folder, records=tuple(entries)))
    return folder / records.FILE


def started(log: Path, stage: str, *flags: str) -> subprocess.Popen:
    """The command as its own process, on a CPU; all that it says goes to a file."""
    here = os.environ | {"JAX_PLATFORMS": "cpu"}
    with log.open("w") as out:
        command = [sys.executable, "-m", "dermjax", stage, *flags]
        return subprocess.Popen(command, env=here, stdout=out, stderr=subprocess.STDOUT)


def peak(process: subprocess.Popen) -> float:
    """The most gigabytes that a process has held so far, 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), default=0.0)


def watched(process: subprocess.Popen, until) -> float:
    """Waits until the process ends or `until()` is true; returns its peak of memory."""
    most = 0.0
    while process.poll() is None and not until():
        most = max(most, peak(process))
        time.sleep(0.05)
    return most


def tuned(preset: str, model: Path, manifest: Path, workdir: Path, batch: int) -> tuple[float, str]:
    """Tunes for two steps, killed once the first is saved; returns the peak of memory and what was said."""
    flags = [
        f"--config={CONFIGS / 'tune.py'}:{preset}", f"--workdir={workdir}", f"--config.model={model}",
        f"--config.manifest={manifest}", f"--config.size={SIZE}", f"--config.batch={batch}", "--config.steps=2",
        "--config.save_every=1", "--config.samples.images=1", "--config.samples.steps=1", "--config.warmup=1",
    ]  # fmt: skip
    log = workdir.with_suffix(".txt")
    first = started(log, "tune", *flags)
    most = watched(first, (workdir / "checkpoints" / "00000001").exists)
    assert first.poll() is None or (workdir / "checkpoints" / "00000001").exists(), log.read_text()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    again = started(log, "tune", *flags)
    most = max(most, watched(again, lambda: False))
    said = log.read_text()
    assert again.returncode == 0 and "resuming from" in said, said
    assert "larger than" not in said and "Traceback" not in said
    return most, said


def loaded(workdir: Path, preset: str, capsys) -> None:
    """Loads the model by diffusers, and the LoRA where there is one, and makes a picture of each."""
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(workdir / "model")
    pipe.set_progress_bar_config(disable=True)
    if (workdir / "lora.safetensors").exists():
        pipe.load_lora_weights(workdir / "lora.safetensors")
    assert (workdir / "lora.safetensors").exists() == (preset in ("paper", "lora"))
    made = pipe("benign mole", height=64, width=64, num_inference_steps=1, output_type="np").images
    assert np.isfinite(made).all() and made.std() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_tune_runs_at_full_size(preset, sd15, squares, tmp_path, capsys):
    batch, gigabytes = PRESETS[preset]
    if machine.free_memory() < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of memory")
    start = time.perf_counter()
    most, said = tuned(preset, sd15, squares, tmp_path / "tune", batch)
    seconds = time.perf_counter() - start
    newest = max((tmp_path / "tune" / "checkpoints").glob("[0-9]*"))
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    with capsys.disabled():
        promise = next(line for line in said.splitlines() if "of memory" in line)
        print(f"\n{preset}: {seconds:.0f} s, peak {most:.2f} GB, checkpoint {size / 1e9:.3f} GB; {promise}")
    loaded(tmp_path / "tune", preset, capsys)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_tune_runs_at_full_depth(preset, narrow, squares, tmp_path, capsys):
    tuned(preset, narrow, squares, tmp_path / "tune", batch=2)
    loaded(tmp_path / "tune", preset, capsys)


def test_the_default_of_generate_runs_at_full_size(sd15, tmp_path, capsys):
    """Two images of 256 px in four steps, as the paper asks for them otherwise; diffusers in float32 takes 6.0 GB."""
    start = time.perf_counter()
    process = started(
        tmp_path / "said.txt", "generate", f"--config={CONFIGS / 'generate.py'}", f"--workdir={tmp_path / 'made'}",
        f"--config.model={sd15}", "--config.size=256", "--config.plan.images_per_class=1", "--config.plan.steps=4",
        "--config.plan.samplers=('Euler',)",
    )  # fmt: skip
    most, said = watched(process, lambda: False), (tmp_path / "said.txt").read_text()
    assert process.returncode == 0, said
    with capsys.disabled():
        promise = next(line for line in said.splitlines() if "of memory" in line)
        print(f"\ngenerate: {time.perf_counter() - start:.0f} s, peak {most:.2f} GB; {promise}")
    assert most < 1.2 * 6.0
    assert [json.loads(line)["label"] for line in (tmp_path / "made" / records.FILE).read_text().splitlines()[1:]]


STUDIED = """
import runpy, sys
from pathlib import Path
from dermjax.study import generator
configs, model, manifest, workdir = sys.argv[1:]
get = lambda stage, variant=None: runpy.run_path(f"{configs}/{stage}.py")["get_config"](variant)
config = get("study")
config.tune, config.generate = get("tune", "paper"), get("generate", "paper")
config.tune.model, config.tune.size, config.tune.steps, config.tune.warmup = model, 256, 1, 1
config.tune.samples.images = 0
config.generate.size, config.generate.plan.steps, config.generate.plan.images_per_class = 256, 2, 1
made = generator.synthesise(config.lock(), Path(workdir), Path(manifest))
print(len(made.records), "images")
"""


def test_the_generator_of_a_study_is_made_at_full_size(sd15, squares, tmp_path, capsys):
    """The paper's tuning and the paper's images, one after the other in a process, as `study` makes them."""
    if machine.free_memory() < PRESETS["paper"][1] * 1e9:
        pytest.skip(f"needs {PRESETS['paper'][1]} GB of memory")
    log, command = tmp_path / "said.txt", [sys.executable, "-c", STUDIED, CONFIGS, sd15, squares, tmp_path / "study"]
    here = os.environ | {"JAX_PLATFORMS": "cpu"}
    with log.open("w") as out:
        process = subprocess.Popen(command, env=here, stdout=out, stderr=subprocess.STDOUT)
    most = watched(process, lambda: False)
    assert process.returncode == 0 and "2 images" in log.read_text(), log.read_text()
    with capsys.disabled():
        print(f"\nstudy: peak {most:.2f} GB")
