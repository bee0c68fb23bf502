"""All of dermjax, small: phantoms (or your own photographs), a tuned derm-base, four classifiers, the report.

    ./launch/demo
    ./launch/demo --images=DIR --limit=200
    dermjax demo --workdir=runs/demo --config.tune.steps=300

Hardware: 2 CPU cores, within 12 minutes for phantoms and within 25 for photographs.
Leaves a folder for each stage in the workdir, and report.html.
Variants: default, for phantoms; `photographs`, which --images takes by itself.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

STAGES = ("prepare", "tune", "generate", "curate", "evaluate")


def get_config(variant: str | None = None) -> ConfigDict:
    """The `demo` configs of the stages under one roof; variant is None or "photographs"."""
    if variant not in (None, "photographs"):
        raise ValueError(f"configs/demo.py has no variant {variant!r}; leave it out or take photographs")
    config = ConfigDict({stage: _of(stage) for stage in STAGES})
    config.prompt = "dermoscopy of a {label} mole"  # of each class, to tune with and to ask for
    config.tune.prompts = ConfigDict()  # made of it for the classes that there are
    config.generate.plan.prompts = ConfigDict()
    config.classify = {
        "vit": _of("classify"),
        "mobilenetv2": _of("classify"),
    }
    config.classify.vit.classifier = "vit"
    config.classify.mobilenetv2.classifier = "mobilenetv2"
    config.classify.mobilenetv2.rate = 3e-3  # batch normalisation takes more, and from nothing it needs it
    if variant == "photographs":
        config.prepare.images = ""  # --images says where they are
        config.prompt = "dermoscopy photo of a {label} mole"
        config.tune.update(steps=1200, ema_decay=0.995, watch_every=400, save_every=100)
        config.tune.loss.snr_gamma = 5.0
        config.tune.concepts.balance = True
        config.generate.plan.update(contrast=False, guidance=2.0)
        config.evaluate.title = "dermjax demo on photographs: synthetic lesions and the classifiers trained with them"
    return config


def _of(stage: str) -> ConfigDict:
    return runpy.run_path(str(Path(__file__).parent / f"{stage}.py"))["get_config"]("demo")
