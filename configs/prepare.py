"""Labelled images, or phantoms, to a manifest with leak-free splits.

    dermjax prepare --config=configs/prepare.py --config.images=DIR --workdir=runs/prepare
    dermjax prepare --config=configs/prepare.py:phantoms --workdir=runs/prepare

DIR holds class/*.jpg, or train/class/*.jpg, test/class/*.jpg and, if it likes, validation/class/*.jpg, or a download
with its tables (isic-cli, HAM10000, ISIC 2016 to 2020 and 2024 with its HDF5 file, MILK10k, Derm7pt, Fitzpatrick17k,
DDI, PAD-UFES-20, PH2), or a Hugging Face imagefolder, or is a data set of tensorflow-datasets; it is read and never
written. Any other table is read where a column of it names the images below, at any depth; columns that are not known
are given:

    --config.columns.image=file --config.columns.label=diagnosis --config.columns.patient_id=patient

Masks beside images (ISIC_0000000_segmentation.png, masks/ISIC_0000000.png, a PNG of two levels named like its JPEG) are
kept as the masks of their images. Links are followed. JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000 and AVIF are read;
HEIC, DICOM and HDF5 with the extra formats.

Several archives become one manifest; what one has in its test split is set aside from the training of the others:

    --config.images=HAM10000,ISIC2019,our_clinic

Images that another program made become the manifest that `curate`, `evaluate` and the classifiers take as synthetic:

    dermjax prepare --config=configs/prepare.py --config.images=DIR --config.synthetic=True --workdir=runs/made

A killed run goes on where it was. Hardware: one CPU core; about 90 photographs (450 without attributes) or 100 phantoms
a second. Leaves manifest.jsonl and report.html in the workdir, examined.jsonl, which spares an audit the decoding,
thumbnails/ by digest, and images/ of phantoms and of photographs without hairs, data_set_images/ of data sets that have
no image files.
Variants: default, for a folder; `phantoms`; `demo`, the phantoms of the demo.
"""

from ml_collections import ConfigDict

ATTRIBUTES = ("age", "sex", "site", "device", "fitzpatrick", "attribution")


def get_config(variant: str | None = None) -> ConfigDict:
    """The config of `prepare`; variant is None, "phantoms" or "demo"."""
    config = ConfigDict()
    config.images = ""  # a folder, several with commas between them, or "phantoms"
    config.layout = "detect"  # or a name, as printed: isic-cli, ham10000, isic-2016 ..., folders, table, tfds
    config.positive = ""  # the class that sensitivity is about; "" takes the malignant one, or the last by the alphabet
    config.classes = "binary"  # benign and malignant; or "diagnoses", where the tables tell them
    config.image_kind = "dermoscopic"  # where an archive has both, as MILK10k and Derm7pt: or "clinical", "both"
    config.own_splits = False  # True: Derm7pt's own, by its meta/*_indexes.csv
    # Columns of a table, in place of those of its layout. What `label` says is then the class, empty ones left out;
    # what `diagnosis` says, such as melanoma or mel, is benign or malignant by the rules of data/archives/layouts.py.
    config.columns = ConfigDict(
        dict.fromkeys(("image", "label", "diagnosis", "split", "lesion_id", "patient_id", "licence", *ATTRIBUTES), "")
    )
    config.synthetic = False  # True: a model made these images; all are for training, and marked wherever they go
    config.limit = 0  # at most this many images, or phantoms, of each class in each split folder; 0 takes all
    config.on_bad_image = "fail"  # or "skip": left out, counted and listed in the report
    config.ratios = ConfigDict({"validation": 0.1, "test": 0.2})  # shares carved out where the folder has no such split
    config.stratified = False  # True: shares exact in each class and source; then give `previous` when images are added
    config.previous = ""  # manifest of an earlier run, whose images keep their sides
    config.folds = 0  # k: the test split is fold `fold` of k, in place of ratios.test
    config.fold = 0
    config.attributes = True  # skin tone and artefact scores of every photograph, 9 ms each on one core
    config.remove_hairs = False  # True: copies without dark hairs, as Derm-T2IM prepared its photographs (DullRazor)
    config.seed = 0
    config.size = 128  # side of phantoms in pixels; photographs stay as they are
    config.phantoms_per_class = 1000
    if variant in ("phantoms", "demo"):
        config.images = "phantoms"
    elif variant is not None:
        raise ValueError(f"configs/prepare.py has no variant {variant!r}; leave it out or take phantoms or demo")
    if variant == "demo":
        config.size = 256
        config.phantoms_per_class = 600  # 402 to train, 60 to validate, 138 to test
        config.ratios.test = 0.23
    return config
