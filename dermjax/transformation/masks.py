"""`mask`: a segmentation set of generated images: masks by segmentation and by the model's attention.

Place in the flow: a manifest of generated or curated images -> masks/ and attention/ with a PNG for each kept image,
white on lesions, and a manifest whose records name them (`masks`, relative to the manifest's folder), with the overlap
of the two, how sure the segmentation is, and its overlap with the classical one, a second opinion.

By attention: cross-attention to the word for the lesion, on a finished image (as in DAAM, Tang et al. 2022, arXiv
2210.04885, which records it while images are made). The image is encoded, a little noise laid on it, and the network
evaluated once with the image's own prompt, no matter which sampler made it; the weights are recorded while that pass is
traced, and the network knows nothing of it. A UNet attends at half the latents' resolution or less, so the latents are
also shifted by the cells in between. Where the weight of the word stands out of the rest of the image, there is the
lesion.

Shapes: B batch, S side, h w latent, Z latent channels, n the pixels of a transformer, N tokens, D width, K heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage

from dermjax.data import images, records
from dermjax.data.imaging.segmentation import segment_classically
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest, Record
from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.diffusion import schedule
from dermjax.errors import UserError
from dermjax.models.layers import Attention
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar, say
from dermjax.sampling.model import load_model
from dermjax.segmentation import SURE, segment
from dermjax.transformation.measures import mask_png
from dermjax.weights.textual_inversion import spell_stored

Array = jax.Array
TIME = 0.05  # share of the training times: as much noise as needs the words and leaves the lesion visible
SHARE = 0.48  # between the usual weight (0) and the highest (1), from which on a pixel is the lesion
USUAL = 20  # percentile of the weights that is the skin's


class RecordingAttention:
    """A cross-attention that also appends its weights [B, n, N], the mean of the heads, to a list."""

    def __init__(self, attention: Attention, weights: list[Array]):
        self.attention, self.weights = attention, weights
        self.keys_values = attention.keys_values

    def attend(self, x: Array, keys_values: tuple[Array, Array]) -> Array:
        """Returns the attention of x [B, n, D] to keys and values."""
        q = rearrange(self.attention.to_q(x), "B n (K d) -> B n K d", K=self.attention.heads)
        logits = jnp.einsum("BnKd,BNKd->BKnN", q, keys_values[0], preferred_element_type=jnp.float32)
        self.weights.append(jax.nn.softmax(logits / jnp.sqrt(q.shape[-1]), axis=-1).mean(1))
        return self.attention.attend(x, keys_values)


def cross_attention(model: StableDiffusion, params: Params, x: Array, t: Array, context: Array) -> list[Array]:
    """Returns the weights [B, n, N] of every transformer for noisy latents x [B, h, w, Z] at timesteps t [B]."""
    unet = model.network(params)
    weights: list[Array] = []
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for transformer in block.attentions:
            for each in transformer.transformer_blocks:
                each.attn2 = RecordingAttention(each.attn2, weights)
    unet(x, t, context)
    return weights


def attention_mapper(
    model: StableDiffusion, params: Params, seed: int
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Returns maps(images uint8 [B, S, S, 3], tokens int32 [B, N], words bool [B, N]) -> weights float32 [B, h, w].

    words: which tokens are the word. The weights have mean 1 over an image.
    """
    alpha_bar = schedule.alphas_cumprod(model.configs["scheduler"])
    time = round(TIME * (len(alpha_bar) - 1))

    @jax.jit
    def maps(params: Params, images: Array, tokens: Array, words: Array) -> Array:
        moments = model.encode(params, images.astype(jnp.float32) / 127.5 - 1)
        latents = model.sample_latents(moments, jnp.zeros((*moments.shape[:3], moments.shape[3] // 2)))
        context = model.encode_text(params, tokens)
        noise = jax.random.normal(jax.random.key(seed), latents.shape[1:])[None]
        times = jnp.full(len(images), time, jnp.int32)
        shares = words / words.sum(1, keepdims=True)
        side = latents.shape[1]

        def shifted(shift: tuple[int, int]) -> tuple[Array, int]:
            moved = jnp.roll(latents, shift, (1, 2))
            noisy = schedule.add_noise(alpha_bar, moved, noise, times)
            weights = cross_attention(model, params, noisy, times.astype(jnp.float32), context)
            finest = max(weight.shape[1] for weight in weights)
            chosen = [jnp.einsum("BnN,BN->Bn", w, shares) for w in weights if w.shape[1] == finest]
            one = sum(weight / weight.mean(1, keepdims=True) for weight in chosen) / len(chosen)
            cells = round(finest**0.5)
            wide = repeat(rearrange(one, "B (h w) -> B h w", h=cells), "B h w -> B (h a) (w b)",
                          a=side // cells, b=side // cells)  # fmt: skip
            return jnp.roll(wide, (-shift[0], -shift[1]), (1, 2)), side // cells

        first, between = shifted((0, 0))
        shifts = [(down, across) for down in range(between) for across in range(between)][1:]
        return (first + sum(shifted(shift)[0] for shift in shifts)) / (1 + len(shifts))

    return lambda images, tokens, words: np.asarray(maps(params, images, tokens, words.astype(np.float32)))


def attention_mask(weights: np.ndarray, size: int) -> np.ndarray:
    """Returns the mask bool [size, size] of weights [h, w]."""
    wide = ndimage.zoom(weights, size // len(weights), order=3, mode="nearest", grid_mode=True)
    usual, most = np.percentile(wide, USUAL), wide.max()
    return wide > usual + SHARE * (most - usual)


def locate_words(tokens: np.ndarray, words: Sequence[Sequence[int]], prompt: str) -> np.ndarray:
    """Returns which of the tokens int [N] spell one of some words, bool [N]; UserError where none does."""
    inside = np.zeros(len(tokens), bool)
    for word in words:
        for start in range(len(tokens) - len(word) + 1):
            if list(tokens[start : start + len(word)]) == list(word):
                inside[start : start + len(word)] = True
    if not inside.any():
        raise UserError(f"prompt {prompt!r}: none of config.words is in it; name the word for the lesion there")
    return inside


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the masks of every kept image of config.manifest, and workdir/manifest.jsonl with a record of each."""
    if config.attention and not config.words:
        raise UserError("config.words: none; give the words for what is to be masked, or config.attention=False")
    if not config.manifest:
        raise UserError("config.manifest: no manifest; give one of generated images, such as runs/curate")
    manifest = records.read(Path(config.manifest))
    kept = [record for record in manifest.records if record.kept]
    if not kept:
        raise UserError(f"manifest {config.manifest}: no kept image in it")
    silent = [record.image for record in kept if not record.generation.get("prompt")]
    if config.attention and silent:
        raise UserError(
            f"{silent[0]}: no prompt on its record; give config.attention=False for masks by segmentation alone"
        )
    entries = []
    attention = _attention_masks(config, manifest, kept) if config.attention else [None] * len(kept)
    with bar(len(kept), "mask", "images", 0) as progress:
        for record, mask in zip(kept, attention, strict=True):
            entries.append(_write_masks(record, manifest, mask, workdir))
            progress.update()
    training_images.pass_on([Path(config.manifest)], workdir)
    records.write(workdir / records.FILE, replace(manifest, records=tuple(entries)))
    masks = [record.attributes["masks"] for record in entries]
    overlaps = [each["overlap"] for each in masks if config.attention]
    mean = f", mean overlap (IoU) of the two {np.mean(overlaps):.3f}" if overlaps else ""
    unsure = sum(each["certainty"] < SURE for each in masks)
    look = f"; {unsure} masks are unsure (certainty below {SURE}), look at them" if unsure else ""
    say(f"mask: {len(entries)} images in {workdir / records.FILE}{mean}{look}")


def _attention_masks(config: ConfigDict, manifest: Manifest, kept: list[Record]) -> list[np.ndarray]:
    """Returns the masks by attention of the kept images, bool [S, S] each at the model's size."""
    model = load_model(config.model, config.lora, config.lora_weight, (), "refuse", "float32")
    if model.sd.configs["unet"]["in_channels"] != model.sd.configs["vae"]["latent_channels"]:
        raise UserError(f"{config.model}: paints into pictures, and attention is of models without a mask; give one, "
                        "or config.attention=False for masks by segmentation alone")  # fmt: skip
    tokenizer = load_tokenizer(model.sd.tokenizer, *model.sd.text_limits)
    words = [tokenizer(word).input_ids[1:-1] for word in config.words]
    prompts = spell_stored([record.generation["prompt"] for record in kept], tokenizer)
    tokens = tokenize(tokenizer, prompts, "refuse")
    inside = np.stack([locate_words(row, words, prompt) for row, prompt in zip(tokens, prompts, strict=True)])
    maps = attention_mapper(model.sd, jax.tree.map(jnp.asarray, model.params), config.seed)
    masks = []
    with bar(len(kept), "attention", "images", 0) as progress:
        for first in range(0, len(kept), config.batch):
            chosen = slice(first, first + config.batch)
            pixels = np.stack([images.load(manifest.path(record), model.sd.size) for record in kept[chosen]])
            rows = np.resize(np.arange(len(pixels)), config.batch)  # a short batch is filled, so that nothing compiles
            weights = maps(pixels[rows], tokens[chosen][rows], inside[chosen][rows])[: len(pixels)]
            masks += [attention_mask(each, model.sd.size) for each in weights]
            progress.update(len(pixels))
    return masks


def _write_masks(record: Record, manifest: Manifest, attention: np.ndarray | None, workdir: Path) -> Record:
    """Returns the record with its masks, which are written at the size of its image."""
    pixels = images.decode(manifest.path(record))
    if pixels.shape[0] != pixels.shape[1]:
        raise UserError(f"{record.image}: {pixels.shape[1]}x{pixels.shape[0]} px; generated images are square")
    lesions = segment(pixels)
    path = record.image if record.image.endswith(".png") else f"{record.image}.png"  # a.jpg may lie beside a.png
    masks = {"lesions": f"masks/{path}", "count": int(lesions.count), "area": round(float(lesions.areas.sum()), 6),
             "certainty": round(lesions.certainty, 4),
             "second_opinion": _overlap(lesions.mask, segment_classically(pixels).mask)}  # fmt: skip
    images.write_if_changed(workdir / masks["lesions"], mask_png(lesions.mask))
    if attention is not None:
        resized = np.asarray(Image.fromarray(attention).resize(lesions.mask.shape, Image.Resampling.NEAREST))
        masks["attention"] = f"attention/{path}"
        images.write_if_changed(workdir / masks["attention"], mask_png(resized))
        masks["overlap"] = _overlap(lesions.mask, resized)
    return replace(record, attributes=record.attributes | {"masks": masks})


def _overlap(mask: np.ndarray, other: np.ndarray) -> float:
    """Returns the intersection over the union of two masks."""
    return round(float((mask & other).sum() / max((mask | other).sum(), 1)), 4)
