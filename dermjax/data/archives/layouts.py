"""The layouts of public archives: which columns of their tables hold what, and what each diagnosis counts as.

The rules for labels are RULES, and only they: melanoma, basal and squamous cell carcinoma are malignant, and so is
HAM10000's akiec, which holds intraepithelial carcinoma; an actinic keratosis alone is indeterminate, as in the
ISIC archive. In the binary task what is indeterminate or unknown is left out and counted; with diagnoses as classes
only what is unknown is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dermjax.data.splits import spelled_alike
from dermjax.errors import UserError

BENIGN, INDETERMINATE, MALIGNANT, UNKNOWN = "benign", "indeterminate", "malignant", ""
RULES = {
    "benign keratosis": BENIGN,
    "dermatofibroma": BENIGN,
    "lentigo": BENIGN,
    "melanosis": BENIGN,
    "nevus": BENIGN,
    "other benign lesion": BENIGN,
    "seborrheic keratosis": BENIGN,
    "vascular lesion": BENIGN,
    "actinic keratosis": INDETERMINATE,
    "actinic keratosis or carcinoma in situ": MALIGNANT,
    "basal cell carcinoma": MALIGNANT,
    "melanoma": MALIGNANT,
    "other malignant lesion": MALIGNANT,
    "squamous cell carcinoma": MALIGNANT,
    # of archives without diagnoses
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
    the value itself is the class), or else the column of `one_hot` that is set, `rest` where none is. Some archives
    need more:
      by        the labelled tables name no image, and tables of images are joined to them by this column
      kind      the column that says how an image was taken: "dermoscopic", or anything else; where all are of one
                kind, none is left out for it
      images    the columns of images, by how they were taken, where a row names several
      wrong     the column, and its value, by which the archive says itself that a diagnosis is wrong
      numbered  the archive's own splits are tables of row numbers (NAME_indexes.csv), taken with config.own_splits
    """

    image: str
    label: tuple[str, ...] = ()
    meanings: Mapping[str, str] | None = field(default_factory=dict)
    one_hot: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""
    known: Mapping[str, str] = field(default_factory=dict)  # field of a Record, or attribute -> column
    by: str = ""
    kind: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    wrong: tuple[str, str] = ("", "")
    numbered: bool = False

    def fits(self, columns: set[str]) -> bool:
        """Whether a table with these columns is of this layout."""
        labelled = set(self.label) & columns or (self.one_hot and self.one_hot.keys() <= columns)
        return (self.by or self.image) in columns and bool(labelled)


def labels(classes: str, diagnoses: set[str]) -> tuple[str, ...]:
    """The class names in order: benign and malignant, or for "diagnoses" those that are there."""
    return LABELS if classes == "binary" else ordered(diagnoses)


def ordered(names: set[str]) -> tuple[str, ...]:
    """The class names in order, malignant ones last, as the last is the positive one; else by the alphabet.

    Names of RULES, "cancer" and the short names of the archives are known; what is not counts as benign.
    """

    def rank(name: str) -> tuple[int, str]:
        nature = RULES.get(diagnosis_of(name), BENIGN) or BENIGN
        return (BENIGN, INDETERMINATE, MALIGNANT).index(nature), name

    return tuple(sorted(names, key=rank))


def diagnosis_of(name: str) -> str:
    """What is the same of a class's name however it is written: its words alone, in full where it is a short name."""
    seen = spelled_alike(name)
    word = re.sub(r"[\W_]+", " ", seen).strip() or seen
    return SHORT.get(word, word)


def refuse_twins(names: Iterable[str], where: str) -> None:
    """UserError where class names differ in what people do not see, or are a diagnosis and its short name: they are
    meant as one."""
    first: dict[str, str] = {}
    for name in sorted(names):
        other = first.setdefault(diagnosis_of(name), name)
        if other != name:
            raise UserError(f"{where}: {other!a} and {name!a} are one class in two spellings; write them alike")


def label(classes: str, diagnosis: str) -> str:
    """The class of a diagnosis, "" where it has none, as "" has."""
    if not diagnosis:
        return ""
    if classes == "diagnoses":
        return diagnosis if diagnosis not in UNDIAGNOSED else ""
    return RULES[diagnosis] if RULES[diagnosis] in LABELS else ""


