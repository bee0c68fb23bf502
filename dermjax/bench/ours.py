"""dermjax's side of `bench`: the work of each kind of case, as the stages do it, on random weights and images.

    python -m dermjax.bench.ours KIND SETTINGS fresh|kept

is its process (`process.serve`). On a CPU all is float32; on a GPU the arithmetic is bfloat16, and the folder of
weights is still read as the case says. Functions of a kind take its settings by name.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dermjax import machine, sharding
from dermjax.bench.cases import BATCH, CONTEXT
from dermjax.bench.process import Work, peak_memory, serve
from dermjax.classification import recipes
from dermjax.data import pipelines
from dermjax.data.digests import sha256
from dermjax.data.pipelines import MixturePlan
from dermjax.data.records import Manifest, Record
from dermjax.models import vit
from dermjax.models.classifier import describe, fresh
from dermjax.models.cpu import eigen
from dermjax.models.stable_diffusion import SD15, Params, StableDiffusion
from dermjax.preparation import examination
from dermjax.sampling.requests import SamplerSettings
from dermjax.sampling.text_to_image import latent_diffusion, text_to_image
from dermjax.training import optimizers
from dermjax.training.state import create
from dermjax.training.step import LEAST_MEMORY, compile_step, gradient_function
from dermjax.tuning import task, trainable
from dermjax.weights import diffusers, model_files, safetensors
from dermjax.weights.safetensors import LazyTensor
from dermjax.weights.torch_layout import expected

ON_CPU = jax.default_backend() == "cpu"
DTYPE = jnp.float32 if ON_CPU else jnp.bfloat16
PASSES = {"full": 3, "lora": 2}  # a gradient costs two passes more, or one where the kernels have none
CLASSIFIERS = {"vit": ("vit", "S/16"), "mobilenetv2": ("mobilenet_v2", "")}


def peak() -> int:
    """Returns the most bytes held: a GPU's, or those of the process."""
    return peak_memory() if ON_CPU else jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def operations(function: Callable, *arguments: Any) -> float:
    """Returns XLA's count of the arithmetic of one call."""
    return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])


def sampling(function: Callable) -> Callable:
    """Returns a function compiled as `sampling.render` compiles it."""
    return jax.jit(function, compiler_options=eigen.options())


def drawn(shapes: Params) -> Params:
    """Returns small random parameters on the device."""
    leaves, form = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        form, [jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), DTYPE) for leaf in leaves]
    )


def normal(*shape: int) -> np.ndarray:
    """Returns random numbers, float32."""
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def matrix(side: int) -> Work:
    """A product of two square matrices."""
    a, b = (jnp.asarray(normal(side, side), DTYPE) for _ in range(2))
    multiply = jax.jit(jnp.matmul)
    return Work(lambda: multiply(a, b).block_until_ready(), 2.0 * side**3, peak)


def unet(batch: int, side: int, evaluations: int) -> Work:
    """Evaluations of Stable Diffusion 1.5's UNet as a sampler's loop makes them: its words are made ready before it."""
    sd = StableDiffusion(SD15, Path(), DTYPE)
    params = {"unet": drawn(sd.shapes["unet"])}
    x, context = normal(batch, side, side, 4), normal(batch, *CONTEXT)

    @sampling
    def sample(params: Params, x: jax.Array, context: jax.Array) -> jax.Array:
        network = sd.network(params)
        words, t = network.words(context), jnp.full(batch, 500.0)
        return jax.lax.fori_loop(0, evaluations, lambda _, x: x + 0.1 * network.full(x, t, words)[0], x)

    work = operations(sd.unet, params, x, np.full(batch, 500.0, np.float32), context)
    return Work(lambda: sample(params, x, context).block_until_ready(), evaluations * work, peak)


