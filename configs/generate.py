"""Synthetic lesions from a tuned model: which prompts, words, samplers and seeds, and how many.

    dermjax generate --config=configs/generate.py --config.model=runs/tune/model --dry_run
    dermjax generate --config=configs/generate.py --config.model=runs/tune/model --workdir=runs/generate
    dermjax generate --config=configs/generate.py:balanced_tones --workdir=runs/even --config.model=runs/gentle/model \\
        --config.plan.words.tone.dark=2 --config.plan.images_per_class=500
    dermjax generate --config=configs/generate.py --workdir=runs/generate --config.model=v1-5-pruned.safetensors \\
        --config.lora=runs/tune/lora.safetensors
    dermjax generate --config=configs/generate.py --workdir=runs/varied --config.model=runs/tune/model \\
        --config.init.images=runs/prepare --config.init.strength=0.5

The first one prints what would be made and how long it takes. The others leave images/<label>/NNNNN.png and
manifest.jsonl; the same command again goes on where it was. Several processes (see launch/) share the work.

Variants:
  paper (the default)  Derm-T2IM's 3000 + 3000 images at 512 px, for a tuned Stable Diffusion 1.x: its prompts, its
                       samplers, guidance 7, 20 steps (it says 20 to 26). Hardware: a GPU; a guided image of 20 steps
                       is 35 TFLOP.
  released             the prompts and samplers of the 200 images that Derm-T2IM released, these in their shares.
  balanced_tones       3000 + 3000 images at 128 px from a derm-tiny that was tuned gently on captions: every tone of
                       skin, number and size beside every other as often as it should, the class by how its lesions
                       look. Hardware: 2 CPU cores, about 20 minutes. Such a model is made by
                           dermjax tune --config=configs/tune.py:tiny --workdir=runs/gentle \\
                               --config.manifest=runs/prepare --config.rate=1e-3 --config.steps=160 \\
                               --config.prompts.benign={caption} --config.prompts.malignant={caption}
  tiny                 8 + 8 images from derm-tiny, to see a plan at work. Hardware: 2 CPU cores, half a minute.
  training             600 + 600 images to train a classifier with, not to look at: guidance of 1.5, which leaves the
                       variety of photographs, and samplers of several kinds. --config.init.images=runs/prepare
                       --config.init.strength=0.7 has helped most, and leaves near-copies that curate's config.features
                       finds (README, "Does it help?"). Make several sets and let validation photographs choose
                       (configs/study.py, config.sets).
  demo                 96 + 96 images at 256 px from a tuned derm-base. Hardware: 2 CPU cores, a few minutes.
"""

from ml_collections import ConfigDict

