"""A curated data set as others take it: images in the forms that loaders read, each with its card and Croissant file.

    dermjax publish --config=configs/publish.py --workdir=runs/published --config.manifest=runs/curate \\
        --config.training=runs/prepare --config.evaluation=runs/evaluate --config.name=my-synthetic-lesions

Hardware: one CPU core, some hundred images a second. Leaves README.md (the card), manifest.jsonl and a folder a form,
each with the card and croissant.json, ready to be uploaded. Only images that curation kept are published.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `publish`."""
    config = ConfigDict()
    config.manifest = ""  # of `curate`: what is kept is published, and the card counts what is not
    config.training = ""  # of the images that the generator was tuned on: their sources and licences go on the card
    config.evidence = ""  # folder of `evaluate`, variant images, of these images; "" leaves them out
    config.evaluation = ""  # folder of `evaluate`, whose figures go on the card; "" leaves them out
    config.name = "synthetic-skin-lesions"
    # on the card, in Croissant and in every row
    config.licence = "research use only; the licences of the sources below hold as well"
    config.contact = ""  # whom to write to about the data set
    config.forms = ("imagefolder", "webdataset", "array_record")
    return config
