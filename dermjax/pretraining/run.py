"""`dermjax pretrain`: pictures -> autoencoder -> latents -> text encoder and UNet -> decoder -> a model folder.

Every part leaves files in the run folder and is skipped when they are complete, so a killed run goes on where it was.
Phantoms are made once, in chunks, by one process a core; photographs are decoded once. What can be wrong with the
photographs' masks or with the teacher is found before anything is painted.
"""

import copy
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dermjax import config_file, machine, reconstruction, run_folder, sharding
from dermjax.data import pipelines, tokens
from dermjax.data.images import filled, to_model
from dermjax.data.imaging import skin_tone
from dermjax.data.phantoms.captions import VOCABULARY
from dermjax.data.phantoms.painting import phantom
from dermjax.errors import UserError
from dermjax.models import vae
from dermjax.models.stable_diffusion import BASE, TINY, Params, StableDiffusion, count
from dermjax.pretraining import growth, losses, photographs, segmenter
from dermjax.pretraining.photographs import Source
from dermjax.progress import bar, cost
from dermjax.run_folder import write_atomically
from dermjax.training import optimizers
from dermjax.training.disk_cache import digest_of, load_or_compute, write_array
from dermjax.training.loop import Batches, LoopConfig, Task, fit
from dermjax.training.state import create
from dermjax.weights import diffusers, model_files

BASES = {"derm-tiny": TINY, "derm-base": BASE}
CHUNK = 500  # phantoms
PART = 1000  # phantoms whose latents are kept at a time: a killed run makes no more of them again
WAYS = 8  # in which a photograph can be turned and mirrored
Teachers = dict[int, tuple[losses.Teacher, Params]]  # by the size of the crops


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains a base model from nothing and leaves it in workdir/model, or the segmenter in workdir/segmenter."""
    if jax.process_count() > 1:  # each would paint, join and delete the same chunks, and write the model
        raise UserError("pretrain: runs in one process, over all of its devices; start it on one host")
    if config.base == "segmenter":
        segmenter.run(config, workdir)
        return
    check(config)
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    phases = [each for part in (config.autoencoder, config.decoder) for each in (part[name] for name in part.phases)]
    for part in (*phases, config.diffusion):
        sharding.check_batch(part.batch, 1, grid)
    teachers = read_teachers(config.teacher, phases)
    sd = prepare_model(workdir, BASES[config.base])
    params = start(sd, config)
    cost("pretrain", devices=grid.size, parameters=count(params), phantoms=config.phantoms,
         autoencoder_steps=sum(phase.steps for phase in phases), diffusion_steps=config.diffusion.steps)  # fmt: skip
    if config.photographs:  # their captions need them, hours later
        photographs.read_masks(config.photographs, "train", skin_tone.SIDE, workdir)
    photos, held_out = (read_photographs(config, split, photographs.SIDE, workdir) for split in ("train", "validation"))
    phantoms, captions = make_phantoms(workdir / "phantoms", config.phantoms, sd.size, config.first_seed)
    share = config.photographs_share
    sources = [Source(phantoms, 1 - share), Source(photos, share)]
    vae_params = train_autoencoder(sd, params["vae"], {}, sources, held_out, teachers, config, workdir / "autoencoder")

    captions, drawn = captions[: config.diffusion.images], phantoms[: config.diffusion.images]
    photos = read_photographs(config, "train", sd.size, workdir)
    captions += describe(photos, config, workdir)
    some = [source[:: max(1, 2 * len(source) // config.normalise_over)] for source in (drawn, photos) if len(source)]
    params = losses.normalise(
        params | {"vae": vae_params}, jnp.asarray(encode(sd, vae_params, some, config.encode_batch))
    )
    moments = moments_of(sd, params["vae"], drawn, photos, config, workdir)
    epoch = mixed_epoch(len(drawn), len(moments) - len(drawn), share)
    params = params | train_diffusion(sd, params, moments, captions, epoch, config, workdir / "diffusion")
    decoder, encoder = reconstruction.divide(params["vae"])
    decoder = train_autoencoder(sd, decoder, encoder, sources, held_out, teachers, config, workdir / "decoder")
    params = lengthen_unused_words(sd, params | {"vae": encoder | decoder}, captions)
    diffusers.write(workdir / "model", sd, params, dtype=np.float16)


def check(config: ConfigDict) -> None:
    """Raises UserError for numbers that no training can start from."""
    config_file.check(config)
    sd = StableDiffusion(optimizers.pick("config.base", BASES, config.base), Path(), jnp.float32)
    for part in ("autoencoder", "decoder"):
        for name in config[part].phases:
            if name not in config[part]:
                raise UserError(f"config.{part}.phases: config.{part} has no {name!r}")
            check_phase(f"config.{part}.{name}", config[part][name], config, sd)
    if not 1 <= config.diffusion.ways <= WAYS:
        raise UserError(f"config.diffusion.ways = {config.diffusion.ways}: give 1 to {WAYS}")
    if not config.phantoms or not config.diffusion.images:
        raise UserError("config.phantoms and config.diffusion.images: give 1 or more of both")
    if config.photographs_share and not config.photographs:
        raise UserError("config.photographs_share: give the manifest of the photographs, config.photographs, or 0")


def start(sd: StableDiffusion, config: ConfigDict) -> Params:
    """Returns the networks' first parameters: random ones, or those of config.start in the base's larger networks."""
    fresh = sd.init(config.seed)
    if not config.start:
        return fresh
    small, params = diffusers.read(model_files.locate(config.start))
    known, words = (tokens.load_tokenizer(each.tokenizer).get_vocab() for each in (small, sd))
    try:
        return {
            "vae": growth.widen(params["vae"], sd.shapes["vae"], config.seed),
            "unet": growth.deepen(params["unet"], fresh["unet"]),
            "text_encoder": growth.with_words(params["text_encoder"], fresh["text_encoder"], known, words),
        }
    except ValueError as error:
        raise UserError(f"config.start = {config.start}: cannot grow into {config.base}, {error}") from error


def check_phase(path: str, phase: ConfigDict, config: ConfigDict, sd: StableDiffusion) -> None:
    """Raises UserError for a phase of the autoencoder's training that its crops or its teacher do not allow."""
    factor, largest = sd.factor, photographs.SIDE if config.photographs else sd.size
    if phase.size % factor or not 0 < phase.size <= largest:
        raise UserError(f"{path}.size = {phase.size}: give a multiple of {factor} up to {largest}")
    if len(phase.sides) != 2 or not phase.size <= phase.sides[0] <= phase.sides[1]:
        raise UserError(
            f"{path}.sides = {phase.sides}: give the least and the most pixels, from size = {phase.size} on"
        )
    if phase.weights.features and not config.teacher:
        raise UserError(f"{path}.weights.features: give the teacher's folder, config.teacher, or 0")


