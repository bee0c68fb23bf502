"""Scores and reasons on every synthetic image; what is rejected stays where it is.

    dermjax curate --config=configs/curate.py --workdir=runs/curate \\
        --config.manifest=runs/generate --config.training=runs/prepare
    dermjax curate --config=configs/curate.py:calibration --workdir=runs/calibration

Hardware: one CPU core, about 20 images a second. Leaves manifest.jsonl (scores and reasons), report.html and
looks.jsonl, from which the same command with other verdicts goes on in seconds.

Variants:
  default      every reason rejects
  demo         derm-base on phantoms, which have artefacts by design: those are noted and do not reject, and the limit
               of blur is below what its small decoder gives. Fewer pictures.
  calibration  judges nothing: precision and recall of the detectors on 2000 phantoms, in calibration.json, two minutes
"""

from ml_collections import ConfigDict


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `curate`; variant is None, "demo" or "calibration"."""
    config = ConfigDict()
    config.manifest = ""  # of the images to judge
    config.training = ""  # of the real images: the generator saw train, limits are checked on validation
    config.verdicts = ""  # a file of what a person said of images, one JSON object a line; it overrides every rule
    config.classifier = ""  # one that `classify` trained on real images only, to say whether the label shows; "" none
    # a folder of DINOv2, any ViT or MobileNetV2, in whose features copies are looked for too; "" for none. Nearer than
    # all but `tail` of held-out real images come to a training image is too near
    config.features = ""
    # pixels a side at which images, whatever their own size, are measured: a multiple of 64, as 192 or 256 and not 224;
    # limits are measured at 128
    config.size = 128
    config.sample = 500  # real images that limits are drawn from; copies are looked for among all of the training ones
    config.noted = ()  # reasons that are counted and do not reject, such as ("hairs", "ruler")
    config.thresholds = ConfigDict({
        "tail": 0.01,  # share of the real images that counts as extreme
        "contrast": 0.6,  # blank: borders so much fainter than the faintest of training images
        "structure": 0.5,  # noise: half the structure of the least ordered ones
        "cast": 1.25,  # colour cast: a quarter further out than the oddest ones
        # limits of scores, for which curation/calibration.json has precision and recall
        "sharpness": -0.69,  # blur: phantoms out of focus lie below
        "hairs": 0.15,  # 0.6 % of the field under strands
        "ruler": 0.3,
        "dark_corners": 0.4,
        "ink": 0.07,  # 0.2 % of the field under strokes of a pen
        "gel": 0.35,
        "number": 1.0,  # lesions more or less than the prompt says
        "tone": 5.0,  # degrees of the typology angle outside of what the prompt's word stands for
        "label": 0.05,  # other class: less probable than to all but so many held-out real images of their own class
        "bits": 46,  # copies: largest hash distance, of 256; less where held-out images lie closer
    })  # fmt: skip
    # i/n, part i of n from 0 on, in a folder of its own, for `dermjax merge` to join. "" is the part that an array job
    # of Slurm, Kubernetes or SkyPilot gave this process, else the whole; "0/1" is the whole in any case
    config.part = ""
    config.gallery = 48  # pictures a section of the report
    config.hits = 40  # pictures of the first images that each rule speaks against
    config.phantoms = 0  # how many to measure the detectors on, instead of judging
    if variant == "demo":
        config.gallery = 24
        config.hits = 8
        config.noted = ("hairs", "ruler", "dark_corners", "ink", "gel")
        config.thresholds.sharpness = -1.0
    elif variant == "calibration":
        config.phantoms = 2000
    elif variant is not None:
        raise ValueError(f"configs/curate.py has no variant {variant!r}; it has: demo, calibration")
    return config
