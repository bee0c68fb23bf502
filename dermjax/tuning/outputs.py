"""What a tuning run leaves: the tuned model, the LoRA and the words by themselves, at last a model card.

The card says what the model was made of, how, what it is for and what it is not for: Markdown under the YAML head that
model hubs read.
"""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dermjax import buckets, sharding
from dermjax.page import fill
from dermjax.run_folder import write_atomically
from dermjax.training import writers
from dermjax.tuning import report, task, trainable
from dermjax.tuning.concepts import Concepts
from dermjax.tuning.latents import word_file
from dermjax.tuning.setup import Setup
from dermjax.tuning.trainable import Tree
from dermjax.weights import diffusers, lora, model_files, textual_inversion
from dermjax.weights.textual_inversion import Embedding

CARD, TEMPLATE = "README.md", Path(__file__).with_name("card.md.jinja")
LEFT = ("checkpoints", CARD)  # by which it is known that a run has begun
MODEL, LORA, KOHYA, WORDS, VAE = "model", "lora.safetensors", "lora_kohya.safetensors", "words", "vae"
DTYPES = {name: jnp.dtype(name) for name in ("float16", "bfloat16", "float32")}  # of the model's and the LoRA's files


def is_finished(workdir: Path, config: ConfigDict) -> bool:
    """Returns whether a run of this config, as the card shows it, has left all that it leaves."""
    path = workdir / CARD
    return path.exists() and _settings(config) in path.read_text()


def write(
    workdir: Path, setup: Setup, trained: Tree, *, alpha: float, model: bool, vae: bool, dtype: jnp.dtype
) -> None:
    """Writes model/ (if `model`), both forms of the LoRA and words/ from what was trained; the first process does.

    A tuned autoencoder (`vae`) is in vae/ where there is no model/.

    diffusers and PEFT read lora.safetensors, ComfyUI and AUTOMATIC1111's program lora_kohya.safetensors.
    The LoRA is merged into the float32 parameters of the file, each when it is written, not into what training kept.
    """
    trained = sharding.gathered(trained, setup.grid)
    if jax.process_index() == 0:
        trained = jax.tree.map(np.asarray, trained)
        if "lora" in trained:
            adapters = lora.uniform(trained["lora"], alpha)
            lora.write_peft(workdir / LORA, adapters, dtype=dtype)
            lora.write_kohya(workdir / KOHYA, adapters, dtype=dtype)
        with sharding.in_host_memory():
            params = setup.params | setup.assemble(trained, {"networks": setup.params})
            rows = np.asarray(trainable.token_table(params))[-sum(len(word.vectors) for word in setup.prompts.words) :]
            for word in setup.prompts.words:
                (workdir / WORDS).mkdir(exist_ok=True)
                vectors, rows = np.split(rows, [len(word.vectors)])
                path = workdir / WORDS / word_file(word.token)
                textual_inversion.write(path, Embedding(word.token, vectors))
            if vae and not model:
                diffusers.write_vae(workdir / VAE, setup.sd, params["vae"], dtype=dtype)
            if model:
                diffusers.write(workdir / MODEL, setup.sd, params, dtype=dtype)
    multihost_utils.sync_global_devices("dermjax: model written")


def finish(workdir: Path, config: ConfigDict, training: Concepts, validation: Concepts, base: str) -> None:
    """Writes the card, into the model's folder too with the images that it shows, and so ends the run.

    base: the digest of the base model.
    """
    if jax.process_index() != 0:
        return
    tuned, held_out = report.counts(training), report.counts(validation)
    grids = [path.relative_to(workdir) for path in list(task.sample_grids(workdir).values())[-1:]]
    card = fill(
        TEMPLATE,
        {},
        model=buckets.as_given(config.model),
        title=" and ".join(sorted(tuned)),
        origin=base,
        counts={label: (tuned[label], held_out[label]) for label in sorted(tuned)},
        class_images=len(training.sources) - len(training.instances),
        digest=hashlib.sha256("".join(record.sha256 for _, record in training.sources).encode()).hexdigest(),
        licences=", ".join(sorted({record.licence or "not stated" for _, record in training.instances})),
        verdict=report.verdict(writers.read(workdir / "metrics.jsonl")),
        curves=report.CURVES,
        grids=grids,
        prompts=sorted(set(training.prompts)),
        config=_settings(config),
        use=usage(workdir, config.model, min(training.prompts)),
    )
    if (workdir / MODEL).exists():
        for figure in (Path(report.CURVES), *grids):
            (workdir / MODEL / figure).parent.mkdir(exist_ok=True)
            shutil.copyfile(workdir / figure, workdir / MODEL / figure)
        write_atomically(workdir / MODEL / CARD, card + "\n")
    write_atomically(workdir / CARD, card + "\n")


def usage(workdir: Path, base: str, prompt: str) -> str:
    """Returns the lines of Python that make an image in diffusers: of the model, or of its base with what it learnt."""

    def quote(text: str | Path) -> str:
        return json.dumps(buckets.as_given(str(text)), ensure_ascii=False)

    lines = ["from diffusers import StableDiffusionPipeline", ""]
    if (workdir / MODEL).exists():
        lines += [f"pipeline = StableDiffusionPipeline.from_pretrained({quote(workdir / MODEL)})"]
    else:
        path = model_files.locate(base)
        load = "from_single_file" if path.is_file() else "from_pretrained"
        lines += [f"pipeline = StableDiffusionPipeline.{load}({quote(path)})"]
        if (workdir / VAE).exists():
            lines[0] = "from diffusers import AutoencoderKL, StableDiffusionPipeline"
            lines += [f"pipeline.vae = AutoencoderKL.from_pretrained({quote(workdir / VAE)})"]
        if (workdir / LORA).exists():
            lines += [f"pipeline.load_lora_weights({quote(workdir / LORA)})"]
        for word in sorted((workdir / WORDS).glob("*.safetensors")):
            lines += [f"pipeline.load_textual_inversion({quote(word)})"]
    return "\n".join([*lines, f"image = pipeline({quote(prompt)}).images[0]"])


def _settings(config: ConfigDict) -> str:
    """Returns the config as the card shows it, by which a run recognises its card."""
    return json.dumps(buckets.as_given(config.to_dict()), indent=2, sort_keys=True)
