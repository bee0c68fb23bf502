"""What the options of sampling cost and give, on derm-tiny: medians of interleaved runs, in processor time."""

import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.diffusion.schedule import normal
from dermjax.sampling.previews import colours_of, watched
from dermjax.sampling.text_to_image import LatentDiffusion, keys_of, pixels, text_to_image
from dermjax.weights import diffusers

pytestmark = pytest.mark.slow
BATCH, STEPS, ROUNDS = 4, 20, 7


@pytest.fixture(scope="module")
def tiny():
    """The model, and how one batch of it is asked for."""
    model, params = diffusers.read(diffusers.locate("derm-tiny"))
    words = load_tokenizer(model.tokenizer)
    prompts = [f"a dermoscopy photo of a {kind} mole" for kind in ("benign", "malignant")] * (BATCH // 2)
    asked = tokenize(words, prompts), tokenize(words, [""] * BATCH), np.arange(BATCH, dtype=np.int32)
    return model, (params, *asked, Guidance(np.float32(3.5), None, None))


def pipeline(model, steps=STEPS, interval=1, name="Euler"):
    sampler = samplers.get_sampler(name)
    return LatentDiffusion(model, sampler, sampler.ladder(model.configs["scheduler"], steps, ""), interval, None)


def medians(functions, asked):
    """The median processor seconds of a batch by each function, compiled before; they take turns."""
    spent = {name: [] for name in functions}
    for number in range(ROUNDS + 1):
        for name, function in functions.items():
            began = time.process_time()
            function(*asked).block_until_ready()
            jax.effects_barrier()
            spent[name] += [time.process_time() - began] * (number > 0)
    return {name: float(np.median(each)) for name, each in spent.items()}


def test_previews(tiny):
    """Every fifth step of twenty, with nobody looking at them."""
    model, asked = tiny
    colours = colours_of(lambda latents: model.decode(asked[0], latents), 4)
    watch = partial(watched, every=5, colours=colours, show=lambda step, pictures: None)
    plain = pipeline(model)
    functions = {"plain": plain, "watched": replace(plain, watch=watch)}
    spent = medians({name: text_to_image(each, model.size) for name, each in functions.items()}, asked)
    print(f"previews: {spent}, {spent['watched'] / spent['plain'] - 1:.1%} more")
    assert spent["watched"] < 1.05 * spent["plain"]


def test_deep_cache(tiny):
    """Its time, and its pictures beside those of another seed."""
    model, asked = tiny
    functions = {interval: text_to_image(pipeline(model, interval=interval), model.size) for interval in (1, 2, 3, 5)}
    spent = medians(functions, asked)
    made = {interval: np.int32(function(*asked)) for interval, function in functions.items()}
    others = np.abs(made[1] - np.roll(made[1], 2, axis=0)).mean()
    for interval in (2, 3, 5):
        off = np.abs(made[interval] - made[1]).mean()
        share = spent[interval] / spent[1]
        print(f"DeepCache {interval}: {share:.2f} of the time, {off:.1f} levels off; another seed's {others:.1f}")
        assert spent[interval] < spent[1] and off < others / 2


def segments(pipeline, size, interval):
    """text_to_image with Euler's method, guided in an interval of sigmas by three scans one after the other."""
    model, ladder = pipeline.model, pipeline.ladder
    begin = ladder.rungs[0]
    bounds = [0, int(np.sum(begin > interval[1])), int(np.sum(begin > interval[0])), len(begin)]

    @jax.jit
    def images(params, tokens, negative, seeds, guidance):
        shape = (len(seeds), size // model.factor, size // model.factor, 4)
        plain, guided = (pipeline.ask(params, tokens, words, guidance, shape) for words in (None, negative))
        to_start, to_walk = keys_of(seeds)
        x = ladder.start * normal(to_start, shape[1:])
        for ask, first, last in zip((plain, guided, plain), bounds[:-1], bounds[1:], strict=True):
            part = replace(ladder, sigmas=ladder.sigmas[first : last + 1], times=ladder.times[first:last])
            x = pipeline.sampler.sample(pipeline.denoiser(ask), x, part, to_walk)
        return pixels(model.decode(params, x))

    return images


def test_guidance_in_an_interval(tiny):
    """One scan that chooses, as we have it, beside three scans of a fixed choice: the same images in the same time."""
    model, (*asked, everywhere) = tiny
    interval = np.float32(0.5), np.float32(4.0)
    once, here = text_to_image(pipeline(model), model.size), replace(everywhere, interval=interval)
    given = {
        "everywhere": (once, everywhere),
        "chosen, everywhere": (once, replace(everywhere, interval=(np.float32(0), np.float32(1e4)))),
        "chosen": (once, here),
        "three scans": (segments(pipeline(model), model.size, interval), everywhere),
    }
    compiled, seconds = {}, {}
    for name, (function, guidance) in given.items():
        traced = function.lower(*asked, guidance)
        began = time.process_time()
        compiled[name] = partial(traced.compile(), *asked, guidance)
        seconds[name] = time.process_time() - began
    spent = medians(compiled, ())
    print(f"guidance interval: {spent} s a batch, compiled in {seconds} s of processor time")
    np.testing.assert_allclose(np.int32(compiled["chosen"]()), np.int32(compiled["three scans"]()), atol=1)
    assert spent["chosen, everywhere"] < 1.03 * spent["everywhere"]
    assert spent["chosen"] < 1.03 * spent["three scans"] < spent["everywhere"]


def test_words_once_a_prompt(tiny):
    """Against keys and values made at every step."""
    model, asked = tiny

    def every_step(params):
        unet = model.network(params)
        return SimpleNamespace(words=lambda context: context, full=lambda x, t, c: unet.full(x, t, unet.words(c)))

    names = ("configs", "factor", "prediction", "encode_text", "decode")
    other = SimpleNamespace(**{name: getattr(model, name) for name in names}, network=every_step)
    functions = {"once": pipeline(model), "every step": pipeline(other)}
    spent = medians({name: text_to_image(each, model.size) for name, each in functions.items()}, asked)
    print(f"words: {spent}, {1 - spent['once'] / spent['every step']:.1%} saved")
    assert spent["once"] < 1.02 * spent["every step"]


@pytest.mark.parametrize("name", ["Euler a", "Heun", "PLMS"])
def test_compile_time_does_not_grow_with_steps(tiny, name):
    model, asked = tiny
    spent = {steps: [] for steps in (10, 100, 1000)}
    for _ in range(3):
        for steps, each in spent.items():
            traced = text_to_image(pipeline(model, steps, name=name), model.size).lower(*asked)
            began = time.process_time()
            traced.compile()
            each.append(time.process_time() - began)
    seconds = {steps: float(np.median(each)) for steps, each in spent.items()}
    print(f"{name}: compiled in {seconds} s of processor time")
    assert seconds[1000] < 1.2 * seconds[10]
