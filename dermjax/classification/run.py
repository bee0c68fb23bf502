"""`dermjax classify`: a manifest of real images, perhaps one of synthetic ones -> a classifier and what it says.

manifests -> exact mixture -> the one loop -> classifier/ (Hugging Face folder), predictions.csv, metrics.json
"""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax.classification import inputs
from dermjax.classification.training import DONE, train
from dermjax.progress import say


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains one classifier and leaves workdir/classifier, predictions.csv and metrics.json."""
    if (workdir / DONE).exists():
        say(f"classify: {workdir / DONE} is there, nothing to do")
        return
    real, synthetic = inputs.read(config.manifest, config.synthetic)
    train(config, workdir, real, synthetic, inputs.read_judged(config.judged, real), {})
