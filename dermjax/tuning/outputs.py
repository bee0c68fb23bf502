"""What a tuning run leaves: the tuned model, the LoRA and the words by themselves, at last a card."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.run_folder import write_atomically
from dermjax.tuning import card, trainable
from dermjax.tuning.card import KOHYA, LORA, MODEL, WORDS
from dermjax.tuning.trainable import Tree
from dermjax.tuning.work import Work
from dermjax.weights import diffusers, lora, textual_inversion
from dermjax.weights.textual_inversion import Embedding

LEFT = ("checkpoints", card.FILE)  # by which it is known that a run has begun
DTYPES = {name: jnp.dtype(name) for name in ("float16", "bfloat16", "float32")}  # of the model's files


def is_finished(workdir: Path, config: ConfigDict) -> bool:
    """Returns whether a run of this config, as the card shows it, has left all that it leaves."""
    path = workdir / card.FILE
    return path.exists() and card.settings(config) in path.read_text()


def write(workdir: Path, todo: Work, trained: Tree, *, alpha: float, model: bool, dtype: jnp.dtype) -> None:
    """Writes model/ (if `model`), both forms of the LoRA and words/ from what was trained; the first process does.

    diffusers and PEFT read lora.safetensors, ComfyUI and AUTOMATIC1111's program lora_kohya.safetensors.
    The LoRA is merged into the float32 parameters of the file, each when it is written, not into what training kept.
    """
    trained = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(todo.grid))(trained)
    if jax.process_index() == 0:
        trained = jax.tree.map(np.asarray, trained)
        if "lora" in trained:
            adapters = lora.uniform(trained["lora"], alpha)
            lora.write_peft(workdir / LORA, adapters, dtype=np.float32)
            lora.write_kohya(workdir / KOHYA, adapters, dtype=np.float32)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            params = todo.params | todo.assemble(trained, {"networks": todo.params})
            rows = np.asarray(trainable.token_table(params))[-sum(len(word.vectors) for word in todo.words) :]
            for word in todo.words:
                (workdir / WORDS).mkdir(exist_ok=True)
                vectors, rows = np.split(rows, [len(word.vectors)])
                path = workdir / WORDS / f"{word.token.strip('<>')}.safetensors"
                textual_inversion.write(path, Embedding(word.token, vectors))
            if model:
                diffusers.write(workdir / MODEL, todo.sd, params, dtype=dtype)
    multihost_utils.sync_global_devices("dermjax: model written")


def finish(workdir: Path, text: str) -> None:
    """Writes the card, into the model's folder too with the images that it shows, and so ends the run."""
    if jax.process_index() == 0:
        if (workdir / MODEL).exists():
            for figure in card.figures(workdir):
                copy = workdir / MODEL / figure.relative_to(workdir)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(figure, copy)
            write_atomically(workdir / MODEL / card.FILE, text)
        write_atomically(workdir / card.FILE, text)
