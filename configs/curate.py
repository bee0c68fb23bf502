"""Scores and reasons on every synthetic image; what is rejected stays where it is.

    dermjax curate --config=configs/curate.py --workdir=runs/curate \\
        --config.manifest=runs/generate --config.training=runs/prepare

Hardware: one CPU core, about 150 images a second. Leaves manifest.jsonl (scores and reasons) and report.html.
Variants: default; `demo`, which shows fewer pictures.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `curate`; variant is None or "demo"."""
    config = ConfigDict()
    config.manifest = ""  # of the images to judge
    config.training = ""  # of the images that the generator was tuned on; its train split is the yardstick
    config.size = 128  # pixels a side at which images are measured, a multiple of 32
    config.sample = 500  # training images that the limits are drawn from; copies are looked for among all of them
    config.thresholds = ConfigDict({
        "tail": 0.01,  # share of the training images that counts as extreme
        "contrast": 0.6,  # blank: borders so much fainter than the faintest of training images
        "structure": 0.5,  # noise: half the structure of the least ordered ones
        "cast": 1.25,  # colour cast: a quarter further out than the oddest ones
        "blur": 0.02,  # blur: sigma of a Gaussian as a share of the width
        "bits": 40,  # copies: largest hash distance, of 256
    })  # fmt: skip
    config.gallery = 48  # pictures a section of the report
    if variant == "demo":
        config.gallery = 24
    elif variant is not None:
        raise ValueError(f"configs/curate.py has no variant {variant!r}; leave it out or take demo")
    return config
