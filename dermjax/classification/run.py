"""`dermjax classify`: a manifest of real images, perhaps one of synthetic ones -> a classifier and what it says.

manifests -> exact mixture -> the one loop -> classifier/ (Hugging Face folder), predictions.csv, metrics.json
"""

import hashlib
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dermjax import run_folder
from dermjax.classification import inputs
from dermjax.classification.features import VERSIONS
from dermjax.classification.training import DONE, LEFT, check, train
from dermjax.progress import say


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains one classifier and leaves workdir/classifier, predictions.csv and metrics.json."""
    if (workdir / DONE).exists():
        say(f"classify: {workdir / DONE} is there, nothing to do")
        _tell_other_causes(workdir, {})
        return
    check(config)  # before images are read
    real, synthetic = inputs.read(config.manifest, config.synthetic)
    shown = [(record.label, record.sha256) for each in (real, synthetic) if each for record in each.split("train")]
    _tell_other_causes(workdir, {"images": hashlib.sha256(repr(shown).encode()).hexdigest()[:16]})
    train(config, workdir, real, synthetic, inputs.read_judged(config.judged, real), {})


def _tell_other_causes(workdir: Path, inputs: dict) -> None:
    """Says where the folder was begun by code that gives other numbers, or on images of other digests."""
    causes = inputs | {run_folder.NUMERIC_VERSIONS: VERSIONS}
    others = run_folder.changed_since_start(workdir, causes, LEFT) if jax.process_index() == 0 else ""
    if others:
        say(f"classify: {workdir} was begun from others ({others}); it stays, another --workdir learns anew")
