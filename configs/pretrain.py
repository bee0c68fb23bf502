"""Pretrains derm-tiny, the base model inside the package, on captioned phantoms.

    dermjax pretrain --config=configs/pretrain.py --workdir=runs/pretrain

Hardware: 2 CPU cores, about two hours. Result: runs/pretrain/model, a diffusers folder of about 27 MB; the quality that
it must have is the test tests/weights/test_derm_tiny.py. The variant `smoke` runs every line in two minutes.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `pretrain`; variant is None or "smoke"."""
    config = ConfigDict(
        {
            "seed": 0,
            "first_seed": 0,  # of the phantoms; `prepare` draws from 10,000,000 on
            "phantoms": 20_000,
            "normalise_over": 1024,
            "encode_batch": 64,
            "save_every": 200,
            "log_every": 20,
            "mesh": {"data": 0, "fsdp": 1},
            "autoencoder": {
                "phases": ("crops", "whole"),
                "crops": _phase(size=64, steps=1300, batch=16, rate=1.5e-3),
                "whole": _phase(size=128, steps=650, batch=8, rate=1e-3),
            },
            "diffusion": {
                "images": 16_000,
                "steps": 9000,
                "batch": 16,
                "rate": 8e-4,
                "warmup": 100,
                "weight_decay": 0.01,
                "timestep_bias": 1.5,
                "caption_dropout": 0.1,
                "ema_decay": 0.999,
            },
            "decoder": _phase(steps=600, batch=8, rate=1e-3, standout=6.0, chroma=6.0),
        }
    )
    if variant == "smoke":
        config.phantoms = 500
        config.normalise_over = 64
        config.save_every = 5
        config.diffusion.steps = config.decoder.steps = 10
        for phase in config.autoencoder.phases:
            config.autoencoder[phase].steps = 10
    elif variant:
        raise ValueError(f"configs/pretrain.py has no variant {variant!r}; it has: smoke")
    return config


def _phase(standout: float = 0.0, chroma: float = 3.0, **changes) -> dict:
    """One phase of the autoencoder's training: what all share, and what this one has of its own."""
    weights = {"lines": 8.0, "standout": standout, "edges": 0.5, "patches": 1.0, "chroma": chroma}
    return {"weights": weights, "kl": 5e-4, "warmup": 20, "ema_decay": 0.99} | changes
