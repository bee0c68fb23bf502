"""`dermjax pretrain`: phantoms -> autoencoder -> latents -> text encoder and UNet -> decoder -> a model folder.

Every part leaves files in the run folder and is skipped when they are complete, so a killed run goes on where it was.
Phantoms are made once, in chunks, by one process a core.
"""

import copy
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dermjax import config_file, machine, run_folder, sharding
from dermjax.data import pipelines, tokens
from dermjax.data.images import to_model
from dermjax.data.phantoms.captions import VOCABULARY
from dermjax.data.phantoms.painting import phantom
from dermjax.errors import UserError
from dermjax.models import vae
from dermjax.models.stable_diffusion import TINY, Params, StableDiffusion, count
from dermjax.pretraining import losses
from dermjax.progress import bar, cost
from dermjax.run_folder import write_atomically
from dermjax.training import optimizers
from dermjax.training.disk_cache import digest_of, load_or_compute
from dermjax.training.loop import Batches, LoopConfig, Task, fit
from dermjax.training.state import create
from dermjax.training.step import Loss
from dermjax.weights import diffusers

CHUNK = 500  # phantoms
DECODER = ("decoder", "post_quant_conv")


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains derm-tiny from nothing and leaves it in workdir/model."""
    check(config)
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    phases = [config.autoencoder[phase] for phase in config.autoencoder.phases]
    for part in (*phases, config.diffusion, config.decoder):
        sharding.check_batch(part.batch, 1, grid)
    sd = describe(workdir)
    params = sd.init(config.seed)
    cost("pretrain", devices=grid.size, parameters=count(params), phantoms=config.phantoms,
         autoencoder_steps=sum(phase.steps for phase in phases),
         diffusion_steps=config.diffusion.steps, decoder_steps=config.decoder.steps)  # fmt: skip
    images, captions = make_phantoms(workdir / "phantoms", config.phantoms, sd.size, config.first_seed)
    params = params | train_autoencoder(sd, params, images, config, workdir / "autoencoder")
    moments = encode(sd, params, images[: config.normalise_over], config.encode_batch)
    params = losses.normalise(params, jnp.asarray(moments))
    images, captions = images[: config.diffusion.images], captions[: config.diffusion.images]
    causes = {
        run_folder.NUMERIC_VERSIONS: {"vae": vae.NUMERIC_VERSION},
        "arithmetic": sharding.arithmetic(sd.dtype, grid),
        "vae": digest_of(jax.tree.leaves(params["vae"])),
        "images": digest_of([images]),
    }
    moments = load_or_compute(workdir, "moments", causes, lambda: encode(sd, params, images, config.encode_batch))
    params = params | train_diffusion(sd, params, moments, captions, config, workdir / "diffusion")
    params = params | train_decoder(sd, params, images, moments, config, workdir / "decoder")
    params = lengthen_unused_words(sd, params, captions)
    diffusers.write(workdir / "model", sd, params, dtype=np.float16)


def check(config: ConfigDict) -> None:
    """Raises UserError for numbers that no training can start from."""
    config_file.check(config)
    unknown = sorted(set(config.autoencoder.phases) - set(config.autoencoder))
    if unknown:
        raise UserError(f"config.autoencoder.phases: config.autoencoder has no {unknown[0]!r}")
    sd = StableDiffusion(TINY, Path(), jnp.float32)
    for phase in config.autoencoder.phases:
        size = config.autoencoder[phase].size
        if size % sd.factor or not 0 < size <= sd.size:
            raise UserError(f"config.autoencoder.{phase}.size = {size}: give a multiple of {sd.factor} up to {sd.size}")
    if not config.phantoms or not config.diffusion.images:
        raise UserError("config.phantoms and config.diffusion.images: give 1 or more of both")


def describe(workdir: Path) -> StableDiffusion:
    """Writes the tokenizer of the captions' words and returns derm-tiny's description with that vocabulary."""
    folder = workdir / "tokenizer"
    configs = copy.deepcopy(TINY)
    text = configs["text_encoder"]
    words = [word for word in VOCABULARY if word.isalpha()]  # the comma is one of CLIP's byte symbols already
    tokens.write_word_tokenizer(folder, words, text["max_position_embeddings"])
    tokenizer = tokens.load_tokenizer(folder)
    text |= {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id,
             "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    return StableDiffusion(configs, folder, jnp.float32)


def train(
    title: str, loss: Loss, params: Params, constants: Params, batches: Batches, phase: ConfigDict, config: ConfigDict,
    workdir: Path,
) -> Params:  # fmt: skip
    """Returns the average of the parameters after one phase of training."""
    optimizer = optimizers.build("adamw", rate=phase.rate, warmup=phase.warmup, steps=phase.steps, schedule="cosine",
                                 weight_decay=phase.get("weight_decay", 0.0), clip=1.0)  # fmt: skip
    loop_config = LoopConfig(seed=config.seed, steps=phase.steps, ema_decay=phase.ema_decay,
                             save_every=config.save_every, log_every=config.log_every)  # fmt: skip
    return fit(
        Task(title, loss, optimizer), create(params, {}, optimizer, ema=True), constants, batches, loop_config,
        mesh=sharding.mesh(config.mesh.data, config.mesh.fsdp), workdir=workdir,
    ).smooth  # fmt: skip


def shuffled(data: dict[str, np.ndarray], batch: int, config: ConfigDict) -> Batches:
    """Returns endless batches of the rows of arrays, of which this process makes those of its devices."""
    rows = sharding.local_rows(batch, sharding.mesh(config.mesh.data, config.mesh.fsdp))
    return pipelines.array_batches(data, batch=batch, seed=config.seed, rows=rows)


def train_autoencoder(
    sd: StableDiffusion, params: Params, images: np.ndarray, config: ConfigDict, workdir: Path
) -> Params:
    """Returns {"vae": …} trained phase by phase: crops give many updates, complete images are what it is for."""
    params = {"vae": params["vae"]}
    for name in config.autoencoder.phases:
        phase = config.autoencoder[name]
        batches = Crops(shuffled({"row": np.arange(len(images))}, phase.batch, config), images, phase.size)
        loss = losses.autoencoder_loss(sd, kl=phase.kl, **phase.weights)
        params = train(f"autoencoder, {name}", loss, params, {}, batches, phase, config,
                       workdir / name)  # fmt: skip
    return params


def train_diffusion(
    sd: StableDiffusion, params: Params, moments: np.ndarray, captions: list[str], config: ConfigDict, workdir: Path
) -> Params:
    """Returns {"text_encoder": …, "unet": …} trained together to denoise the phantoms' latents."""
    phase = config.diffusion
    texts = tokens.tokenize(tokens.load_tokenizer(sd.tokenizer, *sd.text_limits), [*captions, ""])
    loss = losses.diffusion_loss(sd, texts[-1:], timestep_bias=phase.timestep_bias,
                                 caption_dropout=phase.caption_dropout)  # fmt: skip
    batches = shuffled({"moments": moments, "tokens": texts[:-1]}, phase.batch, config)
    networks = {name: params[name] for name in ("text_encoder", "unet")}
    return train("diffusion", loss, networks, {}, batches, phase, config, workdir)


