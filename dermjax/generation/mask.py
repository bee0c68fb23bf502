"""`mask`: a segmentation set out of generated images: a mask by classical means and one by the model's attention.

Place in the flow: a manifest of generated or curated images -> masks/ and attention/ with a PNG for each kept image,
white on lesions, and a manifest whose records name them (`masks`, relative to the manifest's folder), with the overlap
of the two.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from dermjax.data import images, records
from dermjax.data.records import Manifest, Record
from dermjax.data.segmentation import segment
from dermjax.data.tokens import tokenizer, tokens
from dermjax.errors import UserError
from dermjax.generation import attention_masks, model
from dermjax.progress import bar, say


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
        raise UserError(f"{silent[0]}: no prompt on its record; give config.attention=False for classical masks alone")
    told = []
    looked = _attended(config, manifest, kept) if config.attention else [None] * len(kept)
    with bar(len(kept), "mask", "images", 0) as progress:
        for record, attended in zip(kept, looked, strict=True):
            told.append(_masked(record, manifest, attended, workdir))
            progress.update()
    records.write(workdir / records.FILE, Manifest(labels=manifest.labels, root=manifest.root, records=tuple(told)))
    overlaps = [record.attributes["masks"]["overlap"] for record in told if config.attention]
    seen = f", mean overlap (IoU) of the two {np.mean(overlaps):.3f}" if overlaps else ""
    say(f"mask: {len(told)} images in {workdir / records.FILE}{seen}")


def _attended(config: ConfigDict, manifest: Manifest, kept: list[Record]) -> list[np.ndarray]:
    """The masks by attention of the kept images, bool [S, S] each at the model's size."""
    maker = model.read(config.model, config.lora, config.lora_weight, (), "refuse", "float32")
    words = tokenizer(maker.sd.tokenizer, *maker.sd.text_limits)
    spelt = [words(word).input_ids[1:-1] for word in config.words]
    said = tokens(words, [record.generation["prompt"] for record in kept], "refuse")
    where = np.stack([
        attention_masks.places(row, spelt, record.generation["prompt"]) for row, record in zip(said, kept, strict=True)
    ])  # fmt: skip
    maps = attention_masks.mapper(maker.sd, jax.tree.map(jnp.asarray, maker.params), config.seed)
    found = []
    with bar(len(kept), "attention", "images", 0) as progress:
        for first in range(0, len(kept), config.batch):
            chosen = slice(first, first + config.batch)
            seen = np.stack([images.load(manifest.path(record), maker.sd.size) for record in kept[chosen]])
            rows = np.resize(np.arange(len(seen)), config.batch)  # a short batch is filled, so that nothing compiles
            weights = maps(seen[rows], said[chosen][rows], where[chosen][rows])[: len(seen)]
            found += [attention_masks.mask(each, maker.sd.size) for each in weights]
            progress.update(len(seen))
    return found


def _masked(record: Record, manifest: Manifest, attended: np.ndarray | None, workdir: Path) -> Record:
    """The record with its masks, which are written at the size of its image."""
    pixels = images.whole(manifest.path(record))
    if pixels.shape[0] != pixels.shape[1]:
        raise UserError(f"{record.image}: {pixels.shape[1]}x{pixels.shape[0]} px; generated images are square")
    seen = segment(pixels)
    path = Path(record.image).with_suffix(".png").as_posix()
    told = {"lesions": f"masks/{path}", "count": int(seen.count), "area": round(float(seen.areas.sum()), 6)}
    _keep(workdir / told["lesions"], seen.mask)
    if attended is not None:
        own = np.asarray(Image.fromarray(attended).resize(seen.mask.shape, Image.Resampling.NEAREST))
        told["attention"] = f"attention/{path}"
        _keep(workdir / told["attention"], own)
        both = (own & seen.mask).sum() / max((own | seen.mask).sum(), 1)
        told["overlap"] = round(float(both), 4)
    return replace(record, attributes=record.attributes | {"masks": told})


def _keep(path: Path, mask: np.ndarray) -> None:
    images.keep(path, images.png(np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1)))