LESION = "dermoscopy of [{number} ][{size} ]mole(s)"
BALANCED = {
    "precision": "float32",
    "plan.prompts.benign": (f"{LESION} with smooth borders, uniform colour[, {{tone}} skin]",),
    "plan.prompts.malignant": (f"{LESION} with irregular borders, mottled[, {{tone}} skin]",),
    "plan.words": {
        "number": {"one": 2, "two": 1, "three": 1},
        "size": {"tiny": 1, "small": 1, "medium": 1, "large": 1},
        "tone": {"pale": 1, "light": 1, "intermediate": 1, "tan": 1, "dark": 1},
    },
    "plan.guidance": 5.0,
    "plan.batch": 8,
}
VARIANTS = {  # what each has instead of the paper's
    "paper": {},
    "released": {
        "plan.prompts.malignant": ("malignant mole", "malignant skin mole"),
        "plan.samplers": 109 * ("Euler a",)
        + 43 * ("DPM++ 2M SDE Karras",)
        + 25 * ("Euler",)
        + 22 * ("Heun",)
        + ("DPM++ 2S a",),
        "plan.images_per_class": 100,
    },
    "balanced_tones": BALANCED,
    "tiny": BALANCED
    | {
        "model": "derm-tiny",
        "plan.samplers": ("Euler a",),
        "plan.images_per_class": 8,
    },
    "training": {
        "plan.prompts.benign": ("dermoscopy photo of a benign mole",),
        "plan.prompts.malignant": ("dermoscopy photo of a malignant mole",),
        "plan.images_per_class": 600,
        "plan.samplers": ("Euler a", "DPM++ 2M", "DDIM"),
        "plan.steps": 30,
        "plan.guidance": 1.5,
        "plan.batch": 16,
    },
    "demo": {
        "precision": "float32",
        "plan.prompts.benign": ("a dermoscopy photo of a benign mole",),
        "plan.prompts.malignant": ("a dermoscopy photo of a malignant mole",),
        "plan.images_per_class": 96,  # 32 a sampler: whole batches
        # away from the other class rather than from no prompt: measured, twice the effect of a short tuning
        "plan.contrast": True,
        "plan.guidance": 4.0,
        "plan.batch": 8,
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `generate`; variant is None or one of VARIANTS."""
    if variant not in (None, *VARIANTS):
        raise ValueError(f"configs/generate.py has no variant {variant!r}; it has: {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.model = ""  # a folder as tune leaves it (diffusers'), a single .safetensors or .ckpt, derm-base or derm-tiny
    config.lora = ""  # a file in PEFT's or kohya's form, merged into the model; pipe.load_lora_weights
    config.lora_weight = 0.8  # 1 is as trained; diffusers' lora_scale
    config.embeddings = ()  # files of textual inversion; prompts use their words, such as "a photo of <mole>"
    config.long_prompts = "refuse"  # or "chunk", as AUTOMATIC1111's program does beyond 77 tokens
    config.size = 0  # the side in pixels, diffusers' height and width; 0 is the model's own
    config.precision = ""  # of the arithmetic: float32, bfloat16 or float16; "" is float32 on a CPU, else bfloat16
    config.init = {
        # to start from: a picture, or a manifest, whose training images of each class take turns, as in plan.match
        "images": "",
        "mask": "",  # white where to paint: a picture, or a folder with NAME.png for picture NAME; "" is everywhere
        "strength": 0.6,  # how far from them: 0.3 varies details, 1 leaves little; without images it does nothing
    }
    # i/n, part i of n from 0 on, in a folder of its own, for `dermjax merge` to join. "" is the part that an array job
    # of Slurm, Kubernetes or SkyPilot gave this process, else the whole; "0/1" is the whole in any case
    config.part = ""
    config.shard = 0  # images a file in WebDataset's form, held in memory until it is whole; 0 is a PNG file each
    config.preview_every = 0  # steps between two previews of the batch being made, in preview.png; 0 is none
    config.credentials = {  # PEM files to sign C2PA manifests with; "" is none
        "certificate": "",
        "key": "",
    }
    config.plan = {
        # label -> prompts, which are taken in turns; "a [{size} ]{label} mole(s)[, {site}]" has gaps that are filled,
        # and clauses in brackets that are left out where nothing fills them
        "prompts": {
            "benign": ("benign mole",),
            "malignant": ("malignant mole",),
        },
        "words": ConfigDict(),  # gap -> word -> weight, such as {"size": {"": 1, "large": 3}}; "" leaves it unsaid
        "quotas": ConfigDict(),  # at least so many: {"rare": {"images": 90, "label": "malignant", "size": "large"}}
        "match": "",  # a manifest whose images' attributes fill the other gaps, {site} or {skin_tone.group}, as they do
        "negative_prompt": "",  # diffusers' negative_prompt
        "contrast": False,  # take the other classes' prompts, in turns, for the negative one
        "samplers": ("Euler", "Euler a", "PLMS"),  # taken in turns; `dermjax samplers` lists them with diffusers' names
        "images_per_class": 3000,
        "images_of": ConfigDict(),  # label -> how many, where that is another number
        "steps": 20,  # diffusers' num_inference_steps
        # "" is the model's and the sampler's own; leading, linspace, trailing (diffusers' timestep_spacing), karras,
        # exponential (use_karras_sigmas, …), or the sigmas themselves, "14.6 3.1 0.4 0" for three steps
        "spacing": "",
        "guidance": 7.0,  # diffusers' guidance_scale, AUTOMATIC1111's CFG scale; 1 is none, and half the time
        "guidance_rescale": 0.0,  # 0 is none; 0.7 keeps a v-predicting model's contrast (arXiv 2305.08891)
        "guidance_interval": (),  # two sigmas between which alone to guide, such as (0.28, 5.42) (arXiv 2404.07724)
        "deep_cache": 1,  # evaluations that share the UNet's depths (DeepCache); 1 is exact, 3 about twice as fast
        "seed": 0,  # of the first image; the others count up from it
        "batch": 16,  # images that a device makes at a time; a CPU makes no more than two of a large model
    }
    config.update_from_flattened_dict(VARIANTS[variant or "paper"])
    return config
