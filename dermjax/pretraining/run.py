"""The captioned phantoms that the base model learns from, as files of the run folder.

Phantoms are made once, in chunks, by one process a core; a chunk that is there is whole and is not made again.

`dermjax pretrain`: phantoms -> autoencoder -> latents -> text encoder and UNet -> decoder -> a model folder.

Every part leaves files in the run folder and is skipped when they are whole, so a killed run goes on where it was.
"""

import copy
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
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
from dermjax.diffusion import objective, schedule
from dermjax.errors import UserError
from dermjax.models import vae
from dermjax.models.stable_diffusion import TINY, Params, StableDiffusion, count
from dermjax.pretraining import autoencoder
from dermjax.progress import bar, cost
from dermjax.run_folder import write_atomically
from dermjax.training import optimizers
from dermjax.training.loop import fit
from dermjax.training.state import create
from dermjax.weights import diffusers

CHUNK = 500


def make_phantoms(folder: Path, number: int, size: int, first_seed: int) -> tuple[np.ndarray, list[str]]:
    """Returns images uint8 [number, size, size, 3] (memory-mapped) and their captions; makes what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"{at:06d}", range(first_seed + at, first_seed + min(at + CHUNK, number)), size)
            for at in range(0, number, CHUNK)]  # fmt: skip
    missing = [job for job in jobs if not job[0].with_suffix(".json").exists()]
    done = number - sum(len(job[1]) for job in missing)
    spawn = multiprocessing.get_context("spawn")  # a forked child of a process that runs JAX can hang
    with bar(number, "phantoms", "images", done) as progress, ProcessPoolExecutor(machine.cores(), spawn) as pool:
        for made in pool.map(chunk, missing):
            progress.update(made)
    whole = folder / f"images_{number}.npy"
    if not whole.exists():
        join_chunk([job[0].with_suffix(".npy") for job in jobs], whole, (number, size, size, 3))
    captions = [text for job in jobs for text in json.loads(job[0].with_suffix(".json").read_text())]
    return np.load(whole, mmap_mode="r"), captions


def chunk(job: tuple[Path, range, int]) -> int:
    """Makes one chunk: the images first, the captions last, whose presence says that both are there."""
    path, seeds, size = job
    images, captions = zip(*((p.image, p.caption) for p in (phantom(seed, size) for seed in seeds)), strict=True)
    np.save(path.with_suffix(".npy"), np.stack(images))
    write_atomically(path.with_suffix(".json"), json.dumps(captions))
    return len(seeds)


def join_chunk(parts: list[Path], whole: Path, shape: tuple[int, ...]) -> None:
    """Joins the chunks into one file that can be mapped, and removes their images."""
    temporary = whole.with_suffix(".part")
    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    at = 0
    for part in parts:
        images = np.load(part)
        out[at : at + len(images)] = images
        at += len(images)
    out.flush()
    os.replace(temporary, whole)
    for part in parts:
        part.unlink()


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
    params = params | train_autoencoder(sd, params, images, config, grid, workdir / "autoencoder")
    moments = encode(sd, params, images[: config.normalise_over], config.encode_batch)
    params = autoencoder.normalise(params, jnp.asarray(moments))
    images, captions = images[: config.diffusion.images], captions[: config.diffusion.images]
    causes = {
        run_folder.NUMERIC_VERSIONS: {"vae": vae.NUMERIC_VERSION},
        "arithmetic": sharding.arithmetic(sd.dtype, grid),
        "vae": digested(jax.tree.leaves(params["vae"])),
        "images": digested([images]),
    }
    moments = cached(workdir, causes, lambda: encode(sd, params, images, config.encode_batch))
    params = params | train_diffusion(sd, params, moments, captions, config, grid, workdir / "diffusion")
    params = params | train_decoder(sd, params, images, moments, config, grid, workdir / "decoder")
    params = with_audible_words(sd, params, captions)
    diffusers.write(workdir / "model", sd, params, dtype=np.float16)


def check(config: ConfigDict) -> None:
    """Raises UserError for numbers that no training can start from."""
    config_file.check(config)
    strange = sorted(set(config.autoencoder.phases) - set(config.autoencoder))
    if strange:
        raise UserError(f"config.autoencoder.phases: config.autoencoder has no {strange[0]!r}")
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


def train_autoencoder(sd: StableDiffusion, params: Params, images: np.ndarray, config, grid, workdir: Path) -> Params:
    """Returns {"vae": …} trained phase by phase: crops give many updates, whole images are what it is for."""
    for phase in config.autoencoder.phases:
        c = config.autoencoder[phase]
        optimizer = optimizers.build("adamw", rate=c.rate, warmup=c.warmup, steps=c.steps, schedule="cosine",
                                     weight_decay=0.0, clip=1.0)  # fmt: skip
        batches = pipelines.array_batches(
            {"row": np.arange(len(images))}, batch=c.batch, seed=config.seed, rows=sharding.local_rows(c.batch, grid)
        )
        state = fit(
            autoencoder.loss(sd, kl=c.kl, **c.weights),
            create({"vae": params["vae"]}, {}, optimizer, ema=True), {}, Crops(batches, images, c.size),
            optimizer=optimizer, seed=config.seed, steps=c.steps, ema_decay=c.ema_decay, accumulate=1, mesh=grid,
            rules=sharding.RULES, workdir=workdir / phase, title=f"autoencoder, {phase}",
            save_every=config.save_every, log_every=config.log_every,
        )  # fmt: skip
        params = state.smooth
    return params


class Crops:
    """A checkpointable iterator over square crops; where an image is cut follows from its row.

    What else a batch holds goes along.
    """

    def __init__(self, batches, images: np.ndarray, size: int):
        self.batches, self.images, self.size = batches, images, size
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self.batches)
        room = self.images.shape[1] - self.size + 1
        cut = []
        for row in batch.pop("row"):
            top, left = np.random.default_rng(row).integers(room, size=2)
            cut.append(self.images[row, top : top + self.size, left : left + self.size])
        return batch | {"image": to_model(np.stack(cut))}


def train_decoder(sd: StableDiffusion, params: Params, images, moments, config, grid, workdir: Path) -> Params:
    """Returns {"vae": …} with the decoder trained on, on the latents that the UNet knows."""
    c = config.decoder
    half = {name: params["vae"][name] for name in DECODER}
    optimizer = optimizers.build("adamw", rate=c.rate, warmup=c.warmup, steps=c.steps, schedule="cosine",
                                 weight_decay=0.0, clip=1.0)  # fmt: skip
    batches = pipelines.array_batches(
        {"row": np.arange(len(images)), "moments": moments}, batch=c.batch, seed=config.seed,
        rows=sharding.local_rows(c.batch, grid),
    )  # fmt: skip
    state = fit(
        autoencoder.decoder_loss(sd, **c.weights), create({"vae": half}, {}, optimizer, ema=True),
        {"vae": {name: params["vae"][name] for name in params["vae"] if name not in DECODER}},
        Crops(batches, images, sd.size), optimizer=optimizer, seed=config.seed, steps=c.steps, ema_decay=c.ema_decay,
        accumulate=1, mesh=grid, rules=sharding.RULES, workdir=workdir, title="decoder",
        save_every=config.save_every, log_every=config.log_every,
    )  # fmt: skip
    return {"vae": params["vae"] | state.smooth["vae"]}


def train_diffusion(sd: StableDiffusion, params: Params, moments, captions, config, grid, workdir: Path) -> Params:
    """Returns {"text_encoder": …, "unet": …} trained together to denoise the phantoms' latents."""
    c = config.diffusion
    optimizer = optimizers.build("adamw", rate=c.rate, warmup=c.warmup, steps=c.steps, schedule="cosine",
                                 weight_decay=c.weight_decay, clip=1.0)  # fmt: skip
    tokenizer = tokens.load_tokenizer(sd.tokenizer, *sd.text_limits)
    words = tokens.tokenize(tokenizer, captions)
    empty = tokens.tokenize(tokenizer, [""])
    alpha_bar = schedule.alphas_cumprod(sd.configs["scheduler"])

    def loss(params: Params, variables, constants, batch, key):
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(objective.example_keys(key, batch["index"]))
        shape = (*batch["moments"].shape[1:3], batch["moments"].shape[3] // 2)
        draw, noise = objective.normal(keys[:, 0], shape), objective.normal(keys[:, 1], shape)
        latents = sd.sample_latents(batch["moments"].astype(jnp.float32), draw)
        t = objective.times(keys[:, 2], len(alpha_bar), c.timestep_bias)
        dropped = jax.vmap(jax.random.uniform)(keys[:, 3]) < c.caption_dropout
        context = sd.encode_text(params, jnp.where(dropped[:, None], empty, batch["tokens"]))
        value = objective.denoising(lambda x, t: sd.unet(params, x, t, context), sd.prediction, alpha_bar,
                                    latents, noise, t, jnp.ones(len(t)), snr_gamma=0.0, huber=0.0)  # fmt: skip
        return value, (variables, {})

    state = fit(
        loss, create({name: params[name] for name in ("text_encoder", "unet")}, {}, optimizer, ema=True), {},
        pipelines.array_batches(
            {"moments": moments, "tokens": words}, batch=c.batch, seed=config.seed,
            rows=sharding.local_rows(c.batch, grid),
        ),
        optimizer=optimizer, seed=config.seed, steps=c.steps, ema_decay=c.ema_decay, accumulate=1, mesh=grid,
        rules=sharding.RULES, workdir=workdir, title="diffusion", save_every=config.save_every,
        log_every=config.log_every,
    )  # fmt: skip
    return state.smooth


def with_audible_words(sd: StableDiffusion, params: Params, captions: list[str]) -> Params:
    """Returns the parameters with every word that no caption had as long, as a vector, as the words that they had.

    Such words keep their random directions. At their first length, a third of that of learnt words, the frozen text
    encoder tells two of them apart by a seventh of what it makes of "tiny" and "large", and DreamBooth, which teaches
    with words that the model has never met, could not teach.
    """
    text = params["text_encoder"]["text_model"]
    embedding = np.asarray(text["embeddings"]["token_embedding"]["embedding"], np.float32)
    heard = np.isin(
        np.arange(len(embedding)), tokens.tokenize(tokens.load_tokenizer(sd.tokenizer, *sd.text_limits), captions)
    )
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    louder = np.where(heard[:, None], embedding, embedding / length * length[heard].mean())
    embeddings = text["embeddings"] | {"token_embedding": {"embedding": louder}}
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


def cached(workdir: Path, causes: dict, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the moments that follow from these causes, made and written whole first when they are not there."""
    path = run_folder.derived(workdir, "moments", causes).with_suffix(".npy")
    if not path.exists():
        run_folder.report_stale(path, causes)
        part = path.with_suffix(".part.npy")
        np.save(part, make())
        run_folder.write_causes(path, causes)
        part.rename(path)
    return np.load(path, mmap_mode="r")


def digested(arrays: Iterable[np.ndarray]) -> str:
    """Returns the digest of arrays, 16 hex digits."""
    total = hashlib.sha256()
    for each in arrays:
        total.update(np.ascontiguousarray(each))
    return total.hexdigest()[:16]
