"""Masks of generated images: a labelled segmentation set.

    dermjax mask --config=configs/mask.py --workdir=runs/mask --config.model=runs/tune/model \\
        --config.manifest=runs/curate

Leaves masks/ (by segmentation), attention/ (by the model's cross-attention to the word for the lesion), a PNG
as large as its image in each, white on lesions, and manifest.jsonl, whose records name both under attributes.masks.
Hardware: a pass or four of the network an image; derm-tiny makes 10 a second on a CPU core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `mask`."""
    config = ConfigDict()
    config.model = ""  # that made the images
    config.lora = ""
    config.lora_weight = 0.8
    config.manifest = ""  # of generated or curated images; only those that are kept get masks
    config.attention = True  # False: no model is needed
    config.words = ("mole", "moles", "lesion", "lesions", "nevus", "nevi", "melanoma")  # for what is to be masked
    config.seed = 0  # of the noise that the network looks through
    config.batch = 16
    return config