def train_decoder(
    sd: StableDiffusion, params: Params, images: np.ndarray, moments: np.ndarray, config: ConfigDict, workdir: Path
) -> Params:
    """Returns {"vae": …} with the decoder trained on, on the latents that the UNet knows."""
    phase, vae = config.decoder, params["vae"]
    decoder, encoder = ({name: vae[name] for name in vae if (name in DECODER) == half} for half in (True, False))
    data = {"row": np.arange(len(images)), "moments": moments}
    batches = Crops(shuffled(data, phase.batch, config), images, sd.size)
    decoder = train("decoder", losses.decoder_loss(sd, **phase.weights), {"vae": decoder}, {"vae": encoder}, batches,
                    phase, config, workdir)  # fmt: skip
    return {"vae": vae | decoder["vae"]}


class Crops:
    """Batches whose rows of images become square crops `image`; where an image is cut follows from its row."""

    def __init__(self, batches: Batches, images: np.ndarray, size: int):
        self.batches, self.images, self.size = batches, images, size
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self.batches)
        room = self.images.shape[1] - self.size + 1
        crops = []
        for row in batch.pop("row"):
            top, left = np.random.default_rng(row).integers(room, size=2)
            crops.append(self.images[row, top : top + self.size, left : left + self.size])
        return batch | {"image": to_model(np.stack(crops))}


