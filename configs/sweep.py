"""Finds the settings of `tune` that serve held-out real images best: rate, rank, steps, weighting of the loss.

    dermjax sweep --config=configs/sweep.py --workdir=runs/sweep --config.tune.model=SD15_FOLDER \\
        --config.tune.manifest=runs/prepare/manifest.jsonl

Every trial is a run of `tune` in a folder of its own; the first is `config.tune` as it stands. What is compared is the
lowest plain loss on the manifest's validation split at fixed noise. Trials that fall behind end early. Killed, the
same command goes on, within a trial too; with --config.trials=40 --allow_config_change it looks further.
`config.space` holds a range {low, high}, drawn evenly in its logarithm, or a tuple of choices, under the name that the
setting has in `config.tune`; one choice fixes it.

Leaves results.json (every trial, the best settings), report.html and study.db (Optuna's). The best settings then go
into `dermjax tune`, whose model is judged by the test split, which no trial has used.

Variants:
  lora (the default)  `tune`'s `lora`; 20 trials take at most 20 times as long as one, about half of that as a rule
  full                `tune`'s `full`
  tiny                derm-tiny; 6 trials of 75 steps at most, on 2 CPU cores a few minutes
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `sweep`; variant is None, "lora", "full" or "tiny"."""
    if variant not in (None, "lora", "full", "tiny"):
        raise ValueError(f"configs/sweep.py has no variant {variant!r}; it has: lora, full, tiny")
    tune = runpy.run_path(str(Path(__file__).with_name("tune.py")))["get_config"](variant or "lora")
    config = ConfigDict({"tune": tune})
    config.trials = 20  # those that end and those that are pruned
    config.seed = 0
    config.startup = 5  # trials drawn at random, of which none is pruned, before those that learn from others
    config.looks = 8  # how often in a trial the held-out loss is measured and compared
    config.patience = 2  # of these measurements every trial gets before it may be stopped
    config.space = {
        "rate": {"low": 1e-5, "high": 1e-3},
        "lora": {"rank": (4, 8, 16, 32)},  # config.tune.lora.alpha stays: a change is scaled by alpha / rank
        "steps": (1000, 2000, 4000),
        "loss": {"snr_gamma": (0.0, 5.0)},
    }
    if variant == "full":
        config.space.rate = {"low": 1e-6, "high": 1e-4}
        del config.space["lora"]
        config.space.loss.offset_noise = (0.0, 0.05)
    elif variant == "tiny":
        config.trials = 6
        config.startup = 3
        config.looks = 5
        config.space = {"rate": {"low": 2e-4, "high": 1e-2}, "lora": {"rank": (4, 16)}, "steps": (75,)}
        config.tune.steps = 75
    return config