def read_teachers(folder: str, phases: Sequence[ConfigDict]) -> Teachers:
    """Returns the teacher of the phases that learn from one, for each size of their crops."""
    sizes = {phase.size for phase in phases if phase.weights.features}
    return {size: losses.read_teacher(folder, size) for size in sorted(sizes)}


def read_photographs(config: ConfigDict, split: str, side: int, workdir: Path) -> np.ndarray:
    """Returns the photographs of one split, uint8 [N, side, side, 3]; none where there is no manifest."""
    if not config.photographs:
        return np.zeros((0, side, side, 3), np.uint8)
    return photographs.read(config.photographs, split, side, workdir)


def describe(photos: np.ndarray, config: ConfigDict, workdir: Path) -> list[str]:
    """Returns captions of the photographs in each of config.diffusion.ways, each with words of its own."""
    if not len(photos):
        return []
    small, masks = (
        read(config.photographs, "train", skin_tone.SIDE, workdir)
        for read in (photographs.read, photographs.read_masks)
    )
    described = photographs.describe_all(small, masks > 127)
    return photographs.write_captions(described * config.diffusion.ways, config.seed)


def turned(pictures: np.ndarray, way: int) -> np.ndarray:
    """Returns pictures [N, S, S, 3] in one of WAYS: every second is mirrored, and all are turned, by quarters."""
    mirrored = pictures[:, :, ::-1] if way % 2 else pictures
    return np.rot90(mirrored, way // 2, axes=(1, 2))


def mixed_epoch(phantoms: int, photos: int, share: float) -> np.ndarray:
    """Returns the rows of one epoch over phantoms and, after them, photographs, of which `share` are photographs."""
    if not photos or not share:
        return np.arange(phantoms)
    repeats = max(1, round(share / max(1 - share, 1e-3) * phantoms / photos))
    return np.concatenate([np.arange(phantoms), np.tile(np.arange(phantoms, phantoms + photos), repeats)])


def prepare_model(workdir: Path, configs: dict[str, dict]) -> StableDiffusion:
    """Writes the tokenizer of the captions' words and returns a base model's description with that vocabulary."""
    folder = workdir / "tokenizer"
    configs = copy.deepcopy(configs)
    text = configs["text_encoder"]
    words = [word for word in VOCABULARY if word.isalpha()]  # the comma is one of CLIP's byte symbols already
    tokens.write_word_tokenizer(folder, words, text["max_position_embeddings"])
    tokenizer = tokens.load_tokenizer(folder)
    text |= {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id,
             "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    return StableDiffusion(configs, folder, jnp.float32)


def optimizer_of(phase: ConfigDict) -> optax.GradientTransformation:
    """Returns the update rule of one phase of training."""
    return optimizers.build(
        "adamw", rate=phase.rate, warmup=phase.warmup, steps=phase.steps, schedule=phase.get("schedule", "cosine"),
        weight_decay=phase.get("weight_decay", 0.0), clip=1.0,
    )  # fmt: skip


def train(
    task: Task,
    params: Params,
    constants: Params,
    batches: Batches,
    phase: ConfigDict,
    config: ConfigDict,
    workdir: Path,
) -> Params:
    """Returns the average of the parameters after one phase of training."""
    loop_config = LoopConfig(
        seed=config.seed, steps=phase.steps, ema_decay=phase.ema_decay, save_every=config.save_every,
        log_every=config.log_every, evaluate_every=phase.get("evaluate_every", 0),
    )  # fmt: skip
    return fit(
        task, create(params, {}, task.optimizer, ema=True), constants, batches, loop_config,
        mesh=sharding.mesh(config.mesh.data, config.mesh.fsdp), workdir=workdir,
    ).smooth  # fmt: skip


def train_autoencoder(
    sd: StableDiffusion, trained: Params, frozen: Params, sources: list[Source], held_out: np.ndarray,
    teachers: Teachers, config: ConfigDict, workdir: Path,
) -> Params:  # fmt: skip
    """Returns the part `trained` of an autoencoder after the phases of config.NAME, NAME the folder's.

    The other part stays as it is: with the encoder frozen the latents are those that the UNet knows.
    """
    part, grid = config[workdir.name], sharding.mesh(config.mesh.data, config.mesh.fsdp)
    for name in part.phases:
        phase = part[name]
        judge, judge_params = teachers[phase.size] if phase.weights.features else (None, {})
        constants = {"vae": frozen} | ({"teacher": judge_params} if judge else {})
        params = {"vae": trained}
        if phase.weights.adversary:
            params["discriminator"] = losses.init_discriminator(config.seed)
        batches = photographs.crop_batches(
            sources, size=phase.size, sides=tuple(phase.sides), seed=config.seed,
            rows=sharding.local_rows(phase.batch, grid),
        )  # fmt: skip
        loss = losses.autoencoder_loss(sd, judge, kl=phase.kl, **phase.weights)
        task = Task(f"{workdir.name}, {name}", loss, optimizer_of(phase), reconstruction.watch(sd, held_out))
        trained = train(task, params, constants, batches, phase, config, workdir / name)["vae"]
    return trained


def train_diffusion(
    sd: StableDiffusion, params: Params, moments: np.ndarray, captions: list[str], epoch: np.ndarray,
    config: ConfigDict, workdir: Path,
) -> Params:  # fmt: skip
    """Returns {"text_encoder": …, "unet": …} trained together to denoise the pictures' latents."""
    phase = config.diffusion
    texts = tokens.tokenize(tokens.load_tokenizer(sd.tokenizer, *sd.text_limits), [*captions, ""])
    loss = losses.diffusion_loss(sd, texts[-1:], timestep_bias=phase.timestep_bias,
                                 caption_dropout=phase.caption_dropout)  # fmt: skip
    batches = pipelines.array_batches(
        {"moments": moments, "tokens": texts[:-1]}, batch=phase.batch, seed=config.seed, epoch=epoch,
        rows=sharding.local_rows(phase.batch, sharding.mesh(config.mesh.data, config.mesh.fsdp)),
    )  # fmt: skip
    networks = {name: params[name] for name in ("text_encoder", "unet")}
    return train(Task("diffusion", loss, optimizer_of(phase)), networks, {}, batches, phase, config, workdir)


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


def moments_of(
    sd: StableDiffusion, vae_params: Params, drawn: np.ndarray, photos: np.ndarray, config: ConfigDict, workdir: Path
) -> np.ndarray:
    """Returns the moments of phantoms and, after them, photographs in each of config.diffusion.ways; kept by parts."""
    causes = {
        run_folder.NUMERIC_VERSIONS: {"vae": vae.NUMERIC_VERSION},
        "arithmetic": sharding.arithmetic(sd.dtype, sharding.mesh(config.mesh.data, config.mesh.fsdp)),
        "vae": digest_of(jax.tree.leaves(vae_params)),
    }
    parts = [drawn[at : at + PART] for at in range(0, len(drawn), PART)]
    parts += [turned(photos, way) for way in range(config.diffusion.ways if len(photos) else 0)]
    return np.concatenate([
        load_or_compute(
            workdir, f"moments_{number}", causes | {"images": digest_of([part])},
            lambda part=part: encode(sd, vae_params, [part], config.encode_batch),
        )
        for number, part in enumerate(parts)
    ])  # fmt: skip


def encode(sd: StableDiffusion, vae_params: Params, pictures: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """Returns the moments float16 [N, h, w, 2 Z] of uint8 images [n, H, W, 3] each, one after the other.

    Every process encodes all, on its own devices.
    """
    grid = sharding.local_mesh()
    batch += -batch % grid.size
    step, vae_params = jax.jit(sd.encode), jax.device_put(vae_params, sharding.replicated(grid))
    rows = []
    with bar(sum(map(len, pictures)), "latents", "images", 0) as progress:
        for images in pictures:
            for at in range(0, len(images), batch):
                some = images[at : at + batch]
                moments = step({"vae": vae_params}, sharding.place(to_model(filled(some, batch)), grid))
                rows.append(np.asarray(moments, np.float16)[: len(some)])
                progress.update(len(some))
    return np.concatenate(rows)


def make_phantoms(folder: Path, number: int, size: int, first_seed: int) -> tuple[np.ndarray, list[str]]:
    """Returns images uint8 [number, size, size, 3] (memory-mapped) and their captions; makes what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [range(first_seed + at, first_seed + min(at + CHUNK, number)) for at in range(0, number, CHUNK)]
    chunks = [(folder / f"{seeds.start}_{len(seeds)}_{size}px", seeds, size) for seeds in drawn]
    joined = folder / f"images_{first_seed}_{number}_{size}px.npy"
    wanted = (".json",) if joined.exists() else (".json", ".npy")  # other joined images took what these were made of
    missing = [chunk for chunk in chunks if not all(chunk[0].with_suffix(each).exists() for each in wanted)]
    present = number - sum(len(seeds) for _, seeds, _ in missing)
    spawn = multiprocessing.get_context("spawn")  # a forked child of a process that runs JAX can hang
    with bar(number, "phantoms", "images", present) as progress, ProcessPoolExecutor(machine.cores(), spawn) as pool:
        for count in pool.map(make_chunk, missing):
            progress.update(count)
    if not joined.exists():
        with run_folder.writing(joined) as file:  # not mapped: a full disk would end the process by a signal
            header = {"descr": "|u1", "fortran_order": False, "shape": (number, size, size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for path, *_ in chunks:
                file.write(np.load(path.with_suffix(".npy")).data)
        for path, *_ in chunks:
            path.with_suffix(".npy").unlink()
    captions = [text for path, *_ in chunks for text in json.loads(path.with_suffix(".json").read_text())]
    return np.load(joined, mmap_mode="r"), captions


def make_chunk(chunk: tuple[Path, range, int]) -> int:
    """Makes one chunk and returns its count: images first, captions last, whose presence says that both are there."""
    path, seeds, size = chunk
    path.with_suffix(".json").unlink(missing_ok=True)  # of images that are not there any more
    images, captions = zip(*((p.image, p.caption) for p in (phantom(seed, size) for seed in seeds)), strict=True)
    write_array(path.with_suffix(".npy"), np.stack(images))
    write_atomically(path.with_suffix(".json"), json.dumps(captions))
    return len(seeds)