def lengthen_unused_words(sd: StableDiffusion, params: Params, captions: list[str]) -> Params:
    """Returns the parameters with every word that no caption had as long, as a vector, as the words that they had.

    Such words keep their random directions. At their first length, a third of that of learnt words, the frozen text
    encoder tells two of them apart by a seventh of what it makes of "tiny" and "large", and DreamBooth, which teaches
    with words that the model has never met, could not teach.
    """
    text = params["text_encoder"]["text_model"]
    embedding = np.asarray(text["embeddings"]["token_embedding"]["embedding"], np.float32)
    texts = tokens.tokenize(tokens.load_tokenizer(sd.tokenizer, *sd.text_limits), captions)
    used = np.isin(np.arange(len(embedding)), texts)
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    longer = np.where(used[:, None], embedding, embedding / length * length[used].mean())
    embeddings = text["embeddings"] | {"token_embedding": {"embedding": longer}}
    return params | {"text_encoder": params["text_encoder"] | {"text_model": text | {"embeddings": embeddings}}}


def encode(sd: StableDiffusion, params: Params, images: np.ndarray, batch: int) -> np.ndarray:
    """Returns the moments float16 [N, h, w, 2 Z] of uint8 images [N, H, W, 3]."""
    step = jax.jit(sd.encode)
    rows = []
    with bar(len(images), "latents", "images", 0) as progress:
        for at in range(0, len(images), batch):
            some = images[at : at + batch]
            filled = np.concatenate([some, np.zeros((batch - len(some), *some.shape[1:]), some.dtype)])
            rows.append(np.asarray(step({"vae": params["vae"]}, to_model(filled)), np.float16)[: len(some)])
            progress.update(len(some))
    return np.concatenate(rows)


def make_phantoms(folder: Path, number: int, size: int, first_seed: int) -> tuple[np.ndarray, list[str]]:
    """Returns images uint8 [number, size, size, 3] (memory-mapped) and their captions; makes what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [(folder / f"{at:06d}", range(first_seed + at, first_seed + min(at + CHUNK, number)), size)
              for at in range(0, number, CHUNK)]  # fmt: skip
    missing = [chunk for chunk in chunks if not chunk[0].with_suffix(".json").exists()]
    present = number - sum(len(seeds) for _, seeds, _ in missing)
    spawn = multiprocessing.get_context("spawn")  # a forked child of a process that runs JAX can hang
    with bar(number, "phantoms", "images", present) as progress, ProcessPoolExecutor(machine.cores(), spawn) as pool:
        for count in pool.map(make_chunk, missing):
            progress.update(count)
    joined = folder / f"images_{number}.npy"
    if not joined.exists():
        part = joined.with_suffix(".part")
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(number, size, size, 3))
        for path, seeds, _ in chunks:
            images[seeds.start - first_seed : seeds.stop - first_seed] = np.load(path.with_suffix(".npy"))
        images.flush()
        os.replace(part, joined)
        for path, *_ in chunks:
            path.with_suffix(".npy").unlink()
    captions = [text for path, *_ in chunks for text in json.loads(path.with_suffix(".json").read_text())]
    return np.load(joined, mmap_mode="r"), captions


def make_chunk(chunk: tuple[Path, range, int]) -> int:
    """Makes one chunk and returns its count: images first, captions last, whose presence says that both are there."""
    path, seeds, size = chunk
    images, captions = zip(*((p.image, p.caption) for p in (phantom(seed, size) for seed in seeds)), strict=True)
    np.save(path.with_suffix(".npy"), np.stack(images))
    write_atomically(path.with_suffix(".json"), json.dumps(captions))
    return len(seeds)
