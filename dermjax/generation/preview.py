"""Previews: a batch while it is made, as a small picture in the run folder, and its step on the bar."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from einops import rearrange, repeat

from dermjax.data import images
from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.previews import colours_of, watched
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import PlainLines, TerminalBar
from dermjax.run_folder import write_atomically

FILE = "preview.png"
PIXELS = 4  # a latent cell's side


def check(every: int) -> None:
    """Raises UserError for a number of steps between two previews below 0."""
    if every < 0:
        raise UserError(f"preview_every = {every}: give the steps between two previews, or 0 for none")


def watching(
    model: StableDiffusion, params: Params, every: int, path: Path, progress: TerminalBar | PlainLines
) -> Callable[[Denoiser, Ladder], Denoiser] | None:
    """Returns what makes a denoiser one whose batch is written to a PNG file every `every` steps; None for 0: never.

    The images stand in rows, as square as they can.
    """
    if not every:
        return None

    def show(step: np.ndarray, pictures: np.ndarray) -> None:
        write_atomically(path, images.png(sheet(np.asarray(pictures))))
        progress.update(0, step=int(step))

    channels = model.configs["vae"]["latent_channels"]
    colours = colours_of(lambda latents: model.decode(params, latents), channels)
    return partial(watched, every=every, colours=colours, show=show)


def sheet(pictures: np.ndarray) -> np.ndarray:
    """Returns pictures uint8 [B, h, w, 3] in rows on black, enlarged."""
    columns = math.ceil(len(pictures) ** 0.5)
    black = np.zeros((-len(pictures) % columns, *pictures.shape[1:]), np.uint8)
    rows = rearrange(np.concatenate([pictures, black]), "(R c) h w C -> (R h) (c w) C", c=columns)
    return repeat(rows, "H W C -> (H a) (W b) C", a=PIXELS, b=PIXELS)
