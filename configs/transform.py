"""Existing images transformed: lesions larger, smaller, more, on another skin; each change measured.

    dermjax transform --config=configs/transform.py --workdir=runs/transform --config.model=runs/tune/model \\
        --config.images=runs/prepare --config.limit=20
    dermjax transform --config=configs/transform.py:demo --workdir=runs/transform --config.images=mole.png \\
        --config.label=benign --config.transformations="('larger', 'dark skin')"

Leaves images/<way>/<transformation>/<label>/DIGEST.png, named by the bytes of what each was made of, a mask of the
lesions of each in masks/, what they started from in sketches/ and regions/, manifest.jsonl, transformations.json, which
says what DIGEST is of, and report.html.

Variants:
  default  for a tuned Stable Diffusion 1.x. Hardware: a GPU
  demo     derm-tiny, 20 images a class. Hardware: 2 CPU cores, about five minutes
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `transform`; variant is None or "demo"."""
    config = ConfigDict()
    config.model = ""  # as for `generate`
    config.lora = ""
    config.lora_weight = 0.8
    config.images = ""  # a picture, or a manifest, whose kept training images are taken
    config.label = ""  # the class that a single picture shows
    config.limit = 0  # at most this many images of each class; 0 takes all
    config.masks = ""  # folder with a mask for each image, NAME.png, white on lesions; "" is segmentation
    # of: larger, smaller, more, and "pale skin", "light skin", "intermediate skin", "tan skin", "dark skin"
    config.transformations = ("larger", "smaller", "more", "pale skin", "dark skin")
    # of: prompt (the words of a generated image, same seed), image_to_image, inpaint (the rest keeps its pixels)
    config.ways = ("inpaint",)
    config.factor = 1.5  # how many times as wide, or as narrow, lesions are sketched
    config.prompt = "dermoscopy of {number} {size} {label} mole(s)[, {tone} skin]"  # filled with what is sketched
    config.negative_prompt = ""
    # how far from the sketch: 0.3 varies details, 1 leaves little; the later ones until a change is reached
    config.strengths = (0.5, 0.35, 0.2)
    config.sampler = "DPM++ 2M"
    config.steps = 20
    config.guidance = 5.0
    config.size = 0  # the side in pixels; 0 is the model's own
    config.precision = ""  # of the arithmetic: float32, bfloat16 or float16; "" is float32 on a CPU, else bfloat16
    config.seed = 0
    config.batch = 8
    # i/n, part i of n from 0 on, in a folder of its own, for `dermjax merge` to join. "" is the part that an array job
    # of Slurm, Kubernetes or SkyPilot gave this process, else the whole; "0/1" is the whole in any case
    config.part = ""
    config.tone_tolerance = 5.0  # degrees that skin may be outside of what its word stands for
    config.gallery = 12  # pairs that the report shows of each transformation and way
    if variant == "demo":
        config.model = "derm-tiny"
        config.limit = 20
        config.precision = "float32"
        config.prompt = "dermoscopy of {number} {size} mole(s)[, {tone} skin]"
        config.sampler = "Euler a"
        config.guidance = 3.5
        config.batch = 16
    elif variant is not None:
        raise ValueError(f"configs/transform.py has no variant {variant!r}; leave it out or take demo")
    return config
