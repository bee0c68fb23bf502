"""A fold's own generator: prepare, tune, generate and curate in the fold's folder, as `demo` does them.

The generator sees the training split of its fold and nothing else. With config.manifest there is one fold, and it is
given.
"""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax.curation import run as curation
from dermjax.data import records
from dermjax.data.records import Manifest
from dermjax.demo import prompts_of, stage
from dermjax.errors import UserError
from dermjax.generation import run as generation
from dermjax.preparation import run as preparation
from dermjax.run_folder import NUMERIC_VERSIONS
from dermjax.sampling import model
from dermjax.study.cells import claimed
from dermjax.tuning import run as tuning


def prepared(config: ConfigDict, workdir: Path, fold: int) -> Path:
    """Returns the manifest of a fold's real images: the one that is given, or prepare.images divided."""
    if config.manifest and config.folds:
        raise UserError("config.manifest has one split; for several folds give config.prepare.images in its place")
    if config.manifest:
        return Path(config.manifest)
    if not config.prepare.images:
        raise UserError("config.manifest: no real images; give a manifest, or config.prepare.images")
    folder = workdir / f"fold{fold}" / "prepare"
    stage(preparation.run, config.prepare, folder, {"folds": config.folds, "fold": fold})
    return folder / records.FILE


def made(config: ConfigDict, workdir: Path, fold: int, real: Path) -> Manifest:
    """Returns the kept synthetic images of a fold, given its real ones; finished stages are not run again.

    Where images are of other code, the stages are asked: each says what it makes again.
    """
    folder = workdir / f"fold{fold}"
    curated = folder / "curate" / records.FILE
    if not curated.exists() or _of_other_code(records.read(curated)):
        _tune_and_generate(config, folder, real, prompts_of(config.prompt, records.read(real).labels))
    return records.read(curated)


def _of_other_code(manifest: Manifest) -> bool:
    said = [record.generation.get(NUMERIC_VERSIONS) for record in manifest.records]
    return any(versions != model.NUMERIC_VERSIONS for versions in said)


def _tune_and_generate(config: ConfigDict, folder: Path, real: Path, prompts: ConfigDict) -> None:
    with claimed(folder) as ours:
        if not ours:
            raise UserError(f"{folder} is being made by another host; start this one again when it is done")
        turns = ConfigDict({label: (prompt,) for label, prompt in prompts.items()}).lock()
        generated = folder / "generate" / records.FILE
        stage(tuning.run, config.tune, folder / "tune", {"manifest": real, "prompts": prompts})
        stage(generation.run, config.generate, folder / "generate",
              {"model": folder / "tune" / "model", "plan.prompts": turns})  # fmt: skip
        stage(curation.run, config.curate, folder / "curate", {"manifest": generated, "training": real})
