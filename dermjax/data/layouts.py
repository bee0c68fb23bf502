"""How the public archives come: which columns of their tables hold what, and what each diagnosis counts as.

The rules for labels are RULES, and only they: melanoma, basal and squamous cell carcinoma are malignant, and so is
HAM10000's akiec, which holds intraepithelial carcinoma; an actinic keratosis on its own is indeterminate, as in the
ISIC archive. In the binary task what is indeterminate or unknown is left out and counted; with diagnoses as classes
only what is unknown is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

BENIGN, INDETERMINATE, MALIGNANT, UNKNOWN = "benign", "indeterminate", "malignant", ""
RULES = {
    "benign keratosis": BENIGN,
    "dermatofibroma": BENIGN,
    "nevus": BENIGN,
    "seborrheic keratosis": BENIGN,
    "vascular lesion": BENIGN,
    "actinic keratosis": INDETERMINATE,
    "actinic keratosis or carcinoma in situ": MALIGNANT,
    "basal cell carcinoma": MALIGNANT,
    "melanoma": MALIGNANT,
    "squamous cell carcinoma": MALIGNANT,
    # of archives that tell no diagnosis
    "benign": BENIGN,
    "indeterminate": INDETERMINATE,
    "malignant": MALIGNANT,
    "unknown": UNKNOWN,  # also Fitzpatrick17k's non-neoplastic: a rash is no lesion of either kind
}
LABELS = (BENIGN, MALIGNANT)
UNDIAGNOSED = ("benign", "indeterminate", "malignant", "unknown")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which columns name the image and its diagnosis, what the values mean, and what else is known.

    The diagnosis is the value of the first of `label` that is there and filled, by `meanings` (in lower case; None:
    the value itself is the class), or else the column of `one_hot` that is set, `rest` where none is.
    """

    image: str
    label: tuple[str, ...] = ()
    meanings: Mapping[str, str] | None = field(default_factory=dict)
    one_hot: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""
    known: Mapping[str, str] = field(default_factory=dict)  # field of a Record, or attribute -> column

    def fits(self, columns: set[str]) -> bool:
        """Whether a table with these columns is of this layout."""
        labelled = set(self.label) & columns or (self.one_hot and self.one_hot.keys() <= columns)
        return self.image in columns and bool(labelled)


def labels(classes: str, diagnoses: set[str]) -> tuple[str, ...]:
    """The class names in order: benign and malignant, or for "diagnoses" those that are there."""
    return LABELS if classes == "binary" else ordered(diagnoses)


def ordered(names: set[str]) -> tuple[str, ...]:
    """The class names in order, malignant ones last, as the last is the positive one; else by the alphabet.

    Names of RULES, "cancer" and the short names of the archives are known; what is not counts as benign.
    """
    order = (UNKNOWN, BENIGN, INDETERMINATE, MALIGNANT)
    return tuple(sorted(names, key=lambda name: (order.index(_nature(name) or BENIGN), name)))


def _nature(name: str) -> str:
    word = re.sub(r"[\W_]+", " ", name.lower()).strip()
    return RULES.get(SHORT.get(word, word), BENIGN)


def label(classes: str, diagnosis: str) -> str:
    """The class of a diagnosis, "" where it has none."""
    if classes == "diagnoses":
        return diagnosis if RULES[diagnosis] != UNKNOWN and diagnosis not in UNDIAGNOSED else ""
    return RULES[diagnosis] if RULES[diagnosis] in LABELS else ""


TARGET = {"0": "benign", "1": "malignant", "0.0": "benign", "1.0": "malignant"}
ARCHIVE = {name: name for name in LABELS} | {"indeterminate": "indeterminate"}
ARCHIVE |= {f"indeterminate/{name}": "indeterminate" for name in LABELS}  # older downloads
ISIC = {
    "lesion_id": "lesion_id",
    "patient_id": "patient_id",
    "age": "age_approx",
    "sex": "sex",
    "site": "anatom_site_general",
    "licence": "copyright_license",
    "attribution": "attribution",
    "device": "image_type",
    "fitzpatrick": "fitzpatrick_skin_type",
    "image_manipulation": "image_manipulation",
}
SEVEN = {
    "MEL": "melanoma",
    "NV": "nevus",
    "BCC": "basal cell carcinoma",
    "AKIEC": "actinic keratosis or carcinoma in situ",
    "BKL": "benign keratosis",
    "DF": "dermatofibroma",
    "VASC": "vascular lesion",
}
EIGHT = {name: SEVEN[name] for name in SEVEN if name != "AKIEC"} | {
    "AK": "actinic keratosis",
    "SCC": "squamous cell carcinoma",
    "UNK": "unknown",
}
# what tables and folders call diagnoses for short
SHORT = {code.lower(): name for code, name in (EIGHT | SEVEN).items()} | {
    "ack": "actinic keratosis", "cancer": "malignant", "sek": "seborrheic keratosis",
}  # fmt: skip
DIAGNOSES = {name: name for name in RULES if name} | SHORT  # in a table that is of no archive
HEADLESS = ("isic_2016_image", "isic_2016_label")  # that challenge's tables have no header

LAYOUTS = {
    "ham10000": Layout(
        image="image_id",
        label=("dx",),
        meanings={code.lower(): name for code, name in SEVEN.items()},
        known={"lesion_id": "lesion_id", "age": "age", "sex": "sex", "site": "localization", "device": "dataset"},
    ),
    "isic-2024": Layout(image="isic_id", label=("target", "malignant"), meanings=TARGET, known=ISIC),
    "isic-cli": Layout(image="isic_id", label=("diagnosis_1", "benign_malignant"), meanings=ARCHIVE, known=ISIC),
    "isic-2020": Layout(
        image="image_name",
        label=("target",),
        meanings=TARGET,
        known=ISIC | {"site": "anatom_site_general_challenge"},
    ),
    "isic-2019": Layout(image="image", one_hot=EIGHT, known=ISIC),
    "isic-2018": Layout(image="image", one_hot=SEVEN, known=ISIC),
    "isic-2017": Layout(
        image="image_id",
        one_hot={"melanoma": "melanoma", "seborrheic_keratosis": "seborrheic keratosis"},
        rest="nevus",
        known={"age": "age_approximate", "sex": "sex"},
    ),
    "isic-2016": Layout(image=HEADLESS[0], label=HEADLESS[1:], meanings=TARGET | ARCHIVE),
    "fitzpatrick17k": Layout(
        image="md5hash",
        label=("three_partition_label",),
        meanings={"benign": "benign", "malignant": "malignant", "non-neoplastic": "unknown"},
        known={"fitzpatrick": "fitzpatrick_scale"},
    ),
    "ddi": Layout(
        image="DDI_file",
        label=("malignant",),
        meanings={"true": "malignant", "false": "benign"},
        known={"fitzpatrick": "skin_tone"},
    ),
    "pad-ufes-20": Layout(
        image="img_id",
        label=("diagnostic",),
        meanings={
            "ack": "actinic keratosis",
            "bcc": "basal cell carcinoma",
            "mel": "melanoma",
            "nev": "nevus",
            "scc": "squamous cell carcinoma",
            "sek": "seborrheic keratosis",
        },
        known={
            "lesion_id": "lesion_id",
            "patient_id": "patient_id",
            "age": "age",
            "sex": "gender",
            "site": "region",
            "fitzpatrick": "fitspatrick",
        },
    ),
}
