"""What `tune` learns and how it is watched: the DreamBooth loss, the loss on held-out images, and samples.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242): instance and class images share one batch, one forward pass and one
weighted mean. A batch holds `moments` [B, 2, h, w, 2 Z] (image and mirror image), `prompt` int32 [B] (row of the
prompts), `weight` [B] and, from the step, `index` int32 [B].

The loss on held-out images shows that a model learns images by heart; that it draws them again only images show. They
are drawn from the same seeds and equally many at every evaluation, so that evaluations compare; `evaluate` gives the
figures that stand alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dermjax import machine, sharding
from dermjax.data import thumbnails
from dermjax.data.images import load_any
from dermjax.diffusion import objective, schedule
from dermjax.evaluation import distances, features
from dermjax.evaluation.features import MIRRORED, FeatureExtractor
from dermjax.evaluation.images.memorisation import similarity_limit
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.sampling.requests import SamplerSettings
from dermjax.sampling.text_to_image import check_drawn, latent_diffusion, text_to_image
from dermjax.training.loop import Evaluate
from dermjax.training.state import State
from dermjax.training.step import Loss
from dermjax.tuning.concepts import Concepts
from dermjax.tuning.latents import Prompts

PLAIN = {"timestep_bias": 1.0, "prompt_dropout": 0.0, "offset_noise": 0.0, "snr_gamma": 0.0, "huber": 0.0}
SEED = 0  # of the held-out loss: every run is measured at the same noise
MOST = 2**20  # examples that have noise of their own in each draw
FOLDER = "samples"
MINIMISED = ("validation_loss", "frechet")
JUDGED = "judged"


def dreambooth_loss(
    sd: StableDiffusion,
    assemble: Callable[[dict, dict], Params],
    *,
    timestep_bias: float,
    prompt_dropout: float,
    offset_noise: float,
    snr_gamma: float,
    huber: float,
) -> Loss:
    """Returns the loss over trainable parameters; `assemble(params, constants)` gives the networks' parameters.

    constants hold what is frozen and, of P prompts and the empty one after them, either `contexts` [P + 1, N, D] or,
    where the text encoder is tuned, `tokens` int32 [P + 1, N].
    """
    alpha_bar = schedule.alphas_cumprod(sd.configs["scheduler"])
    denoising = objective.Objective(sd.prediction, alpha_bar, snr_gamma=snr_gamma, huber=huber)

    def loss(params: Params, variables: dict, constants: dict, batch: dict, key: jax.Array):
        h, w, doubled = batch["moments"].shape[2:]
        keys = jax.vmap(lambda k: jax.random.split(k, 6))(objective.example_keys(key, batch["index"]))
        uniform = jax.vmap(jax.random.uniform)
        mirrored = uniform(keys[:, 0]) < 0.5
        moments = jnp.where(mirrored[:, None, None, None], batch["moments"][:, 1], batch["moments"][:, 0])
        draw, noise = (schedule.normal(keys[:, i], (h, w, doubled // 2)) for i in (1, 2))
        noise = objective.offset(keys[:, 5], noise, offset_noise)
        latents = sd.sample_latents(moments.astype(jnp.float32), draw)
        t = objective.times(keys[:, 3], len(alpha_bar), timestep_bias)
        networks = assemble(params, constants)
        texts = constants["contexts" if "contexts" in constants else "tokens"]
        # now and then no prompt, so that guidance still has something to push away from
        prompt = jnp.where(uniform(keys[:, 4]) < prompt_dropout, len(texts) - 1, batch["prompt"])
        context = texts[prompt] if "contexts" in constants else sd.encode_text(networks, texts[prompt])
        value = denoising.loss(lambda x, t: sd.unet(networks, x, t, context), latents, noise, t, batch["weight"])
        return value, (variables, {})

    return loss


def validation(loss: Loss, examples: dict[str, np.ndarray], draws: int, batch: int, mesh: Mesh) -> Evaluate:
    """Returns evaluate(state, constants) -> {"validation_loss": float}, the mean over `draws` noises an image.

    The training loss falls when images are learnt by heart too; this one, on held-out images, rises then. `loss` is the
    tuning loss with the settings PLAIN, so that runs of different settings compare by it; examples are rows of training
    batches, one an image [N, …]. Noise and times follow from SEED, an image's place among the N and the number of the
    draw, not from batches or devices, so two evaluations differ by the parameters only. Without examples or draws it
    returns {}.
    """
    if not examples or not draws:
        return lambda state, constants: {}
    number = len(examples["weight"])
    count = number * draws
    place = np.arange(-(-count // batch) * batch)
    draw, example = np.divmod(place, number)
    rows = {name: array[example] for name, array in examples.items()}
    rows |= {"weight": (place < count).astype(np.float32), "index": (draw * MOST + example).astype(np.uint32)}
    local = sharding.local_rows(batch, mesh)

    def one(params, constants, part):
        return loss(params, {}, constants, part, jax.random.key(SEED))[0]

    step = jax.jit(one, out_shardings=sharding.replicated(mesh))

    def evaluate(state: State, constants: dict) -> dict[str, float]:
        total = 0.0
        for at in range(0, len(place), batch):
            part = {name: array[at : at + batch][local] for name, array in rows.items()}
            total += batch * float(step(state.smooth, constants, sharding.place(part, mesh)))
        return {"validation_loss": total / count}

    return evaluate


@dataclass(frozen=True)
class Samples:
    """What to draw while a model is tuned: `images` of each prompt, `batch` at a time, of `size` pixels."""

    prompts: list[str]
    images: int
    settings: SamplerSettings
    size: int
    batch: int

    def at_a_time(self, devices: int) -> int:
        """Returns how many images devices draw at a time, each as many: at most a batch, and no more than are asked."""
        return min(self.batch, -(-self.images * len(self.prompts) // devices) * devices)


def drawing(
    sd: StableDiffusion, complete: Callable[[dict, dict], Params], prompts: Prompts, samples: Samples, grid: Mesh
) -> Callable[[State, dict], np.ndarray]:
    """Returns draw(state, constants) -> uint8 [images, H, W, 3], those of one prompt after those of another.

    `complete(trained, constants)` gives the parameters of the complete model. Images are drawn from the seeds 0, 1, …
    every time, so that they show what the steps changed.
    """
    one = text_to_image(latent_diffusion(sd, samples.settings, None), samples.size)
    seeds = np.arange(samples.images * len(samples.prompts), dtype=np.uint32)
    tokens = np.repeat(prompts.tokens[prompts.rows(samples.prompts)], samples.images, axis=0)
    negative = np.broadcast_to(prompts.tokens[-1], tokens.shape) if samples.settings.guidance > 1 else None
    guidance = samples.settings.weights()
    gather = jax.jit(lambda images: images, out_shardings=sharding.replicated(grid))

    def draw(state: State, constants: dict) -> np.ndarray:
        machine.release_memory()
        params, parts, batch = complete(state.smooth, constants), [], samples.at_a_time(grid.size)
        for at in range(0, len(seeds), batch):
            some = (np.arange(at, at + batch) % len(seeds))[sharding.local_rows(batch, grid)]
            # placed, or every device would draw all of them
            rows = sharding.place((tokens[some], None if negative is None else negative[some], seeds[some]), grid)
            parts.append(gather(one(params, *rows, guidance)))
        images = np.concatenate([np.asarray(part) for part in parts])[: len(seeds)]
        del params, parts
        machine.release_memory()
        for number, image in enumerate(images):
            check_drawn(image, f"sample of step {int(state.step)}, {samples.prompts[number // samples.images]!r}")
        return images

    return draw


def sampling(draw: Callable[[State, dict], np.ndarray], samples: Samples, workdir: Path) -> Evaluate:
    """Returns sample(state, constants) -> {"samples": uint8 [H, W, 3]}, a row a prompt; it is in workdir/samples too.

    Without images it returns {}.
    """
    if not samples.images:
        return lambda state, constants: {}

    def sample(state: State, constants: dict) -> dict[str, np.ndarray]:
        page = thumbnails.grid(np.split(draw(state, constants), len(samples.prompts)))
        if jax.process_index() == 0:
            folder = workdir / FOLDER
            folder.mkdir(exist_ok=True)
            part = folder / ".part.png"
            page.save(part)
            part.replace(folder / f"{int(state.step):08d}.png")
        return {"samples": np.asarray(page)}

    return sample


def sample_grids(workdir: Path) -> dict[int, Path]:
    """Returns {step: the grid of its samples}, oldest first."""
    return {int(path.stem): path for path in sorted((workdir / FOLDER).glob("[0-9]*.png"))}


def figures(
    draw: Callable[[State, dict], np.ndarray], network: FeatureExtractor, training: Concepts, validation: Concepts,
    folder: Path,
) -> Evaluate:  # fmt: skip
    """Returns measure(state, constants) -> {"copies", "frechet"}; features of real images are kept in the folder.

    copies: the share of drawn images that are nearer to a training image than all but one held-out image in a hundred.
    frechet: the Frechet distance to the held-out images.
    """

    def of(concepts: Concepts, view: str) -> np.ndarray:
        records = {record.sha256: record for _, record in concepts.instances}
        return network.features(concepts.sources[0][0], list(records.values()), view=view, folder=folder)

    known, held_out = np.concatenate([of(training, view) for view in ("", MIRRORED)]), of(validation, "")
    space = features.space_of(known)
    near = space.unit(known)
    limit = similarity_limit(features.nearest(space.unit(held_out), near)[0])
    leading = slice(network.encoder.leading)

    def measure(state: State, constants: dict) -> dict[str, float]:
        images = draw(state, constants)
        drawn = network.of_pixels((load_any(image, network.encoder.size) for image in images), len(images))
        similarity, _ = features.nearest(space.unit(drawn), near)
        return {
            "copies": float((similarity > limit).mean()),
            "frechet": distances.frechet(held_out[:, leading], drawn[:, leading]),
        }

    return measure


def judged(scalars: dict[str, float], minimise: str, most_copies: float) -> dict[str, float]:
    """Returns the value that makes an evaluation the best, the lower the better; none where copies are too many."""
    return {JUDGED: scalars[minimise]} if scalars["copies"] <= most_copies else {}
