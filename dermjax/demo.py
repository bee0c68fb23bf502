"""`demo`: every stage once, small, on this machine; from labelled images to the report.

Each stage has a folder of its own in the workdir, with its own config.json, and is run exactly as by its command.
A finished stage says so and returns, so a killed demo goes on where it was.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import run_folder
from dermjax.classification import run as classification
from dermjax.curation import run as curation
from dermjax.errors import UserError
from dermjax.evaluation import run as evaluation
from dermjax.generation import run as generation
from dermjax.preparation import run as preparation
from dermjax.progress import say
from dermjax.tuning import run as tuning

CLASSIFIERS = ("vit", "mobilenetv2")


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages, each on the folders that the ones before it left."""
    prepare, tune, generate, curate = (workdir / name for name in ("prepare", "tune", "generate", "curate"))
    evaluate = workdir / "evaluate"
    prepared, generated, curated = (folder / "manifest.jsonl" for folder in (prepare, generate, curate))

    _stage(preparation.run, config.prepare, prepare)
    _stage(tuning.run, config.tune, tune, manifest=prepared)
    _stage(generation.run, config.generate, generate, model=tune / "model")
    _stage(curation.run, config.curate, curate, manifest=generated, training=prepared)
    runs = {}
    for classifier in CLASSIFIERS:
        for arm, synthetic in {"real": {}, "hybrid": {"synthetic": curated}}.items():
            folder = workdir / f"{classifier}_{arm}"
            _stage(classification.run, config.classify[classifier], folder, manifest=prepared, **synthetic)
            runs[f"runs.{folder.name}"] = folder
    manifests = {"prepared": prepared, "generated": generated, "curated": curated}
    _stage(evaluation.run, config.evaluate, evaluate, tuning=tune, **manifests, **runs)

    # the page is self-contained, so a copy where people look first works as well
    run_folder.write_atomically(workdir / "report.html", (evaluate / "report.html").read_bytes())
    say(f"\nThe report: {workdir / 'report.html'}")
    say("A demo of this size proves the machinery, not the medicine. For research use only.")


def _stage(run: Callable[[ConfigDict, Path], None], defaults: ConfigDict, folder: Path, **inputs: Path) -> None:
    """Runs one stage in its folder; inputs are what the stages before it left, by config key."""
    config = ConfigDict(defaults.to_dict()).lock()
    config.update_from_flattened_dict({key: str(path) for key, path in inputs.items()})
    say(f"\n{folder.name}")
    run_folder.claim(folder, config.to_dict())
    try:
        run(config, folder)
    except UserError as error:
        run_folder.disclaim(folder)
        raise UserError(f"{folder.name}: {error}") from error
