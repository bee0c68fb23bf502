"""Pretrains the base models inside the package, on captioned phantoms and, where they are given, photographs.

    dermjax pretrain --config=configs/pretrain.py --config.photographs=runs/prepare/manifest.jsonl \
        --config.teacher=DINOV2 --workdir=runs/pretrain

Derm-base: images of 256 px, learnt from photographs that may be given away (a manifest of `prepare`, whose test split
is never read; every training photograph needs an expert's mask beside it, which its caption is measured in) and
phantoms, with a frozen DINOv2 (a folder in Hugging Face's layout) as the teacher of what matters in a photograph.
Hardware: two hours of a CPU core for the autoencoder, an hour of two cores for the rest; a killed run goes on where it
was. Result: runs/pretrain/model, a diffusers folder of 38 MB.

The variant `segmenter` trains the network that finds lesions, on photographs with experts' masks beside them, those for
validation too, and phantoms: 22 minutes of a busy core, 1.3 MB, in runs/pretrain/segmenter.

The variant `tiny` makes derm-tiny, images of 128 px, from phantoms alone: about two hours, 27 MB; the quality that it
must have is the test tests/weights/test_derm_tiny.py. The variant `smoke` runs every line of that in two minutes.
"""

from ml_collections import ConfigDict

TINY = {
    "base": "derm-tiny",
    "start": "",
    "phantoms": 20_000,
    "photographs_share": 0.0,
    "save_every": 200,
    "autoencoder": {
        "phases": ("crops", "whole"),
        "crops": {"size": 64, "sides": (128, 128), "batch": 16, "steps": 1300, "rate": 1.5e-3},
        "whole": {"size": 128, "sides": (128, 128), "batch": 8, "steps": 650, "rate": 1e-3},
    },
    "decoder": {
        "phases": ("whole",),
        "whole": {"size": 128, "sides": (128, 128), "batch": 8, "steps": 600, "rate": 1e-3},
    },
}
SHARED = {"kl": 5e-4, "warmup": 20, "ema_decay": 0.99, "schedule": "cosine", "evaluate_every": 0}
PIXELS = {"lines": 8.0, "standout": 0.0, "edges": 0.5, "patches": 1.0, "chroma": 3.0}
PIXELS |= {"features": 0.0, "adversary": 0.0, "texture": 0.0}


SEGMENTER = {
    "base": "segmenter",
    "seed": 0,
    "first_seed": 0,
    "phantoms": 1500,
    "photographs": "",  # a manifest: its training and its validation split have masks
    "photographs_share": 0.65,  # of the crops
    "empty_share": 0.1,  # bare skin and plain fields, without a lesion; phantoms have the rest
    "batch": 16,
    "sides": (128, 230),  # pixels along the picture that a crop of 128 is cut from
    "steps": 4000,
    "rate": 2e-3,
    "warmup": 100,
    "weight_decay": 0.01,
    "ema_decay": 0.995,
    "save_every": 200,
    "log_every": 50,
    "evaluate_every": 200,
    "mesh": {"data": 0, "fsdp": 1},
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `pretrain`; variant is None, "tiny", "smoke" or "segmenter"."""
    if variant == "segmenter":
        return ConfigDict(SEGMENTER)
    config = ConfigDict(
        {
            "base": "derm-base",  # or derm-tiny
            "start": "derm-tiny",  # a model that the larger networks begin as; "" begins with random numbers
            "seed": 0,
            "first_seed": 0,  # of the phantoms; `prepare` draws from 10,000,000 on
            "phantoms": 12_000,
            "photographs": "",  # a manifest: its training split, with masks, is learnt, its validation split looked at
            "photographs_share": 0.75,  # of the autoencoder's crops
            "teacher": "",  # a folder of DINOv2
            "normalise_over": 1024,
            "encode_batch": 64,
            "save_every": 100,
            "log_every": 20,
            "mesh": {"data": 0, "fsdp": 1},
            "autoencoder": {
                "phases": ("crops", "settle"),
                "crops": _phase(steps=1500, rate=4e-4, schedule="constant"),
                "settle": _phase(steps=2000, rate=4e-4, chroma=2.0, features=1.0),
            },
            "diffusion": {
                "images": 4000,  # of the phantoms
                "ways": 4,  # in which each photograph is turned and mirrored, at most 8
                "steps": 5000,
                "batch": 16,
                "rate": 6e-4,
                "warmup": 100,
                "weight_decay": 0.01,
                "timestep_bias": 1.5,
                "caption_dropout": 0.1,
                "ema_decay": 0.999,
            },
            "decoder": {
                "phases": ("texture",),
                "texture": _phase(steps=1000, rate=3e-4, chroma=2.0, features=1.0, adversary=0.05, texture=3.0),
            },
        }
    )
    if variant in ("tiny", "smoke"):
        for part in ("autoencoder", "decoder"):
            config[part] = ConfigDict({"phases": ()})
        for path, value in TINY.items():
            config[path] = ConfigDict(value) if isinstance(value, dict) else value
        config.diffusion.update(images=6000, steps=9000, rate=8e-4)
        for phase in (config.autoencoder.crops, config.autoencoder.whole, config.decoder.whole):
            phase.update(SHARED | {"weights": dict(PIXELS)})
        config.decoder.whole.weights.update(standout=6.0, chroma=6.0)
    elif variant:
        raise ValueError(f"configs/pretrain.py has no variant {variant!r}; it has: tiny, smoke, segmenter")
    if variant == "smoke":
        config.phantoms = 500
        config.normalise_over = 64
        config.save_every = 5
        config.diffusion.steps = 10
        for phase in (config.autoencoder.crops, config.autoencoder.whole, config.decoder.whole):
            phase.steps = 10
    return config


def _phase(features: float = 0.2, chroma: float = 3.0, adversary: float = 0.0, texture: float = 0.0, **changes) -> dict:
    """One phase of derm-base's autoencoder: what all share, and what this one has of its own."""
    weights = PIXELS | {"lines": 2.0, "edges": 1.0, "chroma": chroma, "features": features}
    weights |= {"adversary": adversary, "texture": texture}
    crops = {"size": 112, "sides": (160, 400), "batch": 8}
    return crops | SHARED | {"kl": 1e-4, "ema_decay": 0.998, "evaluate_every": 250, "weights": weights} | changes
