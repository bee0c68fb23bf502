"""Synthetic lesions from a tuned model: which prompts, samplers and seeds, and how many.

    dermjax generate --config=configs/generate.py --workdir=runs/generate --config.model=runs/tune/model
    dermjax generate --config=configs/generate.py:demo --workdir=runs/generate --config.model=runs/tune/model \\
        --config.plan.images_per_class=300
    dermjax generate --config=configs/generate.py --workdir=runs/generate --config.model=v1-5-pruned.safetensors \\
        --config.lora=runs/tune/lora.safetensors
    dermjax generate --config=configs/generate.py --workdir=runs/varied --config.model=runs/tune/model \\
        --config.init.images=runs/prepare --config.init.strength=0.5

Leaves images/<label>/NNNNN.png and manifest.jsonl. The same command again goes on where it was.

Variants:
  paper (the default)  Derm-T2IM's 3000 + 3000 images at 512 px, for a tuned Stable Diffusion 1.x: its prompts, its
                       samplers, guidance 7, 20 steps (it says 20 to 26). Hardware: a GPU; a guided image of 20 steps
                       is 35 TFLOP.
  demo                 96 + 96 images at 128 px from a tuned derm-tiny. Hardware: 2 CPU cores, a few minutes.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `generate`; variant is None, "paper" or "demo"."""
    config = ConfigDict()
    config.model = ""  # a folder in diffusers' layout, as tune leaves it, a single .safetensors or .ckpt, or derm-tiny
    config.lora = ""  # a file in PEFT's or kohya's form, merged into the model
    config.lora_weight = 0.8  # 1 is as trained
    config.embeddings = ()  # files of textual inversion; prompts use their words, such as "a photo of <mole>"
    config.long_prompts = "refuse"  # or "chunk", as AUTOMATIC1111's program does beyond 77 tokens
    config.size = 0  # the side in pixels; 0 is the model's own
    config.init = ConfigDict({
        "images": "",  # to start from: a picture, or a manifest, whose training images of each class take turns
        "mask": "",  # white where to paint: a picture, or a folder with NAME.png for picture NAME; "" is everywhere
        "strength": 0.6,  # how far from them: 0.3 varies details, 1 leaves little; without images it does nothing
    })  # fmt: skip
    config.preview_every = 0  # steps between two looks at the batch being made, in preview.png; 0 is none
    config.plan = ConfigDict({
        "prompts": {"benign": ("benign mole",), "malignant": ("malignant mole",)},  # label -> prompts, which take turns
        "negative_prompt": "",
        "contrast": False,  # take the other classes' prompts, in turns, for the negative one
        "samplers": ("Euler", "Euler a", "PLMS"),  # which take turns; `dermjax samplers` lists them
        "images_per_class": 3000,
        "steps": 20,
        # leading, linspace, trailing, karras, exponential, or the sigmas themselves, "14.6 3.1 0.4 0" for three steps;
        "spacing": "",  # "" is the model's and the sampler's own
        "guidance": 7.0,  # 1 is none, and half the time
        "guidance_rescale": 0.0,  # 0 is none; 0.7 keeps a v-predicting model's contrast (arXiv 2305.08891)
        "guidance_interval": (),  # two sigmas between which alone to guide, such as (0.28, 5.42) (arXiv 2404.07724)
        "deep_cache": 1,  # evaluations that share the UNet's depths (DeepCache); 1 is exact, 3 about twice as fast
        "seed": 0,  # of the first image; the others count up from it
        "batch": 16,
    })  # fmt: skip
    if variant == "demo":
        config.plan.prompts.benign = ("a dermoscopy photo of a benign mole",)
        config.plan.prompts.malignant = ("a dermoscopy photo of a malignant mole",)
        config.plan.images_per_class = 96  # 64 a sampler: whole batches
        # away from the other class rather than from no prompt: measured, twice the effect of a short tuning
        config.plan.contrast, config.plan.guidance = True, 4.0
    elif variant not in (None, "paper"):
        raise ValueError(f"configs/generate.py has no variant {variant!r}; take paper or demo")
    return config
