"""What the model draws while it is tuned: the same seeds every time, so that sheets show what the steps changed."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import machine, sharding
from dermjax.data import pictures
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.diffusion.text_to_image import Pipeline, check_drawn, text_to_image
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import say
from dermjax.training.state import State
from dermjax.tuning.texts import Texts

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
    chosen = samplers.named(sampler)
    for warning in chosen.unheeded(sd.configs["scheduler"]):
        say(warning)
    make = text_to_image(Pipeline(sd, chosen, chosen.ladder(sd.configs["scheduler"], steps, ""), 1, None), size)
    seeds = np.arange(images * len(prompts), dtype=np.uint32)
    said = np.repeat(texts.tokens[texts.rows(prompts)], images, axis=0)
    away = np.broadcast_to(texts.tokens[-1], said.shape) if guidance > 1 else None
    scale = Guidance(scale=np.float32(guidance), rescale=None, interval=None)
    everywhere = jax.jit(lambda made: made, out_shardings=sharding.replicated(grid))

    def paint(state: State, constants: dict) -> dict[str, np.ndarray]:
        machine.give_back_memory()
        params, parts = complete(state.smooth, constants), []
        for at in range(0, len(seeds), batch):
            some = np.arange(at, at + batch) % len(seeds)
            parts.append(everywhere(make(params, said[some], None if away is None else away[some], seeds[some], scale)))
        made = np.concatenate([np.asarray(part) for part in parts])[: len(seeds)]
        del params, parts
        machine.give_back_memory()
        for number, image in enumerate(made):
            check_drawn(image, f"sample of step {int(state.step)}, {prompts[number // images]!r}")
        sheet = pictures.sheet(np.split(made, len(prompts)))
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
