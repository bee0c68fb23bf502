"""`pretrain`, variant segmenter: experts' masks of photographs, and phantoms' -> a U-Net that says how sure it is.

photographs and phantoms with masks -> crops of many scales -> the one loop -> a temperature by the validation split
-> workdir/segmenter, config.json with what it reaches there
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from ml_collections import ConfigDict

from dermjax import config_file, sharding
from dermjax.data.images import filled, to_model
from dermjax.data.phantoms.painting import bare_skin, phantom
from dermjax.errors import UserError
from dermjax.models import segmenter
from dermjax.models.nnx_tree import Params, draw
from dermjax.pretraining import photographs
from dermjax.pretraining.photographs import Source
from dermjax.progress import cost, say
from dermjax.segmentation import SIDE
from dermjax.training import optimizers
from dermjax.training.loop import Batches, Evaluate, LoopConfig, Task, fit
from dermjax.training.state import State, create
from dermjax.weights import segmenters

BATCH = 16  # of an evaluation
KEPT = 256  # pixels along the pictures that crops are cut from


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains the segmenter from nothing and leaves it in workdir/segmenter."""
    config_file.check(config)
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch, 1, grid)
    if config.photographs_share + config.empty_share > 1:
        raise UserError("config.photographs_share and config.empty_share: give shares that are at most 1 together")
    if not config.photographs:
        raise UserError("config.photographs: give the manifest of photographs with masks, made by `prepare`")
    splits = {"train": KEPT, "validation": SIDE}
    masks, truth = (photographs.read_masks(config.photographs, *split, workdir) for split in splits.items())
    pictures, held_out = (photographs.read(config.photographs, *split, workdir) for split in splits.items())
    cost("pretrain", devices=grid.size, photographs=len(pictures), phantoms=config.phantoms, steps=config.steps)
    sources = [Source(pictures, config.photographs_share, masks), *paint(config)]
    batches = photographs.crop_batches(
        sources, size=SIDE, sides=tuple(config.sides), seed=config.seed,
        rows=sharding.local_rows(config.batch, grid),
    )  # fmt: skip
    params = train(batches, held_out, truth, config, workdir)
    logits = predict(params, held_out)
    config_json = {
        "temperature": fit_temperature(logits, truth > 127),
        "widths": list(segmenter.WIDTHS),
        "validation_iou": round(float(overlaps(logits > 0, truth > 127).mean()), 4),
    }
    segmenters.write(workdir / "segmenter", params, config_json)
    say(f"pretrain: {workdir / 'segmenter'}: {config_json}")


def paint(config: ConfigDict) -> list[Source]:
    """Returns what is painted: phantoms, bare skin, and plain fields, black among them; the last two have no lesion."""
    seeds = range(config.first_seed, config.first_seed + config.phantoms)
    if not seeds:
        return []
    drawn = [phantom(seed, KEPT) for seed in seeds]
    outlines = np.stack([each.mask for each in drawn]).astype(np.uint8) * 255
    skin = np.stack([bare_skin(seed, KEPT) for seed in seeds[: max(1, len(seeds) // 4)]])
    colours = np.random.default_rng(config.seed).integers(0, 256, (32, 1, 1, 3), np.uint8)
    colours[0] = 0
    plain = np.broadcast_to(colours, (32, KEPT, KEPT, 3))
    nothing = np.zeros((max(len(skin), len(plain)), KEPT, KEPT), np.uint8)
    share = 1 - config.photographs_share - config.empty_share
    return [
        Source(np.stack([each.image for each in drawn]), share, outlines),
        Source(skin, 0.8 * config.empty_share, nothing[: len(skin)]),
        Source(plain, 0.2 * config.empty_share, nothing[: len(plain)]),
    ]


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """Returns what to divide logits by, so that they are least surprised by masks bool of the same shape.

    It is the temperature of Guo et al. 2017 (arXiv 1706.04599), over pixels.
    """

    def surprise(logarithm: float) -> float:
        scaled = logits / np.exp(logarithm)
        return float(np.mean(np.logaddexp(0, scaled) - scaled * truth))

    return round(float(np.exp(scipy.optimize.minimize_scalar(surprise, (-1, 1)).x)), 4)


def loss(params: Params, variables: Params, constants: Params, batch: dict, key: jax.Array):
    """Cross-entropy, a mean over pixels, + 1 - the soft Dice coefficient (Milletari et al. 2016, arXiv 1606.04797)."""
    logits, mask = segmenter.logits(params, batch["image"]), batch["mask"]
    entropy = optax.sigmoid_binary_cross_entropy(logits, mask).mean()
    share = jax.nn.sigmoid(logits)
    both, all_ = (share * mask).sum((1, 2)), share.sum((1, 2)) + mask.sum((1, 2))
    dice = ((2 * both + 1) / (all_ + 1)).mean()
    return entropy + 1 - dice, (variables, {"entropy": entropy, "dice": dice})


def train(batches: Batches, pictures: np.ndarray, masks: np.ndarray, config: ConfigDict, workdir: Path) -> Params:
    """Returns the average of the parameters after config.steps, watched by pictures uint8 [N, S, S, 3] and masks."""
    optimizer = optimizers.build("adamw", rate=config.rate, warmup=config.warmup, steps=config.steps,
                                 schedule="cosine", weight_decay=config.weight_decay, clip=1.0)  # fmt: skip
    params = draw(segmenter.NETWORK.shapes[0], {}, np.random.default_rng(config.seed))
    loop_config = LoopConfig(
        seed=config.seed, steps=config.steps, ema_decay=config.ema_decay, save_every=config.save_every,
        log_every=config.log_every, evaluate_every=config.evaluate_every,
    )  # fmt: skip
    return fit(
        Task("segmenter", loss, optimizer, watch(pictures, masks)), create(params, {}, optimizer, ema=True), {},
        batches, loop_config, mesh=sharding.mesh(config.mesh.data, config.mesh.fsdp), workdir=workdir,
    ).smooth  # fmt: skip


def watch(pictures: np.ndarray, masks: np.ndarray) -> Evaluate:
    """Returns evaluate(state, constants) -> {"iou": mean over pictures}, of pictures at the size that they have."""

    def evaluate(state: State, constants: dict) -> dict[str, float]:
        return {"iou": float(overlaps(predict(state.smooth, pictures) > 0, masks > 127).mean())}

    return evaluate


def predict(params: Params, pictures: np.ndarray) -> np.ndarray:
    """Returns the logits float32 [N, S, S] of pictures uint8 [N, S, S, 3]."""
    step, parts = jax.jit(segmenter.logits), []
    for at in range(0, len(pictures), BATCH):
        some = pictures[at : at + BATCH]
        parts.append(np.asarray(step(params, jnp.asarray(to_model(filled(some, BATCH)))))[: len(some)])
    return np.concatenate(parts)


def overlaps(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersection over the union of masks bool [N, S, S], one number each; 1 where both are empty."""
    both, either = (masks & others).sum((1, 2)), (masks | others).sum((1, 2))
    return np.where(either, both / np.maximum(either, 1), 1.0)
