"""`dermjax classify`: a manifest of real images, perhaps one of synthetic ones -> a classifier and its predictions.

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
        report_other_causes(workdir, {})
        return
    check(config)  # before images are read
    real, synthetic = inputs.read(config.manifest, config.synthetic)
    training = [(record.label, record.sha256) for each in (real, synthetic) if each for record in each.split("train")]
    report_other_causes(workdir, {"images": hashlib.sha256(repr(training).encode()).hexdigest()[:16]})
    train(config, workdir, real, synthetic, inputs.read_judged(config.judged, real), {})


def report_other_causes(workdir: Path, causes: dict[str, str]) -> None:
    """Says where the folder was begun by code that gives other numbers, or on images of other digests."""
    causes = causes | {run_folder.NUMERIC_VERSIONS: VERSIONS}
    others = run_folder.changed_since_start(workdir, causes, LEFT) if jax.process_index() == 0 else ""
    if others:
        say(f"classify: {workdir} was begun from others ({others}); it stays, another --workdir learns anew")
