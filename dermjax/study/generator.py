"""A study's own generators: prepare, tune, generate and curate in a folder, each as by its command.

A fold's generator sees the training split of its fold and nothing else. With config.manifest there is one fold, and it
is given. With config.generator_sees = "shots" every few-shot size and seed has a generator that sees no other image
than its cells do: the case of a group that has only these. With config.generator_begins = "photographs" its images
begin at the real ones that it sees.
"""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax.data import records
from dermjax.data.records import Manifest
from dermjax.demo import class_prompts, run_generator, run_stage
from dermjax.errors import UserError
from dermjax.preparation import run as preparation
from dermjax.run_folder import NUMERIC_VERSIONS
from dermjax.sampling import model
from dermjax.study.cells import Cell, claimed
from dermjax.training.optimizers import pick

SEEN = {"all": False, "shots": True}  # what generators see: whether only the real images of their cells
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


def few_shot(folder: Path, real: Manifest) -> Path:
    """Returns the manifest of a generator's few real images, written into its folder."""
    path = folder / "prepare" / records.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(path, real)
    return path


def synthesise(config: ConfigDict, folder: Path, real: Path) -> Manifest:
    """Returns the kept synthetic images of a generator of real ones in a folder; finished stages are not run again.

    Where images are of other code the stages are run, and each says what it makes again.
    """
    curated = folder / "curate" / records.FILE
    if curated.exists():
        manifest = records.read(curated)
        if all(record.generation.get(NUMERIC_VERSIONS) == model.NUMERIC_VERSIONS for record in manifest.records):
            return manifest
    prompts = class_prompts(config.prompt, records.read(real).labels)
    with claimed(folder) as ours:
        if not ours:
            raise UserError(f"{folder} is being made by another host; start this one again when it is done")
        run_generator(config, folder, real, prompts, real if begins_at_photographs(config) else None)
    return records.read(curated)
