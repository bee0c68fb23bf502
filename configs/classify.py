"""A classifier of skin lesions on real, or real and synthetic, images; validation and test are real only.

    dermjax classify --config=configs/classify.py:mobilenetv2 --config.init=MOBILENETV2_FOLDER \\
        --config.manifest=runs/prepare --config.synthetic=runs/curate --workdir=runs/mobilenetv2_hybrid

Without --config.synthetic it trains on real images only, for the same number of steps. Leaves classifier/ (Hugging Face
layout), predictions.csv and metrics.json.
Variants:
  probe        a linear probe on frozen features of either, minutes of 2 CPU cores
  vit          224 px, for a ViT or DINOv2 folder (google/vit-base-patch16-224-in21k, facebook/dinov2-small); one GPU
  mobilenetv2  160 px, for a MobileNetV2 folder (google/mobilenet_v2_1.0_160); one GPU, or a few hours of 2 CPU cores
  demo         either, small and from nothing, 64 px, about a minute on 2 CPU cores
The default is `vit`.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `classify`; variant is None, "probe", "vit", "mobilenetv2" or "demo"."""
    config = ConfigDict(
        {
            "manifest": "",  # real images with their splits
            "synthetic": "",  # synthetic images to train on as well; "" for none
            "judged": "",  # synthetic images that only get predictions, never trained on; "" for none
            "synthetic_fraction": 0.75,  # of every batch, when there are synthetic images; the paper's 3 to 1
            "classifier": "vit",  # or "mobilenetv2"
            "init": "",  # a Hugging Face folder; "" starts from nothing with the architecture below
            "architecture": {
                "vit": {"name": "S/16"},  # Ti, S, B or L; patches of 8, 14, 16 or 32 pixels
                "mobilenetv2": {"depth_multiplier": 1.0},
            },
            "size": 224,
            "recipe": "full",  # or "last" (the last blocks and the head), or "frozen" (the head: a linear probe)
            "last_blocks": 2,  # that the recipe "last" trains
            "features": "",  # folder of frozen features that runs may share; "" is in the workdir
            "views": 1,  # of each image that frozen features are made of; those after the first are augmented
            "augment": "mild",  # or none, strong, randaugment
            "mixing": "none",  # or mixup; or cutmix, for the recipe "full" alone: features have no windows
            "precision": "float32",  # or "bfloat16"
            "seed": 0,
            "steps": 2000,
            "batch": 32,
            "optimizer": "adamw",
            "rate": 3e-5,
            "warmup": 200,
            "schedule": "cosine",
            "weight_decay": 0.05,
            "clip": 1.0,
            "layer_decay": 1.0,  # of the rate from a layer to the one below it; 0.65 to 0.9 for a ViT
            "label_smoothing": 0.1,
            "ema_decay": 0.0,
            # parts that a batch is taken in, one after the other, to save memory; "mobilenetv2" then normalises by part
            "accumulate": 1,
            "save_every": 500,
            "log_every": 50,
            "evaluate_every": 250,
            "patience": 0,  # steps without a better validation AUROC that end training, and take the best; 0 is off
            "mesh": {"data": 0, "fsdp": 1},
        }
    )
    if variant == "mobilenetv2":
        config.classifier, config.size, config.rate = "mobilenetv2", 160, 3e-4
    elif variant == "probe":
        config.recipe, config.label_smoothing = "frozen", 0.0
        config.steps, config.batch, config.rate, config.warmup, config.weight_decay = 300, 64, 3e-4, 20, 10.0
        config.save_every, config.log_every, config.evaluate_every = 300, 50, 100
    elif variant == "demo":
        config.architecture.vit = {
            "patch_size": 8,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
        config.architecture.mobilenetv2.depth_multiplier = 0.35
        config.size, config.steps, config.batch, config.rate, config.warmup = 64, 480, 32, 1e-3, 20
        config.save_every, config.log_every, config.evaluate_every = 240, 40, 160
    elif variant not in (None, "vit"):
        raise ValueError(f"configs/classify.py has no variant {variant!r}; it has: probe, vit, mobilenetv2, demo")
    return config
