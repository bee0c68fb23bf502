"""Optimisers and schedules: each learns, and eight bits do what thirty-two do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dermjax import sharding
from dermjax.data import pipelines
from dermjax.diffusion import objective
from dermjax.training import loop, optimizers, rounding
from dermjax.training.loop import LoopConfig, Task
from dermjax.training.optimizers import scale_by_quantised_adam
from dermjax.training.rounding import FIRST, SECOND, empty, pack, unpack
from dermjax.training.state import create, place
from dermjax.training.step import LEAST_MEMORY

RATES = {"adamw": 0.03, "adamw8bit": 0.03, "adafactor": 0.03, "lion": 0.03, "prodigy": 1.0}


def fitted(name, steps=200):
    """The error of a linear map of 64 x 128 numbers before and after its training."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 64)), jnp.float32)
    truth = jnp.asarray(rng.normal(size=(64, 128)), jnp.float32)
    optimizer = optimizers.build(name, rate=RATES[name], warmup=5, steps=steps, schedule="cosine", weight_decay=0.0,
                                 clip=0.0)  # fmt: skip
    params = {"kernel": jnp.zeros((64, 128))}

    def error(params):
        return jnp.square(x @ (params["kernel"] - truth)).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(error)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), error(params)
    for _ in range(steps):
        params, state = step(params, state)
    return float(before), float(error(params)), state


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_learns(name):
    before, after, _ = fitted(name)
    assert after < 0.05 * before


@pytest.mark.parametrize(
    ("name", "rate", "said"), [("prodigy", 1e-4, True), ("prodigy", 0.1, True), ("prodigy", 1.0, False),
                               ("prodigy", 0.0, False), ("adamw", 1e-4, False)]
)  # fmt: skip
def test_a_rate_of_other_optimizers_is_said_of_prodigy(name, rate, said, capsys):
    optimizers.build(name, rate=rate, warmup=0, steps=10, schedule="constant", weight_decay=0.0, clip=0.0)
    line = f"rate = {rate:g}: prodigy finds its step itself and takes the rate as a factor; give 1\n"
    assert capsys.readouterr().out == (line if said else "")


def test_eight_bits_learn_as_well_as_thirty_two_in_a_quarter_of_the_memory():
    (_, whole, state), (_, quantised, small) = fitted("adamw"), fitted("adamw8bit")
    assert quantised < 1.2 * whole
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(each)) for each in (state, small)]
    assert size[1] < 0.28 * size[0]


@pytest.mark.parametrize(("kind", "span"), [(FIRST, 5.0), (SECOND, 7.0)])
def test_rounding_stays_on_neighbouring_rungs_and_is_right_on_average(kind, span):
    rng = np.random.default_rng(1)
    x = 10 ** rng.uniform(-span, 0, (16, 512))
    x = jnp.asarray(x if kind is SECOND else x * rng.choice([-1, 1], x.shape), jnp.float32)
    draws = jnp.stack([unpack(*pack(x, kind, jax.random.key(i)), kind) for i in range(200)])
    assert float((jnp.abs(draws - x[None]) / jnp.abs(x)[None]).max()) < 0.13
    off = (draws.mean(0) - x) / jnp.abs(x)
    assert float(jnp.abs(off).max()) < 0.13 * 5 / np.sqrt(200)
    assert abs(float(off.mean())) < 1e-3


def test_a_positive_second_moment_never_becomes_zero_and_zero_stays_zero():
    x = jnp.zeros((16, 256)).at[:, 0].set(1.0).at[:, 1].set(1e-20)
    values = unpack(*pack(x, SECOND, jax.random.key(0)), SECOND)
    assert (values[:, 1] > 0).all() and (values[:, 2:] == 0).all()
    assert (unpack(*pack(jnp.zeros((16, 256)), FIRST, jax.random.key(0)), FIRST) == 0).all()


@pytest.mark.parametrize("kind", [FIRST, SECOND])
@pytest.mark.parametrize("shape", [(16, 256), (3, 3, 24, 40), (4097,), (7,), ()])
def test_empty_codes_are_those_of_zeros(shape, kind):
    for made, wanted in zip(empty(shape, kind), pack(jnp.zeros(shape), kind, jax.random.key(0)), strict=True):
        assert (made.shape, made.dtype) == (wanted.shape, wanted.dtype) and np.array_equal(made, wanted)


def test_small_parameters_keep_exact_moments():
    params = {"bias": jnp.ones(64)}
    adam = scale_by_quantised_adam(0.9, 0.999, 1e-8)
    state, first, second = adam.init(params), 0.0, 0.0
    for i in range(5):
        gradient = np.linspace(-1, 1, 64) * (i + 1)
        update, state = adam.update({"bias": jnp.asarray(gradient, jnp.float32)}, state)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        expected = first / (1 - 0.9 ** (i + 1)) / (np.sqrt(second / (1 - 0.999 ** (i + 1))) + 1e-8)
        np.testing.assert_allclose(update["bias"], expected, rtol=2e-6)


