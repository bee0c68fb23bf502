"""DreamBooth tuning of a Stable Diffusion model on a labelled manifest.

    dermjax tune --config=configs/tune.py:lora --config.model=SD15_FOLDER \\
        --config.manifest=runs/prepare/manifest.jsonl --workdir=runs/tune

Variants, with the memory of a step on one device, at 512 px (BUILD_NOTES.md says how it is known):
  paper    Derm-T2IM's table: LoRA rank 4 on the UNet's attention, rate 1e-4, batch 2, 155,880 updates.
           4.3 GB by an H100's compiler, and 0.2 since adapted kernels stay in float32; 0.6 EFLOP in all
  lora     LoRA rank 16 on all layers of the UNet and on the text encoder, 4,000 updates of 8. 0.1 EFLOP; 19.6 M numbers
           are trained, and 4.1 GB stay between two steps, by their shapes
  full     every parameter of the UNet, eight-bit AdamW and an average of the parameters, 4,000 updates of 8. 0.1 EFLOP;
           19.5 GB at batch 4 with AdamW of whole floats, by a TPU v6e's compiler, whose state is 5.1 GB larger
  best     `full` with what the literature found to help few images: min-SNR, offset noise, classes balanced
  tiny     derm-tiny, LoRA, on 2 CPU cores in about two minutes: to see every part of it run
  demo     derm-base, all of the UNet, on 2 CPU cores in about four minutes
  photographs  derm-base on a thousand or more photographs: all of the UNet, until held-out images stop getting better;
           half an hour of 2 CPU cores
The default is `paper` with the model and the manifest left open. `--dry_run` says the memory, the disk and, on a CPU,
the time of a run. On a CPU of two cores, at 256 px, `paper` takes 7.8 GB, and 10.6 while it draws its samples; in
batches of one, `lora` takes 12 to 13 GB; `full` and `best` took 22 GB of memory, and 37 GB of disk.

Computed: an image is 0.80 TFLOP forwards, once more backwards to what came in, once more to what is tuned, and with
`remat` forwards again. An H100 at two fifths of its peak in bfloat16, which has not been measured, would take 25
minutes for `paper` and 5 for the others, samples and evaluations on held-out images left out.

Comments name the option of diffusers' train_dreambooth scripts (--…), and of kohya's sd-scripts where it has another.
"""

from ml_collections import ConfigDict

