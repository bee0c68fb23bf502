"""A random model folder and coloured squares to tune on, the same for every test of this folder, and configs of it."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dermjax import sharding
from dermjax.data import records, tokens
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest, Record
from dermjax.models.stable_diffusion import TINY, StableDiffusion
from dermjax.training import optimizers
from dermjax.training.state import State, create
from dermjax.training.step import compile_step
from dermjax.tuning import task, trainable
from dermjax.tuning.task import PLAIN
from dermjax.weights import diffusers

CONFIG = Path(__file__).parents[2] / "configs" / "tune.py"
CALLED = """
import json
from ml_collections import ConfigDict

def get_config():
    with open({!r}) as file:
        return ConfigDict(json.load(file))
"""


class TuningStep(NamedTuple):
    """The jitted step of tuning a network, its state and constants (as shapes, where parameters are), their places."""

    step: Callable
    state: State
    constants: dict
    places: State


@pytest.fixture(scope="session")
def tuning_step():
    """A function that makes a TuningStep: UNet tuned `how`, LoRA of rank 4 on attention as in the paper.

    `said` are the prompts' contexts, or their tokens where the text encoder is tuned too.
    """

    def made(sd, params, grid, *, how, optimizer, ema_decay, precision, said, text="frozen", rank=4,
             targets=("attention",)) -> TuningStep:  # fmt: skip
        divide = partial(trainable.divide, tuned={"unet": how, "text_encoder": text}, rank=rank, targets=targets,
                          seed=0, words=0, precision=precision)  # fmt: skip
        rule = optimizers.build(optimizer, rate=1e-4, warmup=0, steps=1000, schedule="constant", weight_decay=0.01,
                                clip=1.0)  # fmt: skip

        def begun(params):
            trained, frozen = divide(params)
            return create(trained, {}, rule, ema=ema_decay > 0), frozen

        shapes = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
        state, frozen = jax.eval_shape(begun, params) if shapes else begun(params)
        places = sharding.tree_shardings(state, sharding.RULES, grid)
        loss = task.dreambooth_loss(sd, partial(trainable.assemble, alpha=float(rank)), **PLAIN)
        large = sum(leaf.size for leaf in jax.tree.leaves(params)) > sharding.LARGE
        step = compile_step(loss, rule, ema_decay, 1, places, grid, large)
        return TuningStep(step, state, frozen | {"contexts" if text == "frozen" else "tokens": said}, places)

    return made


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random model folder of 32 px images: the architecture of derm-tiny with narrow layers."""
    folder = tmp_path_factory.mktemp("base")
    tokens.write_word_tokenizer(folder / "words", ["dermoscopy", "of", "a", "benign", "malignant", "mole"], 16)
    configs = json.loads(json.dumps(TINY))
    words = tokens.load_tokenizer(folder / "words")
    configs["text_encoder"] |= {"vocab_size": len(words), "max_position_embeddings": 16, "num_hidden_layers": 1,
                                "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}  # fmt: skip
    configs["unet"] |= {"block_out_channels": [32, 32], "sample_size": 4, "attention_head_dim": 2,
                        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
    configs["vae"] |= {"block_out_channels": [8, 8, 8, 8], "sample_size": 32}
    sd = StableDiffusion(configs, folder / "words", jnp.float32)
    diffusers.write(folder / "model", sd, sd.init(0), dtype=np.float32)
    return folder / "model"


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """Ten coloured squares, four a class to tune on and one held out."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for i in range(10):
        label = ("benign", "malignant")[i % 2]
        path = folder / f"{label}{i}.png"
        Image.fromarray(np.full((32, 32, 3), (200, 25 * i, 20), np.uint8)).save(path)
        split = "train" if i < 8 else "validation"
        entries.append(Record(image=path.name, sha256=sha256(path), label=label, split=split, source="squares",
                              image_manipulation="none"))  # fmt: skip
    records.write(folder / "manifest.jsonl", Manifest(labels=("benign", "malignant"), root=folder,
                                                      records=tuple(entries)))  # fmt: skip
    return folder / "manifest.jsonl"


@pytest.fixture(scope="session")
def config(base, manifest):
    """config(**changes): `tune`'s demo on these squares, six steps of eight; keys of changes may have dots."""

    def changed(**changes):
        asked = runpy.run_path(str(CONFIG))["get_config"]("demo")
        asked.model, asked.manifest, asked.size = str(base), str(manifest), 32
        asked.steps, asked.batch, asked.save_every, asked.log_every, asked.encode_batch = 6, 8, 2, 2, 8
        asked.watch_every, asked.samples.images, asked.samples.steps = 4, 1, 2
        asked.save_dtype = "float32"
        for key, value in changes.items():
            node, *path = asked, *key.split(".")
            for name in path[:-1]:
                node = node[name]
            node[path[-1]] = value
        return asked.lock()

    return changed


@pytest.fixture
def preserving(config, manifest, tmp_path):
    """preserving(**changes): a config with two of the squares as class images of prior preservation."""
    known = records.read(manifest)
    made = [replace(each, image_manipulation="synthetic", generation={"prompt": "a mole"}, licence="")
            for each in known.split("train")[:2]]  # fmt: skip
    records.write(tmp_path / "prior.jsonl", replace(known, records=tuple(made)))
    return lambda **changes: config(**{"concepts.prior": str(tmp_path / "prior.jsonl")} | changes)


@pytest.fixture(scope="module")
def tune(config, tmp_path_factory):
    """tune(workdir, flags, …): starts `dermjax tune` as a process of its own; they share compilations."""
    programs = tmp_path_factory.mktemp("programs")

    def start(workdir, *given, environment=None, before=None, program=("-m", "dermjax"), **changes):
        settings, file = workdir.with_suffix(".json"), workdir.with_suffix(".py")
        settings.write_text(json.dumps(config(**changes).to_dict()))
        file.write_text(CALLED.format(str(settings)))
        command = [sys.executable, *program, "tune", f"--config={file}", f"--workdir={workdir}", *given]
        here = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": str(programs)}
        return subprocess.Popen(command, env=os.environ | here | (environment or {}), stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, preexec_fn=before)  # fmt: skip

    return start
