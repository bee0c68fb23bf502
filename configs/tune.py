"""DreamBooth tuning of a Stable Diffusion model on a labelled manifest.

    dermjax tune --config=configs/tune.py:lora --config.model=SD15_FOLDER \\
        --config.manifest=runs/prepare/manifest.jsonl --workdir=runs/tune

Variants, with the memory of a step on one device, at 512 px (BUILD_NOTES.md says how it is known):
  paper    Derm-T2IM's table: LoRA rank 4 on the UNet's attention, rate 1e-4, batch 2, 155,880 updates.
           4.3 GB, by an H100's compiler; 0.6 EFLOP in all
  lora     LoRA rank 16 on all layers of the UNet and on the text encoder, 4,000 updates of 8. 0.1 EFLOP; 19.6 M numbers
           are trained, and 2.2 GB stay between two steps, by their shapes
  full     every parameter of the UNet, eight-bit AdamW and an average of the parameters, 4,000 updates of 8. 0.1 EFLOP;
           19.5 GB at batch 4 with AdamW of whole floats, by a TPU v6e's compiler, whose state is 5.1 GB larger
  best     `full` with what the literature found to help few images: min-SNR, offset noise, classes balanced
  tiny     derm-tiny, LoRA, on 2 CPU cores in about two minutes: to see every part of it run
  demo     derm-tiny, all of the UNet, on 2 CPU cores in about four minutes
The default is `paper` with the model and the manifest left open. `--dry_run` says the memory, the disk and, on a CPU,
the time of a run. On a CPU of two cores, at 256 px, `paper` takes 7.8 GB; by their shapes, in batches of one, `lora`
takes 11 GB, and `full` and `best` 15 GB of memory and 37 GB of disk.

Computed: an image is 0.80 TFLOP forwards, once more backwards to what came in, once more to what is tuned, and with
`remat` forwards again. An H100 at two fifths of its peak in bfloat16, which has not been measured, would take 25
minutes for `paper` and 5 for the others, samples and looks at held-out images left out.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `tune`; variant is None or one of those above."""
    config = _paper()
    if variant == "lora":
        _large(config)
        config.optimizer = "adamw"
        config.tuned.text_encoder, config.text_rate = "lora", 0.2
        config.lora.rank, config.lora.alpha = 16, 16.0
        config.lora.targets = ("attention", "feed_forward", "convolution", "time")
    elif variant in ("full", "best"):
        _large(config)
        config.tuned.unet, config.rate, config.ema_decay = "full", 1e-5, 0.999
        if variant == "best":
            config.loss.snr_gamma, config.loss.offset_noise, config.concepts.balance = 5.0, 0.05, True
    elif variant in ("tiny", "demo"):
        config.model, config.size, config.precision, config.optimizer = "derm-tiny", 0, "float32", "adamw"
        config.prompts.benign = "dermoscopy of a benign mole"
        config.prompts.malignant = "dermoscopy of a malignant mole"
        config.batch, config.warmup, config.schedule, config.loss.prompt_dropout = 16, 10, "cosine", 0.1
        config.encode_batch, config.save_every, config.log_every = 32, 40, 10
        config.validation_draws, config.watch_every = 1, 80
        config.samples.sampler, config.samples.guidance = "Euler a", 4.0
        if variant == "tiny":
            config.lora.rank, config.lora.alpha, config.rate, config.steps = 16, 16.0, 2e-3, 150
        else:
            config.tuned.unet, config.steps, config.rate, config.ema_decay = "full", 400, 4e-4, 0.98
            config.watch_every = 200
    elif variant not in (None, "paper"):
        raise ValueError(f"configs/tune.py has no variant {variant!r}; it has: paper, lora, full, best, tiny, demo")
    return config


def _paper() -> ConfigDict:
    """The variant `paper`, of which the others say what they have instead."""
    return ConfigDict(
        {
            "model": "",
            "manifest": "",
            "tuned": {"unet": "lora", "text_encoder": "frozen"},  # each "full", "lora" or "frozen"
            "lora": {"rank": 4, "alpha": 4.0, "targets": ("attention",)},  # and "feed_forward", "convolution", "time"
            "words": ConfigDict(),  # new words to learn (textual inversion), for prompts: {"<dysplastic>": "mole"}
            "vectors": 1,  # of each of them
            # of each class; a template as "a {label} mole[ on {skin_tone.group} skin]" is filled in for each record
            "prompts": {"benign": "benign mole", "malignant": "malignant mole"},
            "concepts": {
                "repeats": ConfigDict(),  # how often an epoch shows a class
                "balance": False,  # every class as often as the largest
                "prior": "",  # the manifest of class images made by `generate`; "" for none, as in the paper
                # lambda: the loss is the mean over instance images + lambda times the mean over class images
                # (arXiv 2208.12242, eq. 2), however many there are of each; fewer of one are shown less often
                "prior_weight": 1.0,
            },
            "size": 512,
            "encode_batch": 8,
            "cache": "",  # folder of latents and contexts, to share between runs; "" is the run's own
            "seed": 0,
            "steps": 155_880,
            "batch": 2,
            "optimizer": "adamw8bit",
            "rate": 1e-4,
            "text_rate": 1.0,  # the text encoder's share of the rate
            "warmup": 500,
            "schedule": "constant",
            "weight_decay": 0.01,
            "clip": 1.0,
            "ema_decay": 0.0,
            "loss": {
                "timestep_bias": 1.0,  # above 1 high noise comes more often
                "snr_gamma": 0.0,  # min-SNR weighting; 5 is its paper's, 0 off
                "offset_noise": 0.0,  # 0.05 to 0.1 for darker and lighter images
                "huber": 0.0,  # the c of the pseudo-Huber loss; 0 is the square
                "prompt_dropout": 0.0,
            },
            "accumulate": 1,  # parts that a batch is taken in, one after the other, to save memory
            # "float32", "bfloat16" arithmetic over float32 parameters, or "pure_bfloat16"; the paper's fp16 overflows;
            # "" is float32 on a CPU, where it is quicker, else bfloat16
            "precision": "",
            "remat": "none",  # computes "attention" or "blocks" a second time instead of keeping them
            "watch_every": 1000,  # steps between two looks: samples, held-out loss, report
            "validation_draws": 4,  # noises an image of the held-out split; 0 is off
            "patience": 0,  # steps without a better held-out loss that end tuning, and take the best; 0 takes the last
            "samples": {"images": 4, "prompts": 1, "sampler": "DPM++ 2M", "steps": 20, "guidance": 5.0},  # a class
            "save_every": 1000,
            "log_every": 50,
            "save_dtype": "float16",
            "save_model": True,  # False leaves the LoRA and the words only
            "mesh": {"data": 0, "fsdp": 1},
        }
    )


def _large(config: ConfigDict) -> None:
    """What the variants for Stable Diffusion's own size share."""
    config.batch, config.steps, config.warmup, config.schedule = 8, 4_000, 100, "cosine"
    config.remat, config.loss.prompt_dropout = "blocks", 0.1
    config.watch_every = config.save_every = 500