def test_every_rounding_has_a_key_of_its_own(monkeypatch):
    """No two parameters, moments or steps share one, nor do the examples of a run's steps, whatever its seed is."""
    drawn = []

    def noted(x, kind, key):
        drawn.append(key)
        return pack(x, kind, key)

    monkeypatch.setattr(optimizers, "pack", noted)
    params = {name: jnp.ones((64, 64)) for name in ("one", "two")}
    adam = scale_by_quantised_adam(0.9, 0.999, 1e-8)
    state = adam.init(params)
    drawn.clear()
    for _ in range(3):
        _, state = adam.update(jax.tree.map(jnp.ones_like, params), state)
    assert len(drawn) == 3 * 2 * 2
    monkeypatch.setattr(rounding, "to_bfloat16", lambda x, key: drawn.append(key))
    for seed, step in ((seed, step) for seed in (0, 1) for step in range(5)):
        key = jax.random.fold_in(jax.random.key(seed), step)
        rounding.add([jnp.ones(1, jnp.bfloat16)] * 3, [jnp.ones(1)] * 3, key)
        examples = objective.example_keys(key, jnp.arange(4))
        drawn += [*examples, *jax.vmap(lambda key: jax.random.split(key, 6))(examples).ravel()]
    data = np.stack([jax.random.key_data(key) for key in drawn])
    assert len(np.unique(data, axis=0)) == len(data)
    uniform = np.stack([jax.random.uniform(key, (4096,)) for key in drawn[:12]])
    assert np.abs(np.corrcoef(uniform) - np.eye(12)).max() < 0.1  # over 6 standard errors


def test_schedules_warm_up_and_end_where_they_say():
    ends = {"constant": 2.0, "cosine": 0.02, "linear": 0.0}
    for name, end in ends.items():
        rates = optimizers.SCHEDULES[name](2.0, 10, 100)
        assert [float(rates(step)) for step in (0, 5, 10)] == pytest.approx([0.0, 1.0, 2.0])
        assert float(rates(100)) == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_trains_on_one_device(tmp_path, name, ema_decay):
    """A state may have one zero, or the parameters, twice; a step takes memory over once, so each gets its own."""
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=(8, n)).astype(np.float32) for name, n in (("x", 64), ("y", 128))}
    rule = optimizers.build(name, rate=RATES[name], warmup=1, steps=4, schedule="constant", weight_decay=0.01, clip=1.0)

    def loss(params, variables, constants, batch, key):
        error = batch["x"] @ params["kernel"] * params["scale"][None] + params["bias"][None] - batch["y"]
        return jnp.square(error).mean(), (variables, {})

    start = {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros((128,)), "scale": jnp.ones((128,))}
    state = loop.fit(
        Task("line", loss, rule), create(start, {}, rule, ema=ema_decay > 0), {},
        pipelines.array_batches(data, batch=1, seed=0),
        LoopConfig(seed=0, steps=4, ema_decay=ema_decay, save_every=4, log_every=4),
        mesh=sharding.mesh(1, 1), workdir=tmp_path,
    )  # fmt: skip
    assert int(state.step) == 4 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.smooth))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(place(state, sharding.tree_shardings(
        state, sharding.RULES, sharding.mesh(1, 1))))]  # fmt: skip
    assert len(set(pointers)) == len(pointers)


def test_eight_bit_moments_of_large_arrays_are_wide_one_after_the_other():
    """XLA's CPU compiler held those of all arrays at once: 7.5 times the parameters, more than a machine had."""
    shapes = {f"{i}": jax.ShapeDtypeStruct((1024, 1024), jnp.float32) for i in range(8)}
    adam = scale_by_quantised_adam(0.9, 0.999, 1e-8)
    state = jax.eval_shape(adam.init, shapes)
    update = jax.jit(adam.update, donate_argnums=(0, 1)).lower(shapes, state).compile(compiler_options=LEAST_MEMORY)
    assert update.memory_analysis().temp_size_in_bytes < 1.5 * 8 * 2**22


def test_a_large_array_is_moved_as_its_pieces_are(monkeypatch):
    rng = np.random.default_rng(0)
    gradients = {"kernel": jnp.asarray(rng.standard_normal((64, 512)), jnp.float32)}
    adam = scale_by_quantised_adam(0.9, 0.999, 1e-8)
    small, _ = jax.jit(adam.update)(gradients, adam.init(gradients))
    monkeypatch.setattr(optimizers, "ALONE", 1)
    large, _ = jax.jit(lambda *given: adam.update(*given))(gradients, adam.init(gradients))
    np.testing.assert_allclose(small["kernel"], large["kernel"], rtol=1e-6)
