"""The cases of `bench`: what is timed, at which sizes on a CPU and on a GPU, and what of PyTorch does the same.

A case is a kind of work with settings. Both sides, `bench.ours` and launch/pytorch_bench.py, have a function of each
kind that takes these settings; this file knows neither JAX nor PyTorch, so that the command that asks both holds no
device.
"""

from dataclasses import dataclass
from typing import Any

from dermjax.machine import GB

CONTEXT = (77, 768)  # of Stable Diffusion 1.5: tokens, width
BATCH = 32  # images of a batch of the data pipeline
DIFFUSERS, TRANSFORMERS = ("torch", "diffusers"), ("torch", "transformers")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    packages: what PyTorch's side imports, () where there is none. seconds, memory: of a round and of the larger of both
    processes at its peak on two cores, about, for the cost line and for saying what does not fit.
    """

    kind: str
    settings: dict[str, Any]
    unit: str  # what is counted: a round does `count` of them, and the table has seconds of one
    count: int
    packages: tuple[str, ...]
    seconds: float
    memory: float
    devices: int = 1  # of a CPU on our side; 0: as many as the stage takes
    fresh: bool = False  # a process of its own for each round, whose first call counts
    compiles: bool = False  # whether torch.compile may take it


def _evaluations(batch: int, side: int, count: int, seconds: float, memory: float) -> Case:
    settings = {"batch": batch, "side": side, "evaluations": count}
    return Case("unet", settings, "evaluation", count, DIFFUSERS, seconds, memory, compiles=True)


def _decoding(pixels: int, seconds: float, memory: float) -> Case:
    return Case("decode", {"pixels": pixels}, "image", 1, DIFFUSERS, seconds, memory, compiles=True)


def _gradient(how: str, batch: int, side: int, seconds: float, memory: float) -> Case:
    packages = (*DIFFUSERS, "peft") if how == "lora" else DIFFUSERS
    settings = {"how": how, "batch": batch, "side": side}
    return Case("gradient", settings, "gradient", 1, packages, seconds, memory, compiles=True)


def _training(name: str, size: int, batch: int, steps: int, seconds: float, memory: float) -> Case:
    settings = {"name": name, "size": size, "batch": batch, "steps": steps}
    return Case("classify", settings, "step", steps, TRANSFORMERS, seconds, memory, devices=0, compiles=True)


def _batches(augment: str, images: int, seconds: float) -> Case:
    settings = {"augment": augment, "images": images}
    return Case("batches", settings, "image", images, ("torch",), seconds, 1.1 * GB)


def _loading(dtype: str, seconds: float, memory: float) -> Case:
    return Case("load", {"dtype": dtype}, "load", 1, DIFFUSERS, seconds, memory, fresh=True)


MATRIX = "matrix"  # whose rate the others are a share of
TINY = {
    "sample/derm-tiny": Case(
        "sample", {"steps": 25, "batch": 8, "guidance": 3.5}, "image", 8, (*DIFFUSERS, "transformers"), 3.5, 1.3 * GB,
        compiles=True,
    ),
    "tune/derm-tiny": Case(
        "tune", {"batch": 16, "steps": 4}, "step", 4, DIFFUSERS, 2, 3.5 * GB, devices=0, compiles=True
    ),
}  # fmt: skip
FILES = {
    "batches/mild": _batches("mild", 640, 1),
    "batches/strong": _batches("strong", 640, 2.5),
    "prepare/224": Case("prepare", {"images": 100}, "image", 100, (), 3, 0.8 * GB),
    "load/float32": _loading("float32", 4, 7 * GB),
    "load/float16": _loading("float16", 1.5, 1 * GB),
}
CASES = {
    "cpu": {
        MATRIX: Case("matrix", {"side": 2048}, "product", 1, ("torch",), 0.2, 0.6 * GB),
        "unet/32x32/1": _evaluations(1, 32, 3, 5, 5 * GB),
        "unet/32x32/2": _evaluations(2, 32, 3, 10, 5 * GB),
        "unet/64x64/1": _evaluations(1, 64, 1, 8, 5 * GB),
        "unet/64x64/2": _evaluations(2, 64, 1, 16, 5 * GB),
        "decode/256": _decoding(256, 5, 2 * GB),
        "decode/512": _decoding(512, 23, 2 * GB),
        **TINY,
        "gradient/full": _gradient("full", 1, 32, 11, 11 * GB),
        "gradient/lora": _gradient("lora", 1, 32, 6.5, 7 * GB),
        "classify/vit": _training("vit", 224, 16, 2, 8, 4.5 * GB),
        "classify/mobilenetv2": _training("mobilenetv2", 160, 32, 2, 1.5, 3 * GB),
        **FILES,
    },
    "gpu": {
        MATRIX: Case("matrix", {"side": 8192}, "product", 1, ("torch",), 0.1, 2 * GB),
        "unet/64x64/2": _evaluations(2, 64, 20, 1, 5 * GB),
        "unet/64x64/16": _evaluations(16, 64, 5, 2, 9 * GB),
        "decode/512": _decoding(512, 0.1, 3 * GB),
        **TINY,
        "gradient/full": _gradient("full", 4, 64, 1, 20 * GB),
        "gradient/lora": _gradient("lora", 8, 64, 1, 20 * GB),
        "classify/vit": _training("vit", 224, 128, 10, 1, 12 * GB),
        "classify/mobilenetv2": _training("mobilenetv2", 224, 256, 10, 1, 12 * GB),
        **FILES,
    },
}


def cases_on(platform: str) -> dict[str, Case]:
    """Returns the cases at the sizes of a processor, or of an accelerator."""
    return CASES["cpu" if platform == "cpu" else "gpu"]
