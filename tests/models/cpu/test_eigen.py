"""Convolutions by Eigen: told where a process samples on one device, right there, and left alone everywhere else."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models.convolution import xla_convolution
from dermjax.models.cpu import eigen
from dermjax.sampling.requests import SamplerSettings
from dermjax.sampling.text_to_image import latent_diffusion, text_to_image
from dermjax.weights import model_files

cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="an option of XLA's compiler for CPUs")
ASK = """
import json, jax
from dermjax.models.cpu import eigen
from dermjax.sampling.requests import SamplerSettings
from dermjax.sampling.text_to_image import latent_diffusion, text_to_image
from dermjax.weights import model_files
print(json.dumps([jax.local_device_count(), eigen.options(), eigen.is_right.cache_info().misses]))
"""


def asked(devices):
    """What a process of so many devices is told: their number, the options, how often it checked itself."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_one_device_is_told_once_it_has_checked_itself():
    assert asked(1) == [1, eigen.OPTIONS, 1]


def test_several_devices_are_left_alone_unchecked():
    assert asked(2) == [2, {}, 0]


@cpu
@pytest.mark.parametrize(("size", "cin", "cout"), [(16, 64, 64), (8, 128, 32), (33, 3, 16), (32, 320, 320)])
def test_a_convolution_is_eigen_s_and_equals_the_plain_one(size, cin, cout):
    rng = np.random.default_rng(size)
    x = rng.standard_normal((2, size, size, cin), np.float32)
    kernel = rng.standard_normal((3, 3, cin, cout), np.float32) / (9 * cin) ** 0.5
    lowered = jax.jit(xla_convolution).lower(x, kernel)
    plain, told = lowered.compile(), lowered.compile(eigen.OPTIONS)
    assert "__ynn_fusion" not in told.as_text()
    np.testing.assert_allclose(told(x, kernel), plain(x, kernel), atol=1e-5)


@cpu
def test_a_kernel_that_changes_at_its_address_is_read_anew():
    """YNNPACK and Eigen may lay kernels out beforehand; those of a LoRA are computed within the program."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 16, 32), np.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 32, 32), np.float32) / 17)
    lowered = jax.jit(lambda x, kernel: xla_convolution(jnp.tanh(xla_convolution(x, kernel)), 2 * kernel)).lower(
        x, kernel
    )
    plain, told = lowered.compile(), lowered.compile(eigen.OPTIONS)
    step = jax.jit(lambda kernel: -1.01 * kernel, donate_argnums=0)
    for _ in range(5):
        kernel = step(kernel)
        np.testing.assert_allclose(told(x, kernel), plain(x, kernel), atol=1e-5)


@cpu
@pytest.mark.parametrize("fault", ["wrong", "unknown"])
def test_a_version_that_fails_the_check_is_left_alone(monkeypatch, fault):
    class Lowered:
        def __init__(self, lowered):
            self.lowered = lowered

        def compile(self, options=None):
            if options and fault == "unknown":
                raise jax.errors.JaxRuntimeError("No such compile option: 'xla_cpu_experimental_ynn_fusion_type'")
            compiled = self.lowered.compile()
            if not options:
                return compiled
            return lambda *arguments: [array.at[0, 0].add(1e-3) for array in compiled(*arguments)]

    jit = jax.jit
    monkeypatch.setattr(
        jax, "jit", lambda work: type("Jit", (), {"lower": lambda _, *a: Lowered(jit(work).lower(*a))})()
    )
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    eigen.is_right.cache_clear()
    assert eigen.options() == {}
    eigen.is_right.cache_clear()


def test_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(eigen, "is_right", lambda: pytest.fail("asked"))
    assert eigen.options() == {}


@cpu
@pytest.mark.slow
def test_a_sampler_s_images_are_those_of_the_default():
    """Complete programs, guided, on one device: where layers were right and programs of two devices were not."""
    sd, params = model_files.read(model_files.locate("derm-tiny"), dtype=jnp.float32)
    settings = SamplerSettings(sampler="Euler", steps=3, guidance=3.5)
    make = text_to_image(latent_diffusion(sd, settings, None), sd.size)
    length, vocabulary = sd.text_limits
    tokens = np.random.default_rng(0).integers(0, vocabulary, (4, length), np.int32)
    home = jax.devices()[0]
    arguments = jax.device_put((params, tokens, tokens, np.arange(4, dtype=np.uint32), settings.weights()), home)
    lowered = make.lower(*arguments)
    plain, told = (np.asarray(lowered.compile(options)(*arguments), np.int32) for options in (None, eigen.OPTIONS))
    assert np.abs(plain - told).max() <= 1
