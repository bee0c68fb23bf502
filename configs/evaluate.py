"""Numbers with intervals, and the page that people look at.

    dermjax evaluate --config=configs/evaluate.py --workdir=runs/evaluate \\
        --config.prepared=runs/prepare --config.generated=runs/generate --config.curated=runs/curate \\
        --config.tuning=runs/tune --config.runs.vit_real=runs/vit_real --config.runs.vit_hybrid=runs/vit_hybrid

Hardware: one CPU core, under a minute. Leaves results.json (every number) and report.html (one self-contained page).
Variants: default; `demo`, which has a few pictures less for a few hundred images.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `evaluate`; variant is None or "demo"."""
    config = ConfigDict()
    config.title = "dermjax: synthetic lesions and the classifiers trained with them"
    config.prepared = ""  # manifest of the real images; its test split is what everything is judged on
    config.generated = ""  # manifest of the synthetic images as they came; "" leaves its section out
    config.curated = ""  # the same after curation; "" leaves its sections out
    config.tuning = ""  # workdir of tune, for its loss curve; "" leaves it out
    # workdirs of finished classify runs, or folders with the predictions.csv of `classify --predict`, named
    # <classifier>_<arm>; "" leaves a run out, "real" is the baseline
    config.runs = ConfigDict({"vit_real": "", "vit_hybrid": "", "mobilenetv2_real": "", "mobilenetv2_hybrid": ""})
    config.bootstrap = ConfigDict({
        "resamples": 2000,
        "seed": 0,
        "smallest": 10,  # lesions of a class below which no interval is given
    })  # fmt: skip
    config.isic = False  # also isic/<run>.csv, as the ISIC challenge takes predictions
    config.gallery = 12  # pictures a row
    if variant == "demo":
        config.title = "dermjax demo: synthetic lesions and the classifiers trained with them"
        config.gallery = 8
    elif variant is not None:
        raise ValueError(f"configs/evaluate.py has no variant {variant!r}; leave it out or take demo")
    return config
