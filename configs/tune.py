"""DreamBooth tuning of a Stable Diffusion model on a labelled manifest.

    dermjax tune --config=configs/tune.py:paper --config.model=SD15_FOLDER \\
        --config.manifest=runs/prepare/manifest.jsonl --workdir=runs/tune

Variants:
  paper    Derm-T2IM's table: LoRA rank 4 on attention, rate 1e-4, batch 2, 155,880 updates; one GPU of 24 GB
  demo     derm-tiny, all of the UNet, on 2 CPU cores in about three minutes
The default is `paper` with the model and the manifest left open.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    config = ConfigDict(
        {
            "model": "",
            "manifest": "",
            "method": "lora",
            "lora": {"rank": 4, "alpha": 4.0},
            "prompts": {"benign": "benign mole", "malignant": "malignant mole"},
            "prior": {"manifest": "", "weight": 1.0},  # class images made by `generate`; "" for none, as in the paper
            "size": 512,
            "encode_batch": 8,
            "seed": 0,
            "steps": 155_880,
            "batch": 2,
            "optimizer": "adamw",
            "rate": 1e-4,
            "warmup": 500,
            "schedule": "constant",
            "weight_decay": 0.01,
            "clip": 1.0,
            "ema_decay": 0.0,
            "timestep_bias": 1.0,  # above 1 high noise comes more often
            "snr_gamma": 0.0,  # min-SNR weighting; 5 is its paper's, 0 off
            "offset_noise": 0.0,  # 0.05 to 0.1 for darker and lighter images
            "huber": 0.0,  # the c of the pseudo-Huber loss; 0 is the square
            "prompt_dropout": 0.0,
            "accumulate": 1,  # parts that a batch is taken in, one after the other, to save memory
            "validation": {"draws": 4, "every": 1000},  # noises an image of the held-out split; 0 is off
            "save_every": 1000,
            "log_every": 50,
            "save_dtype": "float16",
            "mesh": {"data": 0, "fsdp": 1},
        }
    )
    if variant == "demo":
        config.model, config.size, config.method = "derm-tiny", 128, "full"
        config.prompts.benign = "dermoscopy of a benign mole"
        config.prompts.malignant = "dermoscopy of a malignant mole"
        config.steps, config.batch, config.rate, config.warmup = 400, 16, 4e-4, 10
        config.schedule, config.ema_decay, config.prompt_dropout = "cosine", 0.98, 0.1
        config.encode_batch, config.save_every, config.log_every = 32, 40, 10
        config.validation.draws, config.validation.every = 1, 80
    elif variant not in (None, "paper"):
        raise ValueError(f"configs/tune.py has no variant {variant!r}; it has: paper, demo")
    return config
