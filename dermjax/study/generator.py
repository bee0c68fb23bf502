"""A study's own generators: prepare, tune, generate and curate in a folder, each as by its command.

A fold's generator sees the training split of its fold and nothing else. With config.manifest there is one fold, and it
is given. With config.generator_sees = "shots" every few-shot size and seed has a generator that sees no other image
than its cells do: the case of a group that has only these. With config.generator_begins = "photographs" its images
begin at the real ones that it sees.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import buckets, run_folder
from dermjax.config_file import LARGEST_SEED
from dermjax.data import digests, records
from dermjax.data.records import Manifest
from dermjax.demo import class_prompts, run_generator, run_stage
from dermjax.errors import UserError
from dermjax.preparation import run as preparation
from dermjax.run_folder import NUMERIC_VERSIONS
from dermjax.sampling import model
from dermjax.study.cells import Cell, claimed
from dermjax.training.optimizers import pick

SEEN = {"all": False, "shots": True}  # what generators see: whether only the real images of their cells
TUNED, MADE = "tune", "made_of"  # in a generator's folder: by which it is known to have begun, and to have ended
SEEDS = LARGEST_SEED + 1
BEGINS = {"noise": False, "photographs": True}  # what images begin at: whether at the real ones


def prepare(config: ConfigDict, workdir: Path, fold: int) -> Path:
    """Returns the manifest of a fold's real images: the one that is given, or prepare.images divided."""
    if config.manifest and config.folds:
        raise UserError("config.manifest has one split; for several folds give config.prepare.images in its place")
    if config.manifest:
        return Path(config.manifest)
    if not config.prepare.images:
        raise UserError("config.manifest: no real images; give a manifest, or config.prepare.images")
    folder = workdir / f"fold{fold}" / "prepare"
    run_stage(preparation.run, config.prepare, folder, {"folds": config.folds, "fold": fold})
    return folder / records.FILE


def sees_shots(config: ConfigDict) -> bool:
    """Returns whether every few-shot size and seed tunes a generator on its own real images."""
    return pick("config.generator_sees", SEEN, config.generator_sees)


def begins_at_photographs(config: ConfigDict) -> bool:
    """Returns whether the images of a study's own generators begin at the real images that these see."""
    begins = pick("config.generator_begins", BEGINS, config.generator_begins)
    if begins and config.generate.init.images:
        raise UserError(
            "config.generator_begins = photographs begins at the real images; leave out config.generate.init.images"
        )
    return begins


def home(config: ConfigDict, workdir: Path, cell: Cell) -> Path:
    """Returns the folder of the generator of a cell's synthetic images."""
    fold = workdir / f"fold{cell.fold}"
    return fold / f"{cell.shots or 'all'}_seed{cell.seed}" if sees_shots(config) else fold


def drawn(config: ConfigDict, cell: Cell, classes: int) -> ConfigDict:
    """Returns the config of a cell's generator: where every seed has its own, each is tuned and sampled by another
    chance, so that what they share is no part of what seeds differ by."""
    if not sees_shots(config):
        return config
    own, plan = ConfigDict(config.to_dict()), config.generate.plan
    images = classes * max(plan.images_per_class, *plan.images_of.values(), 1)  # whose seeds count up from the plan's
    own.tune.seed = (config.tune.seed + cell.seed) % SEEDS
    own.generate.plan.seed = (plan.seed + cell.seed * images) % (SEEDS - images)
    return own


def few_shot(folder: Path, real: Manifest) -> Path:
    """Returns the manifest of a generator's few real images, written into its folder.

    Raises:
      UserError: there is a generator that saw others.
    """
    _refuse_others(folder, real)
    path = folder / "prepare" / records.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(path, real)
    return path


def synthesise(config: ConfigDict, folder: Path, real: Path) -> Manifest:
    """Returns the kept synthetic images of a generator of real ones in a folder.

    The stages run until they have all ended with these options, images and code; then the folder is not asked again.
    They say themselves what is done and what they make again, and refuse a folder of theirs that has other options.

    Raises:
      UserError: there is a generator that saw other images or has other options, or another host is at it.
    """
    curated, seen = folder / "curate" / records.FILE, records.read(real)
    _refuse_others(folder, seen)
    causes = _causes(config, seen)
    if curated.exists() and _made_of(folder) == causes:
        manifest = records.read(curated)
        if all(record.generation.get(NUMERIC_VERSIONS) == model.NUMERIC_VERSIONS for record in manifest.records):
            return manifest
    prompts = class_prompts(config.prompt, seen.labels)
    with claimed(folder) as ours:
        if not ours:
            raise UserError(f"{folder} is being made by another host; start this one again when it is done")
        run_generator(config, folder, real, prompts, real if begins_at_photographs(config) else None)
        run_folder.write_causes(folder / MADE, causes)
    return records.read(curated)


def _refuse_others(folder: Path, real: Manifest) -> None:
    """Raises UserError where the generator of a folder saw other images than these; one of an older version did not
    say."""
    changed = run_folder.changed_since_start(folder, {"real": _digest(real)}, (TUNED,))
    if changed and (folder / run_folder.CAUSES).exists():
        raise UserError(
            f"{folder}: its generator saw other real images than the study has now; give another --workdir, or delete "
            "this folder to tune one anew"
        )


def _causes(config: ConfigDict, real: Manifest) -> dict:
    """Returns what the images of a generator follow from, wherever its folder lies."""
    stages = {name: buckets.as_given(config[name].to_dict()) for name in ("tune", "generate", "curate")}
    begins = begins_at_photographs(config)
    return json.loads(json.dumps(stages | {"real": _digest(real), "prompt": config.prompt, "begins": begins}))


def _made_of(folder: Path) -> dict:
    """Returns what the finished images of a folder follow from, {} where that is not known."""
    path = (folder / MADE).with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else {}


def _digest(real: Manifest) -> str:
    """Returns the digest of the images that a generator learns from and is stopped by."""
    images = [(split, each.label, each.sha256) for split in ("train", "validation") for each in real.split(split)]
    return digests.of_text(repr(images))
