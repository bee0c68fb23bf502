"""Do synthetic images help? Arms x classifiers x seeds x few-shot sizes, one page of answers.

    dermjax study --config=configs/study.py --workdir=runs/study --config.manifest=runs/prepare \\
        --config.classifiers.vit.init=DINOV2_FOLDER --config.classifiers.mobilenetv2.init=MOBILENETV2_FOLDER

tunes a generator on the training split, draws and curates its images, and trains every cell. With --config.synthetic
and --config.training (the manifest that their generator was tuned on) it takes images that are there. The same command
on several hosts shares the cells; the same command again does what is missing.
Variants:
  frozen   (the default) linear probes on frozen features; 60 cells in five minutes of 2 CPU cores, besides the features
  last     the last two blocks and the head; an hour or more
  full     all of both classifiers; GPUs
  few      frozen, a clinic with 25, 50, 100 or 200 labelled lesions a class and somebody else's generator: ten draws of
           each, real images alone beside seven ways with synthetic ones, of which validation images choose one. Give
           --config.synthetic and --config.training
  own      the same with a generator for each size and draw that sees no other image: derm-base, tuned until held-out
           photographs say stop, and images that begin at its photographs. Ten draws of four sizes are forty tunings of
           about a quarter of an hour of 2 CPU cores, by one host; --config.shots and --config.seeds make them fewer
  folds    frozen, five folds of --config.prepare.images=DIR, each with a generator of its own
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `study`; variant is None, "frozen", "last", "full", "few", "own" or "folds"."""
    config = ConfigDict()
    config.title = "dermjax study: do synthetic lesions help a classifier?"
    config.manifest = ""  # real images; their test split is what everything is judged on
    config.synthetic = ""  # curated synthetic images; "" tunes a generator on the training split and makes them
    config.training = ""  # the manifest that the generator of `synthetic` was tuned on
    # further sets of curated synthetic images by name, for arms as hybrid_3@gentle: of another guidance, sampler or
    # start. Their generators saw no other real images than that of `training`
    config.sets = ConfigDict()
    config.folds = 0  # k: prepare k folds of prepare.images, each with a generator of its own, in place of `manifest`
    config.arms = ("real_equal_steps", "real", "synthetic", "hybrid_1", "hybrid_3", "real_tested_on_synthetic")
    config.baseline = "real_equal_steps"  # what every other arm is compared with
    config.shots = (50, 200)  # real training images a class; 0 is all
    config.rare = ConfigDict()  # class -> its real training images where they are fewer, {"malignant": 25}
    # subgroups that no real training image of a classifier is of, {"tone": ("dark", "brown")}, by tone, sex, age, site
    # or source. A generator that is tuned on all of them may be asked for what is missing
    config.without = ConfigDict()
    # whose real images the study's own generator sees: "all" of the training split, or the "shots" of each cell alone,
    # one generator for every few-shot size and seed
    config.generator_sees = "all"
    # what the study's own generator begins an image at: "noise", or "photographs", the real ones that it sees, each in
    # turn, from generate.init.strength on
    config.generator_begins = "noise"
    config.seeds = (0, 1, 2)
    config.tests = {  # manifests of further test sets; "" for none
        "isic": "",
        "ham10000": "",
        "other": "",
    }
    config.prompt = "dermoscopy of a {label} mole"
    config.prepare = _of("prepare", "demo")
    config.prepare.images = ""
    config.tune = _of("tune", "demo")
    config.tune.prompts = ConfigDict()  # made of `prompt` for the classes that there are
    config.generate = _of("generate", "demo")
    config.generate.plan.prompts = ConfigDict()
    config.generate.plan.images_per_class = 600
    config.curate = _of("curate", "demo")
    config.classifiers = {
        "vit": _of("classify", "probe"),
        "mobilenetv2": _of("classify", "probe"),
    }
    config.classifiers.mobilenetv2.classifier = "mobilenetv2"
    config.classifiers.mobilenetv2.size = 160
    config.bootstrap = {
        "resamples": 2000,
        "seed": 0,
        "smallest": 10,  # patients, lesions or images of a class below which no interval is given
    }
    config.gallery = 6  # pictures a row
    if variant == "last":
        for each in config.classifiers.values():
            each.recipe = "last"
            each.rate = 1e-4
            each.weight_decay = 0.05
            each.batch = 32
            each.steps = 240
            each.warmup = 24
    elif variant == "full":
        config.classifiers = {"vit": _of("classify", "vit"), "mobilenetv2": _of("classify", "mobilenetv2")}
        config.shots = (0,)
    elif variant in ("few", "own"):
        config.shots = (25, 50, 100, 200)
        config.seeds = tuple(range(10))
        config.arms = ("real_equal_steps", "real_augmented", "synthetic", "synthetic_then_real", "hybrid_1", "hybrid_3")
        config.arms += ("all_1", "all_3", "all_1_light")
        if variant == "own":
            config.generator_sees, config.generator_begins = "shots", "photographs"
            _few_photographs(config)
    elif variant == "folds":
        config.folds = 5
        config.shots = (0,)
    elif variant not in (None, "frozen"):
        raise ValueError(f"configs/study.py has no variant {variant!r}; it has: frozen, last, full, few, own, folds")
    return config


def _few_photographs(config: ConfigDict) -> None:
    """A generator for 50 to 400 photographs: a short tuning with many looks, and images that vary photographs."""
    config.tune = _of("tune", "photographs")
    config.tune.prompts = ConfigDict()
    config.tune.steps = 600
    config.tune.ema_decay = 0.99
    config.tune.watch_every = 100
    config.tune.patience = 200
    config.generate = _of("generate", "training")
    config.generate.plan.prompts = ConfigDict()
    config.generate.plan.images_per_class = 200
    config.generate.plan.steps = 20
    config.generate.init.strength = 0.7
    config.prompt = "dermoscopy photo of a {label} mole"


def _of(stage: str, variant: str) -> ConfigDict:
    return runpy.run_path(str(Path(__file__).parent / f"{stage}.py"))["get_config"](variant)
