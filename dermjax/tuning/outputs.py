"""What a tuning run leaves: the model with what it learnt, the LoRA and the words by themselves, at last a card."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dermjax import sharding
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest, Record
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.run_folder import write_atomically
from dermjax.tuning import trainable
from dermjax.weights import diffusers, lora, model_files, textual_inversion
from dermjax.weights.textual_inversion import Embedding

CARD = "README.md"
LEFT = ("checkpoints", CARD)  # by which it is known that a run has begun
DTYPES = {name: jnp.dtype(name) for name in ("float16", "bfloat16", "float32")}  # of the model's files
MODEL, LORA, KOHYA, WORDS = "model", "lora.safetensors", "lora_kohya.safetensors", "words"


def finished(workdir: Path, settings: str) -> bool:
    """Returns whether a run of these settings, as the card shows them, has left all that it leaves."""
    return (workdir / CARD).exists() and settings in (workdir / CARD).read_text()


def complete(params: Params, assembled: Callable[[dict, dict], Params], grid: Mesh) -> Callable[[dict, dict], Params]:
    """Returns the function (trained, constants) -> the parameters of the whole model, for sampling on the devices.

    Networks that no step needs are read anew each time.
    """
    join = jax.jit(assembled)

    def whole(trained: dict, constants: dict) -> Params:
        joined = join(trained, constants)
        unused = {name: each for name, each in params.items() if name not in joined}
        return joined | model_files.place(unused, sharding.replicated(grid))

    return whole


def write(
    workdir: Path,
    sd: StableDiffusion,
    params: Params,
    trained: dict,
    words: list[Embedding],
    *,
    alpha: float,
    model: bool,
    dtype,
    grid: Mesh,
) -> None:
    """Writes model/ (if asked), both forms of the LoRA and words/ from what was trained; the first process does.

    diffusers and PEFT read lora.safetensors, ComfyUI and AUTOMATIC1111's program lora_kohya.safetensors.
    The LoRA is merged into the float32 parameters of the file, each when it is written, not into what training kept.
    """
    gathered = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(grid))(trained)
    if jax.process_index() == 0:
        trained = jax.tree.map(np.asarray, gathered)
        if "lora" in trained:
            adapters = lora.uniform(trained["lora"], alpha)
            lora.write_peft(workdir / LORA, adapters, dtype=np.float32)
            lora.write_kohya(workdir / KOHYA, adapters, dtype=np.float32)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            whole = params | trainable.assembled(trained, {"networks": params}, alpha)
            rows = np.asarray(trainable.table(whole))[-sum(len(word.vectors) for word in words) :]
            for word in words:
                (workdir / WORDS).mkdir(exist_ok=True)
                vectors, rows = np.split(rows, [len(word.vectors)])
                path = workdir / WORDS / f"{word.token.strip('<>')}.safetensors"
                textual_inversion.write(path, Embedding(word.token, vectors))
            if model:
                diffusers.write(workdir / MODEL, sd, whole, dtype=dtype)
    multihost_utils.sync_global_devices("dermjax: model written")


def note(workdir: Path, sources: list[tuple[Manifest, Record]], model: str) -> None:
    """Writes what the model was shown, and what its base had seen, for audits of the images that it will make."""
    if jax.process_index() == 0:
        training_images.write(workdir, sources, [Path(model)])


def finish(workdir: Path, card: str, pictures: list[Path]) -> None:
    """Writes the card, into the model's folder too with the pictures that it shows, and so ends the run."""
    if jax.process_index() == 0:
        if (workdir / MODEL).exists():
            for picture in pictures:
                copy = workdir / MODEL / picture.relative_to(workdir)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(picture, copy)
            write_atomically(workdir / MODEL / CARD, card)
        write_atomically(workdir / CARD, card)
