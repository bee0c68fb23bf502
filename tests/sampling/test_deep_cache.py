"""DeepCache: when the depths are made anew, and that an interval of 1 is no approximation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion.denoiser import Guidance, guided, plain
from dermjax.diffusion.samplers import get_sampler
from dermjax.models.stable_diffusion import SCHEDULER
from dermjax.sampling.deep_cache import deep_cache

LADDER = get_sampler("Euler").ladder(SCHEDULER, 7, "")


def unet(passes):
    """Predicts x + depths, where the depths of a full pass are its time; `passes` collects what ran, as it ran."""

    def full(x, t, words):
        jax.debug.callback(lambda t: passes.append(("full", len(t))), t, ordered=True)
        depths = jnp.broadcast_to(t[:, None, None, None], x.shape)
        return x + depths, depths

    def shallow(x, t, words, depths):
        jax.debug.callback(lambda t: passes.append(("shallow", len(t))), t, ordered=True)
        return x + depths

    return SimpleNamespace(full=full, shallow=shallow)


def scanned(asking, interval, times):
    """The predictions of one scan over times, for x = 0, and what ran; asking makes ask(x, t) of a network."""
    passes, words = [], jnp.zeros((2, 1, 1))

    @jax.jit
    def predictions(times):
        network = deep_cache(unet(passes), interval, jax.ShapeDtypeStruct((2, 1, 1, 1), jnp.float32), words)
        ask = asking(network, words)
        return jax.lax.scan(lambda carry, t: (carry, ask(jnp.zeros((2, 1, 1, 1)), t)), 0, times)[1]

    made = predictions(jnp.asarray(times, jnp.float32))[:, 0, 0, 0, 0].tolist()
    jax.effects_barrier()
    return made, passes


@pytest.mark.parametrize(("interval", "made"), [(1, [9, 8, 7, 6, 5]), (2, [9, 9, 7, 7, 5]), (3, [9, 9, 9, 6, 6])])
def test_depths_are_borrowed_for_an_interval(interval, made):
    predictions, passes = scanned(plain, interval, [9, 8, 7, 6, 5])
    assert predictions == made
    assert [kind for kind, _ in passes] == ["full" if n % interval == 0 else "shallow" for n in range(5)]


def test_depths_from_before_an_interval_of_guidance_are_not_borrowed_after_it():
    """Guided passes have depths of their own; a plain one finds its old ones too old."""

    def asking(network, words):
        guidance = Guidance(jnp.float32(1), None, tuple(np.float32(np.interp([300, 600], LADDER.times[::-1],
                                                                             LADDER.sigmas[:-1][::-1]))))  # fmt: skip
        return guided(network, words, words, guidance, LADDER)

    predictions, passes = scanned(asking, 3, [900, 800, 500, 400, 350, 320, 200, 100])
    assert passes == [
        *[("full", 2), ("shallow", 2)],
        *[("full", 4), ("shallow", 4), ("shallow", 4), ("full", 4)],
        *[("full", 2), ("shallow", 2)],
    ]
    assert predictions == [900, 900, 500, 500, 500, 320, 200, 200]
