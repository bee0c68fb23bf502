"""A classifier of skin lesions on real, or real and synthetic, images; validation and test are real only.

    dermjax classify --config=configs/classify.py:mobilenetv2 --config.init=MOBILENETV2_FOLDER \\
        --config.manifest=runs/prepare --config.synthetic=runs/curate --workdir=runs/mobilenetv2_hybrid

Without --config.synthetic it trains on real images only, for the same number of steps. Leaves classifier/ (Hugging Face
layout), predictions.csv and metrics.json. Batches take the classes in turns: probabilities are as if all classes were
equally frequent.
Variants:
  probe        a linear probe on frozen features of either, minutes of 2 CPU cores
  vit          224 px, for a ViT or DINOv2 folder (google/vit-base-patch16-224-in21k, facebook/dinov2-small); one GPU
  mobilenetv2  160 px, for a MobileNetV2 folder (google/mobilenet_v2_1.0_160); one GPU, or a few hours of 2 CPU cores
  demo         either, small and from nothing, 64 px, about a minute on 2 CPU cores
The default is `vit`.
"""

from ml_collections import ConfigDict

VARIANTS = {  # what each has instead of the defaults
    "probe": {
        "recipe": "frozen",
        "label_smoothing": 0.0,
        "steps": 300,
        "batch": 64,
        "rate": 3e-4,
        "warmup": 20,
        "weight_decay": 10.0,
        "save_every": 300,
        "log_every": 50,
        "evaluate_every": 100,
    },
    "vit": {},
    "mobilenetv2": {
        "classifier": "mobilenetv2",
        "size": 160,
        "rate": 3e-4,
    },
    "demo": {
        "architecture.vit": {
            "patch_size": 8,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        "architecture.mobilenetv2.depth_multiplier": 0.35,
        "size": 64,
        "steps": 480,
        "batch": 32,
        "rate": 1e-3,
        "warmup": 20,
        "save_every": 240,
        "log_every": 40,
        "evaluate_every": 160,
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `classify`; variant is None or one of VARIANTS."""
    if variant not in (None, *VARIANTS):
        raise ValueError(f"configs/classify.py has no variant {variant!r}; it has: {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.manifest = ""  # real images with their splits
    config.synthetic = ""  # synthetic images to train on as well; "" for none
    config.judged = ""  # synthetic images that only get predictions, never trained on; "" for none
    config.synthetic_fraction = 0.75  # of every batch, when there are synthetic images; the paper's 3 to 1
    config.synthetic_weight = 1.0  # of the loss of a synthetic image beside a real one's; below 1 trusts it less
    # what a synthetic image teaches: "label", its class, or "judge", the probability of it by the classifier that
    # `curate` had, trained on real images only; the rest goes to the other classes
    config.synthetic_targets = "label"
    # batch statistics of "mobilenetv2": "shared", or "separate" for synthetic images, so that photographs are judged by
    # those of photographs (arXiv 1911.09665)
    config.synthetic_statistics = "shared"
    config.classifier = "vit"  # or "mobilenetv2"
    config.init = ""  # a Hugging Face folder (--model_name_or_path); "" starts from nothing with the architecture below
    config.architecture = {
        "vit": {"name": "S/16"},  # Ti, S, B or L; patches of 8, 14, 16 or 32 pixels
        "mobilenetv2": {"depth_multiplier": 1.0},
    }
    config.size = 224  # side of the images in pixels
    config.recipe = "full"  # or "last" (the last blocks and the head), or "frozen" (the head: a linear probe)
    config.last_blocks = 2  # that the recipe "last" trains
    config.features = ""  # folder of frozen features that runs may share; "" is in the workdir
    config.views = 1  # of each image that frozen features are made of; those after the first are augmented
    config.augment = "mild"  # or none, strong, randaugment
    config.mixing = "none"  # or mixup; or cutmix, for the recipe "full" alone: features have no windows
    config.precision = "float32"  # or "bfloat16"
    config.seed = 0
    config.steps = 2000  # transformers' max_steps
    config.batch = 32  # per_device_train_batch_size times the number of devices
    config.optimizer = "adamw"  # or adamw8bit, adafactor, lion, prodigy
    config.rate = 3e-5  # learning_rate; 1 for prodigy
    config.warmup = 200  # warmup_steps
    config.schedule = "cosine"  # or "constant", "linear"
    config.weight_decay = 0.05
    config.clip = 1.0  # max_grad_norm; 0 is off
    config.layer_decay = 1.0  # of the rate from a layer to the one below it; 0.65 to 0.9 for a ViT
    config.label_smoothing = 0.1
    config.ema_decay = 0.0  # an average of the parameters; 0 is none
    # parts that a batch is taken in, one after the other, to save memory; "mobilenetv2" then normalises by part
    config.accumulate = 1
    config.save_every = 500
    config.log_every = 50
    config.evaluate_every = 250
    config.patience = 0  # steps without a better validation AUROC that end training, and take the best; 0 is off
    config.mesh = {
        "data": 0,  # devices that share a batch; 0 is all there are
        "fsdp": 1,  # devices that parameters are divided over
    }
    config.update_from_flattened_dict(VARIANTS[variant or "vit"])
    return config