def decode(pixels: int) -> Work:
    """An image from its latents by Stable Diffusion 1.5's autoencoder."""
    sd = StableDiffusion(SD15, Path(), DTYPE)
    params = {"vae": drawn(sd.shapes["vae"])}
    latents, call = normal(1, pixels // sd.factor, pixels // sd.factor, 4), sampling(sd.decode)
    return Work(lambda: call(params, latents).block_until_ready(), operations(sd.decode, params, latents), peak)


def sample(steps: int, batch: int, guidance: float) -> Work:
    """A batch of derm-tiny's images by Euler's method, from tokens to pixels."""
    sd, params = model_files.read(model_files.locate("derm-tiny"), dtype=DTYPE)
    params = jax.tree.map(jnp.asarray, params)
    settings = SamplerSettings(sampler="Euler", steps=steps, guidance=guidance)
    make = text_to_image(latent_diffusion(sd, settings, None), sd.size)
    length, vocabulary = sd.text_limits
    tokens = np.random.default_rng(1).integers(0, vocabulary, (batch, length), np.int32)
    seeds = np.arange(batch, dtype=np.uint32)
    cells = sd.size // sd.factor
    width = sd.configs["unet"]["cross_attention_dim"]
    x, context = np.zeros((2 * batch, cells, cells, 4), np.float32), np.zeros((2 * batch, length, width), np.float32)
    work = steps * operations(sd.unet, params, x, np.zeros(2 * batch, np.float32), context)
    work += operations(sd.decode, params, x[:batch])
    arguments = (params, tokens, tokens, seeds, settings.weights())
    compiled = make.lower(*arguments).compile(eigen.options())
    return Work(lambda: np.asarray(compiled(*arguments)), work, peak)


def moments(batch: int, side: int) -> dict[str, np.ndarray]:
    """Returns a batch of cached moments."""
    return {
        "moments": normal(batch, 2, side, side, 8).astype(np.float16),
        "prompt": np.arange(batch, dtype=np.int32) % 2,
        "weight": np.ones(batch, np.float32),
    }


def tune(batch: int, steps: int) -> Work:
    """Steps that tune derm-tiny's whole UNet: AdamW, clipped gradients, an average of the parameters."""
    machine.keep_freed_memory()  # as the stage does
    sd, params = model_files.read(model_files.locate("derm-tiny"), dtype=DTYPE)
    grid, side = sharding.mesh(0, 1), sd.configs["unet"]["sample_size"]
    trained, frozen = trainable.divide(
        params, {"unet": "full", "text_encoder": "frozen"}, rank=1, targets=(), seed=0, words=0,
        precision="float32" if ON_CPU else "bfloat16",
    )  # fmt: skip
    rule = optimizers.build(
        "adamw", rate=1e-4, warmup=0, steps=1000, schedule="constant", weight_decay=0.01, clip=1.0
    )  # fmt: skip
    state = create(trained, {}, rule, ema=True)
    places = sharding.tree_shardings(state, sharding.RULES, grid)
    loss = task.dreambooth_loss(sd, partial(trainable.assemble, alpha=1.0), **task.PLAIN)
    step = compile_step(loss, rule, 0.98, 1, places, grid, False)
    everywhere = sharding.replicated(grid)
    length, width = sd.text_limits[0], sd.configs["unet"]["cross_attention_dim"]
    constants = jax.device_put(frozen | {"contexts": normal(3, length, width)}, everywhere)
    key, rows = jax.device_put(jax.random.key(0), everywhere), moments(batch, side)
    held = [jax.device_put(state, places)]

    def run() -> None:
        for _ in range(steps):
            held[0], scalars = step(held[0], constants, sharding.place(rows, grid), key)
        jax.block_until_ready(scalars)

    x, context = np.zeros((batch, side, side, 4), np.float32), np.zeros((batch, length, width), np.float32)
    work = operations(sd.unet, sd.shapes, x, np.zeros(batch, np.float32), context)
    return Work(run, steps * PASSES["full"] * work, peak)


def gradient(how: str, batch: int, side: int) -> Work:
    """The loss of tuning Stable Diffusion 1.5 and its gradient, of the whole UNet or of a LoRA on its attention."""
    sd = StableDiffusion(SD15, Path(), DTYPE)
    params = {"unet": drawn(sd.shapes["unet"]), "text_encoder": {}}
    trained, frozen = trainable.divide(
        params, {"unet": how, "text_encoder": "frozen"}, rank=4, targets=("attention",), seed=0, words=0,
        precision="float32" if ON_CPU else "bfloat16",
    )  # fmt: skip
    del params
    grid = sharding.mesh(1, 1)
    loss = task.dreambooth_loss(sd, partial(trainable.assemble, alpha=4.0), **task.PLAIN)
    options = LEAST_MEMORY if ON_CPU else None  # as in training.step
    call = jax.jit(gradient_function(loss, 1, grid), compiler_options=options)
    constants, rows = frozen | {"contexts": normal(3, *CONTEXT)}, moments(batch, side)
    x, t = np.zeros((batch, side, side, 4), np.float32), np.zeros(batch, np.float32)
    work = operations(sd.unet, sd.shapes, x, t, np.zeros((batch, *CONTEXT), np.float32))
    arguments = (trained, {}, constants, rows, jax.random.key(0))
    return Work(lambda: jax.block_until_ready(call(*arguments)), PASSES[how] * work, peak)


def classify(name: str, size: int, batch: int, steps: int) -> Work:
    """Steps that train a classifier on images, data parallel over all devices."""
    machine.keep_freed_memory()
    kind, architecture = CLASSIFIERS[name]
    settings = vit.vit_settings(architecture) if architecture else {}
    classifier = fresh(describe(kind, settings, ("a", "b"), size), DTYPE)
    grid, chosen = sharding.mesh(0, 1), recipes.Recipe(last=None)
    rule = optimizers.build(
        "adamw", rate=1e-4, warmup=0, steps=1000, schedule="constant", weight_decay=0.05, clip=0.0
    )  # fmt: skip
    state = create(*classifier.init(0), rule, ema=False)
    places = sharding.tree_shardings(state, sharding.RULES, grid)
    step = compile_step(recipes.loss(classifier, chosen, 0.0), rule, 0.0, 1, places, grid, False)
    key = jax.device_put(jax.random.key(0), sharding.replicated(grid))
    image, label = normal(batch, size, size, 3), np.arange(batch, dtype=np.int32) % 2
    rows = sharding.place({"image": image, "label": label}, grid)
    held = [jax.device_put(state, places)]

    def run() -> None:
        for _ in range(steps):
            held[0], scalars = step(held[0], {}, rows, key)
        jax.block_until_ready(scalars)

    work = recipes.operations(classifier, chosen, size)[1]
    return Work(run, steps * batch * PASSES["full"] * work, peak)


def photographs(folder: str) -> Manifest:
    """Returns the records of a folder of JPEGs, as `bench.run` draws them."""
    names = sorted(path.name for path in Path(folder).glob("*.jpg"))
    facts = {"split": "train", "source": "bench", "image_manipulation": "none"}
    records = (
        Record(image=name, sha256=sha256(Path(folder) / name), label="ab"[row % 2], **facts)
        for row, name in enumerate(names)
    )
    return Manifest(labels=("a", "b"), root=Path(folder), records=tuple(records))


def batches(augment: str, images: int, folder: str) -> Work:
    """Batches of augmented training images, decoded anew each time."""
    pipelines.CACHE_BYTES = 0
    plan = MixturePlan(
        real=photographs(folder), synthetic=None, synthetic_fraction=0.0, batch=BATCH, rows=np.arange(BATCH), seed=0,
        mixing="none",
    )  # fmt: skip
    made = pipelines.training_batches(plan, size=224, augment=augment)
    return Work(lambda: [next(made) for _ in range(images // BATCH)])


def prepare(images: int, folder: str) -> Work:
    """`prepare`'s examination of photographs: decoding, fingerprints, segmentation, skin tone and artefacts."""
    manifest = photographs(folder)

    def run() -> None:
        with tempfile.TemporaryDirectory() as kept:
            examination.examine(manifest.records[:images], manifest.root, "fail", True, Path(kept))

    return Work(run)


def load(dtype: str, folder: str) -> Work:
    """A folder in diffusers' layout with Stable Diffusion 1.5 in half precision, 2.1 GB, becomes parameters."""
    path = Path(folder)
    if not path.exists():
        write_random(path)
    return Work(lambda: diffusers.read(path, params_dtype=np.dtype(dtype)))


def write_random(folder: Path) -> None:
    """Writes such a folder with random weights; a killed run leaves none."""
    sd = StableDiffusion(SD15, Path(diffusers.__file__).parent / "clip_tokenizer", np.float32)
    rng, part = np.random.default_rng(0), folder.with_name(f".{folder.name}.part")

    def random(shape: tuple[int, ...]) -> LazyTensor:
        # bits of small positive numbers: drawing normals would take a minute
        def read() -> np.ndarray:
            return rng.integers(0, 2**14, shape, np.uint16).view(np.float16)

        return LazyTensor(shape, np.dtype(np.float16), read)

    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copytree(sd.tokenizer, part / "tokenizer")
    (part / "model_index.json").write_text(json.dumps(diffusers.index(sd)))
    for name, config in sd.configs.items():
        (part / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (part / name / file).write_text(json.dumps(config))
    for name, file in diffusers.FILES.items():
        tensors = {key: random(shape) for key, shape in expected(sd.shapes[name]).items()}
        safetensors.write(part / name / file, tensors, {})
    part.rename(folder)


KINDS = (matrix, unet, decode, sample, tune, gradient, classify, batches, prepare, load)

if __name__ == "__main__":
    serve(*KINDS)
