"""Numbers with intervals, and the page that people look at.

    dermjax evaluate --config=configs/evaluate.py --workdir=runs/evaluate \\
        --config.prepared=runs/prepare --config.generated=runs/generate --config.curated=runs/curate \\
        --config.tuning=runs/tune --config.runs.vit_real=runs/vit_real --config.runs.vit_hybrid=runs/vit_hybrid

Hardware: one CPU core, under a minute. Leaves results.json (every number) and report.html (one self-contained page).
Variants: default; `demo`, which has a few pictures less for a few hundred images; `images`, which judges the synthetic
images themselves: fidelity, variety, copies, label, use and shortcuts, in the features of a frozen network, each figure
beside that of real images:

    dermjax evaluate --config=configs/evaluate.py:images --workdir=runs/evidence \\
        --config.real=runs/prepare --config.synthetic=runs/curate --config.features=DINOV2_FOLDER

The synthetic images may be anybody's: `prepare` with --config.synthetic=True makes a manifest of a folder of them.
Hardware: one CPU core, 25 images a second. Its line of results.json can stand in a table of generators.
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `evaluate`; variant is None, "demo" or "images"."""
    config = ConfigDict()
    if variant == "images":
        config.title = "Synthetic lesions beside real ones"
        config.name = ""  # in the line for a table of generators; "" is the workdir's
        config.real = ""  # manifest of real images: the generator saw train, and neither validation nor test
        config.synthetic = ""  # manifest of the images that it made; those that curation rejected are left out
        # the network: a folder of DINOv2 (the protocol's), another ViT, MobileNetV2 or transformers' CLIP, or the file
        # of the InceptionV3 of the Frechet inception distance, pt_inception-2015-12-05
        config.features = ""
        # what sets are compared by: "class" is DINOv2's class token (arXiv 2306.04675), half of its features, so that
        # fewer images mean something; "all" has the mean of its patches besides
        config.tokens = "class"
        # another set beside it: a manifest, or the workdir of its evaluation; "" is none. Figures of whole sets are
        # of as many images as both have
        config.compare = ""
        config.table = ""  # file of lines of several sets, that this one's is added to; "" is none
        # the tuned model, runs/tune/model, to ask what it gives away of its training images; "" asks none
        config.model = ""
        # the prompt that it was tuned with, {label} for the class; "" takes that of the run that left the model
        config.prompt = ""
        config.size = 0  # pixels that it was tuned at; 0 is its own
        config.draws = 8  # noises that it is asked at
        config.seed = 0
        config.bootstrap = ConfigDict({"resamples": 2000, "seed": 0, "smallest": 10})
        config.gallery = 8  # pictures a row
        return config
    config.title = "dermjax: synthetic lesions and the classifiers trained with them"
    config.prepared = ""  # manifest of the real images; its test split is what everything is judged on
    config.generated = ""  # manifest of the synthetic images as they came; "" leaves its section out
    config.curated = ""  # the same after curation; "" leaves its sections out
    config.tuning = ""  # workdir of tune, for its loss curve; "" leaves it out
    # workdirs of finished classify runs, or folders with the predictions.csv of `classify --predict`, named
    # <classifier>_<arm>; "" leaves a run out, "real" is the baseline
    config.runs = ConfigDict({"vit_real": "", "vit_hybrid": "", "mobilenetv2_real": "", "mobilenetv2_hybrid": ""})
    config.bootstrap = ConfigDict({
        "resamples": 2000,
        "seed": 0,
        "smallest": 10,  # patients, lesions or images of a class below which no interval is given
    })  # fmt: skip
    config.isic = False  # also isic/<run>.csv, as the ISIC challenge takes predictions
    config.gallery = 12  # pictures a row
    if variant == "demo":
        config.title = "dermjax demo: synthetic lesions and the classifiers trained with them"
        config.gallery = 8
    elif variant is not None:
        raise ValueError(f"configs/evaluate.py has no variant {variant!r}; it has: demo, images")
    return config