LARGE = {  # what the variants for Stable Diffusion's own size share
    "batch": 8,
    "steps": 4_000,
    "warmup": 100,
    "schedule": "cosine",
    "remat": "blocks",
    "loss.prompt_dropout": 0.1,
    "watch_every": 500,
    "save_every": 500,
}
FULL = LARGE | {
    "tuned.unet": "full",
    "rate": 1e-5,
    "ema_decay": 0.999,
}
SMALL = {  # what the variants for derm-tiny and derm-base share
    "model": "derm-tiny",
    "size": 0,
    "precision": "float32",
    "optimizer": "adamw",
    "prompts.benign": "dermoscopy of a benign mole",
    "prompts.malignant": "dermoscopy of a malignant mole",
    "batch": 16,
    "warmup": 10,
    "schedule": "cosine",
    "loss.prompt_dropout": 0.1,
    "encode_batch": 32,
    "save_every": 40,
    "log_every": 10,
    "validation_draws": 1,
    "watch_every": 80,
    "samples.sampler": "Euler a",
    "samples.guidance": 4.0,
}
VARIANTS = {  # what each has instead of the paper's
    "paper": {},
    "lora": LARGE
    | {
        "optimizer": "adamw",
        "tuned.text_encoder": "lora",
        "text_rate": 0.2,
        "lora.rank": 16,
        "lora.alpha": 16.0,
        "lora.targets": ("attention", "feed_forward", "convolution", "time"),
    },
    "full": FULL,
    "best": FULL
    | {
        "loss.snr_gamma": 5.0,
        "loss.offset_noise": 0.05,
        "concepts.balance": True,
    },
    "tiny": SMALL
    | {
        "lora.rank": 16,
        "lora.alpha": 16.0,
        "rate": 2e-3,
        "steps": 150,
    },
    "demo": SMALL
    | {
        "model": "derm-base",
        "tuned.unet": "full",
        "steps": 400,
        "rate": 4e-4,
        "ema_decay": 0.98,
        "watch_every": 200,
    },
    # derm-base's autoencoder keeps photographs of another archive at 34 dB; that of another model: tune it first
    "photographs": SMALL
    | {
        "model": "derm-base",
        "prompts.benign": "dermoscopy photo of a benign mole",
        "prompts.malignant": "dermoscopy photo of a malignant mole",
        "tuned.unet": "full",
        "steps": 6000,
        "rate": 4e-4,
        "schedule": "constant",  # the average of the parameters takes the place of a falling rate
        "warmup": 100,
        "ema_decay": 0.998,
        "loss.snr_gamma": 5.0,
        "concepts.balance": True,
        "validation_draws": 4,
        "watch_every": 500,
        "patience": 1500,
        "save_every": 250,
        "log_every": 50,
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `tune`; variant is None or one of VARIANTS."""
    if variant not in (None, *VARIANTS):
        raise ValueError(f"configs/tune.py has no variant {variant!r}; it has: {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.model = ""  # --pretrained_model_name_or_path: a folder of diffusers', a single file, derm-base or derm-tiny
    config.manifest = ""  # of `prepare`; --instance_data_dir, kohya --train_data_dir
    config.tuned = {  # each "full" (train_dreambooth.py), "lora" (train_dreambooth_lora.py) or "frozen"
        "unet": "lora",
        "text_encoder": "frozen",  # --train_text_encoder
        "vae": "frozen",  # or "decoder", which leaves latents as they are, or "full"; before everything else
    }
    config.lora = {
        "rank": 4,  # --rank, kohya --network_dim
        "alpha": 4.0,  # kohya --network_alpha; a change is scaled by alpha / rank
        "targets": ("attention",),  # and "feed_forward", "convolution" (kohya's conv_dim), "time"
    }
    config.vae = {  # how the autoencoder is tuned, where it is
        "steps": 1000,
        "batch": 8,
        "rate": 4e-4,
        "kl": 1e-4,  # of the divergence of the latents from a standard normal
        "ema_decay": 0.99,
        "size": 0,  # pixels; 0 is that of the images
    }
    # new words to learn, {"<dysplastic>": "mole"}; textual_inversion.py's --placeholder_token, --initializer_token
    config.words = ConfigDict()
    config.vectors = 1  # of each new word; --num_vectors, kohya --num_vectors_per_token
    config.prompts = {  # --instance_prompt of each class; "a {label} mole[ on {skin_tone.group} skin]" is filled in
        "benign": "benign mole",
        "malignant": "malignant mole",
    }
    config.concepts = {
        "repeats": ConfigDict(),  # how often an epoch shows a class; kohya num_repeats
        "balance": False,  # every class as often as the largest, without repeats above 1
        "prior": "",  # --class_data_dir, kohya is_reg: a manifest that `generate` made; "" for none, as in the paper
        # --prior_loss_weight, lambda: the loss is the mean over instance images + lambda times the mean over class
        # images (arXiv 2208.12242, eq. 2), however many there are of each; fewer of one are shown less often
        "prior_weight": 1.0,
    }
    config.size = 512  # --resolution; 0 is the model's own
    config.encode_batch = 8  # kohya --vae_batch_size
    # folder of latents and contexts that runs share; "" is the run's own; kohya --cache_latents_to_disk
    config.cache = ""
    config.seed = 0  # --seed
    config.steps = 155_880  # --max_train_steps
    config.batch = 2  # --train_batch_size times the number of devices
    config.optimizer = "adamw8bit"  # or adamw, adafactor, lion, prodigy; --use_8bit_adam, kohya --optimizer_type
    config.rate = 1e-4  # --learning_rate, kohya --unet_lr; 1 for prodigy
    config.text_rate = 1.0  # the text encoder's share of the rate; kohya --text_encoder_lr divided by --unet_lr
    config.warmup = 500  # --lr_warmup_steps
    # --lr_scheduler: "constant", which is their constant_with_warmup as their constant takes no warmup, "cosine", which
    # ends at a hundredth of the rate, or "linear"
    config.schedule = "constant"
    config.weight_decay = 0.01  # --adam_weight_decay
    config.clip = 1.0  # --max_grad_norm; 0 is off
    config.ema_decay = 0.0  # an average of the parameters; 0 is none; diffusers' --use_ema
    config.loss = {
        "timestep_bias": 1.0,  # above 1 high noise comes more often; diffusers' --timestep_bias_strategy=later
        "snr_gamma": 0.0,  # --snr_gamma, kohya --min_snr_gamma; 5 is its paper's, 0 off
        "offset_noise": 0.0,  # kohya --noise_offset; 0.05 to 0.1 for darker and lighter images
        # kohya --loss_type=huber --huber_schedule=constant --huber_c: the c of the pseudo-Huber loss; 0 is the square
        "huber": 0.0,
        "prompt_dropout": 0.0,  # kohya --caption_dropout_rate
    }
    # parts that a batch is taken in to save memory; --gradient_accumulation_steps, which multiplies the batch instead
    config.accumulate = 1
    # --mixed_precision: "float32", "bfloat16" arithmetic over float32 parameters, or "pure_bfloat16", which keeps
    # networks tuned whole in bfloat16 too; the paper's fp16 overflows; "" is float32 on a CPU, where it is quicker,
    # else bfloat16
    config.precision = ""
    config.remat = "none"  # or "attention", "blocks": computed again backwards; --gradient_checkpointing
    config.watch_every = 1000  # steps between two sets of samples and held-out losses; --validation_steps
    config.validation_draws = 4  # noises an image of the held-out split; 0 is off
    config.patience = 0  # steps without a better held-out loss that end tuning, and take the best; 0 takes the last
    config.evidence = {  # at each look, of images drawn anew from the same seeds
        "features": "",  # the network, as in evaluate.py:images; "" is no evidence
        "images": 50,  # of each class
        "minimise": "validation_loss",  # or "frechet": whose lowest value makes a look the best
        "most_copies": 1.0,  # share of copies of training images; a look with more is not the best
    }
    config.samples = {  # of each class, kohya --sample_prompts
        "images": 4,  # --num_validation_images
        "prompts": 1,
        "sampler": "DPM++ 2M",  # kohya --sample_sampler
        "steps": 20,
        "guidance": 5.0,
    }
    config.save_every = 1000  # --checkpointing_steps, kohya --save_every_n_steps
    config.log_every = 50
    config.save_dtype = "float16"  # or "float32", "bfloat16": of model/ and of the LoRA's files; kohya --save_precision
    config.save_model = True  # False leaves the LoRA and the words only
    config.mesh = {  # accelerate's --num_processes
        "data": 0,  # devices that share a batch; 0 is all there are
        "fsdp": 1,  # devices that parameters are divided over
    }
    config.update_from_flattened_dict(VARIANTS[variant or "paper"])
    return config
