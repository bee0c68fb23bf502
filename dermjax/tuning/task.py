"""The DreamBooth loss (Ruiz et al. 2023, arXiv 2208.12242) on cached moments and contexts.

Instance and class images share one batch, one forward pass and one weighted mean. A batch holds
`moments` [B, 2, h, w, 2 Z] (image and mirror image), `prompt` int32 [B] (row of the prompts), `weight` [B] and, from
the loop, `index` int32 [B].
A text encoder that is wholly frozen is not here at all, its contexts are; one that is tuned reads the tokens anew.

The loss on held-out real images at fixed noise: the signal that tells learning from memorising.

The training loss falls when images are learnt by heart too; this one rises then. It is the plain loss whatever the
training weighs, so that runs of different settings can be compared by it.

What the model draws while it is tuned: the same seeds every time, so that sheets show what the steps changed.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dermjax import machine, sharding
from dermjax.data import thumbnails
from dermjax.diffusion import objective, schedule
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.sampling.requests import SamplerSettings
from dermjax.sampling.text_to_image import check_drawn, latent_diffusion, text_to_image
from dermjax.training.state import State
from dermjax.training.step import Loss
from dermjax.tuning.inputs import Texts


def dreambooth_loss(
    sd: StableDiffusion,
    assembled: Callable[[dict, dict], Params],
    *,
    timestep_bias: float,
    prompt_dropout: float,
    offset_noise: float,
    snr_gamma: float,
    huber: float,
):
    """Returns the loss of `training.loop`.

    constants hold what is frozen and, of P prompts and the empty one after them, either `contexts` [P + 1, N, D] or,
    where the text encoder is tuned, `tokens` int32 [P + 1, N]. `assembled(params, constants)` gives the networks'
    parameters.
    """
    alpha_bar = schedule.alphas_cumprod(sd.configs["scheduler"])

    def of(params: Params, variables, constants, batch, key):
        h, w, doubled = batch["moments"].shape[2:]
        keys = jax.vmap(lambda k: jax.random.split(k, 6))(objective.example_keys(key, batch["index"]))
        uniform = jax.vmap(jax.random.uniform)
        mirrored = uniform(keys[:, 0]) < 0.5
        moments = jnp.where(mirrored[:, None, None, None], batch["moments"][:, 1], batch["moments"][:, 0])
        draw, noise = (schedule.normal(keys[:, i], (h, w, doubled // 2)) for i in (1, 2))
        noise = objective.offset(keys[:, 5], noise, offset_noise)
        latents = sd.sample_latents(moments.astype(jnp.float32), draw)
        t = objective.times(keys[:, 3], len(alpha_bar), timestep_bias)
        tuned = assembled(params, constants)
        said = constants["contexts" if "contexts" in constants else "tokens"]
        # now and then no prompt, so that guidance still has something to push away from
        prompt = jnp.where(uniform(keys[:, 4]) < prompt_dropout, len(said) - 1, batch["prompt"])
        context = said[prompt] if "contexts" in constants else sd.encode_text(tuned, said[prompt])
        value = objective.denoising(lambda x, t: sd.unet(tuned, x, t, context), sd.prediction, alpha_bar,
                                    latents, noise, t, batch["weight"], snr_gamma=snr_gamma, huber=huber)  # fmt: skip
        return value, (variables, {})

    return of


PLAIN = {"timestep_bias": 1.0, "prompt_dropout": 0.0, "offset_noise": 0.0, "snr_gamma": 0.0, "huber": 0.0}
SEED = 0  # every run is judged at the same noise
MOST = 2**20  # examples that have noise of their own in each draw


def evaluator(loss: Loss, rows: dict[str, np.ndarray], draws: int, batch: int, mesh: Mesh) -> Callable:
    """Returns evaluate(state, constants) -> {"validation_loss": float}, the mean over `draws` noises an image.

    rows are those of a training batch, one an image [N, …]; loss is the tuning loss with the settings PLAIN. Noise and
    times follow from SEED, an image's place among the N and the number of the draw, not from batches or devices, so two
    evaluations differ by the parameters only. Without rows or draws it returns {}.
    """
    if not rows or not draws:
        return lambda state, constants: {}
    examples = len(rows["weight"])
    count = examples * draws
    place = np.arange(-(-count // batch) * batch)
    draw, example = np.divmod(place, examples)
    chosen = {name: array[example] for name, array in rows.items()}
    chosen |= {"weight": (place < count).astype(np.float32), "index": (draw * MOST + example).astype(np.uint32)}

    def one(params, constants, part):
        return loss(params, {}, constants, part, jax.random.key(SEED))[0]

    step = jax.jit(one, out_shardings=sharding.replicated(mesh))

    def evaluate(state: State, constants: dict) -> dict[str, float]:
        total = 0.0
        for at in range(0, len(place), batch):
            part = {name: array[at : at + batch][sharding.local_rows(batch, mesh)] for name, array in chosen.items()}
            total += batch * float(step(state.smooth, constants, sharding.place(part, mesh)))
        return {"validation_loss": total / count}

    return evaluate


FOLDER = "samples"


def painter(
    sd: StableDiffusion,
    complete: Callable[[dict, dict], Params],
    texts: Texts,
    prompts: list[str],
    *,
    images: int,
    sampler: str,
    steps: int,
    guidance: float,
    size: int,
    batch: int,
    grid: Mesh,
    workdir: Path,
) -> Callable[[State, dict], dict[str, np.ndarray]]:
    """Returns paint(state, constants), which leaves a sheet in workdir/samples: a row a prompt, `images` in it, and
    returns it as {"samples": uint8 [H, W, 3]} for the writer.

    `complete(trained, constants)` gives the parameters of the whole model. Every sheet starts from the seeds 0, 1, …
    It is painted `batch` at a time. With images 0 nothing is painted.
    """
    if not images:
        return lambda state, constants: {}
    settings = SamplerSettings(sampler=sampler, steps=steps, guidance=guidance)
    make = text_to_image(latent_diffusion(sd, settings, None), size)
    seeds = np.arange(images * len(prompts), dtype=np.uint32)
    said = np.repeat(texts.tokens[texts.rows(prompts)], images, axis=0)
    away = np.broadcast_to(texts.tokens[-1], said.shape) if guidance > 1 else None
    scale = settings.weights()
    everywhere = jax.jit(lambda made: made, out_shardings=sharding.replicated(grid))

    def paint(state: State, constants: dict) -> dict[str, np.ndarray]:
        machine.release_memory()
        params, parts = complete(state.smooth, constants), []
        for at in range(0, len(seeds), batch):
            some = np.arange(at, at + batch) % len(seeds)
            parts.append(everywhere(make(params, said[some], None if away is None else away[some], seeds[some], scale)))
        made = np.concatenate([np.asarray(part) for part in parts])[: len(seeds)]
        del params, parts
        machine.release_memory()
        for number, image in enumerate(made):
            check_drawn(image, f"sample of step {int(state.step)}, {prompts[number // images]!r}")
        sheet = thumbnails.grid(np.split(made, len(prompts)))
        if jax.process_index() == 0:
            folder = workdir / FOLDER
            folder.mkdir(exist_ok=True)
            part = folder / ".part.png"
            sheet.save(part)
            part.replace(folder / f"{int(state.step):08d}.png")
        return {"samples": np.asarray(sheet)}

    return paint


def sheets(workdir: Path) -> dict[int, Path]:
    """Returns {step: its sheet}, oldest first."""
    return {int(path.stem): path for path in sorted((workdir / FOLDER).glob("[0-9]*.png"))}