# how tables write that they do not know
NOTHING = ("", "-1", "nan", "none", "null", "unknown", "na", "n/a", "#n/a", "<na>", "nat", "?", "-")
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
TARGETS = TARGET | {"true": "malignant", "false": "benign", "yes": "malignant", "no": "benign"}
KINDS = ("dermoscopic", "clinical", "both")  # how images of archives that have several kinds were taken
# How tables of no archive name what is known, in any `tables.spelling`; that of images is known by what it names.
CLASS_COLUMNS = ("label", "labels", "class", "class_name", "category")  # whose values are the classes themselves
DIAGNOSIS_COLUMNS = ("diagnosis", "dx", "diagnostic", "disease", "diagnosis_1", "target", "malignant",
                     "benign_malignant")  # fmt: skip
KNOWN_COLUMNS = {
    "lesion_id": ("lesion_id", "lesion", "lesion_number", "lesion_no"),
    "patient_id": ("patient_id", "patient", "patient_number", "patient_no", "patient_code", "subject_id", "subject"),
    "split": ("split",),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "site": ("site", "localization", "location", "anatom_site_general"),
    "licence": ("licence", "license", "copyright_license"),
    "attribution": ("attribution",),
    "device": ("device", "camera", "image_type"),
    "fitzpatrick": ("fitzpatrick", "fitzpatrick_scale", "fitzpatrick_skin_type"),
    "image_manipulation": ("image_manipulation",),
    "caption": ("text", "caption", "prompt"),
}
DERM7PT = {  # its diagnoses, in full
    **{name: name for name in ("basal cell carcinoma", "dermatofibroma", "lentigo", "melanoma", "melanosis",
                               "seborrheic keratosis", "vascular lesion")},
    **dict.fromkeys([f"{kind} nevus" for kind in ("blue", "clark", "combined", "congenital", "dermal", "recurrent",
                                                  "reed or spitz")], "nevus"),
    **dict.fromkeys([f"melanoma {how}" for how in ("(in situ)", "(less than 0.76 mm)", "(0.76 to 1.5 mm)",
                                                   "(more than 1.5 mm)", "metastasis")], "melanoma"),
    "miscellaneous": "unknown",
}  # fmt: skip
DUPLICATES = ("image_name_1", "image_name_2")  # a publisher's list of pairs that show the same
INDEXES = ["indexes"]  # the one column of a table of row numbers
HEADLESS = ("isic_2016_image", "isic_2016_label")  # that challenge's tables have no header

LAYOUTS = {
    "ham10000": Layout(
        image="image_id",
        label=("dx",),
        meanings={code.lower(): name for code, name in SEVEN.items()},
        known={"lesion_id": "lesion_id", "age": "age", "sex": "sex", "site": "localization", "device": "dataset"},
    ),
    "isic-2024": Layout(image="isic_id", label=("target", "malignant"), meanings=TARGET, known=ISIC),
    "isic-cli": Layout(
        image="isic_id",
        label=("diagnosis_1", "benign_malignant"),
        meanings=ARCHIVE,
        known=ISIC,
        kind="image_type",  # histopathology and confocal microscopy are there too
    ),
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
        wrong=("qc", "3 Wrongly labelled"),
        known={"fitzpatrick": "fitzpatrick_scale"},
    ),
    "milk10k": Layout(
        image="isic_id",
        by="lesion_id",
        kind="image_type",
        one_hot={
            **{name: SEVEN[name] for name in ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")},
            "BEN_OTH": "other benign lesion",
            "INF": "unknown",  # inflammation and infection are no lesion of either kind
            "MAL_OTH": "other malignant lesion",
            "SCCKA": "squamous cell carcinoma",
        },
        known=ISIC | {"site": "site", "skin_tone_class": "skin_tone_class"},
    ),
    "derm7pt": Layout(
        image="derm",
        images={"dermoscopic": "derm", "clinical": "clinic"},
        label=("diagnosis",),
        numbered=True,
        meanings=DERM7PT,
        known={"lesion_id": "case_num", "sex": "sex", "site": "location"},
    ),
    "ddi": Layout(
        image="DDI_file",
        label=("malignant",),
        meanings={"true": "malignant", "false": "benign"},
        known={"fitzpatrick": "skin_tone"},
    ),
    "ph2": Layout(
        image="Name",
        label=("Clinical Diagnosis",),
        meanings={"0": "nevus", "1": "nevus", "2": "melanoma"},  # a common nevus, an atypical one
    ),
    "pad-ufes-20": Layout(
        image="img_id",
        label=("diagnostic",),
        meanings={code: SHORT.get(code, "nevus") for code in ("ack", "bcc", "mel", "nev", "scc", "sek")},
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
